"""The page of a run: README.md, index.html and the code-free notebooks, from metrics/*.json
alone."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from lib import plots
from lib.estimates import words
from lib.files import ROOT, atomic_write_text
from lib.workbook import gates, page, record, state
from lib.workbook.page import Badge, Link
from lib.workbook.progress import clock

SYSTEMS = ("base", "tuned", "consistent", "distilled", "compressed", "routed")
# one of each, in this order; where fewer than two of them have one, others stand in
FIGURES = (
    "12_benchmark",
    "13_consistency",
    "16_rebenchmark",
    "20_prune",
    "22_gguf",
    "25_calibrate",
)
STATUS = {
    "absent": "not run",
    "stale": "older than what it reads",
}  # where the word itself does not say it


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
    standing = sorted({text for r in records.values() for text in r["stands_in"]})
    blocks: list[tuple] = [("lead", _lead(status, records, judged))]
    for word, verdict in (("Missed", "FAIL"), ("Undecided", "inconclusive")):
        found = [
            gate["statement"].partition(" (")[0] for gate in judged if gate["verdict"] == verdict
        ]
        blocks += [("p", f"{word}: {'; '.join(found)}.")] if found else []
    blocks += (
        [("p", f"What stood in for the real thing: {'; '.join(standing)}.")] if standing else []
    )
    blocks += _systems(records) + _figures(out, records, judged) + _gates(judged, records)
    blocks += _notebooks(out, status, records) + _ledger(records) + _provenance(records)
    atomic_write_text(out / "README.md", page.markdown(title, blocks))
    atomic_write_text(out / "index.html", page.html(title, blocks, out))


def _lead(status: dict, records: dict, judged: list[dict]) -> str:
    ahead = [name for name, word in status.items() if word in ("running", "pending")]
    broken = [name for name, word in status.items() if word in ("failed", "interrupted")]
    sentences = [f"{', '.join(broken)} did not finish."] if broken else []
    if ahead:
        sentences.append(
            f"This run is under way, {len(ahead)} of {len(status)} notebooks are ahead."
        )
    sentences.append(record.verdict(judged))
    systems = record.systems(records)
    quality = [f"{s} {words(systems[s]['quality'])}" for s in systems if "quality" in systems[s]]
    if quality:
        sentences.append(f"Quality: {'; '.join(quality)}.")
    return " ".join(sentences)


def _flat(text: str) -> str:
    return re.sub(r"[*`]", "", text)


def _systems(records: dict) -> list[tuple]:
    systems = record.systems(records)
    rows = []
    for name in sorted(systems, key=lambda s: SYSTEMS.index(s) if s in SYSTEMS else len(SYSTEMS)):
        columns = {"quality": None, "bytes": "bytes", "speed": None, "cost": "USD"}
        rows.append([name, *(words(systems[name].get(c), unit) for c, unit in columns.items())])
    absent = [name for name in SYSTEMS if name not in systems]
    blocks: list[tuple] = [("h2", "Systems")]
    if rows:
        blocks.append(
            ("table", ["system", "quality [95 % interval], n", "on disk", "speed", "cost"], rows)
        )
    return blocks + (
        [("note", f"Not measured in this run: {', '.join(absent)}.")] if absent else []
    )


def _figures(out: Path, records: dict, judged: list[dict]) -> list[tuple]:
    found = [
        ("figure", f"figures/{shown['file']}", f"{_title(name)}: {_flat(shown['caption'])}")
        for name in dict.fromkeys((*FIGURES, *reversed(records)))
        for shown in records.get(name, {}).get("figures", [])[:1]
        if (out / "figures" / shown["file"]).exists()
    ]
    found = found[: max(2, len(records.keys() & set(FIGURES)))]
    drawn = out / "figures" / "gates.png"
    drawn.unlink(missing_ok=True)
    if len(found) < 2 and any(gate["measured"] for gate in judged):
        plots.save(plots.gates(judged), drawn)
        caption = "Gates: each measurement by its distance from the threshold, with its interval"
        found.append(("figure", "figures/gates.png", caption))
    return [("h2", "Figures"), *found] if found else []


def _gates(judged: list[dict], records: dict) -> list[tuple]:
    moved = record.moved(judged, records)
    rows = []
    for gate in judged:
        _, _, more = gates.verdict_text(gate).rstrip(")").partition(" (")
        more += " threshold changed since it ran" if gate["id"] in moved else ""
        measured = words(gate["measured"], gate["unit"]) if gate["measured"] else ""
        badge = Badge(gate["verdict"], gate["verdict"].replace(" ", "-"), more.strip())
        rows.append(
            [gate["step"][:2], badge, gate["statement"], gates.threshold_text(gate), measured]
        )
    how = (
        "Thresholds are written before a run and judged from the 95 % interval: pass when all of it"
        " satisfies, FAIL when all of it violates, inconclusive when it straddles. Not measured is"
        " not zero."
    )
    columns = ["in", "verdict", "gate", "threshold", "measured [95 % interval], n"]
    return [("h2", "Gates"), ("table", columns, rows), ("note", how)]


def _title(name: str) -> str:
    number, _, rest = name.partition("_")
    return f"{number} {rest.replace('_', ' ').capitalize()}"


def _notebooks(out: Path, status: dict, records: dict) -> list[tuple]:
    rows = []
    for name, word in status.items():
        origin = records[name]["provenance"] if name in records else None
        executed = (out / "html" / f"{name}.html").exists() and word not in ("pending", "running")
        title = Link(_title(name), f"html/{name}.html") if executed else _title(name)
        seconds = clock(origin["seconds"] + origin["earlier_seconds"]) if origin else ""
        headline = records[name]["headline"] if origin else state.read(out, name).get("failure", "")
        rows.append([title, Badge(STATUS.get(word, word), word), seconds, _flat(headline)])
    return [("h2", "Notebooks"), ("table", ["notebook", "status", "time", "headline"], rows)]


def _ledger(records: dict) -> list[tuple]:
    rows = record.cost_ledger(records)
    cells = [[f"{v:.3f}" if isinstance(v, float) else v for v in row.values()] for row in rows]
    cells = [[name if name == "total" else _title(name), *rest] for name, *rest in cells]
    return [("h2", "Cost"), ("table", list(rows[0]), cells)]


def _provenance(records: dict) -> list[tuple]:
    """One row for each combination of commit, device and versions, with the notebooks that share
    it."""
    groups: dict[tuple, list[str]] = {}
    for name, entry in records.items():
        origin, device = entry["provenance"], entry["provenance"]["device"]
        gpu = ", ".join(device.get("gpu", ["no GPU"]))
        machine = (
            f"{device['cpu']}, {device['cores']} cores, {device.get('memory_gib', '?')} GiB, {gpu}"
        )
        versions = ", ".join(
            f"{library} {version}" for library, version in origin["versions"].items()
        )
        when = origin["started"][:16].replace("T", " ")
        groups.setdefault((origin["commit"], machine, versions), []).append(f"{name[:2]} ({when})")
    rows = [[", ".join(who), *what] for what, who in groups.items()]
    columns = ["notebook (start, UTC)", "commit", "device", "versions"]
    return [("h2", "Provenance"), ("table", columns, rows)] if rows else []


def notebook_html(out: Path, name: str) -> Path:
    """outputs/<run>/html/<name>.html: the executed notebook without code and warnings, no
    script."""
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
        embed_images=True,
        mathjax_url="",
        require_js_url="",
    )
    body, _ = exporter.from_notebook_node(notebook)
    back = f'<a href="../index.html">Run {page.escape(out.name)}</a>'
    head = (
        f'<p class="note">{back}, code and warnings hidden; with both: <a'
        f' href="../{name}.ipynb">{name}.ipynb</a></p>'
    )
    target = out / "html" / f"{name}.html"
    atomic_write_text(
        target, page.document(f"{_title(name)} ({out.name})", head + page.boxed(body))
    )
    return target


def main() -> int:
    """`python -m lib.report outputs/NAME`: renew the page, e.g. after running notebooks by hand."""
    from lib.workbook.pipeline import UPSTREAM

    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        print("usage: python -m lib.report outputs/NAME (an existing folder)", file=sys.stderr)
        return 2
    out = Path(sys.argv[1]).resolve()
    for name in UPSTREAM:
        if (out / f"{name}.ipynb").exists():
            notebook_html(out, name)
    write(out, names=list(UPSTREAM))
    print(f"{sys.argv[1].rstrip('/')}/index.html")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
