"""Which 16-bit model phase 2 compresses, and whether it is one that this code understands."""

from __future__ import annotations

import json
import math
from pathlib import Path

# later training first: the newest model of the run is the one to ship
CANDIDATES = (
    ("18_distill", "distilled/merged"),
    ("15_train_consistent", "consistent/merged"),
    ("11_merge", "merged"),
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")


def source_model(out: Path) -> tuple[str, str]:
    """(checkpoint folder, notebook that wrote it) of the model that phase 2 starts from.

    out: folder of the run. The newest trained model wins: 18_distill, else 15_train_consistent,
    else 11_merge. Raises FileNotFoundError when none has run.
    """
    for notebook, folder in CANDIDATES:
        found = Path(out) / "artifacts" / notebook / folder
        if (found / "config.json").exists():
            return str(found), notebook
    names = ", ".join(notebook for notebook, _ in CANDIDATES)
    raise FileNotFoundError(
        f"no trained model in this run (looked for {names}): run notebook 11_merge first"
    )


def require_llama(folder: str | Path) -> dict:
    """Shape of a plain Llama checkpoint that can be compressed.

    Returns {layers, hidden, intermediate, heads, kv_heads, head_dim, vocab, tied}.
    Raises ValueError for another architecture, a quantised checkpoint, a missing tokenizer, or
    output tables that contradict `tie_word_embeddings`; each message says what to do.
    """
    folder = Path(folder)
    path = folder / "config.json"
    if not path.exists():
        raise ValueError(f"{folder.name}: no config.json; name a folder written by save_pretrained")
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("model_type") != "llama":
        raise ValueError(
            f"{folder.name} is a {config.get('model_type')!r} model; compression knows Llama alone "
            "(its module names, grouped heads and gated MLP). Start from a Llama checkpoint."
        )
    if method := config.get("quantization_config"):
        raise ValueError(
            f"{folder.name} is already quantised ({method.get('quant_method', 'unknown method')});"
            " rounding twice loses twice. Start from the 16-bit checkpoint."
        )
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise ValueError(
            f"{folder.name}: no tokenizer ({' or '.join(TOKENIZER_FILES)}); calibration text cannot"
            " be encoded. Save it beside the weights with tokenizer.save_pretrained(folder)."
        )
    names = tensor_names(folder)
    if not names:
        raise ValueError(
            f"{folder.name}: no *.safetensors file; save the weights with save_pretrained"
        )
    tied, has_head = bool(config.get("tie_word_embeddings", False)), "lm_head.weight" in names
    if not tied and not has_head:
        raise ValueError(
            f"{folder.name}: config.json says the vocabulary tables are untied, but there is no"
            " lm_head.weight, so the output table would be random. Set tie_word_embeddings to"
            " true, or save the checkpoint again."
        )
    if tied and has_head and not _same_tables(folder):
        raise ValueError(
            f"{folder.name}: config.json says the vocabulary tables are tied, but lm_head.weight"
            " differs from the embeddings and would be dropped. Set tie_word_embeddings to false."
        )
    heads = config["num_attention_heads"]
    return {
        "layers": config["num_hidden_layers"],
        "hidden": config["hidden_size"],
        "intermediate": config["intermediate_size"],
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
        "vocab": config["vocab_size"],
        "tied": tied,
    }


def tensor_names(folder: Path) -> dict[str, Path]:
    """{tensor name: file} of every safetensors file in a folder; reads headers alone."""
    from safetensors import safe_open

    found = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, "pt") as tensors:
            found |= dict.fromkeys(tensors.keys(), path)
    return found


def _same_tables(folder: Path) -> bool:
    import torch
    from safetensors import safe_open

    names, tables = tensor_names(folder), []
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        with safe_open(names[name], "pt") as tensors:
            tables.append(tensors.get_tensor(name))
    return torch.equal(*tables)


def check_group_size(group: int, shape: dict) -> None:
    """Raise ValueError unless `group` divides the input width of every linear; names the nearest
    sizes that do.

    shape: from `require_llama`. The widths are the hidden size, the MLP width and heads x head
    size.
    """
    widths = {
        "hidden size": shape["hidden"],
        "MLP width": shape["intermediate"],
        "attention output": shape["heads"] * shape["head_dim"],
    }
    bad = [f"{name} {width}" for name, width in widths.items() if group < 1 or width % group]
    if bad:
        common = math.gcd(*widths.values())
        fits = [size for size in range(1, common + 1) if common % size == 0]
        below = max((size for size in fits if size <= group), default=fits[0])
        above = min((size for size in fits if size >= group), default=None)
        near = " or ".join(str(size) for size in dict.fromkeys((below, above)) if size)
        raise ValueError(
            f"group size {group} does not divide the {', '.join(bad)}; the nearest that do: {near}"
        )
