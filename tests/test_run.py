"""The frame of a notebook: what start checks, what finish writes."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

from lib import plots, run
from lib.files import atomic_write_json, from_root, read_jsonl, write_jsonl
from lib.params import ParameterError
from lib.workbook import provenance
from tests.conftest import PARAMETERS

VALUES = {"out": "outputs/tiny-local", "k": 3, "rate": 0.5, "data": "packaged", "hourly_rate": 0.0}


def start(project, **changed):
    return run.start("01_first", VALUES | changed, root=project.root)


def record(project, name="01_first"):
    return json.loads((project.out / "metrics" / f"{name}.json").read_text())


def test_start_gives_parameters_and_folders(project):
    job = start(project, k=7)
    assert job.params["k"] == 7 and job.name == "01_first"
    assert job.out == project.out and job.artifacts.is_dir()
    assert (
        job.artifacts == project.out / "artifacts" / "01_first"
        and job.figures == project.out / "figures"
    )


def test_paths_start_at_the_repository_whatever_the_working_directory(
    project, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path / "notebooks")
    job = start(project)
    assert job.path("data/x.jsonl") == project.root / "data/x.jsonl"
    assert job.path("/absolute") == job.path("/absolute").absolute()


@pytest.mark.parametrize(
    ("changed", "words"), [({"k": "3"}, "k is the text '3'"), ({"rate": math.nan}, "finite")]
)
def test_start_refuses_a_value_of_the_wrong_type(project, changed, words):
    with pytest.raises(ParameterError, match=words):
        start(project, **changed)


def test_start_refuses_what_papermill_only_warns_about(project):
    injected = "# Parameters\nk = 5\nraet = 0.1\n"
    with pytest.raises(ParameterError, match="no parameter 'raet'.*'rate'"):
        start(project, In=["", "k = 3", injected])


def test_start_before_the_parameters_cell(project):
    with pytest.raises(ParameterError, match="parameters cell first"):
        run.start("01_first", {}, root=project.root)


def test_reading_what_has_not_run_says_what_to_run(project):
    job = start(project)
    for read in (job.read, job.metrics, job.settings):
        with pytest.raises(FileNotFoundError, match="run 00_curate first"):
            read("00_curate")


def test_finish_writes_metrics_gates_and_cost(project):
    job = start(project, hourly_rate=3600.0)
    share = {"value": np.float64(0.5), "low": 0.4, "high": 0.6, "n": np.int64(20), "unit": "share"}
    run.finish(
        job,
        headline="it works",
        metrics={"kept": 2, "share": share, "absent": None},
        systems={"base": {"quality": share, "bytes": 10, "cost": None}},
        api_spend=1.5,
        tables={"small": pd.DataFrame({"a": [1, math.nan]}), "rows": [{"b": np.int64(2)}]},
        stands_in=["x"],
    )
    saved = record(project)
    assert saved["metrics"] == {"kept": {"value": 2}, "share": share}
    assert saved["systems"] == {"base": {"quality": share, "bytes": {"value": 10}}}
    assert saved["tables"] == {"small": [{"a": 1.0}, {"a": None}], "rows": [{"b": 2}]}
    assert [(gate["id"], gate["verdict"]) for gate in saved["gates"]] == [("first", "pass")]
    origin = saved["provenance"]
    assert origin["params"]["k"] == 3 and origin["commit"] == "no git" and "cpu" in origin["device"]
    assert (
        origin["cost"] == pytest.approx(origin["seconds"] + 1.5, abs=0.1)
        and origin["api_spend"] == 1.5
    )
    assert job.metrics("01_first") == saved["metrics"]
    assert (
        job.settings("01_first")
        == saved["provenance"]["params"]
        == VALUES | {"hourly_rate": 3600.0}
    )


def test_cost_includes_attempts_that_did_not_finish(project, monkeypatch):
    monkeypatch.setenv("WORKBOOK_EARLIER_SECONDS", "100")
    run.finish(start(project, hourly_rate=36.0), headline="h", metrics={})
    origin = record(project)["provenance"]
    assert origin["earlier_seconds"] == 100 and origin["machine_cost"] == pytest.approx(
        1.0, abs=0.05
    )


def test_a_failed_gate_does_not_raise_and_nan_does(project):
    run.finish(start(project), headline="h", metrics={"kept": 1})
    assert record(project)["gates"][0]["verdict"] == "FAIL"
    before = record(project)
    with pytest.raises(ValueError, match="'kept'.*not measured"):
        run.finish(start(project), headline="h", metrics={"kept": math.nan})
    with pytest.raises(ValueError, match="'byte'.*'bytes'"):
        run.finish(start(project), headline="h", metrics={}, systems={"base": {"byte": 1}})
    assert record(project) == before


def test_show_saves_the_figure_under_the_number_of_the_notebook(project):
    job = start(project)
    for caption in ("first", "second"):
        fig, axes = plots.figure()
        axes.plot([1, 2])
        run.show(job, fig, "line", caption)
    assert (job.figures / "01_line.png").read_bytes().startswith(b"\x89PNG")
    assert job.shown == [{"file": "01_line.png", "caption": "second"}]


def test_the_same_figure_has_the_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        fig = plots.intervals({"x": {"value": 1, "low": 0, "high": 2}, "y": {"value": 3}}, line=1)
        plots.save(fig, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_table_escapes_what_would_break_it():
    assert run.table([{"a": "x|y\nz", "b": 1}]) == "| a | b |\n| --- | --- |\n| x\\|y z | 1 |"
    assert run.table([]) == "*(no rows)*"


def test_commit_marks_changed_code_but_not_outputs(tmp_path):
    import subprocess

    def git(*arguments):
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)

    assert provenance.commit(tmp_path) == "no git"
    git("init")
    (tmp_path / "a").write_text("1")
    git("add", ".")
    git("commit", "-m", "x")
    clean = provenance.commit(tmp_path)
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "b").write_text("1")
    assert provenance.commit(tmp_path) == clean and len(clean) == 12
    (tmp_path / "a").write_text("2")
    assert provenance.commit(tmp_path) == f"{clean} modified"


def test_dtype_auto_becomes_what_the_device_is_fast_in_and_the_record_says_so(project, monkeypatch):
    parameters = PARAMETERS + '\ndtype = "auto"  # of matrix products'
    project.notebook("01_first", parameters=parameters)
    device = provenance.device()
    assert device["fast_dtype"] in ("bfloat16", "float32")
    for fast in ("bfloat16", "float32"):
        monkeypatch.setattr(provenance, "device", lambda fast=fast: device | {"fast_dtype": fast})
        scope = VALUES | {"dtype": "auto"}
        job = run.start("01_first", scope, root=project.root)
        assert scope["dtype"] == job.params["dtype"] == fast
    with pytest.raises(ParameterError, match="dtype is 'float16'; the nearest valid one"):
        start(project, dtype="float16")


@pytest.mark.parametrize(
    ("information", "fast"),
    [
        ("flags : fpu avx2 fma", "float32"),
        ("flags : avx512f avx512_bf16", "bfloat16"),
        ("Features : bf16", "bfloat16"),
    ],
)
def test_a_processor_without_bfloat16_products_is_told_from_its_flags(
    monkeypatch, information, fast
):
    monkeypatch.setattr(provenance.shutil, "which", lambda name: None)
    monkeypatch.setattr(provenance.Path, "read_text", lambda self: information)
    assert provenance.device()["fast_dtype"] == fast


@pytest.mark.parametrize("text", ["data", "~/x", "/absolute"])
def test_a_path_of_a_parameter_is_the_same_in_the_check_and_in_the_notebook(
    project, monkeypatch, text
):
    monkeypatch.setenv("HOME", str(project.root / "home"))
    places = {"data": project.root / "data", "~/x": project.root / "home" / "x"}
    wanted = places.get(text, project.root.__class__("/absolute"))
    job = start(project, data=text)
    assert job.path(text) == from_root(text, project.root) == wanted


def test_the_data_of_a_home_folder_passes_the_check_and_is_read(project, monkeypatch):
    from lib.evaluation import tasks_files
    from lib.params import effective

    monkeypatch.setenv("HOME", str(project.root / "home"))
    project.write("home/x/evals/gsm8k.jsonl", "")
    values = effective("tiny", ["01_first"], {"data": "~/x"}, project.root)["01_first"]
    job = start(project, data=values["data"])
    assert tasks_files.evals_folder(job.path(job.params["data"])).parent == project.root / "home/x"


def test_a_common_key_that_the_notebook_does_not_use_is_no_fault_of_plain_papermill(project):
    injected = "# Parameters\nseed = 5\nvariants = ['30_modifier.code']\nk = 3\n"
    assert start(project, In=["", injected]).params.keys() == VALUES.keys()


@pytest.mark.parametrize("key", ["path", "adapter", "tokenizer"])
def test_a_model_whose_files_are_gone_says_which_step_to_run(project, key):
    job = start(project)
    for name in ("model", "part"):
        (job.artifacts / name).mkdir()
        (job.artifacts / name / "file").write_text("x")
    system = {"path": job.artifacts / "model", key: job.artifacts / "part"}
    run.finish(job, headline="h", metrics={}, systems={"tuned": system})
    assert job.model("tuned")[key] == str(job.artifacts / "part")
    (job.artifacts / "part" / "file").unlink()
    for _ in range(2):  # first an empty folder, then none
        with pytest.raises(FileNotFoundError, match="01_first/part is missing: run 01_first again"):
            job.model("tuned")
        assert not job.has_model("tuned")
        if (job.artifacts / "part").exists():
            (job.artifacts / "part").rmdir()


def test_damaged_metrics_of_an_earlier_step_are_named(project):
    job = start(project)
    for text in ("{", "[]", "null", "{}"):
        project.write("outputs/tiny-local/metrics/00_x.json", text)
        for read in (job.metrics, job.settings):
            with pytest.raises(ParameterError, match="00_x.json is damaged .* run 00_x again"):
                read("00_x")
        with pytest.raises(ParameterError, match="00_x.json is damaged"):
            job.model("tuned")


def test_half_a_surrogate_pair_in_a_text_stops_no_step(project, capsys):
    job = start(project)
    half, joined = "a\ud83d", "\ud83d\ude00"
    table = [{"answer": half, "emoji": joined}]
    run.say(half, [{"answer": half}])
    run.finish(job, headline=half, metrics={}, tables={"t": table}, stands_in=[half])
    saved = record(project)
    assert saved["headline"] == "a\ufffd" == saved["stands_in"][0]
    assert saved["tables"]["t"] == [{"answer": "a\ufffd", "emoji": "\U0001f600"}]


def test_what_is_shown_can_be_sent_by_the_kernel(project, monkeypatch):
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda made, **_: shown.append(made.data))
    run.say(run.quote("a\ud83d"), [{"answer": "\ud83d"}])
    assert shown[0].encode() and shown[0].count("\ufffd") == 2


def test_rows_with_half_a_surrogate_pair_are_written_and_read_as_they_are(tmp_path):
    rows = [{"text": "a\ud83d é"}, {"text": "é"}]
    write_jsonl(tmp_path / "x.jsonl", rows)
    assert list(read_jsonl(tmp_path / "x.jsonl")) == rows
    assert (tmp_path / "x.jsonl").read_text(encoding="utf-8").splitlines()[1] == '{"text": "é"}'
    atomic_write_json(tmp_path / "x.json", rows)
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == rows
