"""Merging an adapter into its base, and the audit that shows what the merge changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from lib import models

REFERENCE, REFERENCE_4BIT = (
    "adapter on base (reference)",
    "adapter on 4-bit base (reference, as trained)",
)
WRONG = "merged through 4-bit base (wrong)"
SERVED = "bfloat16"  # what GPUs serve a merged model in
LOADED = f"merged, loaded in {SERVED}"


def check_base(adapter: Path, base: str, revision: str = "", allow_quantised: bool = False) -> dict:
    """Training record of the adapter; raises ValueError unless it was trained on exactly this
    full-precision base.

    allow_quantised: accept an adapter that saw this base in 4 bits (QLoRA). It fits the
    full-precision weights only about, so whoever allows it must measure by how much: `audit` takes
    the 4-bit model that was trained as reference.
    """
    path = adapter / "training.json"
    if not path.exists():
        raise ValueError(
            f"{adapter}: no training.json, so its base is unknown; train it with 10_train_base"
        )
    record = json.loads(path.read_text(encoding="utf-8"))
    if record["base_quantised"] and not allow_quantised:
        raise ValueError(
            f"{adapter} was trained on a quantised base; it cannot be merged honestly (see"
            " 10_train_base)"
        )
    if (found := models.key(base, revision=revision)) != record["base_key"]:
        raise ValueError(
            f"{adapter} was trained on {record['base']} (key {record['base_key']}), not on {base}"
            f" (key {found}); name that base in `model`, or train again"
        )
    return record


def _rounded(name: str, dtype: str, revision: str = "", **options):
    """Model whose weights are rounded to `dtype` while it computes in float32.

    The audit compares weights, not the noise of 16-bit arithmetic. options: of `models.load`.
    """
    return models.load(name, "float32", revision, weights=dtype, **options)[0]


def merge(
    base: str,
    adapter: Path,
    folder: Path,
    base_dtype: str,
    merged_dtype: str,
    revision: str = "",
    allow_quantised: bool = False,
) -> Path:
    """Merge in float32 onto the full-precision base, round once to `merged_dtype`, write a
    checkpoint atomically.

    Raises ValueError when the adapter belongs to another base (see `check_base`) or a merged weight
    is not finite.
    """
    import torch

    check_base(adapter, base, revision, allow_quantised)
    adapted = _rounded(base, base_dtype, revision, adapter=adapter)
    merged = adapted.merge_and_unload(safe_merge=True)
    scratch = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(scratch, ignore_errors=True)
    merged.to(getattr(torch, merged_dtype)).save_pretrained(scratch)
    models.load_tokenizer(base, revision).save_pretrained(scratch)
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)
    return folder


def merge_through_four_bit(base: str, adapter: Path, dtype: str, revision: str = ""):
    """The wrong way, kept to be measured: quantise the base to NF4, add the delta there, round to
    NF4 again."""
    return _rounded(base, dtype, revision, adapter=adapter, four_bit=True).merge_and_unload().eval()


def compare_logits(reference, other, sequences: list[list[int]]) -> list[dict]:
    """Teacher-forced comparison, one sequence of token ids at a time.

    Returns a dict a sequence: positions, max_abs and mean_abs logit difference, kl (nats, mean over
    positions, of reference from other), same_top (positions whose most likely token is the same).
    """
    import torch

    rows = []
    with torch.inference_mode():
        for ids in sequences:
            tokens = torch.tensor([ids], device=reference.device)
            a, b = (model(input_ids=tokens).logits[0].float() for model in (reference, other))
            gap = (a - b).abs()
            log_a, log_b = a.log_softmax(-1), b.log_softmax(-1)
            rows.append(
                {
                    "positions": len(ids),
                    "max_abs": float(gap.max()),
                    "mean_abs": float(gap.mean()),
                    "kl": max(0.0, float((log_a.exp() * (log_a - log_b)).sum(-1).mean())),
                    "same_top": int((a.argmax(-1) == b.argmax(-1)).sum()),
                }
            )
    return rows


def audit(
    base: str,
    adapter: Path,
    merged: Path,
    sequences: list[list[int]],
    items: list[dict],
    *,
    base_dtype: str,
    merged_dtype: str,
    task_tokens: int,
    seed: int,
    revision: str = "",
    wrong_ways: bool = True,
) -> dict:
    """Is the merged checkpoint the model that was trained? Logits, greedy tokens and task score of
    each variant.

    The reference is what was trained: the adapter on the full-precision base, or on the 4-bit base
    where the adapter's record says so. Each variant is loaded, compared on the same sequences of
    token ids, asked the same items greedily, and dropped. Rounding to SERVED is measured whatever
    this machine computes in. wrong_ways: the 4-bit routes too. Returns {reference, rows
    (`audit_table`), kl ({variant: nats}), logits ({variant: rows of `compare_logits`}),
        answers ({variant: texts}), yardstick (label of the untouched base, rounded against itself),
        metrics}.
    """
    import gc

    import numpy as np

    from lib import stats
    from lib.evaluation import grade
    from lib.generation import generate

    quantised = check_base(adapter, base, revision, allow_quantised=True)["base_quantised"]
    reference = REFERENCE_4BIT if quantised else REFERENCE
    variants = {
        reference: lambda: _rounded(
            base, base_dtype, revision, adapter=adapter, four_bit=quantised
        ),
        "merged": lambda: _rounded(str(merged), merged_dtype),
        LOADED: lambda: _rounded(str(merged), SERVED),
    }
    if quantised:
        variants["adapter on full-precision base"] = lambda: _rounded(
            base, base_dtype, revision, adapter=adapter
        )
    if wrong_ways:
        variants["merged, then 4-bit"] = lambda: _rounded(str(merged), base_dtype, four_bit=True)
        if not quantised:
            variants["adapter on 4-bit base"] = lambda: _rounded(
                base, base_dtype, revision, adapter=adapter, four_bit=True
            )
        variants[WRONG] = lambda: merge_through_four_bit(base, adapter, base_dtype, revision)
    untouched = [_rounded(base, kind, revision) for kind in (base_dtype, SERVED)]
    floor = compare_logits(*untouched, sequences)
    del untouched
    tokenizer, prompts = models.load_tokenizer(base, revision), [item["prompt"] for item in items]
    trained, logits, answers = variants[reference](), {}, {}
    for label, load in variants.items():
        other = load()
        logits[label] = compare_logits(trained, other, sequences)
        texts = generate.generate(
            other, tokenizer, prompts, max_new_tokens=task_tokens, progress=label
        )
        answers[label] = [samples[0]["text"] for samples in texts]
        del other
        gc.collect()
    yardstick = f"yardstick: untouched base, {base_dtype} against {SERVED}"
    logits[yardstick] = floor
    graded = {
        label: grade.grade_all(items, [[text] for text in own], progress=False)
        for label, own in answers.items()
    }
    right = {label: frame["correct"].astype(float).to_numpy() for label, frame in graded.items()}
    rows = audit_table(logits, answers, right, seed)
    kl, compared = {row["variant"]: row["KL (nats)"] for row in rows}, logits["merged"]
    positions = sum(row["positions"] for row in compared)
    found = {
        "base_is_full_precision": int(not quantised),
        "greedy_identity": stats.proportion(sum(row["same_top"] for row in compared), positions),
        "max_logit_delta": float(np.max([row["max_abs"] for row in compared])),
        "mean_kl": stats.mean_ci([row["kl"] for row in compared], seed, unit="nats"),
        "task_score_delta": stats.paired_difference(
            right["merged"], right[reference], seed, unit="share"
        ),
        "kl_wrong_way": float(kl[WRONG]) if wrong_ways else None,
        "kl_format_floor": float(kl[yardstick]),
        "merged_bytes": models.bytes_on_disk(str(merged)),
    }
    return {
        "reference": reference,
        "rows": rows,
        "kl": kl,
        "logits": logits,
        "answers": answers,
        "yardstick": yardstick,
        "metrics": found,
    }


def audit_table(logits: dict, answers: dict, right: dict, seed: int) -> list[dict]:
    """One row a variant: divergence from the reference, greedy tokens, answers and task score, with
    intervals as text.

    Args: logits: {variant: rows of `compare_logits`}; answers: {variant: greedy texts}, the
    reference first;
        right: {variant: 0/1 array [items]}. Variants without answers get the logit columns alone.
    """
    import numpy as np

    from lib import stats

    reference, rows = next(iter(answers)), []
    for label, compared in logits.items():
        positions = np.array([row["positions"] for row in compared])
        same = stats.proportion(sum(row["same_top"] for row in compared), int(positions.sum()))
        row = {
            "variant": label,
            "max |dlogit|": max(row["max_abs"] for row in compared),
            "mean |dlogit|": float(
                np.average([row["mean_abs"] for row in compared], weights=positions)
            ),
            "KL (nats)": float(np.average([row["kl"] for row in compared], weights=positions)),
            "same greedy token": same,
        }
        if label in answers:
            equal = sum(a == b for a, b in zip(answers[reference], answers[label], strict=True))
            row |= {
                "same answer text": stats.proportion(equal, len(answers[label])),
                "task score": stats.proportion(int(right[label].sum()), len(right[label])),
                "minus reference": stats.paired_difference(
                    right[label], right[reference], seed, unit="share"
                ),
            }
        rows.append(row)
    return rows


def delta_norms(base: str, adapter: Path, dtype: str, revision: str = "") -> list[dict]:
    """Size of the update a layer: {layer, module, delta, weight, relative}, Frobenius norms of
    scale*B@A and of W."""
    import re

    adapted = _rounded(base, dtype, revision, adapter=adapter)
    rows = []
    for name, module in adapted.named_modules():
        if not (hasattr(module, "lora_A") and hasattr(module, "base_layer")):
            continue
        delta = float(module.get_delta_weight("default").norm())
        weight = float(module.base_layer.weight.norm())
        layer = int(re.search(r"\.layers\.(\d+)\.", name).group(1))
        rows.append(
            {
                "layer": layer,
                "module": name.rsplit(".", 1)[-1],
                "delta": delta,
                "weight": weight,
                "relative": delta / weight,
            }
        )
    return rows
