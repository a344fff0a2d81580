"""LoRA training of a Llama near the limit of the card: no padding, no casts, few large products.

What a step costs beside its base products is bytes: every LoRA scale-and-add, norm, activation and
cast reads and writes a tensor of [tokens, 14336]. So

- a flat stream of tokens holds whole documents end to end, attention is cut at their borders, and
  nothing is padding;
- linears that share an input are one matrix `[W, B; s A, 0]` (lib.training.fast_groups): `[x, s A
  x]` times its upper rows is base and LoRA in one product, `[dy, B dy]` times its left columns is
  the gradient of both. The base weights become views into it;
- what lies between the products is one kernel each (lib.training.fast_kernels);
- backward keeps six tensors a layer and computes norms and activation again while it reads them
  anyway;
- adapters stay peft's own float32 parameters: optimiser, clipping, checkpoints and saving know
  nothing of this file.

What each of these buys is measured by tests/bench/train_8b.py. On a CPU the same lines run
uncompiled, which is how they are tested against peft. Dropout is drawn once for linears that share
an input (peft: once for each).
"""

from __future__ import annotations

from types import SimpleNamespace

import torch

from lib.training import fast_kernels as kernels
from lib.training.conversations import IGNORED
from lib.training.fast_groups import adapter_grads, fuse, project, project_back, widened
from lib.training.fast_kernels import run

# tokens held at once: above MOST, products get no faster; below LEAST, they get slower
MOST, LEAST = 12_288, 4096
RESERVE = 2 * 2**30  # bytes for the allocator's gaps and the libraries' workspaces
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


class BeforeAttention(torch.autograd.Function):
    """Residual stream h + y, and rotated queries, keys and values of its norm."""

    @staticmethod
    def forward(ctx, layer, cos, sin, seed, h, y, *adapters):
        group = layer.qkv
        x = h.new_empty(len(h), group.width + group.low)
        total, seen = run(
            kernels.add_norm, h, y, layer.norm1, layer.eps, x[:, : group.width], group.p, seed
        )
        heads = project(group, x, seen).view(len(h), -1, layer.dim)
        heads = run(kernels.rotate, heads, cos, sin, layer.heads + layer.kv_heads)
        ctx.save_for_backward(total, x[:, group.width :].contiguous(), cos, sin, seed)
        ctx.layer = layer
        return total, *heads.split([layer.heads, layer.kv_heads, layer.kv_heads], 1)

    @staticmethod
    def backward(ctx, d_total, dq, dk, dv):
        layer, group, (total, low, cos, sin, seed) = ctx.layer, ctx.layer.qkv, ctx.saved_tensors
        dy = dq.new_empty(len(dq), group.rows + group.low)
        run(
            kernels.rotate_back,
            dq,
            dk,
            dv,
            cos,
            sin,
            dy[:, : group.rows].unflatten(1, (-1, layer.dim)),
        )
        dx, dx_low = project_back(group, dy, seed is not None)
        dh = total.new_empty(len(total), group.width + layer.down.low)[:, : group.width]
        seen = run(
            kernels.norm_back, total, layer.norm1, layer.eps, dx, dx_low, d_total, dh, group.p, seed
        )
        return None, None, None, None, dh, dh, *adapter_grads(group, dy, seen, low)


class AfterAttention(torch.autograd.Function):
    """Output projection and MLP: the residual stream after attention, and what the MLP adds."""

    @staticmethod
    def forward(ctx, layer, seeds, attended, h, *adapters):
        out, gate_up, down = layer.out, layer.gate_up, layer.down
        seen = None if seeds[0] is None else run(kernels.masked, attended, out.p, seeds[0])
        x = torch.cat([attended, attended.new_empty(len(h), out.low)], 1)
        y = project(out, x, seen)
        low = [x[:, out.width :].contiguous()]
        x = h.new_empty(len(h), gate_up.width + gate_up.low)
        into = x[:, : gate_up.width]
        total, seen = run(kernels.add_norm, h, y, layer.norm2, layer.eps, into, gate_up.p, seeds[1])
        pair = project(gate_up, x, seen)
        low.append(x[:, gate_up.width :].contiguous())
        x = h.new_empty(len(h), down.width + down.low)
        seen = run(kernels.swiglu, pair, x[:, : down.width], down.p, seeds[2])
        y = project(down, x, seen)
        low.append(x[:, down.width :].contiguous())
        ctx.save_for_backward(attended, total, pair, *low, *seeds)
        ctx.layer = layer
        return total, y

    @staticmethod
    def backward(ctx, d_total, dy):
        layer, (attended, total, pair, low_out, low_in, low_down, *seeds) = (
            ctx.layer,
            ctx.saved_tensors,
        )
        out, gate_up, down = layer.out, layer.gate_up, layer.down
        dy = widened(dy, down.low)
        dx, dx_low = project_back(down, dy, seeds[2] is not None)
        d_pair, seen = run(kernels.swiglu_back, pair, dx, dx_low, gate_up.low, down.p, seeds[2])
        grads = adapter_grads(down, dy, seen, low_down)
        dx, dx_low = project_back(gate_up, d_pair, seeds[1] is not None)
        wide = total.new_empty(len(total), out.rows + out.low)
        dh = wide[:, : out.rows]
        seen = run(
            kernels.norm_back,
            total,
            layer.norm2,
            layer.eps,
            dx,
            dx_low,
            d_total,
            dh,
            gate_up.p,
            seeds[1],
        )
        grads = (*adapter_grads(gate_up, d_pair, seen, low_in), *grads)
        dx, dx_low = project_back(out, wide, seeds[0] is not None)
        seen = attended
        if seeds[0] is not None:
            dx = run(kernels.add_masked, dx, dx_low, out.p, seeds[0])
            seen = run(kernels.masked, attended, out.p, seeds[0])
        return None, None, dx, dh, *adapter_grads(out, wide, seen, low_out), *grads


class VocabularyLoss(torch.autograd.Function):
    """Summed negative log-likelihood in nats, a chunk of logits and their gradient at a time."""

    @staticmethod
    def forward(ctx, hidden, labels, matrix, scale):
        loss, grad = torch.zeros((), device=hidden.device), torch.empty_like(hidden)
        for first in range(0, len(hidden), LOGIT_ROWS):
            at = slice(first, first + LOGIT_ROWS)
            nats, d_logits = run(kernels.cross_entropy, hidden[at] @ matrix.T, labels[at], scale)
            loss += nats
            torch.mm(d_logits, matrix, out=grad[at])
        ctx.save_for_backward(grad)
        return loss * scale

    @staticmethod
    def backward(ctx, d_loss):
        return ctx.saved_tensors[0] * d_loss.to(ctx.saved_tensors[0].dtype), None, None, None


def _fused(layer) -> SimpleNamespace:
    """A layer's groups, sizes and norms."""
    qkv, out, gate_up, down = (fuse(group) for group in _groups(layer))
    attention, config = layer.self_attn, layer.self_attn.config
    return SimpleNamespace(
        qkv=qkv,
        out=out,
        gate_up=gate_up,
        down=down,
        dim=attention.head_dim,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        eps=config.rms_norm_eps,
        norm1=layer.input_layernorm.weight,
        norm2=layer.post_attention_layernorm.weight,
    )


class FastLoRA:
    """The fast forward of a peft Llama.

    Base weights become views into fused matrices; the model works as before.
    """

    def __init__(self, model):
        assert not obstacle(model), obstacle(model)
        self.model, causal = model, model.get_base_model()
        self.base, self.head = causal.model, causal.lm_head.weight
        self.recomputed = 0  # layers whose activations are made twice instead of kept
        self.layers = [_fused(layer) for layer in self.base.layers]
        self.adapters = [p for p in model.parameters() if p.requires_grad]

    def plan(self, longest: int, free: float | None = None) -> tuple[int, int]:
        """Tokens to hold at once and layers to recompute, for `free` bytes of memory.

        free: what the GPU has left where it is not given. More tokens make larger products, up to
        MOST; fewer cost less than recomputing, down to LEAST, or to the longest document. Adapter
        gradients and the optimiser's two moments, 12 bytes a parameter, are still to come.
        """
        if free is None:
            torch.cuda.empty_cache()
            free = torch.cuda.mem_get_info()[0]
        layer, width = self.layers[0], self.layers[0].qkv.width
        groups = (layer.qkv, layer.out, layer.gate_up, layer.down)
        rows = 2 * width + layer.qkv.rows + layer.out.width + layer.gate_up.rows
        kept = 2 * (rows + sum(group.low for group in groups))
        kept += 4 * layer.heads  # log-sum-exp of attention
        # what one layer's backward holds for a while
        passing = 2 * (4 * layer.gate_up.rows + 8 * width)
        fixed = 12 * sum(p.numel() for p in self.adapters) + RESERVE
        fixed += 4 * min(LOGIT_ROWS, MOST) * len(self.head)
        room = free - fixed
        for tokens in range(MOST, max(LEAST, longest) - 1, -1024):
            if tokens * (passing + kept * len(self.layers)) <= room:
                return tokens, 0
        tokens = max(LEAST, longest)
        spare = int((room - tokens * passing) // (tokens * kept))
        # a recomputed layer still keeps the two parts of its residual stream
        return tokens, min(len(self.layers), max(0, len(self.layers) - max(0, spare - 1)))

    def refresh(self) -> None:
        """Take over the adapters as they are now, rounded to the base's type."""
        groups = [
            group
            for layer in self.layers
            for group in (layer.qkv, layer.out, layer.gate_up, layer.down)
        ]
        with torch.no_grad():
            scaled = torch._foreach_mul([a for group in groups for a in group.A], groups[0].scale)
            torch._foreach_copy_([view for group in groups for view in group.into_a], scaled)
            low = [b for group in groups for b in group.B]
            torch._foreach_copy_([view for group in groups for view in group.into_b], low)

    def loss(self, input_ids, targets, lengths, items=None, changed=True):
        """Negative log-likelihood of the targets in nats, summed and divided by `items`.

        input_ids, targets: [tokens], documents of `lengths` end to end; targets are the labels
        moved one to the left. items: the number of targets where it is not given.
        changed: False if the adapters are those of the call before. (Their version counters do not
        tell: fused optimisers leave them as they are.)
        """
        if changed:
            self.refresh()
        learned = (targets != IGNORED).nonzero().squeeze(1)
        count = items if items is not None else len(learned)
        scale = 1 / torch.as_tensor(count, device=targets.device).float()
        h, y = self.hidden(input_ids, lengths)
        hidden = self.base.norm(h.index_select(0, learned) + y.index_select(0, learned))
        return VocabularyLoss.apply(hidden, targets[learned], self.head, scale)

    def hidden(self, input_ids, lengths):
        """Residual stream [tokens, width] before the last norm, in two parts to be added."""
        from torch.utils.checkpoint import checkpoint

        device = input_ids.device
        positions = torch.cat([torch.arange(length) for length in lengths])
        positions = positions.to(device, non_blocking=True)
        borders = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        borders = borders.to(device)
        with torch.no_grad():
            h = self.base.embed_tokens(input_ids)
            y = torch.zeros_like(h)
            cos, sin = (table[0] for table in self.base.rotary_emb(h[:1].float(), positions[None]))
        seeds = [[None] * 4] * len(self.layers)
        if self.model.training and any(layer.qkv.p for layer in self.layers):
            drawn = torch.randint(-(2**31), 2**31, (len(self.layers), 4), dtype=torch.int32)
            seeds = [numbers.unbind() for numbers in drawn.to(device)]
        for index, (layer, seed) in enumerate(zip(self.layers, seeds, strict=True)):
            if index < self.recomputed and torch.is_grad_enabled():
                h, y = checkpoint(
                    self._layer, layer, h, y, cos, sin, seed, lengths, borders, use_reentrant=False
                )
            else:
                h, y = self._layer(layer, h, y, cos, sin, seed, lengths, borders)
        return h, y

    def _layer(self, layer, h, y, cos, sin, seed, lengths, borders):
        first, others = layer.qkv, (layer.out, layer.gate_up, layer.down)
        h, q, k, v = BeforeAttention.apply(layer, cos, sin, seed[0], h, y, *first.A, *first.B)
        attended = kernels.attention(q, k, v, lengths, borders)
        return AfterAttention.apply(
            layer, seed[1:], attended, h, *[p for group in others for p in group.A + group.B]
        )
