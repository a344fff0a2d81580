"""Llama checkpoints as GGUF files.

Source of the format: the `gguf` package and llama.cpp's convert_hf_to_gguf.py (what is stored under
which key). The proof that a file says what the checkpoint says is in notebook 22: same tokens, same
greedy answers as transformers.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

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
    """llama.cpp's name of the splitting rules of a tokenizer.json, found by their hash. ValueError
    for unknown rules."""
    if tokenizer_json["model"].get("type") != "BPE":
        raise ValueError(
            f"tokenizer of type {tokenizer_json['model'].get('type')}: only byte-level BPE is"
            " converted here"
        )
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
    found = _hash(rules)
    names = {_hash(known): name for name, known in PRE_TOKENIZERS.items()}
    if found not in names:
        raise ValueError(
            f"splitting rules of the tokenizer have hash {found}, known are"
            f" {', '.join(names.values())}; add theirs to PRE_TOKENIZERS with llama.cpp's name for"
            f" them: {json.dumps(rules)[:300]}"
        )
    return names[found]


def _hash(rules: list[dict]) -> str:
    bare = [{key: value for key, value in rule.items() if key != "trim_offsets"} for rule in rules]
    return hashlib.sha256(json.dumps(bare, sort_keys=True).encode()).hexdigest()[:16]


def checked(folder: str | Path) -> tuple[dict, dict, dict]:
    """(config, tokenizer.json, tokenizer_config.json) of a checkpoint folder that can be converted.

    Raises ValueError for another architecture, biases, a missing tokenizer or chat template, or
    weights that are quantised; each says what to do.
    """
    folder = Path(folder)
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder}: no config.json; name a checkpoint folder")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != "llama":
        raise ValueError(
            f"{folder}: architecture {config.get('model_type')!r}; this writer knows Llama"
            " (model_type llama) only, convert others with llama.cpp's own converter"
        )
    if config.get("attention_bias") or config.get("mlp_bias"):
        raise ValueError(
            f"{folder}: attention or MLP biases are not converted; Llama checkpoints have none"
        )
    if config.get("quantization_config"):
        raise ValueError(
            f"{folder}: its weights are quantised; convert the 16-bit checkpoint, or unpack it"
            " first (`unpacked`) to show what requantising costs"
        )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if not (folder / name).exists():
            raise ValueError(
                f"{folder}: no {name}; save the tokenizer beside the weights"
                " (tokenizer.save_pretrained)"
            )
    tokenizer, settings = (
        json.loads((folder / name).read_text(encoding="utf-8"))
        for name in ("tokenizer.json", "tokenizer_config.json")
    )
    return config, tokenizer, settings


def permute(weight, heads: int):
    """Rows of a query or key projection from transformers' half-split rotary order to llama.cpp's
    interleaved one."""
    rows = weight.shape[0]
    return (
        weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:])
        .swapaxes(1, 2)
        .reshape(weight.shape)
    )


def unpermute(weight, heads: int):
    """The inverse of `permute`."""
    rows = weight.shape[0]
    return (
        weight.reshape(heads, rows // heads // 2, 2, *weight.shape[1:])
        .swapaxes(1, 2)
        .reshape(weight.shape)
    )


def rope_factors(config: dict):
    """Factors [head_dim / 2] that Llama 3 divides its rotary frequencies by; None when the model
    has plain ones.

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
    width = head_dim(config)
    frequency = rope_theta(config) ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = rope["original_max_position_embeddings"] * frequency / (2 * np.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / rope["factor"] + smooth)).astype(np.float32)


def rope_theta(config: dict) -> float:
    """Base of the rotary frequencies, wherever a config keeps it."""
    return float(
        (config.get("rope_parameters") or {}).get("rope_theta", config.get("rope_theta", 10000.0))
    )


def head_dim(config: dict) -> int:
    """Width of an attention head."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def tensors(folder: str | Path):
    """(name, float32 array) of every tensor of the safetensors files in `folder`, one at a time."""
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
    as `checked` does, and for a checkpoint whose config says tied but whose two tables differ, or
    untied with none.
    """
    import gguf
    import numpy as np

    config, tokenizer, settings = checked(folder)
    out, heads = Path(out), config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    tied, seen, tables = bool(config.get("tie_word_embeddings")), set(), []
    kind = gguf.GGMLQuantizationType[dtype]
    with writing(out) as writer:
        _metadata(writer, config, dtype, Path(folder).name)
        _vocabulary(writer, folder, config, tokenizer, settings)
        factors = rope_factors(config)
        if factors is not None:
            writer.add_tensor("rope_freqs.weight", factors)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
        for name, weight in tensors(folder):
            seen.add(name)
            if tied and name in ("model.embed_tokens.weight", "lm_head.weight"):
                tables.append(weight)
                if len(tables) == 2 and not np.array_equal(*tables):
                    raise ValueError(
                        f"{folder}: config.json says tie_word_embeddings, but lm_head differs from"
                        " embed_tokens; set it to false, or the trained output table is lost"
                    )
                if name == "lm_head.weight":
                    continue
            target = names.get_name(name, try_suffixes=(".weight",))
            if target is None:
                raise ValueError(f"{folder}: tensor {name} has no place in a Llama GGUF")
            if name.endswith("q_proj.weight"):
                weight = permute(weight, heads)
            if name.endswith("k_proj.weight"):
                weight = permute(weight, kv_heads)
            raw = gguf.GGMLQuantizationType.F32 if weight.ndim == 1 else kind
            writer.add_tensor(target, gguf.quants.quantize(weight, raw), raw_dtype=raw)
        if not tied and "lm_head.weight" not in seen:
            raise ValueError(
                f"{folder}: config.json says the tables are not tied, but there is no"
                " lm_head.weight; set tie_word_embeddings to true if the model shares one table"
            )
    return out


class writing:
    """A GGUFWriter on a temporary file that becomes `out` when nothing went wrong."""

    def __init__(self, out: Path):
        self.out = Path(out)
        self.temporary = self.out.with_name(f".{self.out.name}.partial")

    def __enter__(self):
        import gguf

        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.writer = gguf.GGUFWriter(str(self.temporary), "llama")
        return self.writer

    def __exit__(self, kind, error, trace):
        try:
            if kind is None:
                self.writer.write_header_to_file()
                self.writer.write_kv_data_to_file()
                self.writer.write_tensors_to_file()
            self.writer.close()
            if kind is None:
                self.temporary.replace(self.out)
        finally:
            self.temporary.unlink(missing_ok=True)


def _metadata(writer, config: dict, dtype: str, name: str) -> None:
    import gguf

    heads, width = config["num_attention_heads"], head_dim(config)
    writer.add_name(name)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope_theta(config))
    writer.add_rope_dimension_count(width)
    writer.add_vocab_size(config["vocab_size"])
    kinds = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16"}
    writer.add_file_type(gguf.LlamaFileType[kinds[dtype]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _vocabulary(writer, folder, config: dict, tokenizer: dict, settings: dict) -> None:
    import gguf
    import transformers

    words = {index: token for token, index in tokenizer["model"]["vocab"].items()}
    added = {entry["id"]: entry for entry in tokenizer["added_tokens"]}
    words |= {index: entry["content"] for index, entry in added.items()}
    kinds = []
    for index in range(config["vocab_size"]):
        if index not in words:
            kinds.append(gguf.TokenType.UNUSED)
        elif index in added:
            special = added[index]["special"]
            kinds.append(gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED)
        else:
            kinds.append(gguf.TokenType.NORMAL)
    if max(words) >= config["vocab_size"]:
        raise ValueError(
            f"{folder}: token {max(words)} has no row in a table of {config['vocab_size']}"
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer(tokenizer))
    writer.add_token_list(
        [words.get(index, f"[PAD{index}]") for index in range(config["vocab_size"])]
    )
    writer.add_token_types(kinds)
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([each if isinstance(each, str) else " ".join(each) for each in merges])
    ids = {token: index for index, token in words.items()}
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
