"""GGUF files with their smallest weights at zero: what sparsity does to bytes, stored and packed.

Nothing here says anything about answers: 20 measures those, with methods better than magnitude.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from lib import plots
from lib.compression import from_gguf, llamacpp, pack, sizes


def zero_smallest(source: str | Path, out: str | Path, share: float) -> Path:
    """Copy the 16-bit GGUF `source` with a share of each attention and MLP matrix at exact zero.

    The weights of smallest magnitude go, and with the last of them all of its magnitude, so that a
    16-bit matrix may lose a little more than the share; tables, norms and metadata stay. Raises
    ValueError for a share outside [0, 1) or a source that is quantised.
    """
    import numpy as np

    if not 0 <= share < 1:
        raise ValueError(f"a sparsity of {share} must be 0 or more and below 1")
    source, out = Path(source), Path(out)
    matrices = [
        tensor
        for tensor in from_gguf.tensor_table(source)
        if tensor.name.startswith("blk.") and len(tensor.shape) > 1
    ]
    if quantised := [tensor for tensor in matrices if tensor.type != "F16"]:
        raise ValueError(
            f"{source}: {quantised[0].name} is {quantised[0].type}; prune the F16 file"
        )
    temporary = out.with_name(f".{out.name}.partial")
    try:
        shutil.copy(source, temporary)
        data = np.memmap(temporary, np.uint8, "r+")
        for tensor in matrices:
            values = data[tensor.begin : tensor.begin + tensor.bytes].view(np.float16)
            size, count = np.abs(values), int(share * values.size)
            if count:
                values[size <= np.partition(size, count - 1)[count - 1]] = 0
        data.flush()
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return out


def packed_size(source: Path, kind: str | None, folder: Path, settings: dict) -> dict:
    """Bytes of a 16-bit GGUF once quantised and once packed too, with what entropy allows.

    kind: type of the layers' matrices, None for the one that llama.cpp chooses for the file type.
    settings: {"ftype", "imatrix", "level" (of zstd), "threads"}. `folder` holds the trial files.
    Returns {"bytes", "packed", "bound" (order-0, bytes), "zeros" (share of layer weights)}.
    """
    quantised, threads = folder / "trial.gguf", settings["threads"]
    overrides = {"^blk.*": kind} if kind else None
    recipe = (settings["ftype"], settings["imatrix"])
    llamacpp.quantize(source, quantised, *recipe, overrides=overrides, threads=threads)
    target = folder / "trial.zst"
    packed = pack.pack(quantised, target, level=settings["level"], threads=threads)
    ledger = sizes.measure(quantised)
    return {
        "bytes": ledger["bytes"],
        "packed": packed["packed_bytes"],
        "bound": ledger["bound_bytes"],
        "zeros": from_gguf.zero_share(quantised)["all"],
    }


def row(trial: dict) -> dict:
    """A line of the table: a trial {"weights", "type", ...} of `packed_size`."""
    return {
        "weights": trial["weights"],
        "type of layers": trial["type"],
        "packed MB": f"{trial['packed'] / 1e6:.1f}",
        "ratio": f"{trial['bytes'] / trial['packed']:.3f}",
        "bound allows": f"{trial['bytes'] / trial['bound']:.3f}",
        "zeros stored as zero": f"{trial['zeros']:.1%}",
    }


def figure(trials: list[dict], level: int):
    """Stored and packed bytes of each trial, and its order-0 bound."""
    fig, axes = plots.figure(height=4)
    labels = [f"{trial['weights']}\n{trial['type'].split(' (')[0]}" for trial in trials]
    stored, packed, bound = (
        [trial[key] / 1e6 for trial in trials] for key in ("bytes", "packed", "bound")
    )
    axes.bar(labels, stored, color="#c9ced6", label="stored")
    axes.bar(labels, packed, color=plots.BLUE, width=0.6, label=f"zstd level {level}")
    mark = {"color": plots.RED, "markersize": 30, "markeredgewidth": 2}
    axes.plot(labels, bound, "_", label="order-0 bound", **mark)
    axes.set(ylabel="MB", title="Dense weights do not pack; sparse ones do where zeros stay zero")
    axes.legend()
    return fig
