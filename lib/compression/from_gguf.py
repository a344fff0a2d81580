"""GGUF files read back: their header, their weights, and a plain checkpoint made from them.

That checkpoint is the compressed model as something that can be trained on.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from lib import models
from lib.compression.gguf_types import FTYPES
from lib.compression.to_gguf import checked, rotary_heads, unpermute
from lib.files import replacing_folder


class Tensor(NamedTuple):
    """An entry of a GGUF file's table; shape has rows first, `begin` is a place in the file."""

    name: str
    shape: tuple[int, ...]
    type: str
    begin: int
    bytes: int


WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a type
STRING, ARRAY = 8, 9  # GGUF's value types that have no fixed width


def tensor_table(path: str | Path) -> list[Tensor]:
    """The tensors of a GGUF file, by its header alone: gguf.GGUFReader makes an array a token.

    Raises ValueError for another magic number, and for a file that ends before its last tensor.
    """
    _, tensors = _header(Path(path))
    end, size = max((tensor.begin + tensor.bytes for tensor in tensors), default=0), _size(path)
    if end > size:
        raise ValueError(
            f"{path}: cut short, its tensors end at byte {end:,} and the file at {size:,}; write it"
            " again"
        )
    return tensors


def file_type(path: str | Path) -> str:
    """llama.cpp's name of the recipe that a GGUF file says it was quantised by, such as Q5_K_M."""
    values, _ = _header(Path(path))
    names = {number: name for name, (number, *_) in FTYPES.items()}
    return names[values["general.file_type"]]


def _size(path: str | Path) -> int:
    return Path(path).stat().st_size


def _header(path: Path) -> tuple[dict[str, int], list[Tensor]]:
    """(alignment and file type by their keys, the tensors) of a GGUF file."""
    with open(path, "rb") as handle:
        raw = handle.read(64 << 20)
    if raw[:4] != b"GGUF":
        raise ValueError(
            f"{path}: not a GGUF file, it begins with {raw[:4]!r}; convert the checkpoint first"
        )
    try:
        _, count, pairs = struct.unpack_from("<IQQ", raw, 4)
        values, at = _values(raw, 24, pairs)
        tensors, at = _tensors(raw, at, count)
    except (struct.error, KeyError, ValueError) as error:
        raise ValueError(f"{path}: cut short or damaged ({error}); write it again") from error
    alignment = values.get("general.alignment", 32)
    start = -(-at // alignment) * alignment
    return values, [tensor._replace(begin=start + tensor.begin) for tensor in tensors]


def _values(raw: bytes, at: int, pairs: int) -> tuple[dict[str, int], int]:
    """(the two numbers that are needed, place after all key-value pairs)."""
    values = {}
    for _ in range(pairs):
        key, at = _string(raw, at)
        if key in ("general.alignment", "general.file_type"):
            (values[key],) = struct.unpack_from("<I", raw, at + 4)
        at = _skip(raw, at + 4, struct.unpack_from("<I", raw, at)[0])
    return values, at


def _tensors(raw: bytes, at: int, count: int) -> tuple[list[Tensor], int]:
    """(tensors whose `begin` counts from the start of the data, place after their table)."""
    import gguf

    tensors = []
    for _ in range(count):
        name, at = _string(raw, at)
        (dimensions,) = struct.unpack_from("<I", raw, at)
        *sides, kind, offset = struct.unpack_from(f"<{dimensions}QIQ", raw, at + 4)
        at += 16 + 8 * dimensions
        kind = gguf.GGMLQuantizationType(kind)
        block, width = gguf.GGML_QUANT_SIZES[kind]
        size = math.prod(sides) // block * width
        tensors.append(Tensor(name, tuple(reversed(sides)), kind.name, offset, size))
    return tensors, at


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
    """(name, float32 array, type name) of every tensor, dequantised as llama.cpp does."""
    import gguf
    import numpy as np

    data = np.memmap(path, np.uint8, "r")
    for tensor in tensor_table(path):
        raw = data[tensor.begin : tensor.begin + tensor.bytes]
        kind = gguf.GGMLQuantizationType[tensor.type]
        if tensor.type in ("F32", "F16"):
            values = raw.view(np.float32 if tensor.type == "F32" else np.float16).astype(np.float32)
        else:
            block, width = gguf.GGML_QUANT_SIZES[kind]
            blocks = raw.reshape(-1, tensor.shape[-1] // block * width)
            values = gguf.quants.dequantize(blocks, kind)
        yield tensor.name, values.reshape(tensor.shape), tensor.type


def type_counts(path: str | Path) -> dict[str, int]:
    """{type: tensors} of a GGUF file, most frequent first."""
    return dict(Counter(tensor.type for tensor in tensor_table(path)).most_common())


def zero_share(path: str | Path) -> dict[str, float]:
    """Share of exact zeros in attention and MLP matrices: {"all": share, type: share ...}."""
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
    """Write the dequantised weights of a GGUF file as a float32 checkpoint `out`.

    like: the checkpoint folder that the file was made from, whose config and tokenizer it gets.
    Raises ValueError when shapes do not match it.
    """
    import numpy as np

    config, _, _ = checked(like)
    shape = models.llama_shape(config)
    modules, state = _modules(shape["layers"]), {}
    for name, values, _ in weights(path):
        if name == "rope_freqs.weight":
            continue
        module = modules.get(name.removesuffix(".weight"))
        if module is None:
            raise ValueError(
                f"{path}: tensor {name} has no place in {Path(like).name}; it belongs to another"
                " model"
            )
        if heads := rotary_heads(module, shape):
            values = unpermute(values, heads)
        state[f"{module}.weight"] = np.ascontiguousarray(values, np.float32)
    table = state["model.embed_tokens.weight"].shape
    if table != (shape["vocab"], shape["hidden"]):
        raise ValueError(
            f"{path}: its table is {table}, that of {Path(like).name} {shape['vocab']} rows of"
            f" {shape['hidden']}"
        )
    return _save(state, config, like, Path(out))


def _modules(layers: int) -> dict[str, str]:
    """{name of a module in a GGUF file: its name in transformers} of a Llama."""
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    modules = ["model.embed_tokens", "model.norm", "lm_head"]
    modules += [f"model.layers.{layer}.{part}" for layer in range(layers) for part in PARTS]
    return {names.get_name(module): module for module in modules}


def dense(model, like: str | Path, out: str | Path) -> Path:
    """Write the dense weights of a model that was loaded from quantised ones as checkpoint `out`.

    model: of transformers. like: the 16-bit checkpoint folder; tensors that it does not have
    (scales, zero points) stay behind. Raises ValueError for a tensor that is still packed.
    """
    config, _, _ = checked(like)
    names, state = models.tensor_names(Path(like)).keys(), model.state_dict()
    if missing := names - state.keys() - {"lm_head.weight"}:
        raise ValueError(
            f"the loaded model has no {sorted(missing)[0]}; its weights are still packed"
        )
    tensors = {name: state[name].detach().float().cpu().numpy() for name in names if name in state}
    return _save(tensors, config, like, Path(out))


def _save(state: dict, config: dict, like: str | Path, out: Path) -> Path:
    """Write a checkpoint with the tokenizer of `like` whole or not at all."""
    from safetensors.numpy import save_file

    with replacing_folder(out) as scratch:
        scratch.mkdir(parents=True)
        save_file(state, scratch / "model.safetensors", metadata={"format": "pt"})
        text = json.dumps(config | {"dtype": "float32"}, indent=1)
        (scratch / "config.json").write_text(text, encoding="utf-8")
        for name in BESIDE_WEIGHTS:
            if (Path(like) / name).exists():
                shutil.copy(Path(like) / name, scratch / name)
    return out


BESIDE_WEIGHTS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
)
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
