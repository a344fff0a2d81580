"""Executes the notebooks of a profile in order through papermill: live status, freshness, resume,
record."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from lib import params
from lib.files import ROOT
from lib.params import ParameterError
from lib.workbook import notebook, record, state
from lib.workbook.progress import clock

# Each notebook with those whose artifacts or metrics it reads; the order of the keys is the order
# of a run.
UPSTREAM = {
    "00_curate": [],
    "10_train_base": ["00_curate"],
    "11_merge": ["00_curate", "10_train_base"],
    "12_benchmark": ["11_merge"],
    "13_consistency": ["11_merge", "12_benchmark"],
    "14_self_distill": ["00_curate", "11_merge"],
    "15_train_consistent": ["00_curate", "11_merge", "14_self_distill"],
    "16_rebenchmark": ["11_merge", "12_benchmark", "13_consistency", "15_train_consistent"],
    "17_failures": ["00_curate", "15_train_consistent"],
    "18_distill": [
        "00_curate",
        "11_merge",
        "12_benchmark",
        "14_self_distill",
        "15_train_consistent",
        "16_rebenchmark",
        "17_failures",
    ],
    "20_prune": ["00_curate", "11_merge", "15_train_consistent", "18_distill"],
    "21_quantize": ["00_curate", "20_prune"],
    "22_gguf": [
        "00_curate",
        "11_merge",
        "15_train_consistent",
        "18_distill",
        "20_prune",
        "21_quantize",
    ],
    "23_pack": ["22_gguf"],
    "24_recover": ["00_curate", "22_gguf"],
    "25_calibrate": ["22_gguf", "24_recover"],
}
UPSTREAM["50_validate"] = list(UPSTREAM)  # judges all that ran before it
JUDGES_WHAT_EXISTS = {
    "50_validate"
}  # runs with whatever is there; what is missing is shown as not measured


def resolve(text: str, names: list[str]) -> str:
    """The notebook that `text` names in full or by an unambiguous beginning (12). Raises
    ParameterError."""
    text = Path(text).name.removesuffix(".ipynb")
    hits = [name for name in names if name == text] or [
        name for name in names if name.startswith(text)
    ]
    if len(hits) != 1:
        raise ParameterError(
            f"{text!r} names {len(hits)} notebooks; {params.nearest(text, hits or names)}"
        )
    return hits[0]


def select(
    names: list[str], first: str | None, last: str | None, only: list[str] | None
) -> list[str]:
    """The notebooks to run, in order. Raises ParameterError for an unknown or reversed choice."""
    if only:
        wanted = {resolve(text, names) for text in only}
        return [name for name in names if name in wanted]
    start = names.index(resolve(first, names)) if first else 0
    stop = names.index(resolve(last, names)) if last else len(names) - 1
    if start > stop:
        raise ParameterError(f"--from {names[start]} comes after --to {names[stop]}")
    return names[start : stop + 1]


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
    upstream: dict[str, list[str]] | None = None,
    stream=None,
) -> int:
    """Run a profile; everything is checked before the first notebook starts.

    Returns 0, or 1 when a notebook or the report failed. Raises ParameterError for wrong input and
    state.Busy when the folder is in use; KeyboardInterrupt passes through after the record is
    written.
    """
    upstream = UPSTREAM if upstream is None else upstream
    stream = sys.stdout if stream is None else stream
    names = list(upstream)
    if "out" in (overrides or {}):
        raise ParameterError("-p out: the folder is chosen by --run NAME, which means outputs/NAME")
    run = f"{profile}-local" if run is None else run
    if not run or Path(run).name != run or run.startswith("."):
        raise ParameterError(f"--run {run!r} must be one folder name")
    from lib.workbook import gates

    gates.load(root)
    chosen = select(names, first, last, only)
    values = params.effective(profile, names, overrides, root, chosen)
    out = root / "outputs" / run
    for own in values.values():
        own["out"] = f"outputs/{run}"
    for name in chosen:
        for other in upstream[name]:
            absent = not (out / "metrics" / f"{other}.json").exists()
            if absent and other not in chosen and name not in JUDGES_WHAT_EXISTS:
                raise ParameterError(
                    f"{name} reads {other}, which has not run in outputs/{run}; add --from {other}"
                )
    with state.lock(out):
        return _run_all(chosen, values, upstream, out, root, again, stream)


def _run_all(chosen, values, upstream, out: Path, root: Path, again: bool, stream) -> int:
    began, code, names = time.monotonic(), 0, list(upstream)

    def tell(text: str) -> None:
        print(text, file=stream, flush=True)

    def reason(name: str) -> tuple[dict, str]:
        now = state.parts(name, values[name], upstream[name], out, root)
        return now, "asked to" if again else state.stale(out, name, now)

    pending: list[str] = []
    for name in chosen:  # a fresh notebook will have to run when one that it reads does
        if reason(name)[1] or any(other in pending for other in upstream[name]):
            pending.append(name)
    code |= _publish(out, root, names, pending, tell)
    try:
        for position, name in enumerate(chosen, 1):
            label = f"[{position}/{len(chosen)}] {name}"
            now, why = reason(name)
            pending = [other for other in pending if other != name]
            if not why:
                tell(f"{label}  fresh, skipped")
                continue
            tell(f"{label}  runs: {why}")
            running = notebook.Execution(name, label, values[name], now, out, root, stream)
            running.begin()
            code |= _publish(out, root, names, pending, tell)
            failure = running.execute()
            pending = [] if failure else pending
            code |= _publish(out, root, names, pending, tell, executed=name)
            if failure:
                tell(f"{label}  FAILED\n  {failure}\n  see {params.shown(out / name, root)}.ipynb")
                code = 1
                break
            tell(f"{label}  done in {clock(running.seconds)}: {running.headline()}")
    except KeyboardInterrupt:
        _publish(out, root, names, [], tell)
        raise
    from lib import report

    tell(record.verdict(report.collect(out, root, names)[2]))
    tell(f"page: {params.shown(out, root)}/index.html, after {clock(time.monotonic() - began)}")
    return code


def _publish(
    out: Path, root: Path, names: list[str], pending: list[str], tell, executed: str = ""
) -> int:
    """Renew the page; a fault of the page must not cost the run, so it is printed and counted. 0 or
    1."""
    from lib import report

    try:
        if executed:
            report.notebook_html(out, executed)
        report.write(out, root=root, names=names, pending=pending)
    except Exception as error:
        tell(f"  the report could not be written: {type(error).__name__}: {error}")
        return 1
    return 0


def command(arguments: list[str] | None = None, *, root: Path = ROOT, upstream=None) -> int:
    """The command line of `python -m lib.run`; returns its exit code (0, 1 failed, 2 wrong input,
    130)."""
    parser = argparse.ArgumentParser(prog="python -m lib.run", description=__doc__)
    parser.add_argument("profile", help=f"one of: {', '.join(params.profiles(root))}")
    parser.add_argument(
        "--run", metavar="NAME", help="write to outputs/NAME (default: <profile>-local)"
    )
    parser.add_argument(
        "--from", dest="first", metavar="NOTEBOOK", help="start here; 12 is enough of a name"
    )
    parser.add_argument("--to", dest="last", metavar="NOTEBOOK", help="stop after this one")
    parser.add_argument(
        "--only", action="append", metavar="NOTEBOOK", help="just this one; may be repeated"
    )
    parser.add_argument("-p", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--again", action="store_true", help="run also what is fresh")
    chosen = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    os.environ["MPLBACKEND"] = "Agg"  # of this process, which draws the page; kernels get their own
    try:
        if chosen.only and (chosen.first or chosen.last):
            raise ParameterError("--only cannot be combined with --from or --to")
        return execute(
            chosen.profile,
            run=chosen.run,
            first=chosen.first,
            last=chosen.last,
            only=chosen.only,
            overrides=dict(map(params.parse_override, chosen.overrides)),
            again=chosen.again,
            root=root,
            upstream=upstream,
        )
    except (ParameterError, state.Busy) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _interrupt(number, frame) -> None:
    raise KeyboardInterrupt
