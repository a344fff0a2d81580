"""Decides with math-verify whether two expressions are equal, in a process that can be killed.

sympy can run for hours on what a model writes (9**9**9), inside C code that no signal interrupts,
and math-verify's own timeout works in the main thread only. So the comparison runs in one helper
process for each Python process, killed and restarted when an answer takes longer than `SECONDS`.
"""

from __future__ import annotations

import atexit
import json
import select
import subprocess
import sys
import threading
from functools import lru_cache

from lib.files import ROOT

SECONDS = 8.0
START_SECONDS = 120.0  # importing sympy on a busy machine
_lock = threading.Lock()
_process: subprocess.Popen | None = None


@lru_cache(maxsize=50_000)
def equal(gold: str, answer: str) -> bool:
    """Whether math-verify takes `answer` for `gold` (LaTeX or plain).

    False also if it cannot tell in time.
    """
    with _lock:
        return _ask(gold, answer)


def _ask(gold: str, answer: str) -> bool:
    global _process
    if _process is None or _process.poll() is not None:
        _process = subprocess.Popen(
            [sys.executable, "-m", "lib.evaluation.math_worker"],
            cwd=ROOT,
            text=True,
            encoding="utf-8",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        if _line(START_SECONDS) != "ready":
            _stop()
            raise RuntimeError(
                "the math-verify helper did not start; `python -m lib.evaluation.math_worker`"
                " shows why"
            )
    try:
        _process.stdin.write(json.dumps([gold, answer]) + "\n")
        _process.stdin.flush()
        reply = _line(SECONDS)
    except (OSError, ValueError):
        reply = ""
    if not reply:
        _stop()
    return reply == "1"


def _line(seconds: float) -> str:
    ready = select.select([_process.stdout], [], [], seconds)[0]
    return _process.stdout.readline().strip() if ready else ""


@atexit.register
def _stop() -> None:
    global _process
    if _process is not None:
        _process.kill()
        _process.wait()
        _process.stdin.close()
        _process.stdout.close()
        _process = None


def _serve() -> None:
    """The helper: one JSON pair a line in, "1" or "0" a line out."""
    import logging
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    logging.disable(logging.CRITICAL)
    from math_verify import parse, verify

    answer_pipe = sys.stdout
    sys.stdout = sys.stderr  # whatever the libraries print must not be taken for an answer
    print("ready", file=answer_pipe, flush=True)
    for line in sys.stdin:
        result = "0"
        try:
            gold, answer = (
                parse(f"${text}$", parsing_timeout=2) or parse(text, parsing_timeout=2)
                for text in json.loads(line)
            )
            result = "1" if gold and answer and verify(gold, answer, timeout_seconds=3) else "0"
        except BaseException as error:
            # RecursionError, MemoryError, sympy's own: all mean "not shown to be equal"
            if isinstance(error, KeyboardInterrupt):
                raise
        print(result, file=answer_pipe, flush=True)


if __name__ == "__main__":
    _serve()
