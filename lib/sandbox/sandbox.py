"""Runs untrusted Python in a process that can do little and cannot last.

Each run is a new interpreter (own session, empty environment, no site-packages, fixed hash seed)
with limits on CPU time, wall time, memory, file size, open files and output. Where the kernel
grants it, a user + network + mount namespace, landlock (files) and a seccomp filter (no processes,
no sockets, no signals) stand around it; otherwise Python audit hooks, which stop ordinary code but
not native code. `isolation()` says which are active.

It guards against wrong and careless programs, and against cheap ways to pass a test (exit,
printing, touching builtins). It is no place for code written to break out of a sandbox.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

LAYERS = ("namespaces", "landlock", "seccomp")
CHILD = Path(__file__).with_name("child.py")
# of stdout and of stderr, kept for the reader; the process may write `file_mb` of each
OUTPUT_BYTES = 16_384


def run_python(
    code: str,
    stdin: str = "",
    timeout_s: float = 5,
    memory_mb: int = 512,
    file_mb: int = 1,
    layers: tuple[str, ...] = LAYERS,
) -> dict:
    """Run a program; {"ok", "stdout", "stderr", "reason", "isolation"}.

    ok is True only if the last statement was reached: `sys.exit(0)` or `os._exit(0)` on the way is
    not ok. reason is "" or an exception's name, "cpu", "timeout", "memory", "killed", "exit".
    timeout_s bounds CPU seconds; wall time may be four times that (plus 2 s): a busy machine is not
    the program's fault.
    """
    result = _run({"solution": code, "tests": None}, stdin, timeout_s, memory_mb, file_mb, layers)
    end = result.pop("end")
    result.pop("checks")
    return {"ok": bool(end and end["ran"] and not result["reason"]), **result}


def run_tests(
    solution: str,
    tests: list[str],
    watched: list[str],
    timeout_s: float = 5,
    memory_mb: int = 512,
    layers: tuple[str, ...] = LAYERS,
) -> dict:
    """Run instrumented tests (see `lib.evaluation.code_check`) against a solution.

    Returns {"passed", "checks": [{"passed", "calls", "error"}], "stdout", "stderr", "reason",
    "where", "isolation"}: passed only if every test ran to its end, at least one check was made and
    none failed; calls are the values that the watched functions returned (canonical text) or raised
    ("!ValueError"); where is "solution" or "tests" when an exception ended the run.
    """
    job = {"solution": solution, "tests": tests, "watched": watched}
    result = _run(job, "", timeout_s, memory_mb, 1, layers)
    end = result.pop("end") or {}
    passed = bool(
        end.get("ran") and end["checks"] > 0 and end["failed"] == 0 and not result["reason"]
    )
    failed = "" if passed else f"{end.get('failed', 0)} of {end.get('checks', 0)} checks fail"
    return {
        **result,
        "passed": passed,
        "reason": result["reason"] or failed,
        "where": end.get("where", ""),
    }


@lru_cache(maxsize=1)
def isolation() -> dict[str, str]:
    """What stands between untrusted code and {"network", "files", "processes"} on this system."""
    active = run_python("pass", timeout_s=10)["isolation"]
    namespace, landlock, seccomp = (active.get(layer, False) for layer in LAYERS)
    network = [name for name, on in (("network namespace", namespace), ("seccomp", seccomp)) if on]
    return {
        "network": " + ".join(network) or "audit hook",
        "files": "landlock" if landlock else "audit hook",
        "processes": "seccomp" if seccomp else "audit hook",
    }


def _run(
    job: dict, stdin: str, timeout_s: float, memory_mb: int, file_mb: int, layers: tuple[str, ...]
) -> dict:
    """Start the child, wait, kill what is left, read its report. Raises OSError if it cannot start.

    Returns {"stdout", "stderr", "reason", "isolation", "checks", "end" (its last event or None)}.
    """
    token, marker = secrets.token_hex(16), secrets.token_hex(16)
    bounds = {"cpu_s": max(1, round(timeout_s)), "memory_mb": memory_mb, "file_mb": file_mb}
    job = {**job, "token": token, **bounds, "layers": list(layers)}
    folder = tempfile.mkdtemp(prefix="sandbox-")
    try:
        with contextlib.ExitStack() as stack:
            names = ("in", "out", "err", "job", "result")
            files = {name: stack.enter_context(tempfile.TemporaryFile()) for name in names}
            files["in"].write(stdin.encode("utf-8", "surrogatepass"))
            files["job"].write(json.dumps(job).encode())
            for name in ("in", "job"):
                files[name].seek(0)
            process = _start(files, folder, marker)
            try:
                timed_out = not _wait(process, 4 * timeout_s + 2)
            finally:  # also when the user interrupts the notebook
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                events = _events(_read(files["result"], -1), token)
                start = next((event for event in events if event["event"] == "start"), None)
                filtered = start and start["active"].get("seccomp")
                if not filtered:  # else it could start no other process
                    _kill_descendants(marker)
            stdout, stderr = (_read(files[name], OUTPUT_BYTES) for name in ("out", "err"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    end = next((event for event in reversed(events) if event["event"] == "end"), None)
    checks = [event for event in events if event["event"] == "check"]
    return {
        "stdout": stdout,
        "stderr": stderr,
        "reason": _reason(process.returncode, timed_out, start, end),
        "isolation": (start or {}).get("active", {}),
        "checks": [{key: event[key] for key in ("passed", "calls", "error")} for event in checks],
        "end": end,
    }


def _start(files: dict, folder: str, marker: str) -> subprocess.Popen:
    """The child in a session of its own, with nothing but its files, its folder and a marker."""
    descriptors = [files["job"].fileno(), files["result"].fileno()]
    environment = {
        "PYTHONHASHSEED": "0",  # so that sets print alike in every run
        "PYTHONIOENCODING": "utf-8:backslashreplace",
        "SANDBOX_FOLDER": folder,
        "SANDBOX_MARKER": marker,
    }  # the child empties it
    return subprocess.Popen(
        [sys.executable, "-s", "-P", "-S", str(CHILD), *map(str, descriptors)],
        stdin=files["in"],
        stdout=files["out"],
        stderr=files["err"],
        pass_fds=descriptors,
        cwd=folder,
        start_new_session=True,
        env=environment,
    )


def _events(report: str, token: str) -> list[dict]:
    """The report lines that carry the token; nothing else was written by the harness."""
    events = []
    for line in report.splitlines():
        if line.startswith(token):
            with contextlib.suppress(ValueError):  # a line cut short by a kill
                events.append(json.loads(line[len(token) :]))
    return events


def _reason(status: int, timed_out: bool, start: dict | None, end: dict | None) -> str:
    """Why a run did not reach its end, or "" if it did."""
    if timed_out:
        return "timeout"
    if end is not None:
        error = end.get("error", "")
        return {"MemoryError": "memory", "SystemExit": "exit"}.get(error, error)
    if status in (-signal.SIGXCPU, -signal.SIGKILL):  # KILL: the hard CPU limit equals the soft one
        return "cpu"
    if start is None:
        return "sandbox did not start"
    return "exit" if status >= 0 else "killed"


def _read(handle, limit: int) -> str:
    handle.seek(0)
    return handle.read(limit).decode("utf-8", "replace")


def _wait(process: subprocess.Popen, seconds: float) -> bool:
    """Wait for the end; False after `seconds`.

    By descriptor, since Popen.wait(timeout) polls in steps of 50 ms.
    """
    try:
        descriptor = os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # not Linux, or older than 5.3
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        return process.poll() is not None
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)


def _kill_descendants(marker: str) -> None:
    """Kill every process that inherited the marker in its environment, whatever its session."""
    needle = f"SANDBOX_MARKER={marker}".encode()
    for _ in range(20):  # a fork bomb can outrun one sweep
        any_left = False
        for entry in os.scandir("/proc") if os.path.isdir("/proc") else ():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if needle in Path(entry.path, "environ").read_bytes():
                        os.kill(int(entry.name), signal.SIGKILL)
                        any_left = True
        if not any_left:
            return
