"""Evaluation items: real ones from a folder, or those that installed packages carry. One shape for all.

An item is {"id", "task", "category", "prompt", "gold", "checker", "meta", "licence"}; see
`lib.prompts.item`. `probe` items serve decisions taken during training; `test` items serve the reported
result. The two are disjoint by content hash, and neither shares a generator seed with training rows."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator

from lib import tasks_packaged
from lib.tasks_packaged import FAMILIES, SEEDS  # noqa: F401  (training rows use the same families, other seeds)

CATEGORIES = ("math", "code", "reasoning", "knowledge", "instruction", "creativity")
log = logging.getLogger(__name__)


def load_items(
    data: str, categories: list[str], per_category: int, seed: int, split: str = "test"
) -> list[dict]:
    """Items of the named categories, `per_category` each, balanced over tasks; the same call gives the
    same list.

    Args:
        data: "packaged", or a folder with `evals/` (layout of the README beside it).
        categories: from `CATEGORIES`.
        per_category: items wanted in each; where fewer exist, all are given and a warning says so.
        seed: which items are drawn.
        split: "test" or "probe".

    Raises:
        ValueError: unknown category or split, or a folder or file that is missing; says what to do.
    """
    unknown = [name for name in categories if name not in CATEGORIES]
    if unknown:
        raise ValueError(f"Unknown category {unknown[0]!r}; choose from {', '.join(CATEGORIES)}.")
    if split not in ("test", "probe"):
        raise ValueError(f"Unknown split {split!r}; choose 'test' or 'probe'.")
    chosen = []
    for category in categories:
        pool = _without_duplicates(_pool(data, category, split))
        if split == "probe":
            held_out = {item["id"] for item in _pool(data, category, "test")}
            pool = [item for item in pool if item["id"] not in held_out]
        picked = _balanced(pool, per_category, random.Random(f"{seed}/{category}/{split}"))
        if len(picked) < per_category:
            log.warning(
                "%s: %d %s items asked for, %d exist; all are used.",
                category,
                per_category,
                split,
                len(picked),
            )
        chosen += picked
    return chosen


def evaluation_texts(data: str) -> Iterator[tuple[str, str, str | None]]:
    """(name, question, gold answer or None) of every test item available in `data`, for decontamination."""
    for category in CATEGORIES:
        for item in _without_duplicates(_pool(data, category, "test")):
            yield f"{item['task']}/{item['id']}", item["meta"]["question"], item["gold"]


def _pool(data: str, category: str, split: str) -> list[dict]:
    if category in ("math", "reasoning"):
        return list(tasks_packaged.generated(category, split))
    if category == "code" and split == "test":
        return list(tasks_packaged.human_eval())
    return []


def _without_duplicates(items: list[dict]) -> list[dict]:
    """The first item of each id."""
    return list({item["id"]: item for item in reversed(items)}.values())[::-1]


def _balanced(items: list[dict], count: int, rng: random.Random) -> list[dict]:
    """`count` items, as even over tasks as their sizes allow, in an order that interleaves the tasks."""
    groups: dict[str, list[dict]] = {}
    for item in items:
        groups.setdefault(item["task"], []).append(item)
    for group in groups.values():
        rng.shuffle(group)
    picked: list[dict] = []
    for position in range(max(map(len, groups.values()), default=0)):
        picked += [group[position] for group in groups.values() if position < len(group)]
    return picked[:count]
