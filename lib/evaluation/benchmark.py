"""Win, tie or loss of a candidate against a reference, and what the ties are made of.

An answer that can be checked is decided by its checker; an open one by a judge in both orders
(`lib.evaluation.judge`). An item that could not be decided (no judge, a judge that failed, a
checker without a verdict) has no outcome: it is absent, neither a loss nor a tie.
"""

from __future__ import annotations

from collections.abc import Iterable

from lib import plots, stats
from lib.estimates import NOT_MEASURED, Estimate, number
from lib.evaluation import answers, grade
from lib.evaluation.answers import OPEN

WORTH = {"win": 1.0, "tie": 0.5, "loss": 0.0}
TIES = ("both_right", "both_wrong", "flip", "judged_equal")


def decide(correct: bool, correct_reference: bool) -> tuple[str, str | None]:
    """(outcome, tie kind) of two checked answers: right against wrong wins, the rest are ties."""
    if bool(correct) == bool(correct_reference):
        return "tie", "both_right" if correct else "both_wrong"
    return ("win" if correct else "loss"), None


def outcomes(
    items: list[dict],
    candidate: dict[str, dict],
    reference: dict[str, dict],
    grades: dict[str, dict],
    grades_reference: dict[str, dict],
    verdicts: dict[str, dict] | None = None,
) -> list[dict]:
    """One row for each item that could be decided, in the order of the items.

    All but the items are dicts by item id. Row: {"id", "category", "task", "outcome" ("win", "tie"
    or "loss" of the candidate), "tie_kind" (of TIES or None), "correct", "correct_reference" (None
    for open items), "tokens", "tokens_reference"}.
    """
    rows = []
    for item in items:
        name, correct, correct_reference = item["id"], None, None
        if item["checker"] == OPEN:
            verdict = (verdicts or {}).get(name, {})
            if "outcome" not in verdict:
                continue
            outcome, tie_kind = verdict["outcome"], verdict["tie_kind"]
        else:
            if name not in grades or name not in grades_reference:
                continue
            correct, correct_reference = grades[name]["correct"], grades_reference[name]["correct"]
            outcome, tie_kind = decide(correct, correct_reference)
        rows.append(
            {
                "id": name,
                "category": item["category"],
                "task": item["task"],
                "outcome": outcome,
                "tie_kind": tie_kind,
                "correct": correct,
                "correct_reference": correct_reference,
                "tokens": candidate[name]["tokens"],
                "tokens_reference": reference[name]["tokens"],
            }
        )
    return rows


def summary(rows: list[dict], seed: int = 0) -> dict[str, dict]:
    """Per category, in order of appearance: the triple, score, ties, accuracy and lengths.

    Each is {"n", "win", "tie", "loss", "score", maybe "win_rate_without_ties", maybe "accuracy" and
    "accuracy_reference" (checked items), maybe "flip_rate" (judged items), "ties": {kind: count},
    "tokens", "tokens_reference" (means)}. What no item measures is absent.
    """
    categories = dict.fromkeys(row["category"] for row in rows)
    return {
        name: pooled([row for row in rows if row["category"] == name], seed) for name in categories
    }


def pooled(rows: list[dict], seed: int = 0) -> dict:
    """`summary` of all the rows as if they were of one category."""
    entry = {"n": len(rows), **stats.win_tie_loss([WORTH[row["outcome"]] for row in rows], seed)}
    checked = [row for row in rows if row["correct"] is not None]
    for name, field in (("accuracy", "correct"), ("accuracy_reference", "correct_reference")):
        if checked:
            entry[name] = stats.proportion(sum(row[field] for row in checked), len(checked))
    if flips := flip_rate(rows):
        entry["flip_rate"] = flips
    entry["ties"] = {kind: sum(row["tie_kind"] == kind for row in rows) for kind in TIES}
    for name in ("tokens", "tokens_reference"):
        known = [row[name] for row in rows if row[name] is not None]
        if known:
            entry[name] = sum(known) / len(known)
    return entry


def flip_rate(rows: list[dict]) -> Estimate:
    """Share of judged items whose two orders disagree."""
    judged = [row for row in rows if row["correct"] is None]
    if not judged:
        return NOT_MEASURED
    return stats.proportion(sum(row["tie_kind"] == "flip" for row in judged), len(judged))


def accuracy(grades: dict[str, dict], ids: Iterable[str] | None = None) -> Estimate:
    """Share of checked answers that are right, of all or of the named items."""
    chosen = [grades[name] for name in (grades if ids is None else ids) if name in grades]
    if not chosen:
        return NOT_MEASURED
    return stats.proportion(sum(row["correct"] for row in chosen), len(chosen))


def paired(grades: dict[str, dict], other: dict[str, dict], seed: int = 0) -> dict | None:
    """Accuracy of one system minus another's, on the items both were checked on; None without any.

    {"difference": estimate, "b": only the first right, "c": only the second right, "p_value", "n"}.
    """
    ids = [name for name in grades if name in other]
    if not ids:
        return None
    a, b = ([float(book[name]["correct"]) for name in ids] for book in (grades, other))
    return {"difference": stats.paired_difference(a, b, seed), **stats.mcnemar(a, b)}


def metrics(rows: list[dict], control: list[dict], seed: int = 0) -> dict[str, Estimate]:
    """The flat metrics of notebook 12 that follow from the outcomes; what has none is absent."""
    flat = {}
    for category, entry in summary(rows, seed).items():
        for name in ("win", "tie", "loss"):
            flat[f"{category}_{name}_share"] = entry[name]
        for name in ("score", "accuracy", "accuracy_reference"):
            flat[f"{category}_{name}"] = entry.get(name, NOT_MEASURED)
    flat["flip_rate"] = flip_rate(rows)
    if control:
        ties = sum(row["outcome"] == "tie" for row in control)
        flat["self_tie_share"] = stats.proportion(ties, len(control))
    return {name: estimate for name, estimate in flat.items() if estimate}


def table(summaries: dict[str, dict]) -> list[dict]:
    """The triple and the score of each category, in per cent."""
    return [
        {
            "category": category,
            "n": entry["n"],
            **{f"{name} %": _percent(entry[name]) for name in ("win", "tie", "loss")},
            "score % [95 %]": _percent(entry["score"], interval=True),
        }
        for category, entry in summaries.items()
    ]


def ties_table(summaries: dict[str, dict], control: dict[str, dict] | None = None) -> list[dict]:
    """How many ties of each kind a category has, maybe beside the ties of the model with itself.

    control: the summary of the model against itself.
    """
    rows = []
    for category, entry in summaries.items():
        row = {kind.replace("_", " "): entry["ties"][kind] for kind in TIES}
        if control is not None:
            row["self ties %"] = _percent(control.get(category, {}).get("tie"))
        rows.append({"category": category, **row})
    return rows


def details_table(summaries: dict[str, dict]) -> list[dict]:
    """What stands behind the triple: wins among decided items, flips, and tokens an answer."""
    rows = []
    for category, entry in summaries.items():
        lengths = [entry.get(name) for name in ("tokens", "tokens_reference")]
        tokens, reference_tokens = (
            "-" if length is None else f"{length:.0f}" for length in lengths
        )
        rows.append(
            {
                "category": category,
                "wins without ties %": _percent(entry.get("win_rate_without_ties")),
                "flip rate %": _percent(entry.get("flip_rate")),
                "tokens": tokens,
                "tokens, reference": reference_tokens,
            }
        )
    return rows


def _percent(estimate: dict | None, interval: bool = False) -> str:
    """A share in whole per cent, maybe with its interval; a dash for what was not measured."""
    if not estimate:
        return "-"
    ends = f" [{100 * estimate['low']:.0f}, {100 * estimate['high']:.0f}]" if interval else ""
    return f"{100 * estimate['value']:.0f}{ends}"


def readings(items: list[dict], answered: dict[str, dict]) -> dict[str, dict]:
    """{system: {extractor: accuracy}} where each extractor alone reads the answers out of texts."""
    whole = ("code", "constraints", OPEN)  # their answer is the whole text
    readable = [item for item in items if item["checker"] not in whole]
    return {
        system: {
            extractor: accuracy(answers.graded(readable, rows, extractor))
            for extractor in grade.EXTRACTORS
        }
        for system, rows in answered.items()
    }


def accuracy_table(
    groups: dict[str, list[dict]],
    answered: dict[str, dict],
    grades: dict[str, dict],
    readings: dict[str, dict],
) -> list[dict]:
    """Accuracy, a row a category and a column a system, guessing first where it can succeed.

    groups: {category: items}; answered and grades: {system: {item id: row}}; readings: {system:
    {extractor: estimate}}. The last rows read the same answers by each extractor alone, and `cut`
    is the share of answers that reached the token limit.
    """
    checked = {
        category: group
        for category, group in groups.items()
        if any(item["checker"] != OPEN for item in group)
    }
    chance = {category: chance_level(group) for category, group in checked.items()}
    columns = {"guessing": chance} if any(chance.values()) else {}
    for system, graded in grades.items():
        column = {"all checked items": accuracy(graded)}
        for category, group in checked.items():
            column[category] = accuracy(graded, [item["id"] for item in group])
        for extractor, estimate in readings[system].items():
            column[f"{extractor} alone"] = estimate
        rows = answered[system].values()
        cut = sum(row["finish"] == "length" for row in rows)
        column["cut"] = stats.proportion(cut, len(rows)) if rows else "-"
        columns[system] = column
    names = list(columns[next(reversed(columns))])
    return [
        {"": name, **{system: column.get(name) or "-" for system, column in columns.items()}}
        for name in names
    ]


def chance_level(items: list[dict]) -> str:
    """Expected accuracy of picking among the options; empty unless every item has options."""
    counts = [len(item["meta"].get("options", ())) for item in items]
    return number(sum(1 / n for n in counts) / len(counts), "share") if all(counts) else ""


def figure(summaries: dict[str, dict], title: str):
    """Stacked bar a category: wins, kinds of tie and losses, as shares of the decided items."""
    colours = {
        "win": plots.GREEN,
        "both_right": "#a3c4e8",
        "both_wrong": "#c9ced6",
        "flip": "#f3c58b",
        "judged_equal": "#d5c8ee",
        "loss": plots.RED,
    }
    fig, axes = plots.figure(height=1.6 + 0.42 * max(len(summaries), 1))
    left = [0.0] * len(summaries)
    for part, colour in colours.items():
        counts = [_count(entry, part) for entry in summaries.values()]
        sizes = [entry["n"] for entry in summaries.values()]
        widths = [count / n for count, n in zip(counts, sizes, strict=True)]
        label = part.replace("_", " ")
        axes.barh(range(len(widths)), widths, left=left, color=colour, height=0.7, label=label)
        ink = "white" if part in WORTH else plots.INK
        for row, (width, count) in enumerate(zip(widths, counts, strict=True)):
            if width >= 0.05:
                place = {"ha": "center", "va": "center", "fontsize": 8, "color": ink}
                axes.text(left[row] + width / 2, row, count, **place)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    labels = [f"{name} (n {entry['n']})" for name, entry in summaries.items()]
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="share of the decided items; the numbers are counts")
    axes.grid(axis="y", visible=False)
    axes.set_title(title, pad=26)
    compact = {"fontsize": 8, "columnspacing": 1.0, "handlelength": 1.2, "borderaxespad": 0}
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=6, **compact)
    return fig


def _count(entry: dict, part: str) -> int:
    """Items of a category with this outcome, or tied in this way."""
    return round(entry[part]["value"] * entry["n"]) if part in entry else entry["ties"][part]
