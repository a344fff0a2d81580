"""One model before and after a training step, on the same prompts: what moved, and what moved it.

Two identities split a change into parts, prompt by prompt. Consistency is agreement on a right
answer plus agreement on a wrong one: the share of the most frequent answer, booked by whether it is
right. The accuracy of one sample, pass@1, is that of the majority, maj@k, plus what sampling around
it loses or wins. So a model that only says its old answers more steadily shows more agreement on
both kinds, and no change of maj@k or of its greedy accuracy.
"""

from __future__ import annotations

from collections import Counter
from itertools import combinations

from lib import plots, stats
from lib.dedup import near_duplicates
from lib.estimates import NOT_MEASURED, number
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

    rows: {item id: samples in order}, of `consistency.read_samples`; items without are left out.
    greedy: {item id: grade} of the greedy answers that samples are held against.
    """
    known = [item for item in items if item["id"] in rows]
    texts = [[row["text"] for row in rows[item["id"]]] for item in known]
    graded = grade.grade_all(known, texts, progress=False)
    frame = consistency.measure(known, graded, texts)
    frame["tokens"] = [_mean([row["tokens"] for row in rows[item["id"]]]) for item in known]
    answers = {
        name: samples.sort_values("sample")["answer"].tolist()
        for name, samples in graded.groupby("id", sort=False)
    }
    frame["to_greedy"] = [
        _share_equal(item, answers[item["id"]], greedy.get(item["id"])) for item in known
    ]
    if "maj_at_k" in frame:
        frame["right_agreement"] = frame["consistency"] * frame["maj_at_k"]
        frame["wrong_agreement"] = frame["consistency"] - frame["right_agreement"]
        frame["sampling_loss"] = frame["pass_at_1"] - frame["maj_at_k"]
    return frame


def _share_equal(item: dict, answers: list, grade_of_greedy: dict | None) -> float | None:
    """Share of the answers that are equivalent to the greedy one; None where that has none."""
    if grade_of_greedy is None or grade_of_greedy["answer"] is None:
        return None
    readable = [None if answer != answer else answer for answer in answers]  # NaN: no answer
    classes = grade.classes_of(item, [grade_of_greedy["answer"], *readable])
    return sum(c == 0 for c in classes[1:]) / len(answers)


def changes(before, after, seed: int = 0) -> dict[str, dict]:
    """{measure: after minus before over the prompts that both have}, paired; others are absent."""
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


def means_table(frames: dict) -> list[dict]:
    """{system: frame of `measured`} as a row a measure; a dash for what is not measured."""
    rows = []
    for name, (label, unit) in MEASURES.items():
        row = {"": label}
        for system, frame in frames.items():
            mean = frame[name].astype(float).mean() if name in frame else float("nan")
            row[system] = "-" if mean != mean else number(float(mean), unit)
        rows.append(row)
    return rows


def changes_table(changed: dict[str, dict]) -> list[dict]:
    """{label: `changes`} as a row a measure."""
    return [
        {"": text} | {label: change.get(name, NOT_MEASURED) for label, change in changed.items()}
        for name, (text, _) in MEASURES.items()
    ]


def category_table(before, after, measures: list[str], seed: int = 0) -> list[dict]:
    """`changes` of some measures, a row a category of the frames."""
    rows = []
    for category, of_category in before.groupby("category", sort=False):
        changed = changes(of_category, after[after["category"] == category], seed)
        columns = {MEASURES[name][0]: changed.get(name, NOT_MEASURED) for name in measures}
        rows.append({"category": category, **columns})
    return rows


def where_it_moves(rows: list[dict], measure: str = "consistency") -> str:
    """In which categories of a `category_table` a measure rises, and in which it falls."""
    label = MEASURES[measure][0]
    places = {"rises": [], "falls": []}
    for row in rows:
        places.get(direction(row[label]), []).append(row["category"])
    rises, falls = (", ".join(categories) or "no category" for categories in places.values())
    return f"{label.capitalize()} rises in {rises} and falls in {falls}."


def transitions(before: list[dict], after: list[dict]) -> list[dict]:
    """What each outcome became, on the items that both decided: a row for each move that occurs.

    Rows of `benchmark.outcomes`; kinds are win, loss and the kinds of tie.
    """
    old, new = consistency.kinds(before), consistency.kinds(after)
    counts = Counter((kind, new[name]) for name, kind in old.items() if name in new)
    return [
        {"before": consistency.KINDS[a], "after": consistency.KINDS[b], "items": counts[a, b]}
        for a in consistency.KINDS
        for b in consistency.KINDS
        if counts[a, b]
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
        selected = [(a, b) for a, b in pairs if category in ("all", b["category"])]
        if selected:
            result[category] = {
                name: stats.paired_difference(
                    [of(b) for _, b in selected], [of(a) for a, _ in selected], seed, unit="share"
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
    """DataFrame, a row a prompt: id, distinct_2, self_similarity.

    self_similarity: mean Jaccard similarity of two of its texts, None for a single text.
    """
    import pandas as pd

    measured_rows = []
    for name, samples in rows.items():
        texts = [row["text"] for row in samples]
        pairs = [near_duplicates.jaccard(a, b) for a, b in combinations(texts, 2)]
        similarity = _mean(pairs) if pairs else None
        measured_rows.append(
            {"id": name, "distinct_2": distinct(texts), "self_similarity": similarity}
        )
    return pd.DataFrame(measured_rows, columns=["id", "distinct_2", "self_similarity"])


def diversity_changes(before: dict, after: dict, seed: int = 0) -> dict[str, dict]:
    """{measure of `diversity`: after minus before}, paired by prompt; empty where none has both."""
    frames = [diversity(rows).dropna() for rows in (after, before)]
    pairs = frames[0].merge(frames[1], on="id")
    if not len(pairs):
        return {}
    return {
        name: stats.paired_difference(pairs[f"{name}_x"], pairs[f"{name}_y"], seed, unit="share")
        for name in ("distinct_2", "self_similarity")
    }


def direction(estimate: dict | None) -> str:
    """What an interval says of a change: rises, falls, is not shown to move, is not measured."""
    if not estimate:
        return "is not measured"
    if estimate["low"] > 0:
        return "rises"
    return "falls" if estimate["high"] < 0 else "is not shown to move"


def moved(estimate: dict | None) -> str:
    """`direction` with the change and its interval, to be written after a noun."""
    return direction(estimate) + (f" ({estimate})" if estimate else "")


def headline(agreement: dict | None, accuracy: dict | None) -> str:
    """The answer of notebook 16 from the changes of consistency and of greedy accuracy."""
    answers = {
        "rises": "the model is more consistent and more right",
        "falls": "the model is more sure and less right",
        "is not shown to move": "the model is more sure, and not shown to be more right",
        "is not measured": "the model is more sure; whether it is more right is not measured",
    }
    answer = answers[direction(accuracy)]
    if direction(agreement) != "rises":
        answer = "the model is not shown to be more consistent"
    if direction(agreement) == "falls":
        answer = "the model is less consistent"
    return f"Consistency {moved(agreement)}, greedy accuracy {direction(accuracy)}: {answer}."


def figure(changed: dict[str, dict[str, dict]], accuracy: dict[str, dict], title: str):
    """Changes with intervals, a colour a system: the measures that are shares, then accuracy.

    changed: {system: `changes`}; accuracy: {system: paired difference of greedy accuracy}.
    """
    left_out = ("agreement", "string_consistency", "unreadable")
    names = [
        name for name, (_, unit) in MEASURES.items() if unit == "share" and name not in left_out
    ]
    labels = [MEASURES[name][0] for name in names] + ["greedy accuracy, items of 12"]
    fig, axes = plots.figure(height=1.3 + 0.42 * len(labels))
    for place, (system, change) in enumerate(changed.items()):
        shift, colour = (place - (len(changed) - 1) / 2) * 0.26, plots.CYCLE[place]
        estimates = [*(change.get(name) for name in names), accuracy.get(system)]
        for row, estimate in enumerate(estimates):
            if not estimate:
                continue
            ends, line = [estimate["low"], estimate["high"]], {"color": colour, "linewidth": 2}
            axes.plot(ends, [row + shift] * 2, solid_capstyle="round", **line)
            label = system if row == 0 else None
            dot = {"color": colour, "markersize": 6, "label": label}
            axes.plot(estimate["value"], row + shift, "o", **dot)
    axes.axvline(0, color=plots.INK, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set(title=title, xlabel="change against the tuned model, with 95 % interval")
    axes.legend(fontsize=8, loc="best")
    return fig


def _mean(values) -> float:
    return sum(values) / len(values)
