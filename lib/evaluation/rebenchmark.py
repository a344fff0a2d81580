"""One model before and after a training step, on the same prompts: what moved, and what moved it.

Two identities split a change into parts, prompt by prompt. Consistency is agreement on a right
answer plus agreement on a wrong one: the share of the most frequent answer, booked by whether it is
right. The accuracy of one sample, pass@1, is that of the majority, maj@k, plus what sampling around
it loses or wins. So a model that only says its old answers more steadily shows more agreement on
both kinds, and no change of maj@k or of its greedy accuracy.
"""

from __future__ import annotations

from collections import Counter

from lib import stats
from lib.evaluation import benchmark, consistency, grade

# column -> (how a reader calls it, unit)
MEASURES = {
    "consistency": ("consistency", "share"),
    "right_agreement": ("... on a right answer", "share"),
    "wrong_agreement": ("... on a wrong answer", "share"),
    "to_greedy": ("samples equal to the old greedy answer", "share"),
    "pass_at_1": ("pass@1", "share"),
    "maj_at_k": ("... of it maj@k", "share"),
    "sampling_loss": ("... of it sampling around the majority", "share"),
    "pass_at_k": ("pass@k", "share"),
    "unreadable": ("samples without a readable answer", "share"),
    "agreement": ("pairwise agreement", "share"),
    "string_consistency": ("consistency by string equality", "share"),
    "entropy": ("answer entropy", "bits"),
    "tokens": ("tokens a sample", "tokens"),
}


def measured(items: list[dict], rows: dict[str, list[dict]], greedy: dict[str, dict]):
    """Every measure of every prompt: `consistency.measure` with the parts of the two identities.

    rows: {item id: samples in order}, of `consistency.read_samples`; items without samples are left
    out.
    greedy: {item id: grade} of the greedy answers that samples are held against, of
    `answers.graded`.
    """
    known = [item for item in items if item["id"] in rows]
    texts = [[row["text"] for row in rows[item["id"]]] for item in known]
    graded = grade.grade_all(known, texts, progress=False)
    frame = consistency.measure(known, graded, texts)
    frame["tokens"] = [_mean([row["tokens"] for row in rows[item["id"]]]) for item in known]
    found = {
        name: own.sort_values("sample")["answer"].tolist()
        for name, own in graded.groupby("id", sort=False)
    }
    frame["to_greedy"] = [_equal(item, found[item["id"]], greedy.get(item["id"])) for item in known]
    if "maj_at_k" in frame:
        frame["right_agreement"] = frame["consistency"] * frame["maj_at_k"]
        frame["wrong_agreement"] = frame["consistency"] - frame["right_agreement"]
        frame["sampling_loss"] = frame["pass_at_1"] - frame["maj_at_k"]
    return frame


def _equal(item: dict, found: list, grade_of_greedy: dict | None) -> float | None:
    """Share of the answers that are equivalent to the greedy one; None where there is no readable
    greedy answer."""
    if grade_of_greedy is None or grade_of_greedy["answer"] is None:
        return None
    classes = grade.classes_of(
        item, [grade_of_greedy["answer"], *(None if a != a else a for a in found)]
    )
    return sum(c == 0 for c in classes[1:]) / len(found)


def changes(before, after, seed: int = 0) -> dict[str, dict]:
    """{measure: after minus before, mean over the prompts that both have}, paired; what nothing
    measures is absent."""
    both = before.merge(after, on="id", suffixes=("_before", "_after"))
    result = {}
    for name, (_, unit) in MEASURES.items():
        columns = [f"{name}_after", f"{name}_before"]
        if all(column in both for column in columns):
            pairs = both[columns].astype(float).dropna()
            if len(pairs):
                result[name] = stats.paired_difference(
                    *(pairs[column] for column in columns), seed, unit=unit
                )
    return result


def table(frames: dict, changed: dict[str, dict]) -> list[dict]:
    """A row a measure: its mean in each system, then the changes with intervals; a dash for what is
    not measured.

    frames: {system: frame of `measured`}; changed: {label: `changes`}.
    """
    from lib.estimates import number, words

    rows = []
    for name, (label, unit) in MEASURES.items():
        means = {
            system: frame[name].astype(float).mean() if name in frame else float("nan")
            for system, frame in frames.items()
        }
        rows.append(
            {
                "": label,
                **{
                    system: "-" if value != value else number(float(value), unit)
                    for system, value in means.items()
                },
                **{what: words(found.get(name)) for what, found in changed.items()},
            }
        )
    return rows


def transitions(before: list[dict], after: list[dict]) -> list[dict]:
    """What each outcome became, on the items that both decided: a row a kind before, a column a
    kind after.

    Rows of `benchmark.outcomes`; kinds are win, loss and the kinds of tie.
    """
    kinds = [
        {row["id"]: row["tie_kind"] if row["outcome"] == "tie" else row["outcome"] for row in rows}
        for rows in (before, after)
    ]
    moved = Counter((kinds[0][name], kinds[1][name]) for name in kinds[0] if name in kinds[1])
    present = [kind for kind in consistency.KINDS if any(kind in pair for pair in moved)]
    return [
        {
            "before": consistency.KINDS[a],
            **{f"after: {consistency.KINDS[b]}": moved[a, b] for b in present},
        }
        for a in present
        if any(moved[a, b] for b in present)
    ]


def score_changes(before: list[dict], after: list[dict], seed: int = 0) -> dict[str, dict]:
    """{category, and "all": change of (W + T/2) / N and of the tie share}, paired by item.

    {category: {"score": estimate, "ties": estimate}}.
    """
    old = {row["id"]: row for row in before}
    pairs = [(old[row["id"]], row) for row in after if row["id"] in old]
    measures = {
        "score": lambda row: benchmark.WORTH[row["outcome"]],
        "ties": lambda row: float(row["outcome"] == "tie"),
    }
    result = {}
    for category in [*dict.fromkeys(row["category"] for _, row in pairs), "all"]:
        mine = [(a, b) for a, b in pairs if category in ("all", b["category"])]
        if mine:
            result[category] = {
                name: stats.paired_difference(
                    [of(b) for _, b in mine], [of(a) for a, _ in mine], seed, unit="share"
                )
                for name, of in measures.items()
            }
    return result


def distinct(texts: list[str], n: int = 2, words: int = 50) -> float | None:
    """Distinct n-grams of words over all n-grams of several texts of one prompt (Li et al. 2016).

    Only the first `words` of each text count, or a longer text would look less diverse. None
    without any n-gram.
    """
    grams = []
    for text in texts:
        tokens = text.lower().split()[:words]
        grams += list(zip(*(tokens[start:] for start in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else None


def diversity(rows: dict[str, list[dict]]):
    """DataFrame, a row a prompt: id, distinct_2, and self_similarity (mean Jaccard similarity of
    two of its texts)."""
    from itertools import combinations

    import pandas as pd

    from lib.dedup import near_duplicates

    found = []
    for name, samples in rows.items():
        texts = [row["text"] for row in samples]
        pairs = [near_duplicates.jaccard(a, b) for a, b in combinations(texts, 2)]
        found.append(
            {
                "id": name,
                "distinct_2": distinct(texts),
                "self_similarity": _mean(pairs) if pairs else None,
            }
        )
    return pd.DataFrame(found, columns=["id", "distinct_2", "self_similarity"])


def direction(estimate: dict | None) -> str:
    """What an interval says of a change: "rises", "falls", "is not shown to move", "is not
    measured"."""
    if estimate is None:
        return "is not measured"
    return (
        "rises"
        if estimate["low"] > 0
        else "falls"
        if estimate["high"] < 0
        else "is not shown to move"
    )


def told(estimate: dict | None) -> str:
    """`direction` with the change and its interval, to be written after a noun."""
    from lib.estimates import words

    return direction(estimate) + (f" ({words(estimate)})" if estimate else "")


def figure(changed: dict[str, dict[str, dict]], accuracy: dict[str, dict], title: str):
    """Changes with their intervals, a colour a system: the measures that are shares, then greedy
    accuracy.

    changed: {system: `changes`}; accuracy: {system: paired difference of greedy accuracy}.
    """
    from lib import plots

    names = [
        name
        for name, (_, unit) in MEASURES.items()
        if unit == "share" and name not in ("agreement", "string_consistency", "unreadable")
    ]
    labels = [MEASURES[name][0] for name in names] + ["greedy accuracy, items of 12"]
    fig, axes = plots.figure(height=1.3 + 0.42 * len(labels))
    for place, (system, found) in enumerate(changed.items()):
        shift = (place - (len(changed) - 1) / 2) * 0.26
        for row, entry in enumerate([*(found.get(name) for name in names), accuracy.get(system)]):
            if entry is not None:
                ends, colour = [entry["low"], entry["high"]], plots.CYCLE[place]
                axes.plot(
                    ends, [row + shift] * 2, color=colour, linewidth=2, solid_capstyle="round"
                )
                label = system if row == 0 else None
                axes.plot(entry["value"], row + shift, "o", color=colour, markersize=6, label=label)
    axes.axvline(0, color=plots.INK, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set(title=title, xlabel="change against the tuned model, with 95 % interval")
    axes.legend(fontsize=8, loc="best")
    return fig


def _mean(values) -> float:
    return sum(values) / len(values)
