"""One adapter from rows to a merged checkpoint: what the notebooks after the first one share."""

from __future__ import annotations

from pathlib import Path

from lib import models
from lib.estimates import Estimate
from lib.files import content_hash, read_jsonl, sha256_file, write_jsonl
from lib.training import conversations, losses, merge, train

# what `tune` takes from a notebook's parameters, beyond train.SETTINGS
SETTINGS = (
    *train.SETTINGS,
    "base_dtype",
    "max_length",
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "four_bit",
)


def mix(rows: list[dict], original: Path, share: float, seed: int, path: Path) -> dict:
    """Write `rows` with rows of the curated file `original` mixed in.

    These are then `share` of the whole. Which ones is decided by a hash of (seed, id); they keep
    the plain loss on their gold answers. Returns {new, original, share (of rows)}. Raises
    ValueError unless 0 <= share < 1.
    """
    if not 0 <= share < 1:
        raise ValueError(f"a mix-in share of {share} must be 0 or more and below 1")
    wanted = round(len(rows) * share / (1 - share))
    known = {row["id"] for row in rows}
    pool = [row for row in read_jsonl(original) if row["id"] not in known] if wanted else []
    added = sorted(pool, key=lambda row: content_hash(str(seed), row["id"]))[:wanted]
    whole = sorted([*rows, *added], key=lambda row: content_hash(str(seed), "order", row["id"]))
    write_jsonl(path, whole)
    return {
        "new": len(rows),
        "original": len(added),
        "share": len(added) / len(whole) if whole else 0.0,
    }


def tune(
    base: str,
    rows: Path,
    held_out: Path,
    held_out_rows: int,
    folder: Path,
    values: dict,
    *,
    targets: Path | None = None,
    probe=None,
) -> dict:
    """Train a LoRA adapter on `rows` and save it in folder/adapter; a killed call goes on.

    Args:
        base: model to train on, in full precision on disk; `four_bit` in values trains on its NF4
            form (QLoRA).
        held_out: rows of the original data; their loss before and after shows what is forgotten.
        values: a value for each name in SETTINGS, e.g. the notebook's parameters.
        targets: soft targets by example id (`lib.training.sharpen`), or None.
        probe: function(model, tokenizer) -> score in [0, 1], called at every evaluation, or None.
    Returns {**`train.fit`, adapter, record, counts, parameters, tokenizer, held_out (dataset),
    loss_before, loss_after: nats a label token of each held-out row}.
    Raises ValueError when the base on disk is quantised.
    """
    model, tokenizer = _loaded(base, values)
    length, seed, cache = values["max_length"], values["seed"], folder / "cache"
    examples, counts = conversations.dataset(rows, tokenizer, length, 0, seed, cache)
    validation, _ = conversations.dataset(held_out, tokenizer, length, held_out_rows, seed, cache)
    shape = (values[name] for name in ("lora_r", "lora_alpha", "lora_dropout", "seed"))
    adapted = train.add_lora(model, *shape)
    measured = (adapted, validation, tokenizer.pad_token_id, values["dtype"])
    with adapted.disable_adapter():
        before = losses.losses(*measured)
    record, settings = _record(base, values, rows, targets, len(examples))
    result = train.fit(
        adapted,
        examples,
        validation,
        folder / "checkpoints",
        settings,
        (lambda: probe(adapted, tokenizer)) if probe else None,
        record["fingerprint"],
        targets,
    )
    train.save_adapter(adapted, tokenizer, folder / "adapter", record)
    result |= {"adapter": folder / "adapter", "record": record, "counts": counts}
    result |= {"tokenizer": tokenizer, "parameters": model.num_parameters()}
    after = losses.losses(*measured)
    both = {"loss_before": losses.means(before), "loss_after": losses.means(after)}
    return result | both | {"held_out": validation}


def _loaded(base: str, values: dict):
    models.require_full_precision(base)
    if values["four_bit"]:
        return models.load(base, values["dtype"], four_bit=True, trainable=True)
    return models.load(base, values["base_dtype"])


def _record(base: str, values: dict, rows: Path, targets: Path | None, count: int):
    """(what is saved beside the adapter, the settings in it)."""
    record = train.base_record(base, values["base_dtype"], quantised=values["four_bit"])
    settings = {name: values[name] for name in SETTINGS}
    files = [sha256_file(path) for path in (rows, targets) if path is not None]
    fingerprint = content_hash(*files, record["base_key"], str(settings))
    record |= settings | {"rows": count, "fingerprint": fingerprint}
    if values["four_bit"]:
        record["base_quantisation"] = f"NF4 (bitsandbytes), products in {values['dtype']}"
    return record, settings


def ends(history: list[dict]) -> tuple[float, float]:
    """Training loss of the first and of the last step, nats a token, from the Trainer's log."""
    curve = [row["loss"] for row in history if "loss" in row]
    return curve[0], curve[-1]


def overview(name: str, result: dict, rise: Estimate) -> dict:
    """What one training did, as a row of a table.

    result: of `tune`; rise: loss on original rows, after minus before.
    """
    first, last = ends(result["history"])
    return {
        "adapter": name,
        "steps (resumed from)": f"{result['steps']} ({result['resumed_from']})",
        "tokens": f"{result['tokens']:,}",
        "loss, first step": f"{first:.3f}",
        "loss, last step": f"{last:.3f}",
        "loss on original rows, after minus before": rise,
    }


def merged(base: str, folder: Path, values: dict, merged_dtype: str) -> Path:
    """Merge folder/adapter onto the full-precision base into folder/merged, also one of 4 bits.

    What that changes must be measured with `merge.audit`, which takes what was trained as its
    reference.
    """
    return merge.merge(
        base,
        folder / "adapter",
        folder / "merged",
        values["base_dtype"],
        merged_dtype,
        allow_quantised=values["four_bit"],
    )
