"""Runs the steps of a profile in order through papermill: live status, freshness, resume."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from lib import params
from lib.files import ROOT, shown
from lib.params import ParameterError
from lib.workbook import freshness, gates, notebook, publish, record, state
from lib.workbook.progress import clock
from lib.workbook.steps import STEPS, Step, of_run, select

NAME_BYTES = 200  # of --run: a file system allows 255, --keep writes beside it


@dataclass
class Run:
    """What one call of `execute` works with: steps by name in order, parameters of each, folder."""

    steps: dict[str, Step]
    chosen: list[str]
    values: dict[str, dict]
    out: Path
    root: Path
    again: bool
    stream: TextIO

    def tell(self, text: str) -> None:
        """One line for whoever watches; that nobody does any more costs no run."""
        with suppress(OSError):
            print(text, file=self.stream, flush=True)

    def reason(self, name: str) -> tuple[dict, str]:
        """What the step depends on now, and why it has to run; empty when it is fresh."""
        now = freshness.parts(name, self.values[name], self.steps[name].reads, self.out, self.root)
        return now, "asked to" if self.again else state.stale(self.out, name, now)


def execute(
    profile: str,
    *,
    run: str | None = None,
    first: str | None = None,
    last: str | None = None,
    only: list[str] | None = None,
    overrides: dict | None = None,
    again: bool = False,
    root: Path = ROOT,
    page: Sequence[Step] = STEPS,
    stream: TextIO | None = None,
) -> int:
    """Run a profile into outputs/<run>; everything is checked before the first step starts.

    first, last, only: names as `steps.steps_named` takes them. page: the pipeline. Returns 0, or 1
    when a step or the report failed. Raises ParameterError for wrong input and state.Busy when the
    folder is in use; KeyboardInterrupt passes through after the record is written.
    """
    if "out" in (overrides or {}):
        raise ParameterError("-p out: the folder is chosen by --run NAME, which means outputs/NAME")
    gates.load(root)
    steps = {step.name: step for step in of_run(page, params.variants(profile, root))}
    run = f"{profile}-local" if run is None else run
    _refuse_name(run)
    out = root / "outputs" / run
    _refuse_record(out, root)
    chosen = select(list(steps), first, last, only)
    pinned = {step.name: {step.parameter: step.variant} for step in page if step.parameter}
    values = params.effective(profile, list(steps), overrides, root, chosen, pinned)
    for parameters in values.values():
        parameters["out"] = f"outputs/{run}"
    _refuse_gaps(steps, chosen, out)
    with state.lock(out):
        return _run_all(Run(steps, chosen, values, out, root, again, stream or sys.stdout))


def _refuse_name(run: str) -> None:
    """ParameterError unless `run` is one folder name that a file system and a page can hold."""
    one_folder = run.strip() == run != "" and Path(run).name == run and not run.startswith(".")
    if not one_folder or not run.isprintable() or len(run.encode()) > NAME_BYTES:
        raise ParameterError(
            f"--run {run[:80]!r} must be one folder name, of at most {NAME_BYTES} bytes"
        )


def _refuse_record(out: Path, root: Path) -> None:
    """ParameterError for a folder that git tracks: a run leaves the committed record alone.

    Where git will not tell, as of a folder of another user, a record is what has metrics, and has
    no artifacts.
    """
    name = shown(out.resolve(), root.resolve())
    command = ["git", "--literal-pathspecs", "ls-files", "--", name]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    except OSError:  # no git here, so nothing is tracked
        return
    tracked = bool(done.stdout.strip())
    if done.returncode and (root / ".git").exists():
        tracked = (out / "metrics").exists() and not (out / "artifacts").exists()
    if tracked:
        raise ParameterError(
            f"{name} is a committed record, which no run writes to; choose another --run NAME, and"
            f" take a finished run over by: python -m lib.report --keep outputs/NAME {name}"
        )


def _refuse_gaps(steps: dict[str, Step], chosen: list[str], out: Path) -> None:
    """ParameterError when a chosen step reads one that has not run, or left damaged metrics, and is
    not going to run.
    """
    for name in chosen:
        for other in steps[name].reads:
            if other in chosen or steps[name].judges:
                continue
            metrics = out / "metrics" / f"{other}.json"
            if not metrics.exists():
                raise ParameterError(
                    f"{name} reads {other}, which has not run in outputs/{out.name};"
                    f" add --from {other}"
                )
            record.read(metrics)


def _run_all(run: Run) -> int:
    began, code = time.monotonic(), 0
    label = ""
    try:
        pending = _pending(run)
        code |= _publish(run, pending)
        for position, name in enumerate(run.chosen, 1):
            label = f"[{position}/{len(run.chosen)}] {name}"
            now, why = run.reason(name)
            expected, pending = name in pending, [other for other in pending if other != name]
            if not why:
                run.tell(f"{label}  fresh, skipped")
                if expected:  # what it reads ran again, to the same end
                    code |= _publish(run, pending)
                continue
            run.tell(f"{label}  runs: {why}")
            failed, unpublished = _run_step(run, name, label, now, pending)
            code |= failed | unpublished
            if failed:
                break
    except KeyboardInterrupt:
        _publish(run, [])
        raise
    except (OSError, ValueError) as error:  # a full disk, a file that was damaged meanwhile
        run.tell(f"{label}  BROKE OFF: {error}\n  the same command goes on from here")
        code = 1 | _publish(run, [])
    with suppress(OSError, ValueError):  # what is damaged was said with the page
        run.tell(record.verdict(publish.collect(run.out, run.root, list(run.steps))[2]))
    page = f"{shown(run.out, run.root)}/index.html"
    run.tell(f"page: {page}, after {clock(time.monotonic() - began)}")
    return code


def _pending(run: Run) -> list[str]:
    """The steps that will run: a fresh one, too, when one that it reads does."""
    pending: list[str] = []
    for name in run.chosen:
        if run.reason(name)[1] or any(other in pending for other in run.steps[name].reads):
            pending.append(name)
    return pending


def _run_step(run: Run, name: str, label: str, now: dict, pending: list) -> tuple[int, int]:
    """Execute one step with the page before and after it: 1 where it failed, 1 where the page."""
    values = run.values[name]
    execution = notebook.Execution(name, label, values, now, run.out, run.root, run.stream)
    execution.begin()
    unpublished = _publish(run, pending)
    failure = execution.execute()
    unpublished |= _publish(run, [] if failure else pending, executed=name)
    if failure:
        place = shown(run.out / name, run.root)
        run.tell(f"{label}  FAILED\n  {failure}\n  see {place}.ipynb")
        return 1, unpublished
    run.tell(f"{label}  done in {clock(execution.seconds)}: {execution.headline()}")
    return 0, unpublished


def _publish(run: Run, pending: list[str], executed: str = "") -> int:
    """Renew the page; a fault of it must not cost the run, so it is printed and counted: 0 or 1."""
    try:
        if executed:
            publish.notebook_html(run.out, executed)
        publish.write(run.out, root=run.root, names=list(run.steps), pending=pending)
    except Exception as error:
        run.tell(f"  the report could not be written: {type(error).__name__}: {error}")
        return 1
    return 0


def command(
    arguments: list[str] | None = None, *, root: Path = ROOT, page: Sequence[Step] = STEPS
) -> int:
    """The command line of `python -m lib.run`.

    Returns its exit code: 0, 1 a step failed, 2 wrong input, 130 interrupted.
    """
    parser = argparse.ArgumentParser(prog="python -m lib.run", description=__doc__)
    parser.add_argument("profile", help=f"one of: {', '.join(params.profiles(root))}")
    parser.add_argument(
        "--run", metavar="NAME", help="write to outputs/NAME (default: <profile>-local)"
    )
    parser.add_argument(
        "--from", dest="first", metavar="STEP", help="start here; 12 is enough of a name"
    )
    parser.add_argument("--to", dest="last", metavar="STEP", help="stop after this one")
    parser.add_argument(
        "--only", action="append", metavar="STEP", help="just this one; may be repeated"
    )
    parser.add_argument("-p", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--again", action="store_true", help="run also what is fresh")
    chosen = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a headline that this terminal cannot show
    os.environ["MPLBACKEND"] = "Agg"  # of this process, which draws the page; kernels get their own
    try:
        if chosen.only and (chosen.first, chosen.last) != (None, None):
            raise ParameterError("--only cannot be combined with --from or --to")
        return execute(
            chosen.profile,
            run=chosen.run,
            first=chosen.first,
            last=chosen.last,
            only=chosen.only,
            overrides=params.parse_overrides(chosen.overrides),
            again=chosen.again,
            root=root,
            page=page,
        )
    except (ParameterError, state.Busy) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _interrupt(number, frame) -> None:
    raise KeyboardInterrupt
