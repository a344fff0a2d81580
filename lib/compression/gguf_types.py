"""Which type llama.cpp gives each tensor of a Llama in a file type, and the bytes that follow.

Source of the rules: llama.cpp, src/llama-quant.cpp, function llama_tensor_get_type (MIT).
tests/test_compression_sizes.py holds them against llama.cpp's own quantiser, tensor by tensor, and
against published file sizes.
"""

from __future__ import annotations

import math

from lib import models

# File types with their number in llama.cpp's enum llama_ftype and the type that most tensors get.
FTYPES = {
    "F32": (0, "F32"),
    "F16": (1, "F16"),
    "BF16": (32, "BF16"),
    "Q8_0": (7, "Q8_0"),
    "Q6_K": (18, "Q6_K"),
    "Q5_K_M": (17, "Q5_K"),
    "Q5_K_S": (16, "Q5_K"),
    "Q5_0": (8, "Q5_0"),
    "Q4_K_M": (15, "Q4_K"),
    "Q4_K_S": (14, "Q4_K"),
    "Q4_0": (2, "Q4_0"),
    "IQ4_NL": (25, "IQ4_NL"),
    "IQ4_XS": (30, "IQ4_XS"),
    "Q3_K_L": (13, "Q3_K"),
    "Q3_K_M": (12, "Q3_K"),
    "Q3_K_S": (11, "Q3_K"),
    "IQ3_M": (27, "IQ3_S"),
    "IQ3_S": (26, "IQ3_S"),
    "IQ3_XXS": (23, "IQ3_XXS"),
    "Q2_K": (10, "Q2_K"),
    "IQ2_M": (29, "IQ2_S"),
    "IQ2_XS": (20, "IQ2_XS"),
    "IQ2_XXS": (19, "IQ2_XXS"),
    "IQ1_M": (31, "IQ1_M"),
    "IQ1_S": (24, "IQ1_S"),
}

NEEDS_IMATRIX = ("IQ3_XXS", "IQ2_M", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S")

# What a tensor gets whose rows are no multiple of the type's block (256 weights).
FALLBACK = {
    "Q6_K": "Q8_0",
    "Q5_K": "Q5_1",
    "Q4_K": "Q5_0",
    "Q3_K": "Q4_0",
    "Q2_K": "Q4_0",
    "IQ4_XS": "IQ4_NL",
    "IQ3_S": "IQ4_NL",
    "IQ3_XXS": "IQ4_NL",
    "IQ2_S": "IQ4_NL",
    "IQ2_XS": "IQ4_NL",
    "IQ2_XXS": "IQ4_NL",
    "IQ1_M": "IQ4_NL",
    "IQ1_S": "IQ4_NL",
}

# Types that store an exact zero as an exact zero: their grid is symmetric about it. The others add
# an offset to each block (Q4_1, Q5_1, Q4_K, Q5_K, Q2_K) or have no zero in their code book (IQ
# types).
KEEPS_ZEROS = ("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_0", "Q4_0", "Q3_K")

SMALL_IQ = ("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ2_M", "IQ1_M")

# What the input table gets where it is not the file type's default.
INPUT_TABLE = {
    "IQ2_XXS": "Q2_K",
    "IQ2_XS": "Q2_K",
    "IQ1_S": "Q2_K",
    "IQ1_M": "Q2_K",
    "IQ2_M": "IQ3_S",
    "IQ3_XXS": "IQ3_S",
}

# The same for the output projection of attention, the types of SMALL_IQ apart.
ATTENTION_OUTPUT = {
    "Q2_K": "Q3_K",
    "IQ3_XXS": "IQ3_S",
    "Q3_K_M": "Q4_K",
    "Q3_K_L": "Q5_K",
    "IQ3_M": "Q4_K",
}


# Parts of tensor names, GGUF and transformers alike; the first that is found decides.
PARTS = (
    ("adapter", ("lora_a", "lora_b", ".lora_")),
    ("norms", ("norm",)),
    ("vocabulary", ("token_embd", "embed_tokens", "lm_head")),
    ("attention", ("attn_", "self_attn")),
    ("mlp", ("ffn_", "mlp.", "feed_forward")),
)


def kind_of(name: str) -> str:
    """The kind of a tensor by its name, GGUF's or transformers'; "other" when nothing fits."""
    lowered = name.lower()
    if lowered in ("output.weight", "output"):
        return "vocabulary"
    return next((kind for kind, parts in PARTS if any(part in lowered for part in parts)), "other")


def architecture(config: dict) -> dict:
    """What decides the bytes of a Llama model, from its config.json.

    Returns {layers, hidden, mlp, heads, kv_heads, head_dim, vocab, tied, rope_factors,
    metadata_bytes (estimated, of the GGUF header with vocabulary and merges)}. Raises ValueError
    for another architecture (`models.llama_shape`).
    """
    shape = models.llama_shape(config)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return {
        "mlp": shape.pop("intermediate"),
        **shape,
        "rope_factors": rope.get("rope_type", rope.get("type")) == "llama3",
        "metadata_bytes": vocabulary_bytes(shape["vocab"]),
    }


def vocabulary_bytes(vocab: int) -> int:
    """Estimated bytes of the GGUF header of a byte-level BPE model: tokens, their types, merges.

    Llama 3 has 2.18 merges a token. A string costs 8 bytes and its characters; tokens have about 7,
    merges (two parts and a space) about 8.
    """
    merges = 2.18 if vocab > 100_000 else 1.0
    return round(vocab * (8 + 7 + 4) + merges * vocab * (8 + 8)) + 10_000


def tensors(arch: dict) -> dict[str, tuple[int, ...]]:
    """{GGUF tensor name: shape}, rows first, of an `architecture`."""
    hidden, mlp, queries = arch["hidden"], arch["mlp"], arch["heads"] * arch["head_dim"]
    keys = arch["kv_heads"] * arch["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (arch["vocab"], hidden),
        "output_norm.weight": (hidden,),
    }
    if not arch["tied"]:
        shapes["output.weight"] = (arch["vocab"], hidden)
    if arch["rope_factors"]:
        shapes["rope_freqs.weight"] = (arch["head_dim"] // 2,)
    block = {
        "attn_norm": (hidden,),
        "attn_q": (queries, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_output": (hidden, queries),
        "ffn_norm": (hidden,),
        "ffn_gate": (mlp, hidden),
        "ffn_up": (mlp, hidden),
        "ffn_down": (hidden, mlp),
    }
    for layer in range(arch["layers"]):
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in block.items()}
    return shapes


def parameters(arch: dict) -> int:
    """Weights of the model, each counted once; the rope factors are none."""
    return sum(
        math.prod(shape) for name, shape in tensors(arch).items() if name != "rope_freqs.weight"
    )


def types(arch: dict, ftype: str, imatrix: bool = True) -> dict[str, str]:
    """{tensor name: type} that llama.cpp chooses. Raises ValueError for an unknown file type."""
    if ftype not in FTYPES:
        raise ValueError(f"file type {ftype!r} is unknown; known are {', '.join(FTYPES)}")
    shapes = tensors(arch)
    chosen = {}
    for name, shape in shapes.items():
        wanted = _wanted(arch, name, ftype, imatrix) if len(shape) > 1 else "F32"
        chosen[name] = _fallback(wanted, shape[-1])
    return chosen


def block_size(kind: str) -> tuple[int, int]:
    """(weights, bytes) of one block of a type."""
    import gguf

    return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]


def _fallback(kind: str, columns: int) -> str:
    if columns % block_size(kind)[0] == 0:
        return kind
    other = FALLBACK.get(kind, "F16")
    return other if columns % block_size(other)[0] == 0 else "F16"


def _wanted(arch: dict, name: str, ftype: str, imatrix: bool) -> str:
    """The type that the rules want for a matrix, before its row length is looked at."""
    default = FTYPES[ftype][1]
    if default in ("F32", "F16", "BF16"):
        return default
    if name == "output.weight" or (arch["tied"] and name == "token_embd.weight"):
        return _output_table(arch, ftype, default)
    if name == "token_embd.weight":
        return INPUT_TABLE.get(ftype, default)
    layer, part = int(name.split(".")[1]), name.split(".")[2]
    if ftype in SMALL_IQ:
        return _small_iq(arch, layer, part, ftype, default)
    if part == "attn_v":
        return _values(arch, layer, ftype, default, imatrix)
    if part == "ffn_down":
        return _down(arch, layer, ftype, default, imatrix)
    if part in ("attn_k", "attn_q") and ftype == "IQ3_XXS":
        return "IQ2_S"
    if part == "attn_output":
        return ATTENTION_OUTPUT.get(ftype, default)
    return default


def _output_table(arch: dict, ftype: str, default: str) -> str:
    if arch["hidden"] % block_size(default)[0]:
        return "Q8_0"
    if ftype in (*SMALL_IQ, "IQ3_XXS"):
        return "Q5_K"
    return default if default == "Q8_0" else "Q6_K"


def _grouped(arch: dict) -> bool:
    """At least four query heads share a key/value head, so values are few and get more bits."""
    return arch["heads"] // arch["kv_heads"] >= 4


def _gets_more(arch: dict, layer: int) -> bool:
    """Layers to which the M types give more bits: the first and last eighth, and every third."""
    eighth = arch["layers"] // 8
    return layer < eighth or layer >= 7 * arch["layers"] // 8 or (layer - eighth) % 3 == 2


def _small_iq(arch: dict, layer: int, part: str, ftype: str, default: str) -> str:
    better = "IQ3_S" if ftype == "IQ2_M" else "Q2_K"
    if part == "attn_v":
        return "Q4_K" if _grouped(arch) else better
    if part == "ffn_down":
        return better if layer < arch["layers"] // 8 else default
    if part == "attn_output":
        return {"IQ1_S": "IQ2_XXS", "IQ1_M": "IQ2_XXS", "IQ2_M": "IQ3_S"}.get(ftype, default)
    return default


def _values(arch: dict, layer: int, ftype: str, default: str, imatrix: bool) -> str:
    """Types of attn_v."""
    grouped, more = _grouped(arch), _gets_more(arch, layer)
    sparing = "IQ3_XXS" if imatrix else "IQ3_S"
    chosen = {
        "Q2_K": "Q4_K" if grouped else "Q3_K",
        "Q3_K_M": "Q5_K" if layer < 2 else "Q4_K",
        "Q3_K_L": "Q5_K",
        "IQ3_XXS": "Q4_K" if grouped else sparing,
        "IQ3_M": "Q4_K",
        "IQ3_S": "Q4_K" if grouped else default,
        "Q4_K_S": "Q5_K" if layer < 4 else default,
        "IQ4_XS": "Q5_K" if grouped else default,
        "IQ4_NL": "Q5_K" if grouped else default,
        "Q4_K_M": "Q6_K" if more else default,
        "Q5_K_M": "Q6_K" if more else default,
    }
    return chosen.get(ftype, default)


def _down(arch: dict, layer: int, ftype: str, default: str, imatrix: bool) -> str:
    """Types of ffn_down."""
    early, more = layer < arch["layers"] // 8, _gets_more(arch, layer)
    without_matrix = "Q5_K" if early and not imatrix else default
    sparing = "Q4_K" if early else "Q3_K"
    chosen = {
        "Q2_K": "Q3_K",
        "Q3_K_M": "Q5_K" if layer < arch["layers"] // 16 else "Q4_K",
        "Q3_K_L": "Q5_K",
        "IQ3_XXS": default if imatrix else sparing,
        "IQ3_M": "Q4_K" if early else default,
        "Q4_K_M": "Q6_K" if more else default,
        "Q5_K_M": "Q6_K" if more else default,
        "IQ4_NL": without_matrix,
        "IQ4_XS": without_matrix,
        "Q4_K_S": "Q5_K" if early else default,
        "Q4_0": "Q4_1" if early and imatrix else default,
        "Q5_0": "Q5_1" if early and imatrix else default,
    }
    return chosen.get(ftype, default)


def size(arch: dict, ftype: str, imatrix: bool = True) -> dict:
    """Bytes of the GGUF file of `arch` in `ftype`.

    Returns {"bytes", "tensor_bytes", "metadata_bytes", "parameters", "bits_per_weight" (all bytes),
    "kinds" {kind: bytes}, "fallbacks": tensors whose rows forced another type than the file type's
    rules wanted}.
    """
    shapes, chosen = tensors(arch), types(arch, ftype, imatrix)
    kinds: dict[str, int] = {}
    stored, listed = 0, 0
    for name, shape in shapes.items():
        block, width = block_size(chosen[name])
        weight = math.prod(shape) // block * width
        kinds[kind_of(name)] = kinds.get(kind_of(name), 0) + weight
        stored += -(-weight // 32) * 32  # llama.cpp aligns every tensor to 32 bytes
        listed += 8 + len(name) + 4 + 8 * len(shape) + 4 + 8
    metadata = -(-(arch["metadata_bytes"] + listed) // 32) * 32
    wanted = {
        name: _wanted(arch, name, ftype, imatrix)
        for name, shape in shapes.items()
        if len(shape) > 1
    }
    count = parameters(arch)
    return {
        "bytes": stored + metadata,
        "tensor_bytes": sum(kinds.values()),
        "metadata_bytes": metadata,
        "parameters": count,
        "bits_per_weight": 8 * (stored + metadata) / count,
        "kinds": kinds,
        "fallbacks": sum(
            _fallback(kind, shapes[name][-1]) != kind for name, kind in wanted.items()
        ),
    }


def fallback_warning(arch: dict, ftypes: list[str]) -> str:
    """Which file types do not get what their rules want, and how often; "" where all do."""
    counts = {ftype: size(arch, ftype)["fallbacks"] for ftype in ftypes}
    falling = [f"{ftype} {count}" for ftype, count in counts.items() if count]
    if not falling:
        return ""
    return (
        f"**Warning:** hidden size {arch['hidden']} is no multiple of 256, so of"
        f" {len(tensors(arch))} tensors fall back to another type: {', '.join(falling)}."
    )
