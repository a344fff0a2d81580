"""The one kernel that the compiler makes badly: `swiglu_back`, whose inputs it reads twice.

Written in Triton; imported on a GPU alone. Its plain form, and its test oracle, is
lib.training.fast_kernels.swiglu_back.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _swiglu_back(
    pair,
    dy,
    dy_low,
    wide,
    seen,
    seed,
    width,
    pair_row,
    dy_row,
    wide_row,
    least,
    keep,
    MASKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(pair + row * pair_row + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(pair + row * pair_row + width + column, mask=inside, other=0.0).to(tl.float32)
    slope = tl.load(dy + row * dy_row + column, mask=inside, other=0.0).to(tl.float32)
    opened = 1 / (1 + tl.exp(-gate))
    active = gate * opened
    x = active * up
    if MASKS:  # the hash of lib.training.fast_kernels.masked
        bits = (row * width + column).to(tl.int32) ^ tl.load(seed)
        bits = bits.to(tl.uint32, bitcast=True)
        bits = (bits ^ (bits >> 16)) * 0x7FEB352D
        bits = (bits ^ (bits >> 15)) * 0x846CA68B
        kept = (bits >> 8) >= least
        through = tl.load(dy_low + row * width + column, mask=inside, other=0.0).to(tl.float32)
        slope += tl.where(kept, through / keep, 0.0)
        x = tl.where(kept, x / keep, 0.0)
    d_gate = slope * up * (opened + active * (1 - opened))
    tl.store(wide + row * wide_row + column, d_gate, mask=inside)
    tl.store(wide + row * wide_row + width + column, slope * active, mask=inside)
    tl.store(seen + row * width + column, x, mask=inside)


def swiglu_back(gate_up, dy, dy_low, room: int, p, seed):
    """As lib.training.fast_kernels.swiglu_back; the caller fills the last `room` columns."""
    tokens, width = len(gate_up), gate_up.shape[1] // 2
    assert gate_up.stride(1) == dy.stride(1) == 1 and (dy_low is None or dy_low.is_contiguous())
    wide, seen = gate_up.new_empty(tokens, 2 * width + room), gate_up.new_empty(tokens, width)
    block = 1024
    _swiglu_back[(tokens, triton.cdiv(width, block))](
        gate_up,
        dy,
        dy if dy_low is None else dy_low,
        wide,
        seen,
        seed,
        width,
        gate_up.stride(0),
        dy.stride(0),
        wide.stride(0),
        int(p * 2**24),
        1 - p,
        MASKS=seed is not None,
        BLOCK=block,
    )
    assert wide.dtype == torch.bfloat16 or wide.dtype == torch.float32, wide.dtype
    return wide, seen
