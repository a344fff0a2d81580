"""Win, tie and loss from checkers and a judge; answers graded from files; notebook 12 whole."""

from __future__ import annotations

import json
import re

import pytest

from lib.endpoints.client import Client
from lib.estimates import NOT_MEASURED
from lib.evaluation import answers, benchmark, grade, judge
from lib.files import ROOT, read_jsonl, write_jsonl
from lib.prompts import item as make_item
from tests import tiny
from tests.openai_server import Server


def item(question, category="math", checker="math", gold="7"):
    return make_item("t", category, question, gold, checker, licence="none")


def open_item(number):
    return item(f"write {number}", "creativity", "open", None)


def rows_of(texts, items):
    return {
        i["id"]: {
            "id": i["id"],
            "sample": 0,
            "text": text,
            "tokens": len(text.split()),
            "finish": "stop",
        }
        for i, text in zip(items, texts, strict=True)
        if text is not None
    }


def right(*flags, items):
    return {
        i["id"]: {"correct": flag} for i, flag in zip(items, flags, strict=True) if flag is not None
    }


@pytest.mark.parametrize(
    "correct, reference, expected",
    [
        (True, False, ("win", None)),
        (False, True, ("loss", None)),
        (True, True, ("tie", "both_right")),
        (False, False, ("tie", "both_wrong")),
    ],
)
def test_a_checker_decides(correct, reference, expected):
    assert benchmark.decide(correct, reference) == expected


def test_outcomes_hold_what_was_decided_and_nothing_else():
    items = [item(f"{k}?") for k in range(5)] + [open_item(k) for k in range(4)]
    mine, theirs = rows_of(["a b"] * 9, items), rows_of(["c"] * 9, items)
    verdicts = {
        items[5]["id"]: {"first": "A", "second": "B", "outcome": "win", "tie_kind": None},
        items[6]["id"]: {"first": "A", "second": "A", "outcome": "tie", "tie_kind": "flip"},
        items[7]["id"]: {"error": "the judge was silent"},
    }
    rows = benchmark.outcomes(
        items,
        mine,
        theirs,
        right(1, 0, 1, 0, None, items=items[:5]),
        right(0, 1, 1, 0, 1, items=items[:5]),
        verdicts,
    )
    found = [(row["outcome"], row["tie_kind"]) for row in rows]
    assert found == [
        ("win", None),
        ("loss", None),
        ("tie", "both_right"),
        ("tie", "both_wrong"),
        ("win", None),
        ("tie", "flip"),
    ]
    assert [row["id"] for row in rows] == [items[k]["id"] for k in (0, 1, 2, 3, 5, 6)]
    assert rows[0]["tokens"] == 2 and rows[0]["tokens_reference"] == 1
    assert rows[4]["correct"] is rows[4]["correct_reference"] is None


def test_summary_and_metrics_leave_out_what_was_not_measured():
    items = [item(f"{k}?") for k in range(4)] + [item("write", "creativity", "open", None)]
    mine = rows_of(["x"] * 5, items)
    grades = right(1, 1, 0, 0, items=items[:4]), right(0, 1, 1, 0, items=items[:4])
    rows = benchmark.outcomes(items, mine, mine, *grades)
    found = benchmark.summary(rows)
    assert list(found) == ["math"]
    math = found["math"]
    assert [math[k]["value"] for k in ("win", "tie", "loss", "score")] == [0.25, 0.5, 0.25, 0.5]
    assert math["ties"] == {"both_right": 1, "both_wrong": 1, "flip": 0, "judged_equal": 0}
    assert math["win_rate_without_ties"]["value"] == 0.5 and "flip_rate" not in math
    assert math["accuracy"]["value"] == math["accuracy_reference"]["value"] == 0.5
    metrics = benchmark.metrics(rows, [])
    names = ("win_share", "tie_share", "loss_share", "score", "accuracy", "accuracy_reference")
    assert set(metrics) == {f"math_{name}" for name in names}
    assert all("low" in metrics[name] and metrics[name]["n"] == 4 for name in metrics)
    with_control = benchmark.metrics(
        rows, benchmark.outcomes(items, mine, mine, grades[0], grades[0])
    )
    assert with_control["self_tie_share"]["value"] == 1 and with_control["self_tie_share"]["n"] == 4
    assert benchmark.metrics([], []) == {} and benchmark.table({}) == []
    assert benchmark.accuracy({}) is NOT_MEASURED and benchmark.paired({}, grades[0]) is None


def test_flip_rate_counts_judged_items_only():
    items = [item("1?"), *(open_item(k) for k in range(3))]
    mine = rows_of(["x"] * 4, items)
    verdicts = {
        i["id"]: {"outcome": "tie", "tie_kind": kind}
        for i, kind in zip(items[1:], ("flip", "judged_equal", "flip"), strict=True)
    }
    grades = right(1, items=items[:1])
    rows = benchmark.outcomes(items, mine, mine, grades, grades, verdicts)
    assert benchmark.flip_rate(rows)["value"] == pytest.approx(2 / 3)
    assert benchmark.metrics(rows, [])["flip_rate"]["n"] == 3
    assert "creativity_accuracy" not in benchmark.metrics(rows, [])


def test_paired_difference_and_mcnemar_use_the_common_items():
    items = [item(f"{k}?") for k in range(6)]
    found = benchmark.paired(
        right(1, 1, 1, 0, 0, None, items=items), right(0, 0, 1, 1, 0, 1, items=items)
    )
    assert (found["b"], found["c"], found["n"]) == (2, 1, 5)
    assert found["difference"]["value"] == pytest.approx(0.2)


def test_table_shows_a_dash_for_what_is_missing():
    items = [item("1?")]
    mine = rows_of(["x"], items)
    rows = benchmark.outcomes(items, mine, mine, right(1, items=items), right(1, items=items))
    summaries = benchmark.summary(rows)
    (row,) = benchmark.table(summaries)
    assert row["win %"] == "0" and row["tie %"] == "100"
    (ties,), (details,) = benchmark.ties_table(summaries, {}), benchmark.details_table(summaries)
    assert ties["both right"] == 1 and "self ties %" not in benchmark.ties_table(summaries)[0]
    assert details["wins without ties %"] == details["flip rate %"] == ties["self ties %"] == "-"
    assert all(len(columns) <= 6 for columns in (row, ties, details))


def test_accuracy_has_a_column_a_system_and_guessing_where_it_can_succeed():
    items = [item("1?"), item("2?"), item("c?", "knowledge", "choice", "A"), open_item(1)]
    items[2]["meta"] = {"options": ["a", "b", "c", "d"]}
    groups = {name: [i for i in items if i["category"] == name] for name in ("math", "knowledge")}
    groups["creativity"] = items[3:]
    answered = {"base": rows_of("abc", items[:3]), "tuned": rows_of("abc", items[:3])}
    answered["tuned"][items[0]["id"]]["finish"] = "length"
    grades = {"base": right(0, 0, 1, items=items[:3]), "tuned": right(1, 0, 1, items=items[:3])}
    readings = {name: {"marked": NOT_MEASURED} for name in grades}
    rows = benchmark.accuracy_table(groups, answered, grades, readings)
    table = {row[""]: row for row in rows}
    assert list(table) == ["all checked items", "math", "knowledge", "marked alone", "cut"]
    assert list(rows[0]) == ["", "guessing", "base", "tuned"]
    assert table["knowledge"]["guessing"] == "25.0 %" and table["math"]["guessing"] == "-"
    assert table["math"]["tuned"]["value"] == 0.5 and table["marked alone"]["tuned"] == "-"
    assert table["cut"]["tuned"]["value"] == pytest.approx(1 / 3)
    assert table["cut"]["base"]["value"] == 0


def test_figure_has_a_bar_a_category_that_fills_the_axis():
    items = [item(f"{k}?") for k in range(4)] + [item(f"c{k}?", "code", "code") for k in range(3)]
    mine = rows_of(["x"] * 7, items)
    rows = benchmark.outcomes(
        items,
        mine,
        mine,
        right(1, 1, 0, 0, 1, 1, 1, items=items),
        right(0, 1, 1, 0, 1, 0, 1, items=items),
    )
    axes = benchmark.figure(benchmark.summary(rows), "title").axes[0]
    ends = {}
    for patch in axes.patches:
        ends[round(patch.get_y(), 2)] = patch.get_x() + patch.get_width()
    assert list(ends.values()) == pytest.approx([1.0, 1.0])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["math (n 4)", "code (n 3)"]


def test_answers_are_graded_from_files_alone(tmp_path):
    items = [item("3 + 4?"), item("3 + 5?", gold="8"), item("write", "creativity", "open", None)]
    texts = ["The answer is 7.", "The answer is 9.", "once"]
    write_jsonl(answers.path(tmp_path, "tuned"), rows_of(texts, items).values())
    read = answers.read(tmp_path, "tuned")
    grades = answers.graded(items, read)
    assert {k: v["correct"] for k, v in grades.items()} == {
        items[0]["id"]: True,
        items[1]["id"]: False,
    }
    assert answers.graded(items[2:], read) == {} and answers.read(tmp_path, "tuned", sample=1) == {}
    with pytest.raises(FileNotFoundError, match="generations-base.jsonl is missing; run once"):
        answers.read(tmp_path, "base")


def test_two_extractors_read_the_same_files_differently(tmp_path):
    items = [item("3 + 4?")]
    read = rows_of(["It is 7"], items)
    found = {
        name: answers.graded(items, read, name)[items[0]["id"]]["correct"]
        for name in grade.EXTRACTORS
    }
    assert found == {"marked": False, "loose": True}
    coded = item("def f", checker="code")
    both = read | rows_of(["7"], [coded])
    readings = benchmark.readings([*items, coded], {"tuned": both})["tuned"]
    assert {name: (own["value"], own["n"]) for name, own in readings.items()} == {
        "marked": (0.0, 1),  # code has one reading, and is left out
        "loose": (1.0, 1),
    }


def test_transcripts_hold_every_answer_and_what_it_got():
    items = [item("3 + 4?"), item("3 + 5?", gold="8"), open_item(1)]
    answered = rows_of(["The answer is 7.", "The answer is 9.", "once"], items)
    grades = answers.graded(items, answered)
    systems = {"tuned": (answered, grades), "base": (rows_of(["7", None, None], items), {})}
    rows = answers.transcripts(items, systems)
    assert [(row["system"], row["verdict"], row["extracted"]) for row in rows] == [
        ("tuned", "right", "7"),
        ("tuned", "wrong", "9"),
        ("tuned", "no checker", None),
        ("base", "no checker", None),
    ]
    fields = {"system", "category", "task", "prompt", "gold", "text", "extracted", "verdict"}
    assert all(set(row) == fields for row in rows)
    assert rows[1]["prompt"] == items[1]["prompt"] and rows[1]["gold"] == "8"
    assert rows[2]["text"] == "once" and rows[2]["category"] == "creativity"
    code = item("def f(): ...", gold="published solution") | {"checker": "code"}
    graded = {code["id"]: {"correct": True, "answer": "5f2c", "extractor": "", "reason": ""}}
    [row] = answers.transcripts([code], {"tuned": (rows_of(["def f(): pass"], [code]), graded)})
    assert row["verdict"] == "right" and row["gold"] is row["extracted"] is None


def test_grades_of_one_sample_are_those_of_its_answers():
    items = [item("3 + 4?"), open_item(1)]
    texts = [["The answer is 9.", "The answer is 7."], ["a", "b"]]
    frame = grade.grade_all(items, texts, progress=False)
    for number, correct in ((0, False), (1, True)):
        alone = rows_of([own[number] for own in texts], items)
        assert answers.of_sample(frame, number) == answers.graded(items, alone)
        assert answers.of_sample(frame, number)[items[0]["id"]]["correct"] is correct


def test_an_endpoint_tells_no_speed():
    row = {"text": "7", "tokens": 1, "finish": "stop"}
    assert answers.speed({"x": row}) is NOT_MEASURED
    timed = {"a": row | {"seconds": 0.5}, "b": row | {"seconds": 1.5, "tokens": 3}}
    assert answers.speed(timed)["value"] == 2.0 and answers.speed(timed)["n"] == 2


def longer(body):
    shown = re.findall(
        r"<answer_[AB]>\n(.*?)\n</answer_", body["messages"][-1]["content"], re.DOTALL
    )
    a, b = map(len, shown)
    return json.dumps({"reason": "length", "verdict": "A" if a > b else "B" if b > a else "tie"})


def test_stored_verdicts_serve_without_a_judge_and_only_for_the_same_texts(tmp_path):
    items = [item("1?"), *(open_item(k) for k in range(3))]
    mine, theirs = rows_of(["long text"] * 4, items), rows_of(["x", "short", "short", None], items)
    file = tmp_path / "verdicts.jsonl"
    assert answers.verdicts(items, mine, theirs, file=file) == {}
    with Server(longer) as server:
        client = Client("judge", server.url, "m", 1.0, {"m": (1, 2)}, tmp_path / "c.sqlite")
        found = answers.verdicts(items, mine, theirs, file=file, client=client)
        assert (
            answers.verdicts(items[:1], mine, theirs, file=tmp_path / "none.jsonl", client=client)
            == {}
        )
    assert [row["outcome"] for row in found.values()] == ["win", "win"]
    assert list(found) == [items[1]["id"], items[2]["id"]] and len(list(read_jsonl(file))) == 2
    assert answers.verdicts(items, mine, theirs, file=file) == found
    changed = {**mine, items[1]["id"]: {**mine[items[1]["id"]], "text": "another text"}}
    assert list(answers.verdicts(items, changed, theirs, file=file)) == [items[2]["id"]]


def test_a_sample_is_shown_verbatim_and_cut():
    one = item("3 + 4?")
    answer = {"text": "# title\n" + "x" * 600, "tokens": 9}
    verdict = {"correct": False, "extractor": "last", "answer": "x"}
    text = answers.sample_text(one, {"tuned": (answer, verdict), "base": (answer, None)}, limit=100)
    assert all(
        part in text
        for part in (
            '<pre style="white-space: pre-wrap">\n# title',
            "more characters",
            "wrong (last: `x`)",
            "no checker",
        )
    )
    assert judge.pair_key("a", "b", "c") != judge.pair_key("a", "c", "b")


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    """A random Llama over bytes, handed over as 11 hands over `tuned`; its answers are nonsense."""
    out = tmp_path_factory.mktemp("run")
    folder = out / "artifacts" / "11_merge" / "merged"
    tiny.checkpoint(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["max_position_embeddings"] = 8192  # a prompt has as many tokens as bytes
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    handed_over = {"systems": {"tuned": {"path": "artifacts/11_merge/merged"}}}
    (out / "metrics").mkdir()
    (out / "metrics" / "11_merge.json").write_text(json.dumps(handed_over), encoding="utf-8")
    return folder


def execute(folder, merged, **parameters):
    """Run notebook 12 into the run folder that holds `merged`; returns its metrics record."""
    import papermill

    out = merged.parents[2]
    given = {
        "out": str(out),
        "model": str(merged),
        "dtype": "float32",
        "per_category": 2,
        "max_new_tokens": 8,
        "max_new_tokens_code": 8,
        "control_per_category": 1,
        **parameters,
    }
    papermill.execute_notebook(
        ROOT / "notebooks" / "12_benchmark.ipynb",
        folder / "12.ipynb",
        given,
        progress_bar=False,
        cwd=ROOT / "notebooks",
    )
    return json.loads((out / "metrics" / "12_benchmark.json").read_text(encoding="utf-8"))


@pytest.mark.notebook
def test_notebook_with_a_judge_and_a_reference_at_an_endpoint(tmp_path, tiny_model, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-only-in-the-environment")

    def reply(body):
        if "<answer_A>" in body["messages"][-1]["content"]:
            return longer(body)
        return "A long answer that says much. The answer is 7."

    with Server(reply, faults=["429", "truncated"]) as server:
        endpoints = {
            f"{role}_{name}": value
            for role in ("judge", "reference")
            for name, value in (
                ("model", f"{role}-model"),
                ("base_url", server.url),
                ("prices", [1.0, 2.0]),
            )
        }
        first = execute(tmp_path, tiny_model, **endpoints)
        asked = len(server.requests)
        again = execute(tmp_path, tiny_model, **endpoints)
        assert len(server.requests) == asked  # everything paid for was kept
    metrics = first["metrics"]
    assert (
        metrics["creativity_loss_share"]["value"] == 1
        and metrics["creativity_loss_share"]["n"] == 2
    )
    assert metrics["flip_rate"]["value"] == 0 and metrics["position_bias"]["value"] == 0.5
    assert {"self_tie_share", "overall_accuracy", "overall_accuracy_base", "accuracy_gain"} <= set(
        metrics
    )
    assert "creativity_accuracy" not in metrics and metrics["math_accuracy_reference"]["n"] == 2
    assert set(first["systems"]) == {"base", "tuned", "reference"} and not first["stands_in"]
    assert again["provenance"]["api_spend"] == first["provenance"]["api_spend"] > 0
    stored = execute(tmp_path, tiny_model, **endpoints, regrade_only=True)  # the server is gone
    assert stored["metrics"] == again["metrics"] == metrics
    text = (tmp_path / "12.ipynb").read_text(encoding="utf-8")
    assert "sk-only-in-the-environment" not in text + json.dumps(stored)


@pytest.mark.notebook
def test_notebook_without_endpoints_leaves_creativity_unmeasured(tmp_path, tiny_model):
    record = execute(tmp_path, tiny_model, categories=["math", "creativity"])
    assert not [name for name in record["metrics"] if name.startswith("creativity")]
    assert (
        "flip_rate" not in record["metrics"] and record["metrics"]["math_tie_share"]["value"] == 1
    )
    assert record["stands_in"] and record["provenance"]["api_spend"] == 0
    rows = list(read_jsonl(tiny_model.parents[1] / "12_benchmark" / "outcomes.jsonl"))
    assert {row["category"] for row in rows} == {"math"} and len(rows) == 2
