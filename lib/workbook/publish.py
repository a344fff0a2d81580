"""The page of a run: README.md, index.html, notebooks without code; from metrics/*.json alone."""

from __future__ import annotations

from pathlib import Path

from lib import plots
from lib.files import ROOT, atomic_write_text, shown
from lib.params import ParameterError
from lib.workbook import gate_figure, gates, page, record, state, summary

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
        *summary.lead(status, records, judged),
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
        for figure in records.get(step, {}).get("figures", [])[:1]:
            if (out / "figures" / figure["file"]).exists():
                caption = f"{summary.title(step)}: {summary.flat(figure['caption'])}"
                blocks.append(("figure", f"figures/{figure['file']}", caption))
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

    try:
        notebook = nbformat.read(out / f"{name}.ipynb", as_version=4)
    except (ValueError, AttributeError, nbformat.ValidationError):
        where = f"{shown(out, ROOT)}/{name}.ipynb"
        raise ParameterError(f"{where} is damaged; run {name} again") from None
    for cell in notebook.cells:
        cell["outputs"] = [o for o in cell.get("outputs", []) if not _for_the_author(o)]
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
    text = f'<p class="note">{_links(out, name)}</p>\n{page.boxed(page.unbroken(body))}'
    target = out / "html" / f"{name}.html"
    title = f"{summary.title(name)} ({out.name})"
    atomic_write_text(target, page.document(title, text, kind="notebook"))
    return target


def _for_the_author(output: dict) -> bool:
    """Warnings of libraries, and the bare repr of what a cell's last line returned."""
    bare = output["output_type"] == "execute_result" and set(output["data"]) == {"text/plain"}
    return bare or output.get("name") == "stderr"


def _links(out: Path, name: str) -> str:
    """From an executed notebook to its page, to its transcripts, and to itself with code."""
    links = [f'<a href="../index.html">Run {page.escape(out.name)}</a>']
    if (out / "transcripts" / f"{name}.html").exists():
        links.append(f'<a href="../transcripts/{name}.html">transcripts of its answers</a>')
    links.append(f'with code and warnings: <a href="../{name}.ipynb">{name}.ipynb</a>')
    return " · ".join(links)


def render(out: Path, *, root: Path = ROOT, names: list[str]) -> None:
    """Draw the page of a record and the code-free notebooks that are in it."""
    for name in names:
        if (out / f"{name}.ipynb").exists():
            notebook_html(out, name)
    write(out, root=root, names=names)
