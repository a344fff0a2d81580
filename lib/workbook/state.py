"""What of a run is finished and still fresh: one small JSON a step under artifacts/.state, a lock.

A step is `done` only in a file written after its metrics and its executed notebook are in place, so
a kill at any moment leaves `running` or nothing. The folder is not committed: a fresh clone runs
everything.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from lib.files import atomic_write_json, sha256_file
from lib.params import ParameterError
from lib.workbook.freshness import file_digest

STATUSES = ("running", "done", "failed", "interrupted")


def read(out: Path, name: str) -> dict:
    """The state of a step: {} before its first run, else `status`, `parts`, `seconds` and more.

    The status of a damaged file is "damaged": the step is not done, and has to run.
    """
    path = out / "artifacts" / ".state" / f"{name}.json"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, OSError):
        state = None
    return state if _intact(state) else {"status": "damaged", "parts": {}}


def _intact(state) -> bool:
    if not isinstance(state, dict) or state.get("status") not in STATUSES:
        return False
    kinds = {"pid": int, "parts": dict, "began": (int, float), "seconds": (int, float)}
    kinds |= {"earlier": (int, float), "metrics": str}
    whole = all(isinstance(state[key], kind) for key, kind in kinds.items() if key in state)
    return whole and all(isinstance(part, dict) for part in state.get("parts", {}).values())


def mark(out: Path, name: str, status: str, **entries) -> None:
    """Write the state of one step: running, done, failed or interrupted."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    atomic_write_json(
        out / "artifacts" / ".state" / f"{name}.json",
        {"status": status, "pid": os.getpid(), "when": now, **entries},
    )


def stale(out: Path, name: str, now: dict[str, dict]) -> str:
    """Why a step has to run, in words; empty when it is fresh."""
    state = read(out, name)
    if state.get("status") != "done":
        return {
            "failed": "it failed",
            "running": "it was killed",
            "interrupted": "it was interrupted",
            "damaged": "its state is damaged",
        }.get(state.get("status"), "not run yet")
    metrics = out / "metrics" / f"{name}.json"
    if not metrics.exists() or sha256_file(metrics) != state.get("metrics"):
        return "its metrics are missing or edited"
    if not (out / f"{name}.ipynb").exists() or not (out / "artifacts" / name).is_dir():
        return "its executed notebook or its artifacts are missing"
    before = state.get("parts", {})
    for kind, entries in now.items():
        keys = sorted(entries.keys() | before.get(kind, {}).keys())
        changed = [key for key in keys if entries.get(key) != before.get(kind, {}).get(key)]
        if changed:
            more = " and more" if len(changed) > 3 else ""
            return f"{kind}: {', '.join(changed[:3])}{more} changed"
    return ""


def statuses(out: Path, names: list[str]) -> dict[str, str]:
    """{step: done, failed, running, interrupted, stale or absent}, as the files tell.

    A record without state files (a clone) counts a step with metrics as done. `stale`: a step that
    it reads has been run again since.
    """
    result = {}
    for name in names:
        state, metrics = read(out, name), out / "metrics" / f"{name}.json"
        status = state.get("status") or ("done" if metrics.exists() else "absent")
        if status == "damaged" or (status == "running" and not _alive(state.get("pid", 0))):
            status = "interrupted"
        if status == "done" and state:
            for other, sha in state.get("parts", {}).get("upstream", {}).items():
                if file_digest(out / "metrics" / f"{other}.json") != sha:
                    status = "stale"
        result[name] = status
    return result


def _alive(pid: int) -> bool:
    if pid <= 0:  # means groups of processes
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


class Busy(RuntimeError):
    """Another process is running in the same folder."""


@contextmanager
def lock(out: Path) -> Iterator[None]:
    """Hold the folder of a run. Raises Busy with the pid of the holder, ParameterError where
    nothing can be written.

    The operating system drops the lock when its holder dies, however it dies: none is ever stale.
    """
    path = out / "artifacts" / ".lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = open(path, "a+", encoding="utf-8", errors="replace")  # noqa: SIM115
    except OSError as error:
        raise ParameterError(f"outputs/{out.name} cannot be written: {error.strerror}") from None
    with handle:
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
