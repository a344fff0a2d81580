"""Taking a finished run over into the folder of a committed record: whole or not at all."""

from __future__ import annotations

import pytest

from lib import report, run
from lib.params import ParameterError
from lib.workbook import publish, state
from tests.test_run import VALUES

NAMES = ["01_first", "02_second"]


@pytest.fixture
def finished(project):
    """A run of which the first step is done, and a record made by an earlier run."""
    for number, name in enumerate(NAMES):
        job = run.start(name, VALUES, root=project.root)
        run.finish(job, headline=f"headline {number}", metrics={"kept": 3})
        notebook = (project.root / "notebooks" / f"{name}.ipynb").read_text()
        project.write(f"outputs/tiny-local/{name}.ipynb", notebook)
    project.write("outputs/tiny-local/02_second.partial.log", "")
    project.write("outputs/tiny-local/artifacts/01_first/rows.jsonl", "new")
    project.write("outputs/kept/metrics/01_first.json", "old")
    project.write("outputs/kept/artifacts/01_first/rows.jsonl", "old")
    project.write("outputs/kept/html/gone.html", "old")
    return project


def keep(project, name="kept"):
    report.keep(project.out, project.root / "outputs" / name, root=project.root, names=NAMES)


def test_what_is_committed_is_copied_and_artifacts_are_left_alone(finished):
    keep(finished)
    kept = finished.root / "outputs" / "kept"
    assert (kept / "metrics/01_first.json").read_text() == (
        finished.out / "metrics/01_first.json"
    ).read_text()
    assert (kept / "artifacts/01_first/rows.jsonl").read_text() == "old"
    assert {path.name for path in kept.iterdir()} == {
        *("01_first.ipynb", "02_second.ipynb", "README.md", "index.html"),
        *("html", "figures", "metrics", "artifacts"),
    }
    assert sorted(path.name for path in (kept / "html").iterdir()) == [f"{n}.html" for n in NAMES]
    assert "Run kept" in (kept / "README.md").read_text()
    assert "Run kept" in (kept / "html/01_first.html").read_text()
    outputs = {path.name for path in (finished.root / "outputs").iterdir()}
    assert outputs == {"kept", "tiny-local"}
    assert (finished.out / "artifacts/01_first/rows.jsonl").read_text() == "new"
    keep(finished, "another")
    assert not (finished.root / "outputs/another/artifacts").exists()


@pytest.mark.parametrize("status", ["failed", "running", "interrupted"])
def test_an_unfinished_run_is_refused_and_the_record_untouched(finished, status):
    state.mark(finished.out, "02_second", status, parts={"upstream": {}})
    with pytest.raises(ParameterError, match="tiny-local is not finished .02_second"):
        keep(finished)
    assert (finished.root / "outputs/kept/metrics/01_first.json").read_text() == "old"


def test_a_run_without_a_step_of_the_record_is_refused(finished):
    (finished.out / "metrics/01_first.json").unlink()
    with pytest.raises(ParameterError, match="not finished .01_first: not run"):
        keep(finished)


def test_a_run_that_is_under_way_is_refused(finished):
    with state.lock(finished.out), pytest.raises(state.Busy):
        keep(finished)


def test_a_failure_while_the_page_is_drawn_changes_nothing(finished, monkeypatch):
    monkeypatch.setattr(publish, "write", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        keep(finished)
    assert (finished.root / "outputs/kept/metrics/01_first.json").read_text() == "old"
    assert (finished.root / "outputs/kept/artifacts/01_first/rows.jsonl").read_text() == "old"


@pytest.mark.parametrize("moment", ["before the new one", "before its artifacts"])
def test_a_swap_that_was_killed_is_ended_by_the_next(finished, moment):
    kept = finished.root / "outputs/kept"
    kept.rename(kept.with_name(".kept.before"))
    if moment == "before its artifacts":
        kept.mkdir()
    finished.write("outputs/.keep-kept-abc/kept/index.html", "half of it")
    keep(finished)
    assert not (finished.root / "outputs/.keep-kept-abc").exists()
    assert (kept / "artifacts/01_first/rows.jsonl").read_text() == "old"
    assert not kept.with_name(".kept.before").exists()
    assert (kept / "metrics/02_second.json").exists()


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (".", "not a folder beside"),  # the whole repository
        ("outputs", "not a folder beside"),
        ("outputs/tiny-local", "not a folder beside"),
        ("outputs/tiny-local/kept", "not a folder beside"),
        ("params/gates.yaml", "is no folder"),
        ("params", "holds gates.yaml, which is of no record"),
        ("notebooks", "is no record"),
        ("mine", "holds thesis.tex, which is of no record"),
    ],
)
def test_what_is_no_record_is_never_replaced(finished, place, said):
    finished.write("mine/thesis.tex", "precious")
    before = {path for path in finished.root.rglob("*") if path.name != ".lock"}
    with pytest.raises(ParameterError, match=said):
        report.keep(finished.out, finished.root / place, root=finished.root, names=NAMES)
    assert {path for path in finished.root.rglob("*") if path.name != ".lock"} == before


def test_a_file_of_ones_own_in_the_record_is_named_and_stays(finished):
    finished.write("outputs/kept/notes.txt", "precious")
    with pytest.raises(ParameterError, match="holds notes.txt, which is of no record"):
        keep(finished)
    assert (finished.root / "outputs/kept/metrics/01_first.json").read_text() == "old"


def test_a_record_that_is_itself_being_run_is_refused(finished):
    with state.lock(finished.root / "outputs/kept"), pytest.raises(state.Busy):
        keep(finished)


def test_artifacts_on_both_sides_of_a_killed_swap_are_both_kept(finished):
    finished.write("outputs/.kept.before/artifacts/x", "older")
    with pytest.raises(ParameterError, match="both .* hold artifacts"):
        keep(finished)
    assert (finished.root / "outputs/.kept.before/artifacts/x").read_text() == "older"
    assert (finished.root / "outputs/kept/artifacts/01_first/rows.jsonl").read_text() == "old"


def test_renewing_a_page_ends_a_killed_swap_too(finished, capsys):
    kept = finished.root / "outputs/kept"
    (kept / "metrics/01_first.json").unlink()
    kept.rename(kept.with_name(".kept.before"))
    assert report.main([str(kept)]) == 0
    assert (kept / "artifacts/01_first/rows.jsonl").read_text() == "old"


def test_a_disk_that_is_full_is_a_sentence_and_changes_nothing(finished, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "_copy_record", full)
    arguments = ["--keep", str(finished.out), str(finished.root / "outputs/kept")]
    monkeypatch.setattr(report, "_refuse_unfinished", lambda *a: None)
    assert report.main(arguments) == 1
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device\n"
    assert (finished.root / "outputs/kept/metrics/01_first.json").read_text() == "old"
    outputs = {path.name for path in (finished.root / "outputs").iterdir()}
    assert outputs == {"kept", "tiny-local"}
