"""What every compressed model is measured by: bytes on disk, loss on held-out answers, answers to
tasks, speed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from lib import models, stats
from lib.training.losses import losses, next_token, perplexity

__all__ = ["losses", "next_token", "perplexity"]  # until their callers name lib.training.losses


def open_model(folder: str, dtype: str, compute_dtype: str):
    """Checkpoint with weights of `dtype`, computing in `compute_dtype`, in eval mode on the best
    device.

    float32 arithmetic on weights rounded to 16 bits is the fast way on processors without 16-bit
    matrix units, and leaves the weights' own loss as the only one.
    """
    weights = dtype if compute_dtype == "float32" else ""
    return models.load(folder, compute_dtype, weights=weights)[0]


def save(model, tokenizer, folder: Path, dtype: str) -> None:
    """Write a plain checkpoint with its tokenizer under a temporary name, then rename; weights
    rounded to `dtype`."""
    import torch

    scratch = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(scratch, ignore_errors=True)
    model.to(getattr(torch, dtype))
    type(model).save_pretrained(
        model, scratch
    )  # of the class: llmcompressor replaces the one of the object
    tokenizer.save_pretrained(scratch)
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)


def stored(file: Path, stamp: str) -> dict | None:
    """A finished result if it was measured under the same stamp, else None."""
    if not file.exists():
        return None
    row = json.loads(file.read_text(encoding="utf-8"))
    return row if row.get("stamp") == stamp else None


def checkpoint(
    folder: Path,
    tokenizer,
    examples,
    items: list[dict],
    system: str,
    key: str,
    settings: dict,
    keep: Path,
) -> dict:
    """Load a plain checkpoint from disk as anyone would, and measure it.

    Answers go to keep/generations-<system>.jsonl. Returns {"bytes", "kinds" (bytes by kind),
    "examples": {"nats", "tokens", "right"} lists over validation conversations}.
    """
    from lib.compression import sizes

    ledger = sizes.measure(folder, entropy=False)
    model = open_model(str(folder), settings["dtype"], settings["compute_dtype"])
    found = {
        "bytes": ledger["bytes"],
        "kinds": {kind: part["bytes"] for kind, part in ledger["kinds"].items()},
    }
    found["examples"] = losses(model, examples, tokenizer.pad_token_id)
    answer(model, tokenizer, items, system, key, settings, keep)
    return found


def answer(
    model, tokenizer, items: list[dict], system: str, key: str, settings: dict, folder: Path
) -> None:
    """Greedy answers to the items, saved raw; settings: {"max_new_tokens", "batch_size",
    "seed"}."""
    from lib.evaluation import answers

    answers.generate(
        items,
        (model, tokenizer),
        folder=folder,
        system=system,
        model_key=key,
        seed=settings["seed"],
        max_new_tokens=settings["max_new_tokens"],
        max_new_tokens_code=settings["max_new_tokens"],
        batch_size=settings["batch_size"],
    )


def scores(
    items: list[dict], grades: dict[str, dict[str, dict]], base: str, seed: int
) -> dict[str, dict]:
    """Task scores of each system and what it lost against `base` on the same items.

    grades: {system: {item id: {"correct"}}} of `answers.graded`.
    Returns {system: {"score": estimate, "loss": base minus system or None for base, "by_category":
    {name: {...}}}}.
    """
    groups = {"all": items}
    for item in items:
        groups.setdefault(item["category"], []).append(item)
    result = {}
    for system, book in grades.items():
        entry = {}
        for name, group in groups.items():
            ids = [
                item["id"] for item in group if item["id"] in book and item["id"] in grades[base]
            ]
            if not ids:
                continue
            mine, theirs = (
                [float(which[each]["correct"]) for each in ids] for which in (book, grades[base])
            )
            entry[name] = {"score": stats.proportion(int(sum(mine)), len(mine))}
            if system != base:
                entry[name]["loss"] = stats.paired_difference(theirs, mine, seed, unit="share")
        result[system] = entry
    return result


def divergence(rows: list[dict], seed: int) -> dict[str, dict]:
    """{"kl": mean nats over sequences, "agreement": share of positions with the same most likely
    token, its interval over sequences} from `merge.compare_logits`.
    """
    import numpy as np

    positions = [row["positions"] for row in rows]
    share = np.array([row["same_top"] / row["positions"] for row in rows])
    agreement = stats.mean_ci(
        np.repeat(share, positions),
        seed,
        clusters=np.repeat(np.arange(len(rows)), positions),
        bounds=(0.0, 1.0),
        unit="share",
    )
    return {
        "kl": stats.mean_ci([row["kl"] for row in rows], seed, unit="nats"),
        "agreement": agreement,
    }
