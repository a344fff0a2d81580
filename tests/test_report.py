"""The page: a function of metrics and states; self-contained; numbers of unfinished notebooks stay
out."""

from __future__ import annotations

import re

import pytest

from lib import plots, report, run
from lib.files import atomic_write_json
from lib.workbook import page, record, state

NAMES = ["01_first", "02_second"]
ESTIMATE = {"value": 0.4, "low": 0.3, "high": 0.5, "n": 90, "unit": "share"}
VALUES = {"out": "outputs/tiny-local", "k": 3, "rate": 0.5, "data": "packaged", "hourly_rate": 0.0}


@pytest.fixture
def first(project):
    job = run.start("01_first", VALUES, root=project.root)
    fig, axes = plots.figure()
    axes.plot([1, 2])
    run.show(job, fig, "line", "A <line> & more")
    run.finish(
        job,
        headline="Three | rows **kept**",
        metrics={"kept": 3},
        stands_in=["toys stand in"],
        systems={"tuned": {"quality": ESTIMATE, "bytes": 5_000_000}},
    )
    return project


def words(project, **options):
    report.write(project.out, root=project.root, names=NAMES, **options)
    return (project.out / "README.md").read_text(), (project.out / "index.html").read_text()


def external(html: str) -> list[str]:
    """Everything a browser would fetch; links that a reader may click are not fetched."""
    patterns = (
        r"""(?:src|srcset)=["']([^"']*)|<link[^>]*href=["']([^"']*)|url\(([^)]*)\)|@(import)"""
    )
    fetched = re.findall(patterns, html)
    return [x for groups in fetched for x in groups if x and not x.startswith("data:")]


def test_the_page_says_what_was_measured_and_what_was_not(first):
    for text in words(first):
        plain = text.replace("\u00a0", " ")
        assert "Of 3 gates 1 are measured: 1 pass, 0 fail, 0 inconclusive." in plain
        assert "40.0 % [30.0 %, 50.0 %], n 90" in plain and "5.0 MB" in plain
        assert "toys stand in" in plain and "not measured" in plain
        assert "Not measured in this run: base, consistent, distilled, compressed, routed." in plain


def test_the_page_fetches_nothing_and_runs_nothing(first):
    _, html = words(first)
    assert "<script" not in html and external(html) == [] and "data:image/png;base64" in html
    assert "A &lt;line&gt; &amp; more" in html


def test_markdown_tables_keep_their_columns(first):
    text, _ = words(first)
    for block in re.findall(r"(?:^\|.*\n?)+", text, flags=re.M):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.strip().splitlines()}
        assert len(widths) == 1, block


@pytest.mark.parametrize("how", ["pending", "failed", "running"])
def test_numbers_of_an_unfinished_notebook_stay_out(first, how):
    if how != "pending":
        state.mark(first.out, "01_first", how, parts={"upstream": {}}, failure="it broke")
    text, _ = words(first, pending=["01_first"] if how == "pending" else [])
    assert "None of the 3 gates is measured yet." in text and "40.0 %" not in text
    assert f"**{how}**" in text
    assert ("it broke" in text) == (how != "pending")


def test_a_record_without_states_counts_as_done(first):
    assert state.statuses(first.out, NAMES) == {"01_first": "done", "02_second": "absent"}


def test_nothing_measured_is_a_page_too(project):
    text, html = words(project)
    assert "None of the 3 gates is measured yet." in text and "<img" not in html


def test_a_threshold_changed_after_the_run_is_said(first):
    gates_file = first.root / "params/gates.yaml"
    gates_file.write_text(gates_file.read_text().replace("threshold: 2", "threshold: 1"))
    text, _ = words(first)
    assert "threshold changed since it ran" in text


def test_a_metrics_file_edited_to_be_higher_is_seen_by_its_state(first):
    path = first.out / "metrics/01_first.json"
    now = state.parts("01_first", VALUES, [], first.out, first.root)
    state.mark(first.out, "01_first", "done", parts=now, metrics="0" * 64, seconds=1)
    assert path.exists() and "edited" in state.stale(first.out, "01_first", now)


def test_code_free_notebook_has_output_but_no_code_and_fetches_nothing(project, tmp_path):
    import nbformat

    v4 = nbformat.v4
    wide = "<table><tr><td>wide</td></tr></table>"
    outputs = [v4.new_output("stream", name="stdout", text="printed <b>")]
    outputs += [v4.new_output("stream", name="stderr", text="SomeWarning")]
    outputs += [v4.new_output("display_data", data={"text/html": wide})]
    cells = [v4.new_markdown_cell("# Title\n\n| a |\n| --- |\n| 1 |")]
    cells += [v4.new_code_cell("secret = 1", outputs=outputs)]
    project.out.mkdir(parents=True)
    nbformat.write(v4.new_notebook(cells=cells), project.out / "01_first.ipynb")
    html = report.notebook_html(project.out, "01_first").read_text()
    assert "printed &lt;b&gt;" in html and "secret" not in html and "SomeWarning" not in html
    assert "<script" not in html and external(html) == []
    assert html.count('<div class="out"><table') == html.count("<table") == 2


def test_overlaps_find_a_shared_content_whatever_its_case_and_spacing(tmp_path):
    from lib.files import write_jsonl

    write_jsonl(
        tmp_path / "train.jsonl", [{"instruction": "Add 2  and 3"}, {"instruction": "other"}]
    )
    write_jsonl(tmp_path / "items.jsonl", [{"prompt": "add 2 and 3"}, {"prompt": "new"}])
    sets = {name: record.contents(tmp_path / f"{name}.jsonl") for name in ("train", "items")}
    assert [pair["shared"] for pair in record.overlaps(sets)] == [1]


def test_ledger_totals_are_sums(first):
    rows = record.cost_ledger(
        record.load(first.out, NAMES) | {"10_train_base": fake_costs(7200.0, 4.6, 0.4)}
    )
    assert [list(row) for row in rows] == [list(rows[0])] * len(rows)
    assert (
        rows[-1]["USD"] == pytest.approx(sum(row["USD"] for row in rows[:-1])) == pytest.approx(5.0)
    )
    assert rows[1]["hours"] == pytest.approx(2.0) and rows[1]["USD, plan"] == "36 to 46"


def fake_costs(seconds, machine, api):
    cost = {"seconds": seconds, "machine_cost": machine, "api_spend": api, "cost": machine + api}
    return {"provenance": cost, "systems": {}}


def test_gates_figure_puts_every_verdict_on_its_side():
    def gate(op, threshold, low, value, high, **more):
        measured = {"low": low, "value": value, "high": high}
        return {"id": "g", "op": op, "threshold": threshold, "measured": measured, **more}

    assert plots._distances(gate(">=", 1, 2, 3, 4)) == (1, 2, 3)
    assert plots._distances(gate("<=", 1, 2, 3, 4)) == (-3, -2, -1)
    worst, middle, best = plots._distances(gate("about", 10, 7, 11, 12, tolerance=2))
    assert (worst, middle, best) == (-1, 1, 2)


def test_a_page_of_every_kind_of_cell(tmp_path):
    cells = [page.Link("a", "html/a.html"), page.Badge("FAIL", "FAIL", "n 5"), "x < 5 %"]
    blocks = [("h2", "T"), ("table", ["l", "b", "t"], [cells])]
    html = page.html("t", blocks, tmp_path)
    assert '<a href="html/a.html">a</a>' in html and 'class="badge FAIL"' in html
    assert "x &lt; 5\u00a0%" in html
    assert "| [a](html/a.html) | **FAIL** (n 5) | x &lt; 5 % |" in page.markdown("t", blocks)


def test_state_says_stale_when_an_upstream_ran_again(first):
    for name, upstream in (("01_first", []), ("02_second", ["01_first"])):
        atomic_write_json(first.out / "metrics" / f"{name}.json", {"metrics": {}})
        parts = state.parts(name, VALUES, upstream, first.out, first.root)
        state.mark(first.out, name, "done", parts=parts, metrics="", seconds=1)
    assert state.statuses(first.out, NAMES)["02_second"] == "done"
    atomic_write_json(first.out / "metrics" / "01_first.json", {"metrics": {"new": 1}})
    assert state.statuses(first.out, NAMES)["02_second"] == "stale"
