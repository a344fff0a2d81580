"""`python -m lib.report`: renew the page of a run, or take a run over as the committed record."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from lib import params
from lib.files import ROOT
from lib.workbook import gates, publish, record, state, summary
from lib.workbook.steps import STEPS

# what a record is made of, beside its notebooks; `keep` replaces it, and nothing else
OF_RECORD = {"README.md", "index.html", *("html", "figures", "metrics", "transcripts", "artifacts")}
PASSING = {".ipynb_checkpoints", ".DS_Store"}  # left behind by programs that looked into it


def _check_metrics(out: Path) -> None:
    """ParameterError for a folder without metrics, or naming a metrics file that is none."""
    if not os.path.isdir(out / "metrics"):
        message = f"{params.shown(out, ROOT)} is no record of a run: no metrics are in it"
        raise params.ParameterError(message)
    for file in sorted((out / "metrics").glob("*.json")):
        record.read(file)


def keep(run: Path, record_of: Path, *, root: Path = ROOT, names: list[str]) -> None:
    """Take a finished run over into the folder of a committed record, whole or not at all.

    Copies executed notebooks, html, figures, metrics and transcripts and draws the page anew; the
    artifacts of the record stay. Raises ParameterError where a step of the run is unfinished, or of
    the record is missing in the run, and state.Busy while the run is under way.
    """
    _refuse_place(run, record_of)
    with ExitStack() as held:
        held.enter_context(state.lock(run))
        if (record_of / "artifacts" / ".lock").exists():  # that folder may be a run under way, too
            held.enter_context(state.lock(record_of))
        _refuse_unfinished(run, record_of, names)
        record_of.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".keep-{record_of.name}-"
        for left in [path for path in record_of.parent.iterdir() if path.name.startswith(prefix)]:
            shutil.rmtree(left, ignore_errors=True)  # of a take-over that was killed
        with tempfile.TemporaryDirectory(dir=record_of.parent, prefix=prefix) as scratch:
            new = Path(scratch) / record_of.name
            _copy_record(run, new)
            publish.render(new, root=root, names=names)
            _swap(new, record_of)


def _refuse_place(run: Path, place: Path) -> None:
    """ParameterError unless `place` is free, or a record whose every file is a run's to replace."""
    name = params.shown(place, ROOT)
    if place == run or place in run.parents or run in place.parents:
        raise params.ParameterError(f"{name} is not a folder beside {params.shown(run, ROOT)}")
    if not os.path.lexists(place):
        return
    if not place.is_dir():
        raise params.ParameterError(f"{name} is no folder")
    inside = sorted(path.name for path in place.iterdir() if path.name not in PASSING)
    foreign = [n for n in inside if n not in OF_RECORD and not n.endswith(".ipynb")]
    if foreign:
        raise params.ParameterError(
            f"{name} holds {foreign[0]}, which is of no record and would be lost; move it away"
        )
    if set(inside) - {"artifacts"} and not any((place / "metrics").glob("*.json")):
        raise params.ParameterError(f"{name} is no record, and its files would be lost")


def _copy_record(run: Path, new: Path) -> None:
    """What of a run is committed."""
    new.mkdir()
    for file in sorted(run.glob("*.ipynb")):
        shutil.copyfile(file, new / file.name)
    for folder in ("figures", "metrics", "transcripts"):
        if (run / folder).is_dir():
            shutil.copytree(run / folder, new / folder, copy_function=shutil.copyfile)


def _swap(new: Path, place: Path) -> None:
    """Put `new` in the place of a folder whose artifacts stay; a kill at any moment loses none."""
    before = _before(place)
    _settle(before, place)
    if place.exists():
        place.rename(before)
    new.rename(place)
    _settle(before, place)


def _before(place: Path) -> Path:
    """Where a folder waits while the new one takes its place."""
    return place.parent / f".{place.name}.before"


def _settle(before: Path, place: Path) -> None:
    """End a swap: give back the artifacts, or the whole folder where nothing took its place."""
    if before.exists() and not place.exists():
        before.rename(place)
    if (before / "artifacts").exists():
        if (place / "artifacts").exists():
            both = f"{params.shown(before, ROOT)} and {params.shown(place, ROOT)}"
            raise params.ParameterError(f"both {both} hold artifacts; move those of one away")
        (before / "artifacts").rename(place / "artifacts")
    shutil.rmtree(before, ignore_errors=True)


def _refuse_unfinished(run: Path, record_of: Path, names: list[str]) -> None:
    """ParameterError unless every step of the run, and every one of the record, is done."""
    status = state.statuses(run, names)
    was = [name for name in names if (record_of / "metrics" / f"{name}.json").exists()]
    missing = [name for name in was if status[name] == "absent"]
    unfinished = [name for name in names if status[name] not in ("done", "absent")]
    for name in [*unfinished, *missing]:
        word = summary.STATUS.get(status[name], status[name])
        raise params.ParameterError(
            f"{run.name} is not finished ({name}: {word}); run it to its end first"
        )
    if "done" not in status.values():
        raise params.ParameterError(f"{run.name} is no run: no step of it is done")


USAGE = "python -m lib.report outputs/NAME, or --keep outputs/RUN outputs/RECORD"


def main(arguments: list[str] | None = None) -> int:
    """`python -m lib.report outputs/NAME` renews a page, e.g. after notebooks were run by hand.

    `--keep outputs/RUN outputs/RECORD` takes a finished run over into a committed record.
    """
    parser = argparse.ArgumentParser(usage=USAGE, description=main.__doc__)
    parser.add_argument("--keep", action="store_true", help="take a run over into a record")
    parser.add_argument("folders", nargs="*", metavar="outputs/NAME")
    chosen = parser.parse_args(arguments)
    if len(chosen.folders) != 1 + chosen.keep:
        print(f"usage: {USAGE}", file=sys.stderr)
        return 2
    names = [step.name for step in STEPS]
    folders = [Path(text).resolve() for text in chosen.folders]
    try:
        gates.load(ROOT)
        if os.path.exists(_before(folders[-1])):  # taking over was killed
            _settle(_before(folders[-1]), folders[-1])
        _check_metrics(folders[0])
        if chosen.keep:
            keep(*folders, names=names)
        else:
            publish.render(folders[0], names=names)
    except (params.ParameterError, state.Busy) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that cannot be written
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{chosen.folders[-1].rstrip('/')}/index.html")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
