"""LoRA training of a Llama near the limit of the card: no padding, no casts, few and large products.

What a step costs beside its base products is bytes: every LoRA scale-and-add, norm, activation and cast reads and
writes a tensor of [tokens, 14336]. So

- a flat stream of tokens holds whole documents end to end, attention is cut at their borders, and nothing is padding;
- linears that share an input are one matrix `[W | s B]`, applied to `[x | drop(x) A^T]`: base product and LoRA in one
  pass, and one product `dy [W | s B]` gives back both gradients. The base weights become views into that matrix;
- what lies between the products is written in plain PyTorch and compiled into one kernel each on a GPU;
- backward keeps six tensors a layer and computes norms and activation again while it reads them anyway;
- adapters stay peft's own float32 parameters: optimiser, clipping, checkpoints and saving know nothing of this file.

What each of these buys is measured by tests/bench/train_8b.py. On a CPU the same lines run uncompiled, which is how
they are tested against peft. Dropout is drawn once for linears that share an input (peft: once for each).
"""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import torch
from torch.nn.functional import scaled_dot_product_attention

from lib.conversations import IGNORED

LOGIT_ROWS = 4096  # positions whose logits exist at once: 1 GiB at a vocabulary of 128 K


def obstacle(model) -> str:
    """Why `model` (peft) cannot take this path; empty when it can."""
    causal = model.get_base_model()
    config, layer = causal.config, getattr(getattr(causal, "model", None), "layers", [None])[0]
    if type(causal).__name__ != "LlamaForCausalLM":
        return f"{type(causal).__name__} is not a Llama"
    if config.attention_bias or config.mlp_bias or config.hidden_act != "silu":
        return "biases, or an activation that is not silu"
    if any(not hasattr(linear, "lora_A") for group in _groups(layer) for linear in group):
        return "not all seven linears of a layer have an adapter"
    if any(p.requires_grad != ("lora_" in name) for name, p in model.named_parameters()):
        return "something else than the adapters is trained"
    return ""


def _groups(layer) -> list[list]:
    """The linears of a layer that share an input."""
    a, m = layer.self_attn, layer.mlp
    return [[a.q_proj, a.k_proj, a.v_proj], [a.o_proj], [m.gate_proj, m.up_proj], [m.down_proj]]


# ---- between the products: one kernel each when compiled --------------------------------------------------------------


def add_norm(h, y, weight, eps, out):
    """h + y; its RMS norm goes into `out` [tokens, width], which may be a view into something wider."""
    total = h + y
    wide = total.float()
    out.copy_((wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(h.dtype) * weight)
    return total


def norm_back(h, weight, eps, dx, dh):
    """Gradient of h through its norm, plus `dh` that passed by; and the norm again, [tokens, width] each."""
    wide = h.float()
    inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    unit, slope = wide * inverse, dx.float() * weight.float()
    back = inverse * (slope - unit * (slope * unit).mean(-1, keepdim=True))
    return back.to(h.dtype) + dh, unit.to(h.dtype) * weight


def rotate(heads, cos, sin, turned: int):
    """Rotary embedding of the first `turned` of [tokens, heads, dim]; the others pass. cos, sin: [tokens, dim]."""
    x, half = heads[:, :turned].float(), heads.shape[-1] // 2
    swapped = torch.cat([-x[..., half:], x[..., :half]], -1)
    return torch.cat([(x * cos[:, None] + swapped * sin[:, None]).to(heads.dtype), heads[:, turned:]], 1)


def rotate_back(dq, dk, dv, cos, sin):
    """Gradient of `rotate`: turn back what came for queries and keys, and join the three."""
    def back(dx):
        x, half = dx.float(), dx.shape[-1] // 2
        swapped = torch.cat([x[..., half:], -x[..., :half]], -1)
        return (x * cos[:, None] + swapped * sin[:, None]).to(dx.dtype)

    return torch.cat([back(dq), back(dk), dv], 1)


def swiglu(gate_up, out):
    """silu(gate) * up of [tokens, 2 width] into `out` [tokens, width]."""
    gate, up = (half.float() for half in gate_up.chunk(2, -1))
    out.copy_(torch.nn.functional.silu(gate) * up)


def swiglu_back(gate_up, dy):
    """Gradient [tokens, 2 width] of `swiglu`, and its value again [tokens, width]."""
    gate, up = (half.float() for half in gate_up.chunk(2, -1))
    dy, open_ = dy.float(), torch.sigmoid(gate)
    active = gate * open_
    d_gate = dy * up * (open_ + active * (1 - open_))
    return torch.cat([d_gate, dy * active], -1).to(gate_up.dtype), (active * up).to(gate_up.dtype)


def dropped(x, p: float, seed):
    """Dropout whose mask is a hash (lowbias32, by C. Wellons) of position and seed: no mask is stored for backward."""
    bits = torch.arange(x.numel(), device=x.device, dtype=torch.int32).view(x.shape) ^ seed
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32)):
        bits = (bits ^ ((bits >> shift) & (2 ** (32 - shift) - 1))) * factor
    kept = ((bits >> 8) & 0xFFFFFF) >= int(p * 2**24)
    return torch.where(kept, x / (1 - p), 0).to(x.dtype)


def cross_entropy(logits, labels, scale):
    """Summed loss in nats and its gradient by the logits times `scale`, [rows, vocabulary]."""
    wide = logits.float()
    log_sum = wide.logsumexp(-1, keepdim=True)
    at = torch.arange(logits.shape[1], device=logits.device)[None] == labels[:, None]
    loss = (log_sum[:, 0] - wide.gather(1, labels[:, None])[:, 0]).sum()
    return loss, (((wide - log_sum).exp() - at.float()) * scale).to(logits.dtype)


_compiled = {}


def run(function, *arguments):
    """Call a function from above: compiled on a GPU, as it is elsewhere."""
    if not arguments[0].is_cuda:
        return function(*arguments)
    if function not in _compiled:
        _compiled[function] = torch.compile(function)
    return _compiled[function](*arguments)


def drop(x, group, seed):
    return run(dropped, x, group.dropout, seed) if seed is not None and group.dropout else x


# ---- products with their adapters -------------------------------------------------------------------------------------


def _fuse(linears) -> SimpleNamespace:
    """`[W | s B]` and A of linears that share an input. Their base weights become views into the former."""
    first = linears[0]
    name, width, rank = first.active_adapters[0], first.in_features, first.r[first.active_adapters[0]]
    rows = [linear.out_features for linear in linears]
    like = {"dtype": first.base_layer.weight.dtype, "device": first.base_layer.weight.device}
    matrix = torch.zeros(sum(rows), width + rank * len(linears), **like)
    narrow = torch.empty(rank * len(linears), width, **like)
    bounds = [0]
    for linear, count in zip(linears, rows, strict=True):
        bounds.append(bounds[-1] + count)
        view = matrix[bounds[-2] : bounds[-1], :width]
        linear.base_layer.weight.data = view.copy_(linear.base_layer.weight.data)
    return SimpleNamespace(
        matrix=matrix, narrow=narrow, width=width, rank=rank, bounds=bounds, scale=first.scaling[name],
        dropout=getattr(first.lora_dropout[name], "p", 0.0),
        A=[linear.lora_A[name].weight for linear in linears], B=[linear.lora_B[name].weight for linear in linears],
    )  # fmt: skip


def _refresh(group) -> None:
    """Copy the float32 adapters into the products' matrices, rounded to the base's type."""
    for i, (a, b) in enumerate(zip(group.A, group.B, strict=True)):
        at = slice(i * group.rank, (i + 1) * group.rank)
        group.narrow[at].copy_(a)
        group.matrix[group.bounds[i] : group.bounds[i + 1], group.width :][:, at].copy_(b * group.scale)


def project(group, x, seed):
    """W x + s B A drop(x) for all linears of the group. x: [tokens, width + rank of all], its last columns are filled."""
    torch.mm(drop(x[:, : group.width], group, seed), group.narrow.T, out=x[:, group.width :])
    return x @ group.matrix.T


def outer(a, b):
    """a^T b in float32, summed over the tokens."""
    return torch.mm(a.T, b, out_dtype=torch.float32) if a.is_cuda else (a.T @ b).float()


def project_back(group, dy, seed):
    """Gradients of `project` by x [tokens, width], and by x's last columns [tokens, rank of all]."""
    wide = dy @ group.matrix
    dx, d_low = wide[:, : group.width], wide[:, group.width :]
    if seed is not None and group.dropout:
        dx += drop(d_low @ group.narrow, group, seed)
    else:
        dx.addmm_(d_low, group.narrow)
    return dx, d_low


def adapter_grads(group, dy, d_low, x, low, seed):
    """Gradients of A..., B... in float32. low: the last columns of x as `project` filled them."""
    d_a = outer(d_low, drop(x, group, seed)).split(group.rank)
    rows = [after - before for before, after in zip(group.bounds, group.bounds[1:], strict=False)]
    parts = zip(dy.split(rows, 1), low.split(group.rank, 1), strict=True)
    return (*d_a, *(outer(part, each).mul_(group.scale) for part, each in parts))


class BeforeAttention(torch.autograd.Function):
    """Residual stream h + y, and rotated queries, keys and values of its norm."""

    @staticmethod
    def forward(ctx, layer, cos, sin, seed, h, y, *adapters):
        group = layer.qkv
        x = h.new_empty(len(h), group.width + len(group.narrow))
        total = run(add_norm, h, y, layer.norm1, layer.eps, x[:, : group.width])
        heads = project(group, x, seed).view(len(h), -1, layer.dim)
        heads = run(rotate, heads, cos, sin, layer.heads + layer.kv_heads)
        ctx.save_for_backward(total, x[:, group.width :].contiguous(), cos, sin, seed)
        ctx.layer = layer
        return total, *heads.split([layer.heads, layer.kv_heads, layer.kv_heads], 1)

    @staticmethod
    def backward(ctx, d_total, dq, dk, dv):
        layer, (total, low, cos, sin, seed) = ctx.layer, ctx.saved_tensors
        d_heads = run(rotate_back, dq, dk, dv, cos, sin).flatten(1)
        dx, d_low = project_back(layer.qkv, d_heads, seed)
        dh, x = run(norm_back, total, layer.norm1, layer.eps, dx, d_total)
        return None, None, None, None, dh, dh, *adapter_grads(layer.qkv, d_heads, d_low, x, low, seed)


class AfterAttention(torch.autograd.Function):
    """Output projection and MLP: the residual stream after attention, and what the MLP adds to it."""

    @staticmethod
    def forward(ctx, layer, seeds, attended, h, *adapters):
        out, gate_up, down = layer.out, layer.gate_up, layer.down
        x = torch.cat([attended, attended.new_empty(len(h), len(out.narrow))], 1)
        y = project(out, x, seeds[0])
        low = [x[:, out.width :].contiguous()]
        x = h.new_empty(len(h), gate_up.width + len(gate_up.narrow))
        total = run(add_norm, h, y, layer.norm2, layer.eps, x[:, : gate_up.width])
        pair = project(gate_up, x, seeds[1])
        low.append(x[:, gate_up.width :].contiguous())
        x = h.new_empty(len(h), down.width + len(down.narrow))
        run(swiglu, pair, x[:, : down.width])
        y = project(down, x, seeds[2])
        low.append(x[:, down.width :].contiguous())
        ctx.save_for_backward(attended, total, pair, *low, *seeds)
        ctx.layer = layer
        return total, y

    @staticmethod
    def backward(ctx, d_total, dy):
        layer, (attended, total, pair, low_out, low_in, low_down, *seeds) = ctx.layer, ctx.saved_tensors
        dx, d_low = project_back(layer.down, dy, seeds[2])
        d_pair, x = run(swiglu_back, pair, dx)
        down = adapter_grads(layer.down, dy, d_low, x, low_down, seeds[2])
        dx, d_low = project_back(layer.gate_up, d_pair, seeds[1])
        dh, x = run(norm_back, total, layer.norm2, layer.eps, dx, d_total)
        gate_up = adapter_grads(layer.gate_up, d_pair, d_low, x, low_in, seeds[1])
        dx, d_low = project_back(layer.out, dh, seeds[0])
        out = adapter_grads(layer.out, dh, d_low, attended, low_out, seeds[0])
        return None, None, dx.contiguous(), dh, *out, *gate_up, *down


class VocabularyLoss(torch.autograd.Function):
    """Summed negative log-likelihood in nats; the gradient is made chunk by chunk while the logits are there."""

    @staticmethod
    def forward(ctx, hidden, labels, matrix, scale):
        loss, grad = torch.zeros((), device=hidden.device), torch.empty_like(hidden)
        for first in range(0, len(hidden), LOGIT_ROWS):
            at = slice(first, first + LOGIT_ROWS)
            nats, d_logits = run(cross_entropy, hidden[at] @ matrix.T, labels[at], scale)
            loss += nats
            torch.mm(d_logits, matrix, out=grad[at])
        ctx.save_for_backward(grad)
        return loss * scale

    @staticmethod
    def backward(ctx, d_loss):
        return ctx.saved_tensors[0] * d_loss.to(ctx.saved_tensors[0].dtype), None, None, None


def attention(q, k, v, lengths, borders):
    """Causal attention inside each document. q: [tokens, heads, dim]; k, v: [tokens, kv_heads, dim]; returns [tokens, -1]."""
    if len(set(lengths)) == 1:  # equal documents are a plain batch: the fastest kernel there is takes them
        batch = [each.unflatten(0, (len(lengths), -1)).transpose(1, 2) for each in (q, k, v)]
        out = scaled_dot_product_attention(*batch, is_causal=True, enable_gqa=True).transpose(1, 2)
        return out.reshape(len(q), -1)
    if q.is_cuda:
        from torch.nn.attention.varlen import varlen_attn

        grouped = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
        longest = max(lengths)
        return varlen_attn(q, k, v, borders, borders, longest, longest, window_size=(-1, 0), **grouped).flatten(1)
    parts = zip(*(each.split(lengths) for each in (q, k, v)), strict=True)
    return torch.cat([attention(*part, [len(part[0])], None) for part in parts])


class FastLoRA:
    """The fast forward of a peft Llama. Makes the base weights views into `[W | s B]`; the model stays usable as it was."""

    def __init__(self, model):
        assert not obstacle(model), obstacle(model)
        self.model, causal = model, model.get_base_model()
        self.base, self.head = causal.model, causal.lm_head.weight
        self.recomputed = 0  # layers whose activations are made twice instead of kept
        self.layers, self.copied = [], None
        for layer in self.base.layers:
            qkv, out, gate_up, down = (_fuse(group) for group in _groups(layer))
            config = layer.self_attn.config
            self.layers.append(SimpleNamespace(
                qkv=qkv, out=out, gate_up=gate_up, down=down, dim=layer.self_attn.head_dim,
                heads=config.num_attention_heads, kv_heads=config.num_key_value_heads, eps=config.rms_norm_eps,
                norm1=layer.input_layernorm.weight, norm2=layer.post_attention_layernorm.weight,
            ))  # fmt: skip
        self.adapters = [p for p in model.parameters() if p.requires_grad]

    def refresh(self) -> None:
        """Take over adapters that the optimiser, or a loaded checkpoint, has changed since the last call."""
        version = [p._version for p in self.adapters]
        if version != self.copied:
            with torch.no_grad():
                for layer in self.layers:
                    for group in (layer.qkv, layer.out, layer.gate_up, layer.down):
                        _refresh(group)
            self.copied = version

    def loss(self, input_ids, targets, lengths, items=None):
        """Negative log-likelihood of the targets, summed and divided by `items` (default: their number), in nats.

        input_ids, targets: [tokens], documents of `lengths` end to end; targets are the labels moved one to the left.
        """
        learned = (targets != IGNORED).nonzero().squeeze(1)
        scale = 1 / torch.as_tensor(items if items is not None else len(learned), device=targets.device).float()
        h, y = self.hidden(input_ids, lengths)
        hidden = self.base.norm(h.index_select(0, learned) + y.index_select(0, learned))
        return VocabularyLoss.apply(hidden, targets[learned], self.head, scale)

    def hidden(self, input_ids, lengths):
        """Residual stream [tokens, width] before the last norm, in two parts to be added."""
        from torch.utils.checkpoint import checkpoint

        self.refresh()
        device = input_ids.device
        positions = torch.cat([torch.arange(length) for length in lengths]).to(device, non_blocking=True)
        borders = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)
        with torch.no_grad():
            h = self.base.embed_tokens(input_ids)
            y = torch.zeros_like(h)
            cos, sin = (each[0] for each in self.base.rotary_emb(h[:1].float(), positions[None]))
        seeds = [[None] * 4] * len(self.layers)
        if self.model.training and any(layer.qkv.dropout for layer in self.layers):
            drawn = torch.randint(-(2**31), 2**31, (len(self.layers), 4), dtype=torch.int32)
            seeds = [each.unbind() for each in drawn.to(device)]
        for index, (layer, seed) in enumerate(zip(self.layers, seeds, strict=True)):
            if index < self.recomputed and torch.is_grad_enabled():
                h, y = checkpoint(self._layer, layer, h, y, cos, sin, seed, lengths, borders, use_reentrant=False)
            else:
                h, y = self._layer(layer, h, y, cos, sin, seed, lengths, borders)
        return h, y

    def _layer(self, layer, h, y, cos, sin, seed, lengths, borders):
        first, others = layer.qkv, (layer.out, layer.gate_up, layer.down)
        h, q, k, v = BeforeAttention.apply(layer, cos, sin, seed[0], h, y, *first.A, *first.B)
        attended = attention(q, k, v, lengths, borders)
        return AfterAttention.apply(layer, seed[1:], attended, h, *[p for group in others for p in group.A + group.B])
