"""Zeros in the linears: SparseGPT and Wanda through llmcompressor, magnitude as the yardstick.

Zeros in a dense file save nothing. What they could save in a format that stores a bit mask is
`bitmask_bytes`.
"""

from __future__ import annotations

import re
from pathlib import Path

from lib.compression import oneshot

METHODS = ("sparsegpt", "wanda", "magnitude")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


def linears(model, kind: str = "all"):
    """(name, module) of the linears of "attention", "mlp" or "all", never of a vocabulary table."""
    names = {"attention": ATTENTION, "mlp": MLP, "all": ATTENTION + MLP}[kind]
    return [
        (name, module) for name, module in model.named_modules() if name.rsplit(".", 1)[-1] in names
    ]


def sparsity(model) -> dict[str, float]:
    """Share of weights that are exactly zero: {"attention", "mlp", "all", "tables"}, counted."""
    counts = {}
    for kind in ("attention", "mlp", "all"):
        weights = [module.weight for _, module in linears(model, kind)]
        counts[kind] = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    table = model.get_input_embeddings().weight
    return counts | {"tables": int((table == 0).sum()) / table.numel()}


def prune(
    model,
    tokenizer,
    sequences: list[list[int]],
    method: str,
    attention: float,
    mlp: float,
    pattern: str,
    log: Path,
) -> dict[str, float]:
    """Zero weights in place and return the measured `sparsity`.

    attention, mlp: shares of their weights to zero. pattern: "" for unstructured, "2:4" for two
    zeros in every four neighbours of an input row (the shares must then be 0.5). sequences:
    calibration text, none for magnitude.

    Sources: Frantar and Alistarh 2023 (SparseGPT), Sun et al. 2023 (Wanda), llmcompressor's
    implementations. Raises ValueError for an unknown method or pattern, AssertionError when what
    was reached is not what was asked: a magnitude modifier of llmcompressor that left every weight
    as it was is why this is measured.
    """
    if method not in METHODS:
        raise ValueError(f"unknown pruning method {method!r}; choose from {', '.join(METHODS)}")
    well_formed = re.fullmatch(r"[1-9]\d*:[1-9]\d*", pattern)
    if pattern and not (well_formed and _zeros(pattern) == attention == mlp):
        raise ValueError(
            f"pattern {pattern!r} with shares {attention} and {mlp}: write n:m and its share of"
            " zeros"
        )
    if method == "magnitude":
        _magnitude(model, {"attention": attention, "mlp": mlp}, pattern)
    else:
        oneshot.run(model, tokenizer, sequences, _recipe(method, attention, mlp, pattern, log), log)
    reached = sparsity(model)
    # methods prune whole columns of a row
    column = 1 / min(module.in_features for _, module in linears(model))
    for kind, wanted in (("attention", attention), ("mlp", mlp)):
        assert abs(reached[kind] - wanted) <= column, (
            f"{method}: {kind} sparsity is {reached[kind]:.4f}, not {wanted}"
        )
    return reached


def _zeros(pattern: str) -> float:
    zeros, block = map(int, pattern.split(":"))
    return zeros / block


def _recipe(method: str, attention: float, mlp: float, pattern: str, log: Path) -> list:
    with oneshot.quiet(log):
        from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier

        modifier = {"sparsegpt": SparseGPTModifier, "wanda": WandaPruningModifier}[method]
        groups = [
            (share, f"re:.*({'|'.join(names)})$")
            for share, names in ((attention, ATTENTION), (mlp, MLP))
        ]
        return [
            modifier(
                sparsity=share,
                mask_structure=pattern or "0:0",
                targets=[names],
                ignore=["re:.*lm_head"],
            )
            for share, names in groups
            if share > 0
        ]


def _magnitude(model, shares: dict[str, float], pattern: str) -> None:
    """Smallest weights of each linear to zero, through torch.nn.utils.prune."""
    from torch.nn.utils import prune as torch_prune

    for kind, share in shares.items():
        for _, module in linears(model, kind):
            mask = _pattern_mask(module.weight, pattern) if pattern else _mask(module.weight, share)
            torch_prune.custom_from_mask(module, "weight", mask)
            torch_prune.remove(module, "weight")


def _pattern_mask(weight, pattern: str):
    """0 at the smallest weights of every block of neighbours, 1 elsewhere; pattern: zeros:block."""
    import torch

    zeros, block = map(int, pattern.split(":"))
    blocks = weight.detach().abs().reshape(-1, block)
    smallest = blocks.topk(zeros, largest=False).indices
    return torch.ones_like(blocks).scatter_(1, smallest, 0).reshape(weight.shape)


def _mask(weight, share: float):
    """0 at the `share` smallest weights of a matrix, 1 elsewhere."""
    import torch

    size = weight.detach().abs().float().flatten()
    mask = torch.ones_like(size)
    gone = smallest(size.cpu().numpy(), round(share * size.numel()))
    mask[torch.from_numpy(gone).to(mask.device)] = 0
    return mask.reshape(weight.shape)


def smallest(sizes, count: int):
    """Places of the `count` smallest of a numpy array, in no order: exactly as many as asked.

    A partition, not a sort: the sort behind torch's `l1_unstructured` took half of a grid point's
    time. Of equal sizes at the edge any may go.
    """
    import numpy as np

    return np.argpartition(sizes, count - 1)[:count] if count else np.zeros(0, np.int64)


def bitmask_bytes(model, bytes_per_weight: int = 2) -> int:
    """Bytes of the linears if stored as their non-zero weights and one bit a weight for places."""
    total = 0
    for _, module in linears(model):
        kept = int((module.weight != 0).sum())
        total += kept * bytes_per_weight + -(-module.weight.numel() // 8)
    return total
