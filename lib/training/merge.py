"""Merging an adapter into its base, and the audit that shows what the merge changed."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lib import models, stats
from lib.estimates import known
from lib.files import replacing_folder

REFERENCE, REFERENCE_4BIT = (
    "adapter on base (reference)",
    "adapter on 4-bit base (reference, as trained)",
)
WRONG = "merged through 4-bit base (wrong)"
SERVED = "bfloat16"  # what GPUs serve a merged model in
LOADED = f"merged, loaded in {SERVED}"


def check_base(adapter: Path, base: str, revision: str = "", allow_quantised: bool = False) -> dict:
    """Training record of the adapter; ValueError unless it was trained on exactly this base.

    The base must have been in full precision. allow_quantised: accept an adapter that saw it in 4
    bits (QLoRA). It fits the full-precision weights only about, so whoever allows it must measure
    by how much: `audit` takes the 4-bit model that was trained as reference.
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
    key = models.key(base, revision=revision)
    if key != record["base_key"]:
        raise ValueError(
            f"{adapter} was trained on {record['base']} (key {record['base_key']}), not on {base}"
            f" (key {key}); name that base in `model`, or train again"
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
    """Merge in float32 onto the full-precision base and write a checkpoint of `merged_dtype`.

    It is rounded once, and written under another name until it is whole. Raises ValueError when the
    adapter belongs to another base (see `check_base`) or a merged weight is not finite.
    """
    import torch

    check_base(adapter, base, revision, allow_quantised)
    adapted = _rounded(base, base_dtype, revision, adapter=adapter)
    merged = adapted.merge_and_unload(safe_merge=True)
    with replacing_folder(folder) as scratch:
        merged.to(getattr(torch, merged_dtype)).save_pretrained(scratch)
        models.load_tokenizer(base, revision).save_pretrained(scratch)
    return folder


def merge_through_four_bit(base: str, adapter: Path, dtype: str, revision: str = ""):
    """The wrong way, kept to be measured: base to NF4, add the delta there, round to NF4 again."""
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
    ask: Callable,
    *,
    base_dtype: str,
    merged_dtype: str,
    seed: int,
    revision: str = "",
    wrong_ways: bool = True,
) -> dict:
    """Is the merged checkpoint the model that was trained? Logits, greedy tokens and task score.

    The reference is what was trained: the adapter on the full-precision base, or on the 4-bit base
    where the adapter's record says so. Each variant is loaded, compared on the same sequences of
    token ids, asked, and dropped. Rounding to SERVED is measured whatever this machine computes in.

    Args:
        ask: function(label, model, tokenizer) -> ({item id: {"text"}}, {item id: {"correct"}}) of
            greedy answers, the same items each time (`lib.evaluation.probe.ask`).
        wrong_ways: the 4-bit routes too.
    Returns {reference, yardstick (labels), rows and task_rows (of `audit_tables`), kl ({variant:
    nats}), logits ({variant: rows of `compare_logits`}), answers ({variant: what ask returned}),
    metrics}. The yardstick is the untouched base, rounded against itself.
    """
    quantised = check_base(adapter, base, revision, allow_quantised=True)["base_quantised"]
    reference = REFERENCE_4BIT if quantised else REFERENCE
    adapted = partial(_rounded, base, base_dtype, revision, adapter=adapter)
    variants = {
        reference: partial(adapted, four_bit=quantised),
        "merged": partial(_rounded, str(merged), merged_dtype),
        LOADED: partial(_rounded, str(merged), SERVED),
    }
    if quantised:
        variants["adapter on full-precision base"] = adapted
    if wrong_ways:
        variants["merged, then 4-bit"] = partial(_rounded, str(merged), base_dtype, four_bit=True)
        if not quantised:
            variants["adapter on 4-bit base"] = partial(adapted, four_bit=True)
        variants[WRONG] = partial(merge_through_four_bit, base, adapter, base_dtype, revision)
    untouched = (_rounded(base, kind, revision) for kind in (base_dtype, SERVED))
    yardstick = f"yardstick: untouched base, {base_dtype} against {SERVED}"
    floor = compare_logits(*untouched, sequences)
    tokenizer = models.load_tokenizer(base, revision)
    logits, answers = _compare(variants, reference, sequences, ask, tokenizer)
    logits[yardstick] = floor
    rows, task_rows = audit_tables(logits, answers, seed)
    kl = {label: _mean_kl(compared) for label, compared in logits.items()}
    metrics = _audit_metrics(logits["merged"], answers["merged"], answers[reference], seed)
    metrics |= {
        "base_is_full_precision": int(not quantised),
        "kl_wrong_way": kl.get(WRONG),
        "kl_format_floor": kl[yardstick],
        "merged_bytes": models.bytes_on_disk(str(merged)),
    }
    about = {"reference": reference, "yardstick": yardstick, "rows": rows, "task_rows": task_rows}
    return about | {"kl": kl, "logits": logits, "answers": answers, "metrics": metrics}


def _compare(variants: dict[str, Callable], reference: str, sequences, ask, tokenizer):
    """({variant: rows of `compare_logits`}, {variant: what ask returned}), one in memory at once.

    A model in 4 bits is loaded anew for each use: its first forward may repack its weights.
    """
    trained, logits, answers = variants[reference](), {}, {}
    for label, load in variants.items():
        other = load()
        logits[label] = compare_logits(trained, other, sequences)
        answers[label] = ask(label, other, tokenizer)
        del other
        gc.collect()
    return logits, answers


def _audit_metrics(compared: list[dict], merged: tuple, reference: tuple, seed: int) -> dict:
    positions = sum(row["positions"] for row in compared)
    same = sum(row["same_top"] for row in compared)
    return {
        "greedy_identity": stats.proportion(same, positions),
        "max_logit_delta": float(max(row["max_abs"] for row in compared)),
        "mean_kl": stats.mean_ci([row["kl"] for row in compared], seed, unit="nats"),
        "task_score_delta": stats.paired_difference(
            _right(merged), _right(reference), seed, unit="share"
        ),
    }


def _right(asked: tuple) -> list[float]:
    """1 or 0 for each answer, in the order of the items."""
    rows, grades = asked
    return [float(grades[name]["correct"]) for name in rows]


def _mean_kl(compared: list[dict]) -> float:
    import numpy as np

    weights = [row["positions"] for row in compared]
    return float(np.average([row["kl"] for row in compared], weights=weights))


def audit_tables(logits: dict, answers: dict, seed: int) -> tuple[list[dict], list[dict]]:
    """(logits and greedy tokens, answers and task score) as rows, one a variant in each.

    Args: logits: {variant: rows of `compare_logits`}; answers: {variant: (answer rows, grades)},
        the reference first. Variants without answers are in the first table alone.
    """
    import numpy as np

    rows = []
    for label, compared in logits.items():
        positions = [row["positions"] for row in compared]
        mean = np.average([row["mean_abs"] for row in compared], weights=positions)
        same = sum(row["same_top"] for row in compared)
        rows.append(
            {
                "variant": label,
                "max logit gap": known(max(row["max_abs"] for row in compared)),
                "mean logit gap": known(float(mean)),
                "KL (nats)": known(_mean_kl(compared)),
                "same greedy token": stats.proportion(same, sum(positions)),
            }
        )
    first, task_rows = next(iter(answers.values())), []
    for label, asked in answers.items():
        texts = [[row["text"] for row in given.values()] for given in (first[0], asked[0])]
        equal, right = sum(a == b for a, b in zip(*texts, strict=True)), _right(asked)
        task_rows.append(
            {
                "variant": label,
                "same answer text": stats.proportion(equal, len(right)),
                "task score": stats.proportion(int(sum(right)), len(right)),
                "minus reference": stats.paired_difference(
                    right, _right(first), seed, unit="share"
                ),
            }
        )
    return rows, task_rows


def delta_norms(base: str, adapter: Path, dtype: str, revision: str = "") -> list[dict]:
    """Size of the update a layer: {layer, module, delta, weight, relative}.

    delta and weight are the Frobenius norms of scale*B@A and of W, relative their ratio.
    """
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
