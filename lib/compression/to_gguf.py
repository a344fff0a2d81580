"""Llama checkpoints and LoRA adapters as GGUF files.

Source of the format: the `gguf` package and llama.cpp's convert_hf_to_gguf.py (what is stored under
which key). The proof that a file says what the checkpoint says is in notebook 22: same tokens, same
greedy answers as transformers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lib import models

# llama.cpp splits text before BPE by the name of a pre-tokenizer. Which name is right follows from
# the tokenizer's own splitting rules, so they are hashed: a wrong name is silent and costs quality,
# an unknown hash is an error.
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
PRE_TOKENIZERS = {
    "gpt-2": [BYTE_LEVEL],
    "smollm": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL],
    "llama-bpe": [
        {
            "type": "Split",
            "pattern": {"Regex": LLAMA3_SPLIT},
            "behavior": "Isolated",
            "invert": False,
        },
        BYTE_LEVEL | {"use_regex": False},
    ],
}


def pre_tokenizer(tokenizer_json: dict) -> str:
    """llama.cpp's name of the splitting rules of a tokenizer.json, by their hash.

    Raises ValueError for rules, a kind of tokenizer, or a normalizer that llama.cpp does not have.
    """
    kind = tokenizer_json["model"].get("type")
    if kind != "BPE":
        raise ValueError(f"tokenizer of type {kind}: only byte-level BPE is converted here")
    if not tokenizer_json["model"].get("merges"):
        raise ValueError(
            "the tokenizer has no merges; llama.cpp loads byte-level BPE only with them"
        )
    rules = tokenizer_json.get("pre_tokenizer") or {}
    rules = rules.get("pretokenizers", [rules])
    normalizer = tokenizer_json.get("normalizer") or {}
    if normalizer.get("normalizers", normalizer):
        raise ValueError(
            f"the tokenizer normalises text ({normalizer.get('type')}), which llama.cpp's BPE does"
            " not do"
        )
    digest = _hash(rules)
    names = {_hash(known): name for name, known in PRE_TOKENIZERS.items()}
    if digest not in names:
        raise ValueError(
            f"splitting rules of the tokenizer have hash {digest}, known are"
            f" {', '.join(names.values())}; add theirs to PRE_TOKENIZERS with llama.cpp's name for"
            f" them: {json.dumps(rules)[:300]}"
        )
    return names[digest]


def _hash(rules: list[dict]) -> str:
    bare = [{key: value for key, value in rule.items() if key != "trim_offsets"} for rule in rules]
    return hashlib.sha256(json.dumps(bare, sort_keys=True).encode()).hexdigest()[:16]


def checked(folder: str | Path) -> tuple[dict, dict, dict]:
    """(config, tokenizer.json, tokenizer_config.json) of a checkpoint folder that can be converted.

    Raises ValueError as `models.llama_shape` does, and for biases or a missing tokenizer file; each
    says what to do.
    """
    folder = Path(folder)
    names = ("tokenizer.json", "tokenizer_config.json")
    if (folder / "config.json").exists():
        for name in names:
            if not (folder / name).exists():
                raise ValueError(
                    f"{folder}: no {name}; save the tokenizer beside the weights"
                    " (tokenizer.save_pretrained)"
                )
    models.llama_shape(folder)
    config, tokenizer, settings = (
        json.loads((folder / name).read_text(encoding="utf-8")) for name in ("config.json", *names)
    )
    if config.get("attention_bias") or config.get("mlp_bias"):
        raise ValueError(
            f"{folder}: attention or MLP biases are not converted; Llama checkpoints have none"
        )
    return config, tokenizer, settings


def permute(weight, heads: int):
    """Rows of a query or key projection, transformers' half-split rotary order to interleaved."""
    rows, *rest = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, *rest)
    return halves.swapaxes(1, 2).reshape(weight.shape)


def unpermute(weight, heads: int):
    """The inverse of `permute`."""
    rows, *rest = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, *rest)
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def rotary_heads(module: str, shape: dict) -> int:
    """Heads of a query or key projection, whose rows are permuted; 0 for every other module."""
    if module.endswith("q_proj"):
        return shape["heads"]
    return shape["kv_heads"] if module.endswith("k_proj") else 0


def rope_factors(config: dict):
    """Factors [head_dim / 2] that Llama 3 divides its rotary frequencies by; None for plain ones.

    Source: transformers, modeling_rope_utils.py, _compute_llama3_parameters.
    """
    import numpy as np

    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) == "default":
        return None
    if rope.get("rope_type", rope.get("type")) != "llama3":
        raise ValueError(
            f"rotary scaling {rope.get('rope_type')!r} is not converted; known are default and"
            " llama3"
        )
    width = models.llama_shape(config)["head_dim"]
    frequency = rope_theta(config) ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = rope["original_max_position_embeddings"] * frequency / (2 * np.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / rope["factor"] + smooth)).astype(np.float32)


def rope_theta(config: dict) -> float:
    """Base of the rotary frequencies, wherever a config keeps it."""
    rope = config.get("rope_parameters") or {}
    return float(rope.get("rope_theta", config.get("rope_theta", 10000.0)))


def tensors(folder: str | Path):
    """(name, float32 array) of every tensor of a folder's safetensors files, one at a time."""
    import torch
    from safetensors import safe_open

    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder}: no .safetensors file")
    for path in files:
        with safe_open(path, "pt") as handle:
            for name in handle.keys():  # noqa: SIM118 (not a dict)
                yield name, handle.get_tensor(name).to(torch.float32).numpy()


def write(folder: str | Path, out: str | Path, dtype: str = "F16") -> Path:
    """Write a Llama checkpoint as `out`: matrices in `dtype` (F16, BF16 or F32), vectors in F32.

    A tied output table is not stored twice: llama.cpp uses token_embd for both. Raises ValueError
    as `checked` does, and for a tensor that a Llama has no place for.
    """
    import gguf

    config, tokenizer, settings = checked(folder)
    shape, kind = models.llama_shape(config), gguf.GGMLQuantizationType[dtype]
    with writing(Path(out)) as writer:
        _metadata(writer, config, dtype, Path(folder).name)
        _vocabulary(writer, folder, config, tokenizer, settings)
        factors = rope_factors(config)
        if factors is not None:
            writer.add_tensor("rope_freqs.weight", factors)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, shape["layers"])
        for name, weight in tensors(folder):
            if shape["tied"] and name == "lm_head.weight":
                continue  # `checked` has seen that it is the embeddings
            target = names.get_name(name, try_suffixes=(".weight",))
            if target is None:
                raise ValueError(f"{folder}: tensor {name} has no place in a Llama GGUF")
            if heads := rotary_heads(name.removesuffix(".weight"), shape):
                weight = permute(weight, heads)
            raw = gguf.GGMLQuantizationType.F32 if weight.ndim == 1 else kind
            writer.add_tensor(target, gguf.quants.quantize(weight, raw), raw_dtype=raw)
    return Path(out)


def write_adapter(
    adapter: str | Path, base: str | Path, out: str | Path, dtype: str = "F16"
) -> Path:
    """Write a PEFT LoRA adapter as a GGUF adapter for the GGUF of `base` (a checkpoint folder).

    Raises ValueError for anything but plain LoRA on linear layers of a Llama.
    """
    import gguf

    adapter = Path(adapter)
    shape = models.llama_shape(checked(base)[0])
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    plain = settings.get("peft_type") == "LORA"
    if not plain or settings.get("use_dora") or settings.get("modules_to_save"):
        raise ValueError(
            f"{adapter}: only plain LoRA is converted (no DoRA, no fully trained modules)"
        )
    scale = settings["r"] ** 0.5 if settings.get("use_rslora") else 1.0
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, shape["layers"])
    kind = gguf.GGMLQuantizationType[dtype]
    with writing(Path(out)) as writer:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(settings["lora_alpha"] * scale))
        for name, weight in tensors(adapter):
            name = name.removeprefix("base_model.model.").removesuffix(".weight")
            module, part = name.rsplit(".lora_", 1)
            target = names.get_name(module)
            if target is None:
                raise ValueError(f"{adapter}: module {module} has no place in a Llama GGUF")
            heads = rotary_heads(module, shape)
            if part == "B" and heads:
                weight = permute(weight, heads)
            values = gguf.quants.quantize(weight, kind)
            writer.add_tensor(f"{target}.weight.lora_{part.lower()}", values, raw_dtype=kind)
    return Path(out)


@contextmanager
def writing(out: Path) -> Iterator:
    """A GGUFWriter on a temporary file that becomes `out` when nothing went wrong."""
    import gguf

    temporary = out.with_name(f".{out.name}.partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(str(temporary), "llama")
    try:
        try:
            yield writer
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


def _metadata(writer, config: dict, dtype: str, name: str) -> None:
    import gguf

    shape = models.llama_shape(config)
    writer.add_name(name)
    writer.add_block_count(shape["layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(shape["hidden"])
    writer.add_feed_forward_length(shape["intermediate"])
    writer.add_head_count(shape["heads"])
    writer.add_head_count_kv(shape["kv_heads"])
    writer.add_key_length(shape["head_dim"])
    writer.add_value_length(shape["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope_theta(config))
    writer.add_rope_dimension_count(shape["head_dim"])
    writer.add_vocab_size(shape["vocab"])
    kinds = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16"}
    writer.add_file_type(gguf.LlamaFileType[kinds[dtype]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _vocabulary(writer, folder, config: dict, tokenizer: dict, settings: dict) -> None:
    """Tokens, their kinds, merges, special ids and the chat template of a checkpoint folder."""
    import gguf
    import transformers

    size = config["vocab_size"]
    tokens = {index: token for token, index in tokenizer["model"]["vocab"].items()}
    added = {entry["id"]: entry for entry in tokenizer["added_tokens"]}
    tokens |= {index: entry["content"] for index, entry in added.items()}
    if max(tokens) >= size:
        raise ValueError(f"{folder}: token {max(tokens)} has no row in a table of {size}")
    kinds = []
    for index in range(size):
        if index not in tokens:
            kinds.append(gguf.TokenType.UNUSED)
        elif index in added:
            special = added[index]["special"]
            kinds.append(gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED)
        else:
            kinds.append(gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer(tokenizer))
    writer.add_token_list([tokens.get(index, f"[PAD{index}]") for index in range(size)])
    writer.add_token_types(kinds)
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    ids = {token: index for index, token in tokens.items()}
    for role in ("bos", "eos", "unk", "pad"):
        token = settings.get(f"{role}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token in ids:
            getattr(writer, f"add_{role}_token_id")(ids[token])
    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    first = loaded("a")["input_ids"][0]
    writer.add_add_bos_token(first == loaded.bos_token_id)
    writer.add_add_space_prefix(False)
    if not loaded.chat_template:
        raise ValueError(
            f"{folder}: the tokenizer has no chat template; a chat model needs one to be served"
        )
    writer.add_chat_template(loaded.chat_template)
