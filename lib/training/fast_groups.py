"""Linears that share an input, as one matrix with their adapters: products and gradients.

A group is what `fuse` returns: `matrix` is `[W, B; s A, 0]` of [rows + low, width + low], `bounds`
the rows where one linear ends and the next begins, `into_a` and `into_b` views for the adapters.
Imports torch: import this inside functions.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch


def fuse(linears) -> SimpleNamespace:
    """One matrix `[W, B; s A, 0]` of linears that share an input; their weights become views."""
    first = linears[0]
    name, width = first.active_adapters[0], first.in_features
    rank = first.r[name]
    bounds, low = [0], rank * len(linears)
    for linear in linears:
        bounds.append(bounds[-1] + linear.out_features)
    base = first.base_layer.weight
    matrix = torch.zeros(bounds[-1] + low, width + low, dtype=base.dtype, device=base.device)
    into_a, into_b = [], []
    for i, linear in enumerate(linears):
        rows, at = matrix[bounds[i] : bounds[i + 1]], slice(i * rank, (i + 1) * rank)
        linear.base_layer.weight.data = rows[:, :width].copy_(linear.base_layer.weight.data)
        into_a.append(matrix[bounds[-1] :, :width][at])
        into_b.append(rows[:, width:][:, at])
    return SimpleNamespace(
        matrix=matrix,
        width=width,
        rows=bounds[-1],
        low=low,
        rank=rank,
        bounds=bounds,
        scale=first.scaling[name],
        p=getattr(first.lora_dropout[name], "p", 0.0),
        into_a=into_a,
        into_b=into_b,
        A=[linear.lora_A[name].weight for linear in linears],
        B=[linear.lora_B[name].weight for linear in linears],
    )


def _narrow(group):
    """s A of all linears of the group [rank of all, width]."""
    return group.matrix[group.rows :, : group.width]


def project(group, x, seen):
    """W x + s B A seen for all linears of the group.

    x: [tokens, width + low], the last columns are filled here.
    """
    seen = x[:, : group.width] if seen is None else seen
    torch.mm(seen, _narrow(group).T, out=x[:, group.width :])
    return x @ group.matrix[: group.rows].T


def project_back(group, dy, masks: bool):
    """Mirror of `project`: dy [tokens, rows + low], the last columns are filled here.

    Returns the gradient by x, and apart from it that through the adapters when that is to be masked
    yet.
    """
    wide, low = dy[:, : group.rows], dy[:, group.rows :]
    torch.mm(wide, group.matrix[: group.rows, group.width :], out=low)
    if not masks:
        return dy @ group.matrix[:, : group.width], None
    return wide @ group.matrix[: group.rows, : group.width], low @ _narrow(group)


def outer(a, b):
    """a^T b in float32, summed over the tokens."""
    return torch.mm(a.T, b, out_dtype=torch.float32) if a.is_cuda else (a.T @ b).float()


def adapter_grads(group, dy, seen, low):
    """Gradients of A..., B... in float32.

    dy: as `project_back` left it; seen: what the adapter saw; low: s A seen.
    """
    d_a = outer(dy[:, group.rows :], seen).mul_(group.scale).split(group.rank)
    rows = [after - before for before, after in zip(group.bounds, group.bounds[1:], strict=False)]
    parts = zip(dy[:, : group.rows].split(rows, 1), low.split(group.rank, 1), strict=True)
    return (*d_a, *(outer(part, inner) for part, inner in parts))


def widened(x, room: int):
    """x [tokens, width] followed by `room` free columns.

    The buffer of such a width that it heads where there is one, else a copy.
    """
    tokens, width = x.shape
    heads = x.untyped_storage().nbytes() == tokens * (width + room) * x.element_size()
    if heads and x.stride() == (width + room, 1):
        return x.as_strided((tokens, width + room), x.stride(), 0)
    return torch.cat([x, x.new_empty(tokens, room)], 1)
