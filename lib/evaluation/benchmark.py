"""Win, tie or loss of a candidate against a reference, and what the ties are made of.

An answer that can be checked is decided by its checker; an open one by a judge in both orders
(`lib.evaluation.judge`). An item that could not be decided (no judge, a judge that failed, a
checker without a verdict) has no outcome: it is absent, neither a loss nor a tie.
"""

from __future__ import annotations

from collections.abc import Iterable

from lib import stats
from lib.evaluation.answers import OPEN

WORTH = {"win": 1.0, "tie": 0.5, "loss": 0.0}
TIES = ("both_right", "both_wrong", "flip", "judged_equal")


def decide(correct: bool, correct_reference: bool) -> tuple[str, str | None]:
    """(outcome, tie kind) of two checked answers: right against wrong wins, equal correctness
    ties."""
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
    """One row for each item that could be decided, in the order of the items; arguments are by item
    id.

    Row: {"id", "category", "task", "outcome" ("win", "tie" or "loss" of the candidate), "tie_kind"
    (of TIES, or None), "correct", "correct_reference" (None for open items), "tokens",
    "tokens_reference"}.
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
    """Per category, in order of appearance: the triple, score, ties, accuracy and lengths, with
    intervals.

    Each is {"n", "win", "tie", "loss", "score", maybe "win_rate_without_ties", maybe "accuracy" and
    "accuracy_reference" (checked items), maybe "flip_rate" (judged items), "ties": {kind: count},
    "tokens", "tokens_reference" (means)}. What no item measures is absent.
    """
    result = {}
    for category in dict.fromkeys(row["category"] for row in rows):
        mine = [row for row in rows if row["category"] == category]
        entry = {
            "n": len(mine),
            **stats.win_tie_loss([WORTH[row["outcome"]] for row in mine], seed),
        }
        checked = [row for row in mine if row["correct"] is not None]
        if checked:
            for name, field in (
                ("accuracy", "correct"),
                ("accuracy_reference", "correct_reference"),
            ):
                entry[name] = stats.proportion(sum(row[field] for row in checked), len(checked))
        if flips := flip_rate(mine):
            entry["flip_rate"] = flips
        entry["ties"] = {kind: sum(row["tie_kind"] == kind for row in mine) for kind in TIES}
        for name in ("tokens", "tokens_reference"):
            known = [row[name] for row in mine if row[name] is not None]
            if known:
                entry[name] = sum(known) / len(known)
        result[category] = entry
    return result


def flip_rate(rows: list[dict]) -> dict | None:
    """Share of judged items whose two orders disagree; None when no item was judged."""
    judged = [row for row in rows if row["correct"] is None]
    return (
        stats.proportion(sum(row["tie_kind"] == "flip" for row in judged), len(judged))
        if judged
        else None
    )


def accuracy(grades: dict[str, dict], ids: Iterable[str] | None = None) -> dict | None:
    """Share of checked answers that are right, of all or of the named items; None when there are
    none."""
    chosen = [grades[name] for name in (grades if ids is None else ids) if name in grades]
    return stats.proportion(sum(row["correct"] for row in chosen), len(chosen)) if chosen else None


def paired(grades: dict[str, dict], other: dict[str, dict], seed: int = 0) -> dict | None:
    """Accuracy of one system minus another's, on the items both were checked on; None when there
    are none.

    {"difference": estimate, "b": only the first right, "c": only the second right, "p_value", "n"}.
    """
    ids = [name for name in grades if name in other]
    if not ids:
        return None
    a, b = ([float(book[name]["correct"]) for name in ids] for book in (grades, other))
    return {"difference": stats.paired_difference(a, b, seed), **stats.mcnemar(a, b)}


def metrics(rows: list[dict], control: list[dict], seed: int = 0) -> dict[str, dict]:
    """The flat metrics of notebook 12 that follow from the outcomes; a category without outcomes
    has none."""
    found = {}
    for category, entry in summary(rows, seed).items():
        found |= {f"{category}_{name}_share": entry[name] for name in ("win", "tie", "loss")}
        found |= {
            f"{category}_{name}": entry[name]
            for name in ("score", "accuracy", "accuracy_reference")
            if name in entry
        }
    found["flip_rate"] = flip_rate(rows)
    if control:
        ties = sum(row["outcome"] == "tie" for row in control)
        found["self_tie_share"] = stats.proportion(ties, len(control))
    return {name: value for name, value in found.items() if value is not None}


def table(found: dict[str, dict], control: dict[str, dict] | None = None) -> list[dict]:
    """`summary` as rows for a reader: shares in per cent, a dash for what was not measured.

    control: the summary of the model against itself; its tie share is the column `self ties`.
    """

    def percent(entry: dict | None, interval: bool = False) -> str:
        if not entry:
            return "-"
        ends = f" [{100 * entry['low']:.0f}, {100 * entry['high']:.0f}]" if interval else ""
        return f"{100 * entry['value']:.0f}{ends}"

    rows = []
    for category, entry in found.items():
        triple = {f"{name} %": percent(entry[name]) for name in ("win", "tie", "loss")}
        lengths = [
            f"{entry[name]:.0f}" if name in entry else "-"
            for name in ("tokens", "tokens_reference")
        ]
        rows.append(
            {
                "category": category,
                "n": entry["n"],
                **triple,
                "score % [95 %]": percent(entry["score"], True),
                "wins without ties %": percent(entry.get("win_rate_without_ties")),
                **{kind.replace("_", " "): entry["ties"][kind] for kind in TIES},
                "flip rate %": percent(entry.get("flip_rate")),
                "self ties %": percent((control or {}).get(category, {}).get("tie")),
                "tokens": lengths[0],
                "tokens, reference": lengths[1],
            }
        )
    return rows


def accuracy_table(
    groups: dict[str, list[dict]],
    answered: dict[str, dict],
    grades: dict[str, dict],
    readings: dict[str, dict],
) -> list[dict]:
    """Accuracy as rows for a reader: guessing first where it can succeed, then one row a system.

    groups: {category: items}; answered and grades: {system: {item id: row}}; readings: {system:
    {extractor: estimate or None}}. Guessing is the expected accuracy of picking among the options,
    where all items of a category have them. `cut` is the share of answers that reached the token
    limit.
    """
    from lib.estimates import number, words

    known = {
        name: group
        for name, group in groups.items()
        if any(item["checker"] != OPEN for item in group)
    }
    options = {
        name: [len(item["meta"].get("options", ())) for item in group]
        for name, group in known.items()
    }
    chance = {
        name: number(sum(1 / n for n in counts) / len(counts), "share")
        for name, counts in options.items()
        if all(counts)
    }
    rows = [{"system": "guessing", **chance}] if chance else []
    for system, book in grades.items():
        cut = sum(row["finish"] == "length" for row in answered[system].values())
        rows.append(
            {
                "system": system,
                "all checked items": words(accuracy(book)),
                **{
                    name: words(accuracy(book, [item["id"] for item in group]))
                    for name, group in known.items()
                },
                **{f"{name} alone": words(value) for name, value in readings[system].items()},
                "cut": (
                    words(stats.proportion(cut, len(answered[system]))) if answered[system] else "-"
                ),
            }
        )
    return [{key: row.get(key, "-") for key in rows[-1]} for row in rows]


def figure(found: dict[str, dict], title: str):
    """Stacked bar a category: wins, the four kinds of tie, losses, as shares of the decided
    items."""
    from lib import plots

    colours = {
        "win": plots.GREEN,
        "both_right": "#a3c4e8",
        "both_wrong": "#c9ced6",
        "flip": "#f3c58b",
        "judged_equal": "#d5c8ee",
        "loss": plots.RED,
    }
    fig, axes = plots.figure(height=1.6 + 0.42 * max(len(found), 1))
    left = [0.0] * len(found)
    for part, colour in colours.items():
        counts = [
            round(entry[part]["value"] * entry["n"]) if part in entry else entry["ties"][part]
            for entry in found.values()
        ]
        widths = [count / entry["n"] for count, entry in zip(counts, found.values(), strict=True)]
        label = part.replace("_", " ")
        axes.barh(range(len(found)), widths, left=left, color=colour, height=0.7, label=label)
        for row, (width, count) in enumerate(zip(widths, counts, strict=True)):
            if width >= 0.05:
                axes.text(
                    left[row] + width / 2,
                    row,
                    count,
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if part in WORTH else plots.INK,
                )
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(
        range(len(found)), [f"{name} (n {entry['n']})" for name, entry in found.items()]
    )
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="share of the decided items; the numbers are counts")
    axes.grid(axis="y", visible=False)
    axes.set_title(title, pad=26)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=6,
        borderaxespad=0,
        fontsize=8,
        columnspacing=1.0,
        handlelength=1.2,
    )
    return fig
