"""A GGUF file with its smallest weights set to zero: what sparsity does to bytes, without any claim about answers."""

from __future__ import annotations

from pathlib import Path


def magnitude(source: str | Path, out: str | Path, share: float) -> Path:
    """Copy the 16-bit GGUF `source` with the `share` smallest weights of each attention and MLP matrix at exact zero.

    Tables, norms and metadata stay. ValueError for a share outside [0, 1) or a source that is quantised.
    """
    import shutil

    import gguf
    import numpy as np

    from lib.compression.from_gguf import reader

    if not 0 <= share < 1:
        raise ValueError(f"a sparsity of {share} must be 0 or more and below 1")
    source, out = Path(source), Path(out)
    temporary = out.with_name(f".{out.name}.partial")
    try:
        reader(source)
        shutil.copy(source, temporary)
        for tensor in gguf.GGUFReader(str(temporary), "r+").tensors:
            if not tensor.name.startswith("blk.") or len(tensor.shape) < 2:
                continue
            if tensor.tensor_type != gguf.GGMLQuantizationType.F16:
                raise ValueError(f"{source}: {tensor.name} is {tensor.tensor_type.name}; prune the F16 file")
            size = np.abs(tensor.data)
            count = int(share * size.size)
            if count:
                tensor.data[size <= np.partition(size.reshape(-1), count - 1)[count - 1]] = 0
            tensor.data.flush() if hasattr(tensor.data, "flush") else None
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return out
