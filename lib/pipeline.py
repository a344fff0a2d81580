"""Executes the notebooks of a profile in order through papermill: live status, freshness, resume, record."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from lib import params, record, state
from lib.files import ROOT, atomic_write_text, sha256_file
from lib.params import ParameterError
from lib.progress import Progress, clock

# Each notebook with those whose artifacts or metrics it reads; the order of the keys is the order of a run.
UPSTREAM = {
    "00_curate": [],
    "10_train_base": ["00_curate"],
    "11_merge": ["00_curate", "10_train_base"],
    "12_benchmark": ["11_merge"],
    "13_consistency": ["11_merge", "12_benchmark"],
    "50_validate": ["00_curate", "10_train_base", "11_merge", "12_benchmark", "13_consistency"],
}
JUDGES_WHAT_EXISTS = {"50_validate"}  # runs with whatever is there; what is missing is shown as not measured
KERNEL = {
    "OMP_WAIT_POLICY": "PASSIVE",  # two threads on busy cores collapse by spin-waiting
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # one set in the user's shell hides figures
    "JUPYTER_PREFER_ENV_PATH": "1",  # this environment's kernel, not one of the same name in the home folder
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}


def resolve(text: str, names: list[str]) -> str:
    """The notebook that `text` names in full or by an unambiguous beginning (12). Raises ParameterError."""
    text = Path(text).name.removesuffix(".ipynb")
    hits = [name for name in names if name == text] or [name for name in names if name.startswith(text)]
    if len(hits) != 1:
        raise ParameterError(f"{text!r} names {len(hits)} notebooks; {params.nearest(text, hits or names)}")
    return hits[0]


def select(names: list[str], first: str | None, last: str | None, only: list[str] | None) -> list[str]:
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
    state.Busy when the folder is in use; KeyboardInterrupt passes through after the record is written.
    """
    upstream = UPSTREAM if upstream is None else upstream
    stream = sys.stdout if stream is None else stream
    names = list(upstream)
    if "out" in (overrides or {}):
        raise ParameterError("-p out: the folder is chosen by --run NAME, which means outputs/NAME")
    run = profile if run is None else run
    if not run or Path(run).name != run or run.startswith("."):
        raise ParameterError(f"--run {run!r} must be one folder name")
    values = params.effective(profile, names, overrides, root)
    from lib import gates

    gates.load(root)
    chosen = select(names, first, last, only)
    out = root / "outputs" / run
    for own in values.values():
        own["out"] = f"outputs/{run}"
    for name in chosen:
        for other in upstream[name]:
            absent = not (out / "metrics" / f"{other}.json").exists()
            if absent and other not in chosen and name not in JUDGES_WHAT_EXISTS:
                raise ParameterError(f"{name} reads {other}, which has not run in outputs/{run}; add --from {other}")
    with state.lock(out):
        return _run_all(chosen, values, upstream, out, root, again, stream)


def _run_all(chosen, values, upstream, out: Path, root: Path, again: bool, stream) -> int:
    began, code = time.monotonic(), 0
    pending = list(chosen)
    names = list(upstream)
    _publish(out, root, names, pending, stream)
    for position, name in enumerate(chosen, 1):
        label = f"[{position}/{len(chosen)}] {name}"
        now = state.parts(name, values[name], upstream[name], out, root)
        why = "asked to" if again else state.stale(out, name, now)
        pending.remove(name)
        if not why:
            print(f"{label}  fresh, skipped", file=stream, flush=True)
            continue
        print(f"{label}  runs: {why}", file=stream, flush=True)
        failure = _run_one(
            name,
            label,
            values[name],
            now,
            out,
            root,
            lambda: _publish(out, root, names, pending, stream),
            stream,
        )
        code |= _publish(out, root, names, pending, stream, executed=name)
        if failure:
            print(
                f"{label}  FAILED\n{failure}\n  see {params.shown(out / name, root)}.ipynb",
                file=stream,
                flush=True,
            )
            code = 1
            break
    print(f"{_closing(out, root, names)} in {clock(time.monotonic() - began)}", file=stream, flush=True)
    return code


def _run_one(name, label, values, now, out: Path, root: Path, announce, stream) -> str:
    """Execute one notebook; returns the error in words, empty when it is done."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    final, partial = out / f"{name}.ipynb", out / f"{name}.partial.ipynb"
    earlier = _earlier_seconds(out, name, partial)
    out.mkdir(parents=True, exist_ok=True)
    began = time.time()
    state.mark(out, name, "running", began=began, earlier=earlier, parts=now)
    for old in (out / "metrics" / f"{name}.json", partial):
        old.unlink(missing_ok=True)
    announce()
    environment = KERNEL | {"WORKBOOK_EARLIER_SECONDS": str(earlier)}
    log = out / "artifacts" / ".state" / f"{name}.log"
    log.unlink(missing_ok=True)
    failure, status = "", "interrupted"
    try:
        with Progress(label, stream, environment=environment, log=log) as progress:
            papermill.execute_notebook(
                str(root / "notebooks" / f"{name}.ipynb"), str(partial), parameters=values,
                engine_name=progress.engine, progress_bar=False, cwd=str(root / "notebooks"),
                kernel_name="python3",
            )  # fmt: skip
        status = "done"
    except PapermillExecutionError as error:
        status, failure = "failed", f"  cell {error.exec_count}: {error.ename}: {error.evalue}"
    except KeyboardInterrupt:
        raise
    except Exception as error:  # a dead kernel (out of memory), a full disk: the run reports it and stops here
        words = log.read_text(errors="replace").splitlines()[-3:] if log.exists() else []
        status, failure = "failed", "\n  ".join([f"  {type(error).__name__}: {error}", *words])
        _note_on_top(partial, failure)
    finally:
        seconds = round(time.time() - began, 1)
        metrics = out / "metrics" / f"{name}.json"
        if status == "done" and not metrics.exists():
            status, failure = "failed", "  it ended without run.finish, so there are no metrics"
        if partial.exists():
            _without_machine_paths(partial, root)
        if status != "interrupted" and partial.exists():
            os.replace(partial, final)
        entries = {"metrics": sha256_file(metrics)} if status == "done" else {"failure": failure.strip()}
        state.mark(out, name, status, began=began, seconds=seconds, earlier=earlier, parts=now, **entries)
    if not failure:
        headline = _headline(metrics)
        print(f"{label}  done in {clock(seconds)}: {headline}", file=stream, flush=True)
    return failure


def _earlier_seconds(out: Path, name: str, partial: Path) -> float:
    """Seconds that unfinished attempts have cost; of a killed one, until its last saved cell."""
    before = state.read(out, name)
    if before.get("status") in ("failed", "interrupted"):
        return before.get("earlier", 0.0) + before["seconds"]
    if before.get("status") == "running":
        last = partial.stat().st_mtime if partial.exists() else before["began"]
        return round(before.get("earlier", 0.0) + max(0.0, last - before["began"]), 1)
    return 0.0


def _note_on_top(path: Path, message: str) -> None:
    """Papermill marks a failed cell itself; a run that broke outside a cell gets the same mark here."""
    import nbformat

    if path.exists():
        notebook = nbformat.read(path, as_version=4)
        text = f"**The run broke here:**{message}. The last cell with output is where to look."
        notebook.cells.insert(0, nbformat.v4.new_markdown_cell(text, metadata={"tags": ["papermill-error-cell-tag"]}))
        nbformat.write(notebook, path)


def _without_machine_paths(path: Path, root: Path) -> None:
    """The executed notebook with paths inside the repository made relative: a record names no machine."""
    text = path.read_text(encoding="utf-8")
    atomic_write_text(path, text.replace(f"{root}/", ""))


def _headline(path: Path) -> str:
    import json

    return json.loads(path.read_text(encoding="utf-8"))["headline"]


def _publish(out: Path, root: Path, names: list[str], pending: list[str], stream, executed: str = "") -> int:
    """Renew the page; a fault of the page must not cost the run, so it is printed and counted. 0 or 1."""
    from lib import report

    try:
        if executed:
            report.notebook_html(out, executed)
        report.write(out, root=root, names=names, pending=pending)
    except Exception as error:
        print(f"  the report could not be written: {type(error).__name__}: {error}", file=stream, flush=True)
        return 1
    return 0


def _closing(out: Path, root: Path, names: list[str]) -> str:
    from lib import report

    _, _, judged = report.collect(out, root, names)
    return f"{record.verdict(judged)}\npage: {params.shown(out, root)}/index.html"


def command(arguments: list[str] | None = None, *, root: Path = ROOT, upstream=None) -> int:
    """The command line of `python -m lib.run`; returns its exit code (0, 1 failed, 2 wrong input, 130)."""
    parser = argparse.ArgumentParser(prog="python -m lib.run", description=__doc__)
    parser.add_argument("profile", help=f"one of: {', '.join(params.profiles(root))}")
    parser.add_argument("--run", metavar="NAME", help="write to outputs/NAME (default: the profile's name)")
    parser.add_argument("--from", dest="first", metavar="NOTEBOOK", help="start here; 12 is enough of a name")
    parser.add_argument("--to", dest="last", metavar="NOTEBOOK", help="stop after this one")
    parser.add_argument("--only", action="append", metavar="NOTEBOOK", help="just this one; may be repeated")
    parser.add_argument("-p", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--again", action="store_true", help="run also what is fresh")
    chosen = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if chosen.only and (chosen.first or chosen.last):
            raise ParameterError("--only cannot be combined with --from or --to")
        return execute(
            chosen.profile, run=chosen.run, first=chosen.first, last=chosen.last, only=chosen.only,
            overrides=dict(map(params.parse_override, chosen.overrides)), again=chosen.again,
            root=root, upstream=upstream,
        )  # fmt: skip
    except (ParameterError, state.Busy) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _interrupt(number, frame) -> None:
    raise KeyboardInterrupt
