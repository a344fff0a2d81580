"""A GGUF file with its smallest weights set to zero: what sparsity does to bytes, without any claim
about answers."""

from __future__ import annotations

from pathlib import Path


def magnitude(source: str | Path, out: str | Path, share: float) -> Path:
    """Copy the 16-bit GGUF `source` with the `share` smallest weights of each attention and MLP
    matrix at exact zero.

    Tables, norms and metadata stay. ValueError for a share outside [0, 1) or a source that is
    quantised.
    """
    import shutil

    import numpy as np

    from lib.compression.from_gguf import table

    if not 0 <= share < 1:
        raise ValueError(f"a sparsity of {share} must be 0 or more and below 1")
    source, out = Path(source), Path(out)
    chosen = [
        tensor
        for tensor in table(source)
        if tensor.name.startswith("blk.") and len(tensor.shape) > 1
    ]
    if quantised := [tensor for tensor in chosen if tensor.type != "F16"]:
        raise ValueError(
            f"{source}: {quantised[0].name} is {quantised[0].type}; prune the F16 file"
        )
    temporary = out.with_name(f".{out.name}.partial")
    try:
        shutil.copy(source, temporary)
        data = np.memmap(temporary, np.uint8, "r+")
        for tensor in chosen:
            values = data[tensor.begin : tensor.begin + tensor.bytes].view(np.float16)
            size, count = np.abs(values), int(share * values.size)
            if count:
                values[size <= np.partition(size, count - 1)[count - 1]] = 0
        data.flush()
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return out
