"""The byte planner: which smaller Llama fits a budget, in which GGUF types, and what is known.

It counts bytes that llama.cpp would write (`gguf_types`), vocabulary tables and header included.
What it says of quality is quoted, with its source: a plan is not a measurement.
"""

from __future__ import annotations

import math
from collections import Counter

from lib import plots
from lib.compression import gguf_types

PLAN_BUDGET = 520_000_000  # bytes of the compressed base, DESIGN section 2

# config.json of the model that the plan is about
LLAMA_31_8B = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "llama3"},
}

# Perplexity over that of 16 bits, Llama-3-8B on WikiText-2 (about 6.2): llama.cpp,
# tools/quantize/quantize.cpp, as printed by llama-quantize --help.
PERPLEXITY = {
    "Q8_0": 0.0026,
    "Q6_K": 0.0217,
    "Q5_K_M": 0.0569,
    "Q5_K_S": 0.1049,
    "Q5_0": 0.1316,
    "Q4_K_M": 0.1754,
    "Q4_K_S": 0.2689,
    "Q4_0": 0.4685,
    "Q3_K_L": 0.5562,
    "Q3_K_M": 0.6569,
    "Q3_K_S": 1.6321,
    "Q2_K": 3.5199,
}

HALF_DEPTH = (
    "question answering holds to about half of the layers when healed, then falls to chance,"
    " and reasoning sooner (Gromov et al. 2025, arXiv 2403.17887)"
)
BEYOND_HALF = (
    "beyond the half of the layers at which question answering falls to chance (Gromov et al. 2025,"
    " arXiv 2403.17887)"
)
MINITRON = (
    "Llama-3.1-8B cut to 4.5 B keeps MMLU 60.5 of 65.3 after 94 B tokens of distillation, and width"
    " beats depth (Minitron, arXiv 2408.11796)"
)
BEYOND_MINITRON = (
    "smaller than any measured cut of Llama-3.1-8B (4.5 B after 94 B tokens, Minitron, arXiv"
    " 2408.11796): a new small model that has to be distilled"
)

WAYS = (
    "as it is",
    "fewer layers",
    "narrower MLP",
    "fewer layers and narrower MLP",
    "smaller in every direction",
)
VOCABULARIES = ("both tables", "one shared table", "32,768 tokens, shared")


def shrink(arch: dict, way: str, share: float) -> dict:
    """`arch` with about `share` of its layers, MLP width, or all dimensions.

    Widths stay multiples of 256, and grouped-query attention keeps its ratio of query to key/value
    heads. Raises ValueError for an unknown way.
    """

    def multiple(width: int) -> int:
        return max(256, round(width * share / 256) * 256)

    layers = max(1, round(arch["layers"] * share))
    if way == "as it is":
        return dict(arch)
    if way == "fewer layers":
        return arch | {"layers": layers}
    if way == "narrower MLP":
        return arch | {"mlp": multiple(arch["mlp"])}
    if way == "fewer layers and narrower MLP":
        return arch | {"layers": layers, "mlp": multiple(arch["mlp"])}
    if way == "smaller in every direction":
        group = arch["heads"] // arch["kv_heads"]
        hidden = multiple(arch["hidden"])
        kv_heads = max(1, round(hidden / arch["head_dim"] / group))
        return arch | {
            "layers": layers,
            "mlp": multiple(arch["mlp"]),
            "hidden": hidden,
            "kv_heads": kv_heads,
            "heads": kv_heads * group,
        }
    raise ValueError(f"way {way!r} is unknown; known are {', '.join(WAYS)}")


def with_vocabulary(arch: dict, how: str) -> dict:
    """`arch` with both its tables, with one for input and output, or with one of 32,768 tokens."""
    if how == VOCABULARIES[0]:
        return dict(arch)
    if how == VOCABULARIES[1]:
        return arch | {"tied": True}
    vocab = min(arch["vocab"], 32_768)
    return arch | {
        "tied": True,
        "vocab": vocab,
        "metadata_bytes": round(arch["metadata_bytes"] * vocab / arch["vocab"]),
    }


def routes(
    arch: dict,
    budget: int = PLAN_BUDGET,
    ftypes: tuple = ("Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K", "IQ2_XXS", "IQ1_S"),
) -> list[dict]:
    """For every way, vocabulary and file type the largest model that fits `budget` bytes.

    Where none fits, the smallest one. Fitting ones first, most weights kept first.
    Rows: {"way", "vocabulary", "ftype", "fits", "bytes", "kept" (share of the weights), "layers",
    "hidden", "mlp", "heads", "kv_heads", "bits_per_weight", "table_share" (of the bytes), "known"}.
    """
    vocabularies = VOCABULARIES[1:] if arch["tied"] else VOCABULARIES
    rows = [
        _route(arch, way, vocabulary, ftype, budget)
        for ftype in ftypes
        for vocabulary in vocabularies
        for way in WAYS
    ]
    return sorted(rows, key=lambda row: (not row["fits"], -row["kept"], row["bytes"]))


def _route(arch: dict, way: str, vocabulary: str, ftype: str, budget: int) -> dict:
    """One row of `routes`: the largest model of a way, a vocabulary and a file type."""
    smaller = _largest(with_vocabulary(arch, vocabulary), way, ftype, budget)
    size = gguf_types.size(smaller, ftype)
    kept = size["parameters"] / gguf_types.parameters(arch)
    return {
        "way": way,
        "vocabulary": vocabulary,
        "ftype": ftype,
        "fits": size["bytes"] <= budget,
        "bytes": size["bytes"],
        "kept": kept,
        **{key: smaller[key] for key in ("layers", "hidden", "mlp", "heads", "kv_heads")},
        "bits_per_weight": size["bits_per_weight"],
        "table_share": size["kinds"]["vocabulary"] / size["bytes"],
        "known": known(way, vocabulary, ftype, kept, smaller["layers"] / arch["layers"]),
    }


def whole_table(arch: dict, ftypes: list[str], budget: int) -> list[dict]:
    """What a model weighs with nothing removed, a row a file type."""
    rows = []
    for ftype in ftypes:
        size = gguf_types.size(arch, ftype)
        rows.append(
            {
                "type": ftype,
                "GB": f"{size['bytes'] / 1e9:.2f}",
                "bits a weight": f"{size['bits_per_weight']:.2f}",
                "vocabulary tables, GB": f"{size['kinds']['vocabulary'] / 1e9:.2f}",
                "times the budget": f"{size['bytes'] / budget:.1f}",
            }
        )
    return rows


def best_routes(routes: list[dict], ftypes: tuple = ("Q4_K_M", "Q2_K", "IQ1_S")) -> list[dict]:
    """Of the fitting `routes`, for each way and file type the one that keeps most weights."""
    best: dict[tuple, dict] = {}
    for row in routes:  # most weights kept first
        if row["fits"] and row["ftype"] in ftypes:
            best.setdefault((row["way"], row["ftype"]), row)
    return list(best.values())


def route_table(routes: list[dict]) -> list[dict]:
    """Routes in numbers: what is kept, and in which shape."""
    return [
        {
            "way": row["way"],
            "vocabulary": row["vocabulary"],
            "type": row["ftype"],
            "MB": f"{row['bytes'] / 1e6:.0f}",
            "weights kept": f"{row['kept']:.0%}, tables {row['table_share']:.0%} of the bytes",
            "layers x width (MLP)": f"{row['layers']} x {row['hidden']} ({row['mlp']})",
        }
        for row in routes
    ]


def known_table(routes: list[dict]) -> list[dict]:
    """What was published of such models, each finding once, with how many routes it speaks of."""
    counts = Counter(finding for row in routes for finding in row["known"].split("; "))
    return [
        {"known": finding, "speaks of": f"{count} of {len(routes)} routes"}
        for finding, count in counts.most_common()
    ]


def figure(routes: list[dict], budget: int):
    """Share of the weights that each way keeps under the budget, by file type."""
    fig, axes = plots.figure(height=3.6)
    ftypes = list(dict.fromkeys(row["ftype"] for row in routes))
    ways = [way for way in WAYS if any(row["way"] == way for row in routes)]
    width = 0.8 / max(1, len(ways))
    for place, (way, colour) in enumerate(zip(ways, plots.CYCLE, strict=False)):
        kept = {row["ftype"]: 100 * row["kept"] for row in routes if row["way"] == way}
        at = [index + place * width for index, ftype in enumerate(ftypes) if ftype in kept]
        axes.bar(at, [kept[f] for f in ftypes if f in kept], width, color=colour, label=way)
    axes.set_xticks([index + 0.4 - width / 2 for index in range(len(ftypes))], ftypes)
    axes.set(ylabel="% of the weights kept", title=f"What {budget / 1e6:.0f} MB keep")
    axes.legend(fontsize=8)
    return fig


def _largest(arch: dict, way: str, ftype: str, budget: int) -> dict:
    """The largest share in steps of 1/256 that fits; the smallest model where none does."""
    if way == "as it is":
        return dict(arch)
    low, high = 1, 256  # sizes grow with the share
    while low < high:
        middle = (low + high + 1) // 2
        if gguf_types.size(shrink(arch, way, middle / 256), ftype)["bytes"] <= budget:
            low = middle
        else:
            high = middle - 1
    return shrink(arch, way, low / 256)


def known(way: str, vocabulary: str, ftype: str, kept: float, depth: float) -> str:
    """What published measurements say of such a model, each with its source; no extrapolation."""
    said = [_known_of_type(ftype)]
    if way == "fewer layers" and depth < 1:
        said.append(HALF_DEPTH if depth >= 0.5 else BEYOND_HALF)
    elif way != "as it is" and kept < 1:
        said.append(MINITRON if kept >= 0.5 else BEYOND_MINITRON)
    if vocabulary == VOCABULARIES[1]:
        said.append("two tables made one need training anew")
    if vocabulary == VOCABULARIES[2]:
        said.append("a smaller vocabulary makes texts longer in tokens, and other languages worst")
    return "; ".join(filter(None, said)) or "nothing changes"


def _known_of_type(ftype: str) -> str:
    if ftype in PERPLEXITY:
        return (
            f"{ftype} alone adds {PERPLEXITY[ftype]} to a perplexity of 6.2 (Llama-3-8B, llama.cpp)"
        )
    if ftype == "IQ1_S":
        return (
            "IQ1_S alone adds 51.9 to a perplexity of 6.2, with importance matrix (Llama-3-8B,"
            " llama.cpp)"
        )
    if gguf_types.FTYPES[ftype][1].startswith(("IQ1", "IQ2")):
        return (
            f"{ftype} alone lies between Q2_K (2.4 points with importance matrix) and IQ1_S (51.9,"
            " llama.cpp)"
        )
    return ""


def packed_bits(kind: str, sparsity: float) -> float:
    """Bits a weight that an order-0 coder needs, where a share `sparsity` are exact zeros.

    Types that keep zeros need the entropy of zero or not, and for the others their quant; scales
    stay. Types that move zeros off zero gain nothing: their symbols stay dense. An estimate, since
    quants are not uniform: measured in 23.
    """
    block, width = gguf_types.block_size(kind)
    bits = 8 * width / block
    if kind not in gguf_types.KEEPS_ZEROS or not 0 < sparsity < 1:
        return bits
    quant = {
        "F32": 32.0,
        "F16": 16.0,
        "BF16": 16.0,
        "Q8_0": 8.0,
        "Q6_K": 6.0,
        "Q5_0": 5.0,
        "Q4_0": 4.0,
        "Q3_K": 3.0,
    }[kind]
    mask = -sparsity * math.log2(sparsity) - (1 - sparsity) * math.log2(1 - sparsity)
    return bits - quant + mask + (1 - sparsity) * math.log2(2**quant - 1)


def sparse_choice(
    sparsity: float,
    most_bits: float,
    kinds: tuple = ("Q8_0", "Q6_K", "Q5_0", "Q5_1", "Q5_K", "Q4_0", "Q4_1", "Q4_K", "Q3_K"),
) -> dict:
    """The type with the most bits a stored weight whose packed size is at most `most_bits`.

    Zeros are counted as weights. This is how sparsity can be made to pay: by types that keep zeros,
    in the packed file. Returns {"kind", "bits" (stored), "packed_bits", "keeps_zeros"}. Raises
    ValueError when no type is that small.
    """
    rows = [
        {
            "kind": kind,
            "bits": packed_bits(kind, 0.0),
            "packed_bits": packed_bits(kind, sparsity),
            "keeps_zeros": kind in gguf_types.KEEPS_ZEROS,
        }
        for kind in kinds
    ]
    fitting = [row for row in rows if row["packed_bits"] <= most_bits]
    if not fitting:
        least = min(row["packed_bits"] for row in rows)
        raise ValueError(
            f"no type packs {sparsity:.0%} sparse weights into {most_bits} bits; the least is"
            f" {least:.2f}"
        )
    return max(fitting, key=lambda row: (row["bits"], -row["packed_bits"]))
