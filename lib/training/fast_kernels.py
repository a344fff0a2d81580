"""What lies between the matrix products of lib.training.fast_lora, in plain PyTorch.

Each is one kernel when compiled on a GPU. Where an adapter has dropout, `seed` is a number on the
device (else None), and the kernel also masks what the adapter sees. x and what goes with it are
[tokens, width].
"""

from __future__ import annotations

import inspect

import torch
from torch.nn.functional import scaled_dot_product_attention


def add_norm(h, y, weight, eps, out, p, seed):
    """(h + y, its masked RMS norm); the norm itself goes into `out`, a view of a wider tensor."""
    total = h + y
    wide = total.float()
    x = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(h.dtype) * weight
    out.copy_(x)
    return total, None if seed is None else masked(x, p, seed)


def norm_back(h, weight, eps, dx, dx_low, dh, out, p, seed):
    """Gradient of h through its norm, plus `dh` that passed by, into `out`.

    Returns the (masked) norm again.
    """
    wide = h.float()
    inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    unit, slope = wide * inverse, dx.float()
    if seed is not None:
        slope = slope + masked(dx_low, p, seed).float()
    slope = slope * weight.float()
    back = inverse * (slope - unit * (slope * unit).mean(-1, keepdim=True))
    out.copy_(back.to(h.dtype) + dh)
    x = unit.to(h.dtype) * weight
    return x if seed is None else masked(x, p, seed)


def rotate(heads, cos, sin, turned: int):
    """Rotary embedding of the first `turned` of [tokens, heads, dim]; the others pass.

    cos, sin: [tokens, dim].
    """
    x, half = heads[:, :turned].float(), heads.shape[-1] // 2
    swapped = torch.cat([-x[..., half:], x[..., :half]], -1)
    return torch.cat(
        [(x * cos[:, None] + swapped * sin[:, None]).to(heads.dtype), heads[:, turned:]], 1
    )


def rotate_back(dq, dk, dv, cos, sin, out):
    """Gradient of `rotate`, into `out` [tokens, heads of all three, dim]."""

    def back(dx):
        x, half = dx.float(), dx.shape[-1] // 2
        swapped = torch.cat([x[..., half:], -x[..., :half]], -1)
        return (x * cos[:, None] + swapped * sin[:, None]).to(dx.dtype)

    out.copy_(torch.cat([back(dq), back(dk), dv], 1))


def swiglu(gate_up, out, p, seed):
    """silu(gate) * up of [tokens, 2 width] into `out` [tokens, width]; returns it masked."""
    gate, up = (half.float() for half in gate_up.chunk(2, -1))
    x = (torch.nn.functional.silu(gate) * up).to(gate_up.dtype)
    out.copy_(x)
    return None if seed is None else masked(x, p, seed)


def swiglu_back(gate_up, dy, dy_low, room: int, p, seed):
    """Gradient of `swiglu` [tokens, 2 width + room], its (masked) value again [tokens, width]."""
    gate, up = (half.float() for half in gate_up.chunk(2, -1))
    dy, open_ = dy.float(), torch.sigmoid(gate)
    if seed is not None:
        dy = dy + masked(dy_low, p, seed).float()
    active = gate * open_
    d_gate, d_up = dy * up * (open_ + active * (1 - open_)), dy * active
    x = (active * up).to(gate_up.dtype)
    wide = torch.cat([d_gate.to(x.dtype), d_up.to(x.dtype), x.new_zeros(len(x), room)], -1)
    return wide, x if seed is None else masked(x, p, seed)


def masked(x, p: float, seed):
    """Dropout whose mask is a hash of position and seed, so that none is stored for backward.

    The hash is lowbias32, by C. Wellons.
    """
    bits = torch.arange(x.numel(), device=x.device, dtype=torch.int32).view(x.shape) ^ seed
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32)):
        bits = (bits ^ ((bits >> shift) & (2 ** (32 - shift) - 1))) * factor
    kept = ((bits >> 8) & 0xFFFFFF) >= int(p * 2**24)
    return torch.where(kept, x / (1 - p), 0).to(x.dtype)


def add_masked(dx, dx_low, p, seed):
    """dx plus the masked gradient through the adapter."""
    return dx + masked(dx_low, p, seed)


def cross_entropy(logits, labels, scale):
    """Summed loss in nats and its gradient by the logits times `scale`, [rows, vocabulary]."""
    log_p = logits.float().log_softmax(-1)
    hit = torch.arange(logits.shape[1], device=logits.device)[None] == labels[:, None]
    return -log_p.gather(1, labels[:, None]).sum(), ((log_p.exp() - hit.float()) * scale).to(
        logits.dtype
    )


_compiled = {}


def run(function, *arguments):
    """Call a function from above: on a GPU compiled, or in its Triton form where there is one."""
    if not arguments[0].is_cuda:
        return function(*arguments)
    if function is swiglu_back:
        from lib.training import fast_triton

        return fast_triton.swiglu_back(*arguments)
    if function not in _compiled:
        _compiled[function] = torch.compile(function)
    return _compiled[function](*arguments)


def attention(q, k, v, lengths, borders):
    """Causal attention inside each document, [tokens, heads x dim].

    q: [tokens, heads, dim]; k, v: [tokens, kv_heads, dim].
    """
    if len(set(lengths)) == 1:
        # equal documents are a plain batch: the fastest kernel there is takes them
        batch = [heads.unflatten(0, (len(lengths), -1)).transpose(1, 2) for heads in (q, k, v)]
        out = scaled_dot_product_attention(*batch, is_causal=True, enable_gqa=True).transpose(1, 2)
        return out.reshape(len(q), -1)
    if q.is_cuda:
        from torch.nn.attention.varlen import varlen_attn

        known, longest = inspect.signature(varlen_attn).parameters, max(lengths)
        options = {"window_size": (-1, 0)}
        if "window_size" not in known:  # torch 2.10
            options = {"is_causal": True}
        if "enable_gqa" in known:
            options["enable_gqa"] = True
        out = varlen_attn(q, k, v, borders, borders, longest, longest, **options)
        return out.flatten(1)
    parts = zip(*(heads.split(lengths) for heads in (q, k, v)), strict=True)
    return torch.cat([attention(*part, [len(part[0])], None) for part in parts])
