"""What every compressed checkpoint is measured by: bytes on disk, and loss on held-out answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from lib import models, stats
from lib.compression import sizes
from lib.estimates import Estimate
from lib.files import replacing_folder
from lib.training.losses import losses


def save(model, tokenizer, folder: Path, dtype: str) -> None:
    """Write a plain checkpoint, weights rounded to `dtype`; whole or not at all (it is renamed)."""
    import torch

    model.to(getattr(torch, dtype))
    with replacing_folder(folder) as scratch:
        # the method of the class: llmcompressor replaces the one of the object
        type(model).save_pretrained(model, scratch)
        tokenizer.save_pretrained(scratch)


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
    system: str,
    key: str,
    settings: dict,
    ask: Callable[[dict], object],
) -> dict:
    """Load a plain checkpoint from disk as anyone would, weigh it, and let `ask` question it.

    examples: validation conversations (`conversations.dataset`). settings: {"dtype" of the weights,
    "compute_dtype"}. ask: takes {"name": system, "loaded": (model, tokenizer), "key"} and keeps the
    answers, see `evaluation.systems.answer`.
    Returns {"bytes", "kinds" (bytes by kind), "examples": {"nats", "tokens", "right"} lists}.
    """
    ledger = sizes.measure(folder, entropy=False)
    dtype, weights = settings["compute_dtype"], settings["dtype"]
    model, _ = models.load(str(folder), dtype, weights=weights)
    facts = {
        "bytes": ledger["bytes"],
        "kinds": {kind: part["bytes"] for kind, part in ledger["kinds"].items()},
        "examples": losses(model, examples, tokenizer.pad_token_id),
    }
    ask({"name": system, "loaded": (model, tokenizer), "key": key})
    return facts


def divergence(rows: list[dict], seed: int) -> dict[str, Estimate]:
    """What `merge.compare_logits` found, over its sequences.

    Returns {"kl" (mean nats a token), "agreement" (share of positions with the same most likely
    token)}.
    """
    import numpy as np

    positions = [row["positions"] for row in rows]
    share = np.repeat([row["same_top"] / row["positions"] for row in rows], positions)
    clusters = np.repeat(np.arange(len(rows)), positions)
    limits = {"bounds": (0.0, 1.0), "unit": "share"}
    return {
        "kl": stats.mean_ci([row["kl"] for row in rows], seed, unit="nats"),
        "agreement": stats.mean_ci(share, seed, clusters=clusters, **limits),
    }
