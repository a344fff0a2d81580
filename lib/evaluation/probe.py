"""A few items put to a model in memory: what training and merging are watched by.

`asked` is what `ask` returns: ({item id: answer row}, {item id: grade}).
"""

from __future__ import annotations

from lib import stats
from lib.estimates import Estimate
from lib.evaluation import answers, systems
from lib.files import content_hash


def ask(items: list[dict], settings: dict, key: str, label: str, model, tokenizer):
    """({item id: answer row}, {item id: grade}) of the model's greedy answers to the items.

    settings: of `systems.answer`; raw answers go to generations-<label>.jsonl in its folder.
    key: changes with the weights, so that no other model's answer is taken from the store; a model
    that is loaded in several ways is told apart by its label too. Items need a checker.
    `functools.partial(ask, items, settings, key)` is what `training.merge.audit` asks with.
    """
    name = "-".join("".join(c if c.isalnum() else " " for c in label).split())
    system = {"name": name, "loaded": (model, tokenizer), "key": content_hash(key, label)}
    systems.answer(system, items, {"batch_size": 64} | settings)
    rows = answers.read(settings["folder"], name)
    return rows, answers.graded(items, rows, progress=False)


def score(asked: tuple) -> Estimate:
    """Share of the items that were answered right."""
    right = _right(asked)
    return stats.proportion(sum(right), len(right))


def gain(asked: tuple, before: tuple, seed: int) -> Estimate:
    """Share answered right minus that of another model on the same items, paired."""
    return stats.paired_difference(_right(asked), _right(before), seed, unit="share")


def by_category(items: list[dict], asked: dict[str, tuple]) -> list[dict]:
    """Share answered right of each system, {label: asked}, one row a category."""
    rows = []
    for category in dict.fromkeys(item["category"] for item in items):
        ids = [item["id"] for item in items if item["category"] == category]
        row = {"category": category}
        for label, (_, grades) in asked.items():
            right = sum(grades[name]["correct"] for name in ids)
            row[label] = stats.proportion(right, len(ids))
        rows.append(row)
    return rows


def sample(item: dict, asked: dict[str, tuple], limit: int = 300) -> str:
    """One item as Markdown: the prompt, and what each system, {label: asked}, said to it."""
    name = item["id"]
    shown = {label: (rows[name], grades.get(name)) for label, (rows, grades) in asked.items()}
    return answers.sample_text(item, shown, limit)


def _right(asked: tuple) -> list[bool]:
    rows, grades = asked
    return [grades[name]["correct"] for name in rows]
