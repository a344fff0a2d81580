"""What of a run is finished and still fresh: one small JSON a notebook under artifacts/.state, and
a lock.

A notebook is `done` only in a file written after its metrics and its executed notebook are in
place, so a kill at any moment leaves `running` or nothing. The folder is not committed: a fresh
clone runs everything.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path

from lib.files import atomic_write_json, sha256_file

# These run notebooks and draw the page; no result depends on them.
RUNNERS = {"lib.report", "lib.workbook.pipeline", "lib.workbook.notebook", "lib.workbook.state"}


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _module_file(dotted: str, root: Path) -> Path | None:
    base = root.joinpath(*dotted.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.exists():
            return path
    return None


def library(codes: list[str], root: Path) -> dict[str, str]:
    """{module of lib: sha} of everything that the codes import from lib, directly or not, lazily or
    not."""
    found: dict[str, str] = {}
    waiting = [(code, "") for code in codes]
    while waiting:
        code, package = waiting.pop()
        try:
            tree = ast.parse(code)
        except SyntaxError:  # a cell magic; what it runs is in the hash of the notebook
            continue
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = package.rsplit(".", node.level - 1)[0] if node.level else ""
                module = ".".join(part for part in (base, node.module) if part)
                names = [module] + [f"{module}.{alias.name}" for alias in node.names]
            for name in (
                part for full in names for part in accumulate(full.split("."), "{}.{}".format)
            ):
                path = _module_file(name, root) if name.split(".")[0] == "lib" else None
                if path is None or name in found or name in RUNNERS:
                    continue
                text = path.read_text(encoding="utf-8")
                found[name] = _sha(text)
                waiting.append(
                    (text, name if path.name == "__init__.py" else name.rpartition(".")[0])
                )
    return dict(sorted(found.items()))


def _fingerprint(path: Path) -> str:
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return _sha("\n".join(f"{p} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in files))


def parts(name: str, values: dict, upstream: list[str], out: Path, root: Path) -> dict[str, dict]:
    """All that the result of a notebook depends on, as hashes: its cells, parameters, lib,
    upstream, files.

    `files` are local files or folders named by parameters (a data folder, a model), by size and
    time.
    """
    cells = json.loads((root / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells]
    codes = [text for cell, text in zip(cells, sources, strict=True) if cell["cell_type"] == "code"]
    metrics = {other: out / "metrics" / f"{other}.json" for other in upstream}
    texts = [
        text
        for value in values.values()
        for text in (value if isinstance(value, list) else [value])
    ]
    named = {t for t in texts if isinstance(t, str) and t not in ("", ".", values.get("out"))}
    return {
        "notebook": {name: _sha("\x1e".join(sources))},
        "parameter": {key: repr(value) for key, value in values.items() if key != "out"},
        "lib": library(codes, root),
        "upstream": {
            other: sha256_file(p)[:16] if p.exists() else "absent" for other, p in metrics.items()
        },
        "file": {
            text: _fingerprint(root / text) for text in sorted(named) if (root / text).exists()
        },
    }


def read(out: Path, name: str) -> dict:
    """The state of one notebook: {} before its first run, else `status`, `parts`, `seconds` and
    more."""
    path = out / "artifacts" / ".state" / f"{name}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def mark(out: Path, name: str, status: str, **entries) -> None:
    """Write the state of one notebook: running, done, failed or interrupted."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    atomic_write_json(
        out / "artifacts" / ".state" / f"{name}.json",
        {"status": status, "pid": os.getpid(), "when": now, **entries},
    )


def stale(out: Path, name: str, now: dict[str, dict]) -> str:
    """Why a notebook has to run, in words; empty when it is fresh."""
    state = read(out, name)
    if state.get("status") != "done":
        return {
            "failed": "it failed",
            "running": "it was killed",
            "interrupted": "it was interrupted",
        }.get(state.get("status"), "not run yet")
    metrics = out / "metrics" / f"{name}.json"
    if not metrics.exists() or sha256_file(metrics) != state["metrics"]:
        return "its metrics are missing or edited"
    if not (out / f"{name}.ipynb").exists() or not (out / "artifacts" / name).is_dir():
        return "its executed notebook or its artifacts are missing"
    before = state["parts"]
    for kind, entries in now.items():
        keys = sorted(entries.keys() | before.get(kind, {}).keys())
        changed = [key for key in keys if entries.get(key) != before.get(kind, {}).get(key)]
        if changed:
            return f"{kind} {', '.join(changed[:3])}{' ...' if len(changed) > 3 else ''} changed"
    return ""


def statuses(out: Path, names: list[str]) -> dict[str, str]:
    """{notebook: done, failed, running, interrupted, stale or absent} as the files tell, without
    parameters.

    A record without state files (a clone) counts a notebook with metrics as done. `stale`: an
    upstream notebook has been run again since.
    """
    result = {}
    for name in names:
        state, metrics = read(out, name), out / "metrics" / f"{name}.json"
        status = state.get("status") or ("done" if metrics.exists() else "absent")
        if status == "running" and not _alive(state["pid"]):
            status = "interrupted"
        if status == "done" and state:
            for other, sha in state["parts"]["upstream"].items():
                path = out / "metrics" / f"{other}.json"
                if (sha256_file(path)[:16] if path.exists() else "absent") != sha:
                    status = "stale"
        result[name] = status
    return result


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class Busy(RuntimeError):
    """Another process is running in the same folder."""


@contextmanager
def lock(out: Path) -> Iterator[None]:
    """Hold the folder of a run. Raises Busy with the pid of the holder.

    The operating system drops the lock when its holder dies, however it dies, so none is ever
    stale.
    """
    path = out / "artifacts" / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            raise Busy(
                f"{out.name} is being run by process {handle.read().strip() or '?'}"
            ) from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield
