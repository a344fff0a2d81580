"""The size ledger: bytes on disk by kind, and what the stored symbols could weigh at least.

Bytes on disk are the only size here. A sparsity of 65 % that is stored densely weighs what it
weighed before.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

from lib import plots
from lib.compression import from_gguf, gguf_types

KINDS = ("vocabulary", "attention", "mlp", "norms", "adapter", "other", "metadata", "packed")

# What compressed-tensors stores beside a weight: (ending, does it hold the weights themselves)
ENDINGS = (
    ("weight_packed", True),
    ("weight_scale", False),
    ("weight_zero_point", False),
    ("weight_g_idx", False),
    ("weight_shape", False),
    ("weight_global_scale", False),
    ("compressed", True),
    ("bitmask", False),
    ("row_offsets", False),
    ("shape", False),
)

SAFETENSORS_BYTES = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}


def measure(path: str | Path, entropy: bool = True) -> dict:
    """The ledger of a checkpoint folder, one .safetensors, a .gguf or a packed file.

    entropy: also read every tensor for `bound_bytes`: the bytes of a coder that knows how often
    each stored symbol occurs and nothing of its neighbours (order 0). A symbol is a 16-bit float,
    else a byte at its place within a quantisation block, so scales and quants are counted apart. A
    real coder can fall below it only by finding dependencies between symbols.
    Returns {"path", "bytes" (files on disk), "parameters" (weights, each counted once),
    "bits_per_weight" (all bytes), "kinds" {kind: {"bytes", "parameters", "bound_bytes"}}, "types"
    {type: bytes}, "bound_bytes"}. What is not measured is absent: a packed file has no parameters.
    Raises FileNotFoundError, or ValueError for a file that is none of these.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path, entropy)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist, so it has no size")
    with open(path, "rb") as handle:
        magic = handle.read(4)
    if magic == b"GGUF":
        return _ledger(path, _gguf_rows(path, entropy), path.stat().st_size)
    if path.suffix == ".safetensors":
        return _ledger(path, _safetensors_rows(path, entropy), path.stat().st_size)
    if magic == b"\x28\xb5\x2f\xfd" or path.suffix == ".zst":
        size = path.stat().st_size
        return {
            "path": path.name,
            "bytes": size,
            "kinds": {"packed": {"bytes": size}},
            "types": {"zstd": size},
        }
    raise ValueError(
        f"{path}: neither a folder, safetensors, GGUF nor zstd file (it begins with {magic!r})"
    )


def _folder(path: Path, entropy: bool) -> dict:
    files = sorted(file for file in path.rglob("*") if file.is_file())
    weights = [file for file in files if file.suffix == ".safetensors"]
    if not weights:
        raise ValueError(f"{path}: holds no .safetensors file, so there are no weights to weigh")
    rows = [row for file in weights for row in _safetensors_rows(file, entropy)]
    return _ledger(path, rows, sum(file.stat().st_size for file in files))


def _ledger(path: Path, rows: list[dict], total: int) -> dict:
    kinds: dict[str, dict] = {}
    types: dict[str, int] = {}
    for row in rows:
        entry = kinds.setdefault(row["kind"], {"bytes": 0, "parameters": 0})
        entry["bytes"] += row["bytes"]
        entry["parameters"] += row["parameters"]
        if "bound" in row:
            entry["bound_bytes"] = entry.get("bound_bytes", 0.0) + row["bound"]
        types[row["type"]] = types.get(row["type"], 0) + row["bytes"]
    metadata = total - sum(row["bytes"] for row in rows)
    kinds["metadata"] = {"bytes": metadata, "parameters": 0}
    parameters = sum(row["parameters"] for row in rows)
    ledger = {
        "path": path.name,
        "bytes": total,
        "parameters": parameters,
        "kinds": {kind: kinds[kind] for kind in KINDS if kind in kinds},
        "types": types,
    }
    if parameters:
        ledger["bits_per_weight"] = 8 * total / parameters
    if any("bound" in row for row in rows):
        ledger["bound_bytes"] = sum(row.get("bound", 0.0) for row in rows) + metadata
    return ledger


def _gguf_rows(path: Path, entropy: bool) -> list[dict]:
    import gguf
    import numpy as np

    rows, data = [], np.memmap(path, np.uint8, "r")
    for tensor in from_gguf.tensor_table(path):
        width = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[tensor.type]][1]
        row = {
            "kind": gguf_types.kind_of(tensor.name),
            "type": tensor.type,
            "bytes": tensor.bytes,
            "parameters": math.prod(tensor.shape),
        }
        if entropy:
            row["bound"] = order0_bytes(data[tensor.begin : tensor.begin + tensor.bytes], width)
        rows.append(row)
    return rows


def _safetensors_rows(path: Path, entropy: bool) -> list[dict]:
    header, data = _safetensors(path)
    unpacked = _unpacked_shapes(header, data)
    rows = []
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        row = {
            "kind": gguf_types.kind_of(name),
            "type": entry["dtype"],
            "bytes": end - begin,
            "parameters": _weights(name, entry["shape"], unpacked),
        }
        if entropy:
            row["bound"] = order0_bytes(data[begin:end], SAFETENSORS_BYTES.get(entry["dtype"], 1))
        rows.append(row)
    return rows


def _safetensors(path: Path) -> tuple[dict, object]:
    """(header without metadata, bytes of the tensors as a uint8 array) of a .safetensors file."""
    import numpy as np

    total = path.stat().st_size
    with open(path, "rb") as handle:
        (length,) = struct.unpack("<Q", handle.read(8))
        if length > total:
            raise ValueError(
                f"{path}: its header claims {length} bytes, the file has {total}; fetch it anew"
            )
        header = json.loads(handle.read(length))
    header.pop("__metadata__", None)
    begin = 8 + length
    data = np.memmap(path, np.uint8, "r", offset=begin) if total > begin else np.zeros(0, np.uint8)
    return header, data


def _unpacked_shapes(header: dict, data) -> dict[str, list[int]]:
    """{beginning of a tensor's name: the shape that its packed weights unpack to}."""
    shapes = {}
    for name, entry in header.items():
        if name.endswith("shape") and entry["dtype"] in ("I64", "I32"):
            begin, end = entry["data_offsets"]
            kind = "<i8" if entry["dtype"] == "I64" else "<i4"
            prefix = name.removesuffix("weight_shape").removesuffix("shape")
            shapes[prefix] = data[begin:end].view(kind).tolist()
    return shapes


def _weights(name: str, shape: list[int], unpacked: dict[str, list[int]]) -> int:
    """Weights that a tensor stands for: of packed ones what they unpack to, of scales none."""
    for ending, holds_weights in ENDINGS:
        if name.endswith("." + ending):
            stored = [math.prod(shape)]
            return math.prod(unpacked.get(name.removesuffix(ending), stored)) * holds_weights
    return math.prod(shape)


def order0_bytes(data, width: int) -> float:
    """Least bytes of an order-0 code of `data` (uint8, whole blocks of `width` bytes).

    Width 2 is one 16-bit symbol. Any other width is `width` separate streams, one a place within
    the block: a plug-in estimate of Shannon's entropy, which for short streams is too low by about
    (symbols - 1) / (2 ln 2) bits a stream.
    """
    import numpy as np

    if data.size == 0:
        return 0.0
    if width == 2:
        return _entropy(np.bincount(data.view(np.uint16), minlength=1))
    blocks = data.reshape(-1, width)
    return sum(_entropy(np.bincount(blocks[:, place], minlength=256)) for place in range(width))


def _entropy(counts) -> float:
    import numpy as np

    counts = counts[counts > 0].astype(float)
    total = counts.sum()
    return float(total * np.log2(total) - (counts * np.log2(counts)).sum()) / 8


def table(ledgers: dict[str, dict]) -> list[dict]:
    """Ledgers side by side: a column an artefact, a row a kind in MB, then what they come to."""
    columns = {label: _column(ledger) for label, ledger in ledgers.items()}
    names = dict.fromkeys(name for name in _ROWS if any(name in c for c in columns.values()))
    return [
        {"MB": name, **{label: column.get(name, "") for label, column in columns.items()}}
        for name in names
    ]


_ROWS = (*KINDS, "all", "bits a weight", "bound / bytes")


def _column(ledger: dict) -> dict[str, str]:
    """{row of `table`: text} of one ledger; what is not measured is absent."""
    column = {kind: f"{part['bytes'] / 1e6:.2f}" for kind, part in ledger["kinds"].items()}
    column["all"] = f"{ledger['bytes'] / 1e6:.2f}"
    if "bits_per_weight" in ledger:
        column["bits a weight"] = f"{ledger['bits_per_weight']:.2f}"
    if "bound_bytes" in ledger:
        column["bound / bytes"] = f"{ledger['bound_bytes'] / ledger['bytes']:.3f}"
    return column


def waterfall(ledgers: dict[str, dict], budget: int | None = None):
    """A stacked bar an artefact, in MB by kind, from 16 bits to packed; `budget` as a line."""
    palette = (plots.BLUE, plots.ORANGE, plots.GREEN, plots.PURPLE, plots.BROWN)
    colours = dict(zip(KINDS, ("#a3c4e8", *palette, "#c9ced6", plots.RED), strict=True))
    fig, axes = plots.figure(width=max(7.5, 0.9 * len(ledgers)), height=4)
    labels, floor = list(ledgers), [0.0] * len(ledgers)
    for kind in KINDS:
        heights = [ledgers[label]["kinds"].get(kind, {}).get("bytes", 0) / 1e6 for label in labels]
        if any(heights):
            axes.bar(labels, heights, bottom=floor, color=colours[kind], label=kind, width=0.7)
            floor = [a + b for a, b in zip(floor, heights, strict=True)]
    for place, top in enumerate(floor):
        axes.text(place, top, f"{top:.0f}", ha="center", va="bottom", fontsize=8)
    if budget is not None and budget / 1e6 < 2 * max(floor):
        axes.axhline(budget / 1e6, color=plots.INK, linewidth=1, linestyle="--")
    axes.set(ylabel="MB on disk", title="Bytes on disk by kind")
    axes.tick_params(axis="x", rotation=30)
    axes.grid(axis="x", visible=False)
    axes.legend(fontsize=8)
    return fig
