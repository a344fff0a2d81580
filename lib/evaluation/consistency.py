"""Consistency: how often k samples of a prompt give the same answer; does that explain ties?

Two texts agree when their answers are equivalent (`grade.classes_of`); a text without a readable
answer (class -1) agrees with nothing, not even with another such text. Items whose whole text is
the answer (constraints, open prompts) are measured but reported apart: unequal text is not unequal
meaning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lib import plots, stats
from lib.estimates import Estimate, number
from lib.evaluation import grade
from lib.files import read_jsonl

NO_ANSWER = -1
TEXT_CHECKERS = ("constraints", "open")  # their answer is the whole text
METRICS = {
    "consistency": "consistency",
    "pairwise_agreement": "agreement",
    "answer_entropy": "entropy",
    "pass_at_1": "pass_at_1",
    "maj_at_k": "maj_at_k",
    "pass_at_k": "pass_at_k",
    "string_consistency": "string_consistency",
    "unreadable": "unreadable",
}
UNITS = {"answer_entropy": "bits"}
AGREEMENT = ("consistency", "pairwise_agreement", "string_consistency", "unreadable")
RIGHTNESS = ("pass_at_1", "maj_at_k", "pass_at_k", "answer_entropy")
KINDS = {
    "win": "win",
    "loss": "loss",
    "both_right": "tie, both right",
    "both_wrong": "tie, both wrong",
    "judged_equal": "tie, judged equal",
    "flip": "tie, flip",
}


def most_frequent_share(classes: Sequence[int]) -> float:
    """Share of the most frequent answer among all samples; 0 without answers, 1/k if all differ."""
    if not len(classes):
        raise ValueError("the consistency of 0 samples does not exist")
    return max(_answers(classes).values(), default=0) / len(classes)


def pairwise_agreement(classes: Sequence[int]) -> float:
    """Share of the pairs of samples that agree; ValueError for fewer than two samples."""
    if len(classes) < 2:
        raise ValueError("pairwise agreement needs at least two samples of a prompt")
    pairs = sum(count * (count - 1) for count in _answers(classes).values())
    return pairs / (len(classes) * (len(classes) - 1))


def majority_correct(classes: Sequence[int], correct: Sequence) -> float:
    """Chance that the most frequent answer is right; no answer at all is wrong.

    Answers that tie for it are drawn with equal chance.
    """
    answers = _answers(classes)
    leaders = [c for c, count in answers.items() if count == max(answers.values())]
    shares = [
        _mean([bool(ok) for c, ok in zip(classes, correct, strict=True) if c == leader])
        for leader in leaders
    ]
    return _mean(shares) if shares else 0.0


def measure_prompt(classes: Sequence[int], correct: Sequence, texts: Sequence[str]) -> dict:
    """Every measure of one prompt from its k samples.

    `correct` holds None where a text cannot be checked; pass@1, maj@k and pass@k are then left out.
    string_consistency is the old definition: share of the most frequent text, character by
    character.
    """
    k = len(classes)
    if not k == len(correct) == len(texts):
        raise ValueError(
            f"{k} classes, {len(correct)} grades, {len(texts)} texts: not of one prompt"
        )
    row = {
        "k": k,
        "consistency": most_frequent_share(classes),
        "entropy": stats.entropy(classes),
        "string_consistency": max(Counter(text.strip() for text in texts).values()) / k,
        "unreadable": sum(c == NO_ANSWER for c in classes) / k,
    }
    if k > 1:
        row["agreement"] = pairwise_agreement(classes)
    if not any(_unknown(ok) for ok in correct):
        right = sum(bool(ok) for ok in correct)
        row |= {
            "pass_at_1": right / k,
            "maj_at_k": majority_correct(classes, correct),
            "pass_at_k": stats.pass_at_k(k, right, k),
        }
    return row


def measure(items: list[dict], graded, texts_per_item: list[list[str]]):
    """DataFrame, a row an item in order: id, category, task, checker, measures of its samples.

    graded: the DataFrame of `grade.grade_all(items, texts_per_item)`.
    """
    import pandas as pd

    samples = {key: rows.sort_values("sample") for key, rows in graded.groupby("id", sort=False)}
    rows = []
    for item, texts in zip(items, texts_per_item, strict=True):
        answers = [None if _unknown(a) else a for a in samples[item["id"]]["answer"].tolist()]
        correct = samples[item["id"]]["correct"].tolist()
        rows.append(
            {key: item[key] for key in ("id", "category", "task", "checker")}
            | measure_prompt(grade.classes_of(item, answers), correct, texts)
        )
    return pd.DataFrame(rows)


def read_samples(path) -> dict[str, list[dict]]:
    """{item id: its rows in order of sample} of a file of raw generations."""
    samples: dict[str, list[dict]] = {}
    for row in sorted(read_jsonl(path), key=lambda row: row["sample"]):
        samples.setdefault(row["id"], []).append(row)
    return samples


def verifiable(per_item):
    """The rows whose answer is less than the whole text: where consistency is defined."""
    return per_item[~per_item["checker"].isin(TEXT_CHECKERS)]


def summarise(per_item, seed: int = 0) -> dict[str, dict]:
    """Mean of every measure over the prompts, bootstrapped over prompts; absent ones stay out."""
    means = {}
    for name, column in METRICS.items():
        values = per_item[column].dropna() if column in per_item else []
        if len(values):
            means[name] = stats.mean_ci(values, seed, unit=UNITS.get(name, "share"))
    return means


def by_category(per_item, seed: int = 0) -> dict[str, dict[str, dict]]:
    """`summarise` for each category, in order of appearance."""
    return {name: summarise(rows, seed) for name, rows in per_item.groupby("category", sort=False)}


def table(summaries: dict[str, dict[str, dict]], measures: Sequence[str] = AGREEMENT) -> list[dict]:
    """{label: `summarise`} as rows for a reader; consistency alone carries its interval.

    measures: of METRICS, AGREEMENT or RIGHTNESS; a dash stands for what was not measured.
    """
    rows = []
    for label, summary in summaries.items():
        row = {"": label, "prompts": summary["consistency"]["n"]}
        for name in measures:
            estimate = summary.get(name, {})
            row[name.replace("_", " ")] = number(estimate.get("value"), estimate.get("unit", ""))
        if "consistency" in row:
            interval = {key: v for key, v in summary["consistency"].items() if key != "n"}
            row["consistency"] = Estimate(interval)
        rows.append(row)
    return rows


def records(frames: dict) -> list[dict]:
    """{system: frame of `measure`} as rows for a file, each with its system; missing is None."""
    return [
        {"system": system, **row}
        for system, frame in frames.items()
        for row in frame.astype(object).where(frame.notna(), None).to_dict("records")
    ]


def repeated(first: Sequence[str], second: Sequence[str]) -> Estimate:
    """Share of prompts whose two texts are equal, character by character."""
    return stats.proportion(sum(a == b for a, b in zip(first, second, strict=True)), len(first))


def kinds(outcomes: Sequence[dict]) -> dict[str, str]:
    """{item id: win, loss, or the kind of tie} of rows of `benchmark.outcomes`."""
    return {
        row["id"]: row["tie_kind"] if row["outcome"] == "tie" else row["outcome"]
        for row in outcomes
    }


def with_outcomes(per_item, outcomes: Sequence[dict]):
    """The rows of items that notebook 12 decided, with `kind`: win, loss, or the kind of tie."""
    kind_of = kinds(outcomes)
    joined = per_item[per_item["id"].isin(kind_of)].copy()
    joined["kind"] = [kind_of[key] for key in joined["id"]]
    if unknown := set(joined["kind"]) - set(KINDS):
        raise ValueError(
            f"outcomes hold unknown kinds {sorted(map(str, unknown))}; known: {list(KINDS)}"
        )
    return joined


def tie_relation(joined, seed: int = 0) -> dict[str, dict]:
    """How the consistency of tied items differs from that of decided ones.

    What cannot be told is absent. tie_consistency_gap: mean of tied minus mean of decided items;
    well below 0, inconsistency goes with ties. both_wrong_gap: ties both get wrong minus all other
    items. tie_rank: chance that a tied item is more consistent than a decided one, half for equals
    (0.5: consistency says nothing about ties), with the p-value of the Mann-Whitney test in its
    method.
    """
    from scipy.stats import mannwhitneyu

    tied = joined[~joined["kind"].isin(("win", "loss"))]["consistency"]
    decided = joined[joined["kind"].isin(("win", "loss"))]["consistency"]
    wrong = joined["kind"] == "both_wrong"
    relation = {}
    if len(tied) and len(decided):
        relation["tie_consistency_gap"] = stats.difference(tied, decided, seed, unit="share")
        test = mannwhitneyu(tied, decided)
        relation["tie_rank"] = Estimate(
            value=float(test.statistic) / (len(tied) * len(decided)),
            n=min(len(tied), len(decided)),
            unit="share",
            method=f"Mann-Whitney, p {test.pvalue:.2g}",
        )
    if wrong.any() and not wrong.all():
        values = joined["consistency"]
        relation["both_wrong_gap"] = stats.difference(
            values[wrong], values[~wrong], seed, unit="share"
        )
    return relation


def tie_reading(gap: dict | None) -> str:
    """What the tie_consistency_gap says of the claim that inconsistency explains ties."""
    if not gap:
        return "cannot be told, as no prompt is tied or none decided"
    if gap["high"] < 0:
        return "is supported: tied prompts are the less consistent ones"
    if gap["low"] > 0:
        return "is contradicted: tied prompts are the more consistent ones"
    return "is left open by this many prompts"


def kinds_table(joined, seed: int = 0) -> list[dict]:
    """`by_kind` as rows for a reader."""
    return [
        {"outcome": KINDS[kind], "consistency": mean}
        for kind, mean in by_kind(joined, seed).items()
    ]


def by_kind(joined, seed: int = 0) -> dict[str, dict]:
    """Mean consistency for each kind of outcome that occurs, in the order of `KINDS`."""
    return {
        kind: stats.mean_ci(rows, seed, unit="share")
        for kind in KINDS
        if len(rows := joined[joined["kind"] == kind]["consistency"])
    }


def figure(joined, title: str, floor: float | None = None, seed: int = 0):
    """One dot an item: consistency by kind of outcome, with mean and interval.

    floor: 1/k, where all samples differ.
    """
    import numpy as np

    means = by_kind(joined, seed)
    fig, axes = plots.figure(height=1.4 + 0.55 * len(means))
    rng = np.random.default_rng(seed)
    for row, (kind, mean) in enumerate(means.items()):
        values = joined[joined["kind"] == kind]["consistency"]
        heights = row + rng.uniform(-0.22, 0.22, len(values))
        colour = plots.BLUE if kind in ("win", "loss") else plots.ORANGE
        axes.plot(values, heights, "o", color=colour, alpha=0.45, markersize=5)
        axes.plot([mean["low"], mean["high"]], [row, row], color=plots.INK, linewidth=2)
        axes.plot(mean["value"], row, "D", color=plots.INK, markersize=6)
    axes.set_yticks(range(len(means)), [f"{KINDS[kind]} ({means[kind]['n']})" for kind in means])
    axes.set(
        title=title, xlabel="consistency: share of the most frequent answer", xlim=(-0.03, 1.03)
    )
    axes.set_ylim(len(means) - 0.4, -0.6)
    if floor:
        axes.axvline(floor, color=plots.QUIET, linestyle="--", linewidth=1)
        axes.annotate(
            f"all differ: {floor:.2f}",
            (floor, -0.55),
            color=plots.QUIET,
            xytext=(4, -8),
            textcoords="offset points",
            fontsize=8,
        )
    return fig


def _answers(classes: Sequence[int]) -> Counter:
    return Counter(int(c) for c in classes if int(c) != NO_ANSWER)


def _unknown(value) -> bool:
    return value is None or value != value


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
