"""GGUF weights back as a plain checkpoint: the compressed model as something that can be trained
on."""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from lib.compression.to_gguf import checked, unpermute


class Tensor(NamedTuple):
    """One entry of a GGUF file's table: shape has rows first, `begin` counts from the start of the
    file."""

    name: str
    shape: tuple[int, ...]
    type: str
    begin: int
    bytes: int


WIDTHS = {
    0: 1,
    1: 1,
    2: 2,
    3: 2,
    4: 4,
    5: 4,
    6: 4,
    7: 1,
    10: 8,
    11: 8,
    12: 8,
}  # of GGUF's value types, in bytes
STRING, ARRAY = 8, 9


def table(path: str | Path) -> list[Tensor]:
    """The tensors of a GGUF file, by reading its header alone: gguf.GGUFReader makes an array of
    every token.

    Raises ValueError for another magic number, and for a file that ends before its last tensor.
    """
    import gguf

    path = Path(path)
    with open(path, "rb") as handle:
        raw = handle.read(64 << 20)
    if raw[:4] != b"GGUF":
        raise ValueError(
            f"{path}: not a GGUF file, it begins with {raw[:4]!r}; convert the checkpoint first"
        )
    try:
        _, count, pairs = struct.unpack_from("<IQQ", raw, 4)
        at, alignment = 24, 32
        for _ in range(pairs):
            key, at = _string(raw, at)
            if key == "general.alignment":
                (alignment,) = struct.unpack_from("<I", raw, at + 4)
            at = _skip(raw, at + 4, struct.unpack_from("<I", raw, at)[0])
        found = []
        for _ in range(count):
            name, at = _string(raw, at)
            (dimensions,) = struct.unpack_from("<I", raw, at)
            *sides, kind, offset = struct.unpack_from(f"<{dimensions}QIQ", raw, at + 4)
            at += 16 + 8 * dimensions
            kind = gguf.GGMLQuantizationType(kind)
            block, width = gguf.GGML_QUANT_SIZES[kind]
            found.append(
                Tensor(
                    name,
                    tuple(reversed(sides)),
                    kind.name,
                    offset,
                    math.prod(sides) // block * width,
                )
            )
    except (struct.error, KeyError, ValueError) as error:
        raise ValueError(f"{path}: cut short or damaged ({error}); write it again") from error
    start = -(-at // alignment) * alignment
    found = [each._replace(begin=start + each.begin) for each in found]
    end, size = max((each.begin + each.bytes for each in found), default=0), path.stat().st_size
    if end > size:
        raise ValueError(
            f"{path}: cut short, its tensors end at byte {end:,} and the file at {size:,}; write it"
            " again"
        )
    return found


def _string(raw: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", raw, at)
    if at + 8 + length > len(raw):
        raise ValueError(f"a string of {length} bytes at {at}")
    return raw[at + 8 : at + 8 + length].decode("utf-8"), at + 8 + length


def _skip(raw: bytes, at: int, kind: int) -> int:
    """Place after a value of type `kind` at `at`."""
    if kind == STRING:
        return at + 8 + struct.unpack_from("<Q", raw, at)[0]
    if kind != ARRAY:
        return at + WIDTHS[kind]
    kind, count = struct.unpack_from("<IQ", raw, at)
    at += 12
    if kind != STRING:
        return at + WIDTHS[kind] * count
    for _ in range(count):
        at += 8 + struct.unpack_from("<Q", raw, at)[0]
    return at


def weights(path: str | Path):
    """(name, float32 array, type name) of every tensor of a GGUF file, dequantised as llama.cpp
    does."""
    import gguf
    import numpy as np

    data = np.memmap(path, np.uint8, "r")
    for tensor in table(path):
        raw = data[tensor.begin : tensor.begin + tensor.bytes]
        kind = gguf.GGMLQuantizationType[tensor.type]
        if tensor.type in ("F32", "F16"):
            values = raw.view(np.float32 if tensor.type == "F32" else np.float16).astype(np.float32)
        else:
            block, width = gguf.GGML_QUANT_SIZES[kind]
            values = gguf.quants.dequantize(
                raw.reshape(-1, tensor.shape[-1] // block * width), kind
            )
        yield tensor.name, values.reshape(tensor.shape), tensor.type


def type_counts(path: str | Path) -> dict[str, int]:
    """{type: tensors} of a GGUF file, most frequent first."""
    return dict(Counter(tensor.type for tensor in table(path)).most_common())


def zero_share(path: str | Path) -> dict[str, float]:
    """Share of exact zeros among the weights of attention and MLP matrices: {"all": share, type:
    share ...}."""
    import numpy as np

    zeros: dict[str, list[int]] = {"all": [0, 0]}
    for name, values, kind in weights(path):
        if values.ndim > 1 and name.startswith("blk."):
            none = int(values.size - np.count_nonzero(values))
            for entry in (zeros["all"], zeros.setdefault(kind, [0, 0])):
                entry[0] += none
                entry[1] += values.size
    return {kind: none / every for kind, (none, every) in zeros.items()}


def checkpoint(path: str | Path, like: str | Path, out: str | Path) -> Path:
    """Write the dequantised weights of a GGUF file as float32 checkpoint `out`, with config and
    tokenizer of `like`.

    like: the checkpoint folder that the file was made from. Raises ValueError when shapes do not
    match it.
    """
    import gguf
    import numpy as np

    config, _, _ = checked(like)
    out, heads = Path(out), config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    wanted = {"model.embed_tokens", "model.norm", "lm_head"} | {
        f"model.layers.{layer}.{part}"
        for layer in range(config["num_hidden_layers"])
        for part in PARTS
    }
    back = {names.get_name(name): name for name in wanted}
    found = {}
    for name, values, _ in weights(path):
        if name == "rope_freqs.weight":
            continue
        target = back.get(name.removesuffix(".weight"))
        if target is None:
            raise ValueError(
                f"{path}: tensor {name} has no place in {Path(like).name}; it belongs to another"
                " model"
            )
        if target.endswith("q_proj"):
            values = unpermute(values, heads)
        if target.endswith("k_proj"):
            values = unpermute(values, kv_heads)
        found[f"{target}.weight"] = np.ascontiguousarray(values, np.float32)
    table = found["model.embed_tokens.weight"].shape
    if table != (config["vocab_size"], config["hidden_size"]):
        raise ValueError(
            f"{path}: its table is {table}, that of {Path(like).name} {config['vocab_size']} rows"
            f" of {config['hidden_size']}"
        )
    return _save(found, config, like, out)


def dense(model, like: str | Path, out: str | Path) -> Path:
    """Write the dense weights of a transformers model that was loaded from quantised ones, as
    checkpoint `out`.

    like: the 16-bit checkpoint folder; tensors that it does not have (scales, zero points) stay
    behind.
    """
    from safetensors import safe_open

    config, _, _ = checked(like)
    names = set()
    for path in Path(like).glob("*.safetensors"):
        with safe_open(path, "pt") as handle:
            names |= set(handle.keys())
    state = model.state_dict()
    if missing := names - state.keys() - {"lm_head.weight"}:
        raise ValueError(
            f"the loaded model has no {sorted(missing)[0]}; its weights are still packed"
        )
    found = {name: state[name].detach().float().cpu().numpy() for name in names if name in state}
    return _save(found, config, like, Path(out))


def _save(found: dict, config: dict, like: str | Path, out: Path) -> Path:
    from safetensors.numpy import save_file

    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(found, partial / "model.safetensors", metadata={"format": "pt"})
    (partial / "config.json").write_text(
        json.dumps(config | {"dtype": "float32"}, indent=1), encoding="utf-8"
    )
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
    ):
        if (Path(like) / name).exists():
            shutil.copy(Path(like) / name, partial / name)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    return out


PARTS = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
