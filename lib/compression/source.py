"""Which 16-bit model phase 2 compresses, and whether it is one that this code understands."""

from __future__ import annotations

import math
from pathlib import Path

# kept until their callers name lib.models
from lib.models import llama_shape as require_llama
from lib.models import tensor_names

__all__ = ["require_llama", "tensor_names"]

# later training first: the newest model of the run is the one to ship
CANDIDATES = (
    ("18_distill", "distilled/merged"),
    ("15_train_consistent", "consistent/merged"),
    ("11_merge", "merged"),
)


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
