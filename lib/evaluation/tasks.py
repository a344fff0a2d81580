"""Evaluation items in one shape: real ones from a folder, or those that packages carry.

An item is {"id", "task", "category", "prompt", "gold", "checker", "meta", "licence"}; see
`lib.prompts.item`. `probe` items serve decisions taken during training, `test` items the reported
result, `train` items are prompts to learn from. The three are disjoint by content hash, and neither
probe nor test shares a generator seed with training rows.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator

from lib import domains
from lib.evaluation import tasks_files
from lib.files import from_root
from lib.packaged import generated as generated_items
from lib.packaged import knowledge as knowledge_items
from lib.packaged import written as tasks_written
from lib.prompts import LETTERS

PACKAGED = "packaged"
CATEGORIES = domains.CATEGORIES
log = logging.getLogger(__name__)


def load_items(
    data: str, categories: list[str], per_category: int, seed: int, split: str = "test"
) -> list[dict]:
    """Items of the named categories, `per_category` each, balanced over tasks, always the same.

    Args:
        data: "packaged", or a folder with `evals/` (layout of the README beside it).
        categories: from `CATEGORIES`.
        per_category: items wanted in each; where fewer exist, all are given and a warning says so.
        seed: which items are drawn.
        split: "test", "probe" or "train". A folder without training files for a category takes the
        packaged ones.

    Raises:
        ValueError: unknown category or split, or a folder or file that is missing; says what to do.
    """
    unknown = [name for name in categories if name not in CATEGORIES]
    if unknown:
        raise ValueError(f"Unknown category {unknown[0]!r}; choose from {', '.join(CATEGORIES)}.")
    if split not in ("test", "probe", "train"):
        raise ValueError(f"Unknown split {split!r}; choose 'test', 'probe' or 'train'.")
    chosen = []
    for category in categories:
        pool = _without_duplicates(_pool(data, category, split))
        for other in {"test": (), "probe": ("test",), "train": ("test", "probe")}[split]:
            held_out = {item["id"] for item in _pool(data, category, other)}
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


def overview(groups: dict[str, list[dict]]) -> list[dict]:
    """{category: items} as rows for a reader: how many, of which tasks, decided by what."""
    return [
        {
            "category": category,
            "items": len(items),
            "tasks": ", ".join(sorted({item["task"] for item in items})),
            "checkers": ", ".join(sorted({item["checker"] for item in items})),
        }
        for category, items in groups.items()
    ]


def drawn(groups: dict[str, list[dict]], seed: int, most: int = 3) -> list[dict]:
    """One item of each of `most` categories, drawn by the seed: what is shown before any number."""
    present = [category for category, items in groups.items() if items]
    categories = random.Random(seed).sample(present, min(most, len(present)))
    return [random.Random(seed).choice(groups[category]) for category in categories]


def evaluation_texts(data: str) -> Iterator[tuple[str, str, str | None]]:
    """(name, question, gold answer or None) of every test item in `data`, for decontamination.

    From a folder this includes evaluation sets that no task here uses (TruthfulQA, Arena-Hard ...).
    """
    for category in CATEGORIES:
        try:
            pool = _without_duplicates(_pool(data, category, "test"))
        except ValueError:
            if data != PACKAGED and tasks_files.present(from_root(data), category):
                raise
            continue  # a folder need not hold every category
        for item in pool:
            yield f"{item['task']}/{item['id']}", item["meta"]["question"], _gold_text(item)
    if data != PACKAGED:
        yield from tasks_files.other_texts(from_root(data))


def _gold_text(item: dict) -> str | None:
    if item["checker"] == "choice" and item["meta"].get("options"):
        return item["meta"]["options"][LETTERS.index(item["gold"])]
    return item["gold"]


def _pool(data: str, category: str, split: str) -> list[dict]:
    if data != PACKAGED and (split != "train" or _has_training(data, category)):
        return list(tasks_files.items(from_root(data), category, split))
    if category in ("math", "reasoning"):
        return list(generated_items.generated(category, split))
    if category == "knowledge":
        return list(knowledge_items.items(split))
    if category == "instruction":
        return list(tasks_written.instruction(split))
    if category == "creativity":
        return list(tasks_written.creative(split))
    if split == "train":
        return list(generated_items.documented_functions())
    return list(generated_items.human_eval()) if split == "test" else []


def _has_training(data: str, category: str) -> bool:
    return next(iter(tasks_files.items(from_root(data), category, "train")), None) is not None


def _without_duplicates(items: list[dict]) -> list[dict]:
    """The first item of each id."""
    return list({item["id"]: item for item in reversed(items)}.values())[::-1]


def _balanced(items: list[dict], count: int, rng: random.Random) -> list[dict]:
    """`count` items, as even over tasks, and within a task over subtasks, as their sizes allow."""
    tasks: dict[str, dict[str, list[dict]]] = {}
    for item in items:
        tasks.setdefault(item["task"], {}).setdefault(item["meta"].get("subtask") or "", []).append(
            item
        )
    return _interleaved(
        [_interleaved(list(groups.values()), rng) for groups in tasks.values()], rng, False
    )[:count]


def _interleaved(groups: list[list[dict]], rng: random.Random, shuffle: bool = True) -> list[dict]:
    """One of each group in turn, groups in random order.

    Members are shuffled, too, unless they are in order already.
    """
    rng.shuffle(groups)
    for group in groups if shuffle else ():
        rng.shuffle(group)
    longest = max(map(len, groups), default=0)
    return [group[place] for place in range(longest) for group in groups if place < len(group)]
