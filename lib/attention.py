"""Attention for decoding: heads that share a key/value head are read together, the cache once."""

from __future__ import annotations

ATTENTION = "grouped_sdpa"


def grouped_attention(
    module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs
):
    """SDPA that treats the query heads of one key/value head as extra query positions.

    Shapes: query [batch, heads, 1, dim], key and value [batch, kv_heads, length, dim]. While
    decoding nothing is repeated, so the cache is read once instead of heads / kv_heads times.
    Longer queries (prefill, training) take transformers' SDPA.
    """
    from torch.nn.functional import scaled_dot_product_attention
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    batch, heads, length, width = query.shape
    if length > 1:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    groups = heads // key.shape[1]
    grouped = query.reshape(batch, heads // groups, groups, width)
    if attention_mask is not None:
        attention_mask = attention_mask[..., : key.shape[2]]
    out = scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(batch, 1, heads, width), None


def register() -> None:
    """Make `attn_implementation=ATTENTION` known to transformers. Harmless when called twice."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, grouped_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
