"""The page: a function of metrics and states; self-contained; numbers of unfinished notebooks stay
out."""

from __future__ import annotations

import re

import pytest

from lib import plots, report, run
from lib.estimates import Estimate
from lib.files import atomic_write_json, write_jsonl
from lib.markdown import folded
from lib.params import ParameterError
from lib.workbook import freshness, gate_figure, leakage, page, publish, record, state, summary

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
    publish.write(project.out, root=project.root, names=NAMES, **options)
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
        assert "Of 3 gates 1 is measured: 1 pass, 0 fail, 0 inconclusive." in plain
        assert "40.0 % [30.0 %, 50.0 %], n 90" in plain and "5.0 MB" in plain
        assert "toys stand in" in plain and "not measured" in plain
        assert "Not measured in this run: base, consistent, distilled, compressed, mod" in plain
        assert "Which rows are good enough to train on?" in plain


def test_the_page_opens_with_a_model_that_is_not_the_plans():
    def opening(model):
        record_of = {"provenance": {"params": {"model": model}}}
        return summary.lead({}, {"10_a": record_of, "11_b": record_of}, [])[0][1]

    assert opening("tiny").startswith("Run with tiny in place of the plan's Llama-3.1-8B-Instruct.")
    assert opening("meta-llama/Meta-Llama-3.1-8B-Instruct").startswith("None of the 0 gates")


def test_numbers_stay_with_their_per_cent_sign_but_for_what_is_verbatim():
    assert page.unbroken("<p>9 %</p><pre>9 %</pre>1 %") == "<p>9\u00a0%</p><pre>9 %</pre>1\u00a0%"


def test_what_has_no_price_or_unlike_items_says_so():
    costs = {"00_a": fake_costs(3600.0, 0.0, 0.5)}
    [_, (_, sentence), (_, _, [(_, columns, rows)])] = summary.cost(costs)
    assert "no price for the machine" in sentence and "0.50 USD for endpoints" in sentence
    assert rows[0][columns.index("machine, USD")] == "not priced"
    table = {"base": {"quality": ESTIMATE}, "tuned": {"quality": ESTIMATE | {"n": 20}}}
    blocks = summary.systems({"12_a": {"systems": table}})
    assert "compare only equal n" in blocks[2][1] and " of 12 " not in blocks[2][1]
    blocks = summary.systems(
        {
            "22_gguf": {"systems": {"compressed": {"speed": {"value": 9.0, "unit": "tokens/s"}}}},
            "24_recover": {"systems": {"compressed": {"quality": ESTIMATE}}},
        }
    )
    assert "Compressed: quality of 24 Recover, speed of 22 GGUF." in blocks[2][1]


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
    now = freshness.parts("01_first", VALUES, [], first.out, first.root)
    state.mark(first.out, "01_first", "done", parts=now, metrics="0" * 64, seconds=1)
    assert path.exists() and "edited" in state.stale(first.out, "01_first", now)


def test_a_notebook_keeps_what_it_folds_and_links_its_transcripts(project):
    import nbformat

    v4 = nbformat.v4
    text = folded("2 parameters", "| parameter |\n| --- |\n| `k` |")
    output = v4.new_output("display_data", data={"text/markdown": text})
    cells = [v4.new_code_cell("k = 1", outputs=[output])]
    project.out.mkdir(parents=True)
    nbformat.write(v4.new_notebook(cells=cells), project.out / "01_first.ipynb")
    html = publish.notebook_html(project.out, "01_first").read_text()
    assert "transcripts/" not in html
    (project.out / "transcripts").mkdir()
    (project.out / "transcripts/01_first.html").touch()
    html = publish.notebook_html(project.out, "01_first").read_text()
    assert 'href="../transcripts/01_first.html"' in html
    inside = html.partition("<summary>2 parameters</summary>")[2].partition("</details>")[0]
    assert "<table" in inside and "<code>k</code>" in inside


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
    html = publish.notebook_html(project.out, "01_first").read_text()
    assert "printed &lt;b&gt;" in html and "secret" not in html and "SomeWarning" not in html
    assert "<script" not in html and external(html) == []
    assert html.count('<div class="out"><table') == html.count("<table") == 2


def test_overlaps_find_a_shared_content_whatever_its_case_and_spacing(tmp_path):
    rows = [{"instruction": "Add 2  and 3"}, {"instruction": "other"}]
    write_jsonl(tmp_path / "00_curate/train.jsonl", rows)
    write_jsonl(tmp_path / "12_benchmark/items.jsonl", [{"prompt": "add 2 and 3"}, {"prompt": "n"}])
    assert [pair["shared"] for pair in leakage.pairs(tmp_path)] == [1]


def test_examples_are_compared_with_tests_and_not_with_the_split_they_come_from(tmp_path):
    for file in ("00_curate/train", "00_curate/threshold", "14_self_distill/examples"):
        write_jsonl(tmp_path / f"{file}.jsonl", [{"instruction": file}])
    write_jsonl(tmp_path / "13_consistency/items.jsonl", [{"prompt": "14_self_distill/examples"}])
    pairs = {(pair["one"], pair["other"]): pair["shared"] for pair in leakage.pairs(tmp_path)}
    assert pairs == {
        ("00 train", "00 threshold"): 0,
        ("00 train", "13 items"): 0,
        ("00 threshold", "13 items"): 0,
        ("14 examples", "13 items"): 1,
    }


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

    assert gate_figure.distances(gate(">=", 1, 2, 3, 4)) == (1, 2, 3)
    assert gate_figure.distances(gate("<=", 1, 2, 3, 4)) == (-3, -2, -1)
    worst, middle, best = gate_figure.distances(gate("about", 10, 7, 11, 12, tolerance=2))
    assert (worst, middle, best) == (-1, 1, 2)


def test_a_page_of_every_kind_of_cell(tmp_path):
    cells = [page.Link("a", "html/a.html"), page.Badge("FAIL", "FAIL", "n 5"), "x < 5 %"]
    cells += [[page.Strong("Why?"), "because", page.Badge("2 pass", "pass", href="#gates")]]
    blocks = [("h2", "T"), ("table", ["l", "b", "t [n]", "q"], [cells])]
    html = page.html("t", blocks, tmp_path)
    assert '<a href="html/a.html">a</a>' in html and 'class="badge FAIL"' in html
    assert "x &lt; 5\u00a0%" in html and 'data-column="t"' in html
    assert '<b>Why?</b> because <a class="badge pass" href="#gates">2 pass</a>' in html
    text = page.markdown("t", blocks)
    assert "| [a](html/a.html) | **FAIL** (n 5) | x &lt; 5 % |" in text
    assert "| **Why?**<br>because **2 pass** |" in text


def test_what_is_folded_is_folded_in_both_and_figures_share_a_row(tmp_path):
    (tmp_path / "a.png").write_bytes(b"png")
    figures = [("figure", "a.png", "<one>"), ("figure", "a.png", "two")]
    blocks = [*figures, ("details", "open me", [("note", "folded text"), ("anchor", "here")])]
    html, text = page.html("t", blocks, tmp_path), page.markdown("t", blocks)
    assert html.count('<div class="figures">') == 1 and html.count("<figure>") == 2
    assert "<one>" not in html + text
    for written in (html, text):
        assert "<details><summary>open me</summary>" in written
        assert (
            written.index("<summary>") < written.index("folded text") < written.index("</details>")
        )
    assert '<a id="here"></a>' in html


@pytest.mark.parametrize(
    ("step", "phase", "shown"),
    [
        ("00_curate", "Data", "00 Curate"),
        ("12_benchmark", "Base model", "12 Benchmark"),
        ("13_consistency", "Consistency", "13 Consistency"),
        ("18_distill", "Distillation", "18 Distill"),
        ("19_plan_bytes", "Compression", "19 Plan bytes"),
        ("22_gguf", "Compression", "22 GGUF"),
        ("25_calibrate", "Compression", "25 Calibrate"),
        ("30_modifier.code", "Modifiers", "30 Modifier, code"),
        ("50_validate", "Verdict", "50 Validate"),
    ],
)
def test_a_step_belongs_to_a_phase_by_its_number(step, phase, shown):
    assert summary.phase_of(step)[2] == phase and summary.title(step) == shown


def test_every_phase_that_has_steps_is_decided_by_one_of_them():
    from lib.workbook.steps import STEPS

    for phase in summary.PHASES:
        steps = [step.name for step in STEPS if summary.phase_of(step.name) == phase]
        assert not steps or phase[4] in {step.partition(".")[0] for step in steps}


def test_a_phase_shows_its_answer_its_verdicts_and_where_to_look(first):
    step = "00_curate"
    entry = record.load(first.out, ["01_first"])["01_first"] | {"headline": "**Few**"}
    judged = [{"step": step, "verdict": verdict} for verdict in ("pass", "FAIL", "pass")]
    blocks = summary.phases(first.out, {step: "done"}, {step: entry}, judged)
    [_, (_, _, rows)] = blocks
    assert rows[0][1][1] == "Few"
    assert [(badge.text, badge.href) for badge in rows[0][2]] == [
        ("2 pass", "#gates-data"),
        ("1 FAIL", "#gates-data"),
    ]
    assert rows[1][1][1].text == "not run" and rows[1][2] == "no gates yet"


def test_parameters_that_steps_do_not_share_are_named_with_their_steps():
    def entry(**values):
        return {"provenance": {"params": values}}

    records = {"00_a": entry(seed=1, model="m"), "10_b": entry(seed=2), "11_c": entry(seed=1)}
    assert summary.unlike_parameters(records) == [
        {"parameter": "seed", "value": "1", "steps": "00, 11"},
        {"parameter": "seed", "value": "2", "steps": "10"},
    ]


def test_open_gates_say_what_would_decide_them():
    measured = Estimate(ESTIMATE)
    gate = {"verdict": "inconclusive", "statement": "s", "unit": "share", "measured": measured}
    gate |= {"op": ">=", "threshold": 0.45}
    judged = [gate | {"n_to_decide": None}, gate | {"n_to_decide": 40}, gate | {"verdict": "pass"}]
    rows = summary.open_gates(judged)
    assert [row["n that would decide"] for row in rows] == ["40", "no n"]
    assert rows[0]["threshold"] == ">= 45.0 %"


def test_an_end_that_only_rounding_puts_on_the_threshold_is_written_out():
    gate = {"id": "x", "step": "11_x", "verdict": "inconclusive", "statement": "s", "unit": "share"}
    gate |= {"op": ">=", "threshold": 0.99, "n_to_decide": 381}
    gate |= {"measured": Estimate({"value": 1.0, "low": 0.9898, "high": 1.0, "n": 373})}
    [*_, (_, _, [(_, _), (_, _, [row])]), _] = summary.gate_tables([gate], {})
    assert row[3] == "100.0 % [99.0 %, 100.0 %], n 373; low end 98.98 %"


def test_a_system_that_is_only_handed_over_has_no_row(first):
    path = {"systems": {"awq": {"path": "artifacts/x"}, "base": {"speed": {"value": 3.0}}}}
    blocks = summary.systems({"12_benchmark": path})
    assert [row[0].text for row in blocks[1][2]] == ["base"]
    assert "quality of any system" in blocks[2][1]


def test_transcripts_are_linked_where_they_are(first):
    assert "transcripts" not in words(first)[1].partition("<body>")[2]
    for name in ("01_first", "02_second"):  # 02 has not run: an old page of it is not offered
        (first.out / "transcripts").mkdir(exist_ok=True)
        (first.out / "transcripts" / f"{name}.html").touch()
    text, html = words(first)
    assert 'href="transcripts/01_first.html"' in html and "(transcripts/01_first.html)" in text
    assert "02_second.html" not in html


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "usage"),
        (["outputs/none"], "no record of a run"),
        (["damaged"], "12_x.json is damaged"),
    ],
)
def test_wrong_input_is_one_sentence(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "damaged/metrics").mkdir(parents=True)
    (tmp_path / "damaged/metrics/12_x.json").write_text("{")
    monkeypatch.setattr("sys.argv", ["report", *arguments])
    assert report.main() == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.mark.parametrize("text", ["", "[]", "null", "5", "{}", '{"metrics": {}}'])
def test_a_metrics_file_that_is_no_record_is_one_sentence(first, capsys, text):
    (first.out / "metrics/12_x.json").write_text(text)
    assert report.main([str(first.out)]) == 2
    error = capsys.readouterr().err
    assert "12_x.json is damaged" in error and error.count("\n") == 1


@pytest.mark.parametrize("text", ["{", "[]", '{"nbformat": 4}'])
def test_an_executed_notebook_that_is_damaged_is_one_sentence(first, text):
    (first.out / "01_first.ipynb").write_text(text)
    with pytest.raises(ParameterError, match="01_first.ipynb is damaged; run 01_first again"):
        publish.notebook_html(first.out, "01_first")


@pytest.mark.parametrize("folder", ["/", "x" * 300, ""])
def test_a_folder_of_no_run_is_one_sentence(capsys, folder):
    assert report.main([folder]) == 2
    error = capsys.readouterr().err
    assert "no record of a run" in error and error.count("\n") == 1


def test_state_says_stale_when_an_upstream_ran_again(first):
    for name, upstream in (("01_first", []), ("02_second", ["01_first"])):
        atomic_write_json(first.out / "metrics" / f"{name}.json", {"metrics": {}})
        parts = freshness.parts(name, VALUES, upstream, first.out, first.root)
        state.mark(first.out, name, "done", parts=parts, metrics="", seconds=1)
    assert state.statuses(first.out, NAMES)["02_second"] == "done"
    atomic_write_json(first.out / "metrics" / "01_first.json", {"metrics": {"new": 1}})
    assert state.statuses(first.out, NAMES)["02_second"] == "stale"


def test_a_notebook_without_code_shows_what_was_said_and_no_bare_repr(tmp_path):
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook, new_output

    said = new_output("display_data", {"text/markdown": "It is 9 %."})
    frame = new_output("execute_result", {"text/html": "<b>framed</b>", "text/plain": "x"})
    bare = new_output("execute_result", {"text/plain": "55"})
    warned = new_output("stream", name="stderr", text="a library warns")
    cells = [new_code_cell("x", outputs=[said, frame, bare, warned])]
    nbformat.write(new_notebook(cells=cells), tmp_path / "01_first.ipynb")
    text = publish.notebook_html(tmp_path, "01_first").read_text()
    assert "It is 9\u00a0%." in text and "framed" in text
    assert ">55" not in text and "\n55" not in text and "a library warns" not in text
