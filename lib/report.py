"""`python -m lib.report`: renew the page of a run, or take a run over as the committed record."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from lib import params
from lib.files import ROOT
from lib.workbook import gates, publish, state, summary
from lib.workbook.steps import STEPS


def _check_metrics(out: Path) -> None:
    """ParameterError for a folder without metrics, or naming a metrics file that is no JSON."""
    if not (out / "metrics").is_dir():
        message = f"{params.shown(out, ROOT)} is no record of a run: no metrics are in it"
        raise params.ParameterError(message)
    for file in sorted((out / "metrics").glob("*.json")):
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            message = f"{params.shown(file, ROOT)} is damaged ({error}); run {file.stem} again"
            raise params.ParameterError(message) from error


def keep(run: Path, record_of: Path, *, root: Path = ROOT, names: list[str]) -> None:
    """Take a finished run over into the folder of a committed record, whole or not at all.

    Copies executed notebooks, html, figures, metrics and transcripts and draws the page anew; the
    artifacts of the record stay. Raises ParameterError where a step of the run is unfinished, or of
    the record is missing in the run, and state.Busy while the run is under way.
    """
    with state.lock(run):
        _refuse_unfinished(run, record_of, names)
        record_of.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=record_of.parent, prefix=".keep-") as scratch:
            new = Path(scratch) / record_of.name
            _copy_record(run, new)
            publish.render(new, root=root, names=names)
            _swap(new, record_of)


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
    before = place.with_name(f".{place.name}.before")
    _settle(before, place)
    if place.exists():
        place.rename(before)
    new.rename(place)
    _settle(before, place)


def _settle(before: Path, place: Path) -> None:
    """End a swap: give back the artifacts, or the whole folder where nothing took its place."""
    if before.exists() and not place.exists():
        before.rename(place)
    if (before / "artifacts").exists():
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
        _check_metrics(folders[0])
        if chosen.keep:
            keep(*folders, names=names)
        else:
            publish.render(folders[0], names=names)
    except (params.ParameterError, state.Busy) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{chosen.folders[-1].rstrip('/')}/index.html")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
