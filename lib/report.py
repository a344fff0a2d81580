"""The page of a run: README.md, index.html, notebooks without code; from metrics/*.json alone."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from lib import params, plots
from lib.files import ROOT, atomic_write_text
from lib.workbook import gate_figure, gates, page, record, state, summary
from lib.workbook.steps import STEPS

# one of each, in this order; where fewer than two of them have one, others stand in
FIGURES = ("12_benchmark", "16_rebenchmark", "22_gguf")


def collect(out: Path, root: Path, names: list[str], pending: list[str] | None = None) -> tuple:
    """({notebook: status}, {notebook: record}, judged gates) of outputs/<run>.

    `pending`: notebooks that the present run still has ahead. A notebook that is pending, running
    or failed contributes no numbers, even if an earlier run left some.
    """
    status = state.statuses(out, names) | {name: "pending" for name in pending or []}
    records = record.load(out, [name for name in names if status[name] in ("done", "stale")])
    return (
        status,
        records,
        gates.judge_all({name: r["metrics"] for name, r in records.items()}, root),
    )


def write(
    out: Path, *, root: Path = ROOT, names: list[str], pending: list[str] | None = None
) -> None:
    """Write outputs/<run>/README.md and index.html; see `collect` for `pending`."""
    status, records, judged = collect(out, root, names, pending)
    title = f"Run {out.name}: what was targeted, measured, and how sure we are"
    blocks = [
        *summary.lead(status, judged),
        *summary.phases(out, status, records, judged),
        *summary.stand_ins(records),
        *summary.systems(records),
        *_figures(out, records, judged),
        *summary.gate_tables(judged, records),
        *summary.steps(out, status, records),
        *summary.cost(records),
        *summary.provenance(records),
    ]
    atomic_write_text(out / "README.md", page.markdown(title, blocks))
    atomic_write_text(out / "index.html", page.html(title, blocks, out))


def _figures(out: Path, records: dict, judged: list[dict]) -> list[tuple]:
    """Two or three figures; that of the gates stands in where the steps have drawn fewer."""
    blocks = []
    for step in dict.fromkeys((*FIGURES, *reversed(records))):
        for shown in records.get(step, {}).get("figures", [])[:1]:
            if (out / "figures" / shown["file"]).exists():
                caption = f"{summary.title(step)}: {summary.flat(shown['caption'])}"
                blocks.append(("figure", f"figures/{shown['file']}", caption))
    blocks = blocks[: max(2, len(records.keys() & set(FIGURES)))]
    drawn = out / "figures" / "gates.png"
    drawn.unlink(missing_ok=True)
    if len(blocks) < 2 and any(gate["measured"] for gate in judged):
        plots.save(gate_figure.draw(judged), drawn)
        caption = "Gates: each measurement by its distance from the threshold, with its interval"
        blocks.append(("figure", "figures/gates.png", caption))
    return [("h2", "Figures"), *blocks] if blocks else []


def notebook_html(out: Path, name: str) -> Path:
    """outputs/<run>/html/<name>.html: the executed notebook without code, warnings or script."""
    import nbformat
    from nbconvert import HTMLExporter

    notebook = nbformat.read(out / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:  # warnings of libraries are for who reads the code
        cell["outputs"] = [o for o in cell.get("outputs", []) if o.get("name") != "stderr"]
    exporter = HTMLExporter(
        template_name="basic",
        exclude_input=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
        embed_images=False,  # it would close what is folded at once; outputs hold their pictures
        mathjax_url="",
        require_js_url="",
    )
    body, _ = exporter.from_notebook_node(notebook)
    text = f'<p class="note">{_links(out, name)}</p>\n{page.boxed(body)}'
    target = out / "html" / f"{name}.html"
    title = f"{summary.title(name)} ({out.name})"
    atomic_write_text(target, page.document(title, text, kind="notebook"))
    return target


def _links(out: Path, name: str) -> str:
    """From an executed notebook to its page, to its transcripts, and to itself with code."""
    links = [f'<a href="../index.html">Run {page.escape(out.name)}</a>']
    if (out / "transcripts" / f"{name}.html").exists():
        links.append(f'<a href="../transcripts/{name}.html">transcripts of its answers</a>')
    links.append(f'with code and warnings: <a href="../{name}.ipynb">{name}.ipynb</a>')
    return " · ".join(links)


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
            render(new, root=root, names=names)
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


def render(out: Path, *, root: Path = ROOT, names: list[str]) -> None:
    """Draw the page of a record and the code-free notebooks that are in it."""
    for name in names:
        if (out / f"{name}.ipynb").exists():
            notebook_html(out, name)
    write(out, root=root, names=names)


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
            render(folders[0], names=names)
    except (params.ParameterError, state.Busy) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{chosen.folders[-1].rstrip('/')}/index.html")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
