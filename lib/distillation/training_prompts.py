"""Prompts to learn from that no test knows, and why the others were refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from lib.curation import decontaminate
from lib.dedup import near_duplicates
from lib.evaluation import grade, tasks
from lib.files import content_hash, read_jsonl
from lib.packaged import rows as packaged_rows

HELD_OUT = ("validation", "calibration", "threshold")  # splits of 00 that nothing is trained on
REPEATS_TEST = "repeats a test item"
NEAR_TEST = "near-duplicate of a test item"
IN_HELD_OUT = "in a held-out split"
NEAR_PROMPT = "near-duplicate of another prompt"
BROKEN = "own answer fails its tests"
REFUSALS = (REPEATS_TEST, NEAR_TEST, IN_HELD_OUT, NEAR_PROMPT, BROKEN)


def choose(
    data: str, wanted: dict[str, int], seed: int, curated: Path, threshold: float = 0.8
) -> tuple[list[dict], list[dict]]:
    """Training prompts, and how many were refused for which reason.

    data: "packaged" or a data folder; wanted: {category: prompts}; curated: artifacts of 00_curate.
    threshold: Jaccard similarity of character 3-grams from which two questions are near-duplicates.
    Returns (items of `tasks.load_items`, table [{category, available, **{reason: count}, taken}]).
    """
    tests = list(tasks.evaluation_texts(data))
    background = list(packaged_rows.background())
    held_out = [
        (f"{split}/{row['id']}", row["instruction"], None)
        for split in HELD_OUT
        for row in read_jsonl(curated / f"{split}.jsonl")
    ]
    tested = decontaminate.Index(tests, ignore=background)
    reserved = decontaminate.Index(held_out, ignore=background)
    hashes = {content_hash(question) for _, question, _ in held_out}
    chosen, table = [], []
    for category, count in wanted.items():
        items = tasks.load_items(data, [category], 3 * count + 60, seed, "train") if count else []
        reasons = _near_duplicates(items, tests, threshold)
        reasons |= _contaminated(items, tested, reserved, hashes)
        taken = _first_sound(items, count, reasons)
        counts = Counter(reasons.values())
        refused = {reason: counts[reason] for reason in REFUSALS}
        row = {"category": category, "available": len(items), **refused, "taken": len(taken)}
        table.append(row)
        chosen += taken
    return chosen, table


def _contaminated(items: list[dict], tested, reserved, hashes: set[str]) -> dict[str, str]:
    """{item id: reason} of what repeats a test item or stands in a held-out split."""
    reasons = {}
    for item in items:
        question = item["meta"]["question"]
        if tested.match(f"{question}\n{item['gold'] or ''}", question):
            reasons[item["id"]] = REPEATS_TEST
        elif content_hash(item["prompt"]) in hashes or reserved.match(question, question):
            reasons[item["id"]] = IN_HELD_OUT
    return reasons


def _near_duplicates(items: list[dict], tests: list[tuple], threshold: float) -> dict[str, str]:
    """{item id: reason} of what is nearly a test item, or nearly a prompt that stays."""
    texts = [(f"test {name}", question) for name, question, _ in tests]
    texts += [(item["id"], item["meta"]["question"]) for item in items]
    drops, _ = near_duplicates.find(texts, threshold=threshold)
    return {
        row: NEAR_TEST if keeper.startswith("test ") else NEAR_PROMPT
        for row, keeper in zip(drops["row"], drops["keeper"], strict=True)
        if not row.startswith("test ")
    }


def _first_sound(items: list[dict], count: int, reasons: dict[str, str]) -> list[dict]:
    """The first `count` items without a reason against them; broken functions are added to it."""
    left = [item for item in items if item["id"] not in reasons]
    taken: list[dict] = []
    while left and len(taken) < count:
        some, left = left[: count - len(taken)], left[count - len(taken) :]
        broken = _broken([item for item in some if item["category"] == "code"])
        reasons |= dict.fromkeys(broken, BROKEN)
        taken += [item for item in some if item["id"] not in broken]
    return taken


def _broken(items: list[dict]) -> set[str]:
    """Ids of functions whose own code fails their tests: these teach nothing."""
    if not items:
        return set()
    texts = [[f"```python\n{item['gold']}\n```"] for item in items]
    graded = grade.grade_all(items, texts, progress=False)
    verdicts = zip(graded["id"], graded["correct"], strict=True)
    return {name for name, correct in verdicts if not correct}


def repeated(rows: list[dict], data: str) -> list[tuple[str, str]]:
    """(row id, evaluation item) of each row whose prompt or response repeats a test item.

    Looks at the written rows alone, however they came about: content hashes of all test questions,
    and the rule of decontamination.
    """
    tests = list(tasks.evaluation_texts(data))
    index = decontaminate.Index(tests, ignore=list(packaged_rows.background()))
    test_of = {content_hash(question): name for name, question, _ in tests}
    hits = []
    for row in rows:
        text = f"{row['instruction']}\n{row['response']}"
        hits += [(row["id"], name) for name, _ in index.match(text, row["instruction"])]
        same = test_of.get(content_hash(row["instruction"]))
        if same is not None:
            hits.append((row["id"], same))
    return hits
