"""Faults around a run: damaged files, a full disk, a clock that is set back, nobody who watches."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

from lib import run as frame
from lib.params import ParameterError, notebook_path
from lib.workbook import notebook, pipeline, state
from tests.test_pipeline import NAMES, git, ran, refused, run

STATE = "outputs/tiny-local/artifacts/.state/01_first.json"


@pytest.fixture(autouse=True)
def in_process(monkeypatch):
    """A step runs without a kernel: its notebook is copied, its metrics are finished."""

    def papermill(execution):
        copy = nbformat.read(notebook_path(execution.name, execution.root), as_version=4)
        nbformat.write(copy, execution.partial)
        job = frame.start(execution.name, execution.values, root=execution.root)
        frame.finish(job, headline=execution.name, metrics={"kept": 3})
        return ""

    monkeypatch.setattr(notebook.Execution, "_papermill", papermill)


def page(project) -> str:
    return (project.out / "README.md").read_text()


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "null", "5", "{}", "\udcff", '{"status": "done", "parts": []}']
    + [f'{{"status": {status}}}' for status in ('"done"', '"odd"', '["done"]')]
    + [f'{{"status": "running", "pid": {pid}}}' for pid in (1, '"x"', -1, 0, 10**14)]
    + ['{"status": "failed"}', '{"status": "interrupted", "parts": {"upstream": []}}'],
)
def test_a_state_that_is_damaged_means_that_the_step_runs(project, text):
    assert run(project)[0] == 0
    (project.root / STATE).write_text(text, errors="surrogateescape")
    assert state.statuses(project.out, NAMES)["02_second"] == "done"
    code, text = run(project)
    assert code == 0 and "01_first" in ran(text) and page(project).count("**done**") == 2


def test_a_damaged_state_is_not_done_on_the_page(project):
    run(project)
    (project.root / STATE).write_text("{")
    assert state.statuses(project.out, NAMES)["01_first"] == "interrupted"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}"])
def test_damaged_metrics_of_a_step_that_does_not_run_are_a_sentence(project, text):
    run(project)
    for name in NAMES:
        project.write(f"outputs/tiny-local/metrics/{name}.json", text)
    with pytest.raises(ParameterError, match="01_first.json is damaged .* run 01_first again"):
        run(project, "only", ["02"])
    code, told = run(project, "only", ["01"])
    assert code == 1 and ran(told) == ["01_first"] and "02_second.json is damaged" in told
    assert run(project)[0] == 0


@pytest.mark.parametrize("status", ["running", "done"])
def test_a_full_disk_is_said_and_the_run_goes_on_from_there(project, monkeypatch, status):
    mark = state.mark

    def full(out, name, word, **entries):
        if name == "02_second" and word == status:
            raise OSError(errno.ENOSPC, "No space left on device")
        mark(out, name, word, **entries)

    monkeypatch.setattr(state, "mark", full)
    code, text = run(project)
    assert code == 1 and "02_second  BROKE OFF: [Errno 28] No space left" in text
    assert "the same command goes on" in text and ran(text) == ["01_first"]
    assert page(project).count("**done**") == 1
    monkeypatch.undo()
    assert state.statuses(project.out, NAMES)["02_second"] != "done"


def test_a_notebook_that_is_damaged_while_a_run_is_under_way_breaks_it_off(project, monkeypatch):
    execute = notebook.Execution.execute

    def damaging(execution):
        project.write("notebooks/02_second.ipynb", "{")
        return execute(execution)

    monkeypatch.setattr(notebook.Execution, "execute", damaging)
    code, text = run(project)
    assert code == 1 and "02_second  BROKE OFF" in text and ran(text) == ["01_first"]
    assert "under way" not in page(project)


def test_a_clock_that_is_set_back_gives_no_time_away(project, monkeypatch):
    readings = iter(range(10**6, 0, -1000))
    clock = SimpleNamespace(time=lambda: next(readings), monotonic=time.monotonic)
    monkeypatch.setattr(notebook, "time", clock)
    monkeypatch.setattr(notebook.Execution, "_papermill", lambda execution: "it broke")
    assert run(project)[0] == 1
    first = state.read(project.out, "01_first")["seconds"]
    assert 0 <= first < 60
    state.mark(project.out, "01_first", "running", began=2e6, earlier=7.0, parts={"upstream": {}})
    assert run(project)[0] == 1
    assert state.read(project.out, "01_first")["earlier"] == 7.0


class Closed(io.StringIO):
    """The end of `| head`, or a terminal that is gone."""

    def write(self, text):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_a_run_that_nobody_watches_any_more_goes_on(project):
    code = pipeline.execute("tiny", root=project.root, page=project.page, stream=Closed())
    assert code == 0 and set(state.statuses(project.out, NAMES).values()) == {"done"}


@pytest.mark.parametrize("place", ["outputs", "outputs/tiny-local", "outputs/tiny-local/artifacts"])
def test_a_folder_that_cannot_be_written_is_a_sentence(project, place, capsys):
    project.write(place, "a file")
    with pytest.raises(ParameterError, match="outputs/tiny-local cannot be written: "):
        run(project)


def test_a_record_is_left_alone_behind_a_link_and_where_git_will_not_tell(project):
    metrics = {"metrics": {}}
    project.write("outputs/kept/metrics/01_first.json", json.dumps(metrics))
    (project.root / ".git").mkdir()  # no repository that git would open
    with pytest.raises(ParameterError, match="outputs/kept is a committed record"):
        run(project, "run", "kept")
    os.rmdir(project.root / ".git")
    git(project.root, "init")
    git(project.root, "add", "outputs/kept")
    (project.root / "outputs/alias").symlink_to("kept")
    refused(project, "outputs/kept is a committed record", run="alias")


@pytest.mark.parametrize("moment", [1, 6, 12, 19, 25, 31, 38, 44])
def test_a_kill_beside_any_change_of_a_file_is_never_done_too_early(project, moment):
    """The driver dies right before or after its n-th rename or deletion, and runs again."""
    child = os.fork()
    if child == 0:
        _die_at(moment)
        run(project)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    before = state.statuses(project.out, NAMES)
    done = [name for name in NAMES if before[name] == "done"]
    for name in done:
        assert (project.out / "metrics" / f"{name}.json").exists()
        assert (project.out / f"{name}.ipynb").exists()
    if (project.out / "README.md").exists():
        assert page(project).count("**done**") <= len(done)
    code, text = run(project)
    assert code == 0 and ran(text) == [name for name in NAMES if name not in done]
    assert page(project).count("**done**") == 2 and "under way" not in page(project)


def _die_at(moment: int) -> None:
    """Have this process killed at its n-th look before or after os.replace and Path.unlink."""
    left = iter(range(moment - 1, -1, -1))

    def watched(change):
        def changed(*arguments, **options):
            for after in (False, True):
                if next(left) == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                if not after:
                    change(*arguments, **options)

        return changed

    os.replace, Path.unlink = watched(os.replace), watched(Path.unlink)
