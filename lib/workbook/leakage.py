"""What splits, examples and evaluation items of a run share: it has to be nothing."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

from lib.files import content_hash, read_jsonl

SPLITS = ("train", "validation", "calibration", "threshold")
LEARNED = ("14_self_distill/examples.jsonl",)  # drawn from train, so only tests are foreign to it
TESTS = ("12_benchmark/items.jsonl", "13_consistency/items.jsonl")


def contents(path: Path) -> set[str]:
    """Content hashes of what a model is asked in a JSONL of rows (`instruction`) or items."""
    return {content_hash(row.get("instruction") or row["prompt"]) for row in read_jsonl(path)}


def sets(artifacts: Path, files: tuple[str, ...]) -> dict[str, set[str]]:
    """{"12 items": contents} of those files of a run that exist."""
    paths = {f"{file[:2]} {Path(file).stem}": artifacts / file for file in files}
    return {label: contents(path) for label, path in paths.items() if path.exists()}


def overlaps(sets: dict[str, set[str]]) -> list[dict]:
    """For every two sets how many contents they share: one, other, of one, of other, shared."""
    return [
        {
            "one": a,
            "other": b,
            "of one": len(sets[a]),
            "of other": len(sets[b]),
            "shared": len(sets[a] & sets[b]),
        }
        for a, b in combinations(sets, 2)
    ]


def pairs(artifacts: Path) -> list[dict]:
    """Overlaps of any two splits, and of all that is learned from with all that is tested on."""
    splits = sets(artifacts, tuple(f"00_curate/{split}.jsonl" for split in SPLITS))
    learned, tests = splits | sets(artifacts, LEARNED), sets(artifacts, TESTS)
    crossed = overlaps(learned | tests)
    return overlaps(splits) + [
        pair for pair in crossed if pair["one"] in learned and pair["other"] in tests
    ]
