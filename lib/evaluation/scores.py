"""Task scores of several systems on the same items, and what each lost against one of them."""

from __future__ import annotations

from lib import stats
from lib.estimates import NOT_MEASURED, Estimate


def against(
    items: list[dict], grades: dict[str, dict[str, dict]], base: str, seed: int
) -> dict[str, dict]:
    """Scores of each system, and the loss against `base` over the items that both answered.

    grades: {system: {item id: {"correct"}}}, as `answers.graded` gives them.
    Returns {system: {"all" and each category: {"score", "loss"}}}, Estimates; the loss is base
    minus system, and absent for base itself. A category that neither answered is absent.
    """
    groups = {"all": items}
    for item in items:
        groups.setdefault(item["category"], []).append(item)
    return {
        system: {
            name: entry
            for name, group in groups.items()
            if (entry := _entry(group, book, grades[base], system != base, seed))
        }
        for system, book in grades.items()
    }


def _entry(group: list[dict], book: dict, base: dict, other: bool, seed: int) -> dict:
    """{"score", and "loss" of another system than the base} of one group of items; {} if none."""
    ids = [item["id"] for item in group if item["id"] in book and item["id"] in base]
    if not ids:
        return {}
    scores, base_scores = (
        [float(graded[key]["correct"]) for key in ids] for graded in (book, base)
    )
    entry = {"score": stats.proportion(int(sum(scores)), len(scores))}
    if other:
        entry["loss"] = stats.paired_difference(base_scores, scores, seed, unit="share")
    return entry


def table(
    scores: dict[str, dict], categories: list[str], speeds: dict[str, Estimate], first: str
) -> list[dict]:
    """A row a system: its score in each category, what it lost over all of them, its speed.

    scores: of `against`. first: heading of the first column.
    """
    empty = {"score": NOT_MEASURED}
    return [
        {
            first: system,
            **{name: entry.get(name, empty)["score"] for name in categories},
            "lost": entry.get("all", {}).get("loss", NOT_MEASURED),
            "tokens/s": speeds[system],
        }
        for system, entry in scores.items()
    ]
