"""Runs: order, failure, kill, interrupt, lock, variants; real kernels on tiny notebooks."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest

from lib.files import ROOT
from lib.params import ParameterError
from lib.workbook import pipeline, state
from lib.workbook.progress import Progress, clock

NAMES = ["01_first", "02_second"]
SLEEP = "import time\ntime.sleep(60)"


def run(project, *arguments) -> tuple[int, str]:
    stream = io.StringIO()
    keywords = dict(zip(arguments[::2], arguments[1::2], strict=True))
    code = pipeline.execute("tiny", root=project.root, page=project.page, stream=stream, **keywords)
    return code, stream.getvalue()


def ran(text: str) -> list[str]:
    return [name for name in NAMES if f"{name}  done" in text]


def spawn(project, *arguments) -> subprocess.Popen:
    code = f"""import signal, sys
from pathlib import Path
from lib.workbook import pipeline
from lib.workbook.steps import Step
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
root = Path({str(project.root)!r})
sys.exit(pipeline.command(sys.argv[1:], root=root, page={project.page}))"""
    command = [sys.executable, "-c", code, "tiny", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def metrics(project, name):
    return json.loads((project.out / "metrics" / f"{name}.json").read_text())


@pytest.mark.slow
def test_a_run_is_in_order_then_fresh_then_renewed_only_where_needed(project):
    code, text = run(project)
    assert code == 0 and ran(text) == NAMES and "01_first counts 3" in text
    for path in (
        "index.html",
        "README.md",
        "01_first.ipynb",
        "html/02_second.html",
        "metrics/02_second.json",
    ):
        assert (project.out / path).exists(), path
    record = (project.out / "01_first.ipynb").read_text()
    assert str(project.root) not in record.replace(f'root=Path(\\"{project.root}\\")', "")
    assert not list(project.out.glob("*.partial.ipynb"))

    code, text = run(project)
    assert code == 0 and ran(text) == [] and text.count("fresh, skipped") == 2
    page = (project.out / "README.md").read_text()
    assert page.count("**done**") == 2 and "under way" not in page

    project.write("params/tiny/02_second.yaml", "k: 6\n")
    code, text = run(project)
    assert ran(text) == ["02_second"] and "parameter: k changed" in text
    assert metrics(project, "02_second")["metrics"]["kept"]["value"] == 6
    assert metrics(project, "02_second")["gates"][0]["verdict"] == "pass"

    code, text = run(project, "only", ["01"], "again", True)
    assert ran(text) == ["01_first"]
    code, text = run(project)
    assert ran(text) == ["02_second"] and "upstream: 01_first changed" in text


@pytest.mark.slow
def test_a_failed_notebook_is_readable_stops_the_run_and_is_resumed(project):
    project.notebook("01_first", "print('before')\n1/0")
    code, text = run(project)
    assert (
        code == 1
        and "ZeroDivisionError: division by zero" in text
        and "02_second  runs" not in text
    )
    failed = nbformat.read(project.out / "01_first.ipynb", as_version=4)
    assert "Exception was encountered" in failed.cells[0].source
    assert "before" in str(failed.cells) and failed.metadata.papermill.exception is True
    assert state.statuses(project.out, NAMES) == {"01_first": "failed", "02_second": "absent"}
    page = (project.out / "index.html").read_text()
    assert (
        "01_first did not finish" in page
        and "ZeroDivisionError" in page
        and "under way" not in page
    )
    assert "Exception was encountered" in (project.out / "html/01_first.html").read_text()

    project.notebook("01_first")
    code, text = run(project)
    assert code == 0 and "it failed" in text and ran(text) == NAMES
    assert metrics(project, "01_first")["provenance"]["earlier_seconds"] > 0


@pytest.mark.slow
def test_a_kernel_that_dies_and_a_notebook_without_finish_are_failures(project):
    project.notebook("01_first", "import os\nos._exit(9)")
    code, text = run(project)
    assert code == 1 and "DeadKernelError" in text
    assert (
        "The run broke"
        in nbformat.read(project.out / "01_first.ipynb", as_version=4).cells[0].source
    )
    project.notebook("01_first", finish="pass")
    code, text = run(project)
    assert code == 1 and "without run.finish" in text


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_killed_run_never_says_done_and_goes_on(project, number):
    stop = project.root / "stop"
    stop.write_text("")
    sleeper = (
        f"import os, time\npid = os.getpid()\nopen({str(project.root / 'pid')!r},"
        " 'w').write(str(pid))\n"
    )
    cell = f"{sleeper}while os.path.exists({str(stop)!r}):\n    time.sleep(0.1)"
    project.notebook("02_second", cell)
    process = spawn(project)
    wait_for((project.root / "pid").exists)
    assert state.statuses(project.out, NAMES) == {"01_first": "done", "02_second": "running"}
    process.send_signal(number)
    text, _ = process.communicate(timeout=30)
    kernel = int((project.root / "pid").read_text())
    wait_for(lambda: not state._alive(kernel), 20)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130), text
    assert state.statuses(project.out, NAMES) == {"01_first": "done", "02_second": "interrupted"}
    assert not (project.out / "metrics" / "02_second.json").exists()
    if number != signal.SIGKILL:
        assert "02_second did not finish" in (project.out / "README.md").read_text()
        assert "the same command goes on" in text and "Traceback" not in text

    stop.unlink()
    code, text = run(project)
    assert code == 0 and ran(text) == ["02_second"] and "01_first  fresh" in text
    assert metrics(project, "02_second")["provenance"]["earlier_seconds"] > 0
    assert not list(project.out.glob("*.partial.ipynb"))


@pytest.mark.slow
def test_two_runs_of_one_folder_are_refused_and_a_dead_lock_is_taken_over(project):
    project.notebook("01_first", SLEEP)
    process = spawn(project)
    try:
        wait_for(lambda: state.read(project.out, "01_first").get("status") == "running")
        with pytest.raises(state.Busy, match=f"tiny-local is being run by process {process.pid}"):
            run(project)
        second = spawn(project)
        text, _ = second.communicate(timeout=60)
        assert (
            second.returncode == 2 and f"process {process.pid}" in text and "Traceback" not in text
        )
    finally:
        process.kill()
        process.communicate()
    with state.lock(project.out):
        pass


@pytest.mark.slow
def test_plain_papermill_from_the_root_and_what_it_only_warns_about(project):
    command = [
        sys.executable,
        "-m",
        "papermill",
        "notebooks/01_first.ipynb",
        "out.ipynb",
        "--no-progress-bar",
    ]
    files = ["-f", "params/tiny/common.yaml", "-f", "params/tiny/01_first.yaml"]
    done = subprocess.run([*command, *files], cwd=project.root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert metrics(project, "01_first")["metrics"]["kept"]["value"] == 3
    done = subprocess.run(
        [*command, *files, "-p", "raet", "1"], cwd=project.root, capture_output=True, text=True
    )
    assert (
        done.returncode != 0
        and "no parameter 'raet'; the nearest valid one is 'rate'" in done.stderr
    )


def refused(project, *words, **options):
    with pytest.raises(ParameterError) as caught:
        pipeline.execute("tiny", root=project.root, page=project.page, **options)
    assert all(word in str(caught.value) for word in words), caught.value
    assert not (project.out / "metrics").exists()


def test_wrong_choices_are_refused_before_anything_runs(project):
    refused(project, "'03'", "01_first", only=["03"])
    refused(project, "'0'", "names 2 steps", first="0")
    refused(project, "comes after", first="02", last="01")
    refused(project, "--run NAME", overrides={"out": "x"})
    for name in ("", "..", "../x", "a/b", ".x", " ", "a\nb", "a\udcff", "x" * 300):
        refused(project, "one folder name", run=name)
    refused(project, "02_second reads 01_first", "--from 01_first", only=["02"])
    refused(project, "'raet'", "'rate'", overrides={"raet": 1})
    project.write("params/gates.yaml", "- {id: x}")
    refused(project, "gates.yaml")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tinny"], "nearest valid one is 'tiny'"),
        (["tiny", "-p", "k"], "key=value"),
        (["tiny", "--only", "01", "--from", "01"], "--only cannot"),
        (["tiny", "--only", "01", "--to", ""], "--only cannot"),
        (["tiny", "--from", ""], "'' names 2 steps"),
        (["tiny", "--to", ""], "'' names 2 steps"),
        (["tiny", "-p", "k=1", "-p", "k=2"], "-p k: the key stands twice"),
        ([""], "is no profile"),
    ],
)
def test_the_command_line_answers_wrong_input_with_one_line_and_2(
    project, capsys, arguments, words
):
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert pipeline.command(arguments, root=project.root, page=project.page) == 2
    finally:
        signal.signal(signal.SIGTERM, before)
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and error.startswith("error: ")


def test_the_live_line_says_where_a_run_is(project):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    v4 = nbformat.v4
    cells = [v4.new_markdown_cell("## Judge\n\nwords"), v4.new_code_cell("x = 1")]
    cells[1].outputs = [v4.new_output("stream", text=" 10%|#\r 20%|##\r")]
    for stream, mark in ((Terminal(), "\r"), (io.StringIO(), "\n")):
        with Progress("[3/6] 12_benchmark", stream, plain_s=0.2) as progress:
            progress.enter(cells, 0)
            progress.enter(cells, 1)
            assert progress.line().startswith("[3/6] 12_benchmark  0:0")
            assert "cell 2/2  Judge | 20%|##" in progress.line()
            wait_for(lambda: "cell 2/2" in stream.getvalue(), 5)  # noqa: B023
        assert mark in stream.getvalue()


def test_clock():
    assert [clock(s) for s in (0, 59.6, 3599, 3661)] == ["0:00", "1:00", "59:59", "1:01:01"]


def test_no_kernel_setting_leaks_into_the_calling_process(project):
    before = dict(os.environ)
    project.notebook("01_first", "1/0")
    run(project, "only", ["01"])
    assert dict(os.environ) == before


@pytest.mark.parametrize(("busy", "spins"), [(3.0, True), (55.0, False)])
def test_threads_spin_only_where_nobody_else_wants_the_cores(monkeypatch, busy, spins):
    from lib.workbook import notebook

    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setattr(notebook.psutil, "cpu_percent", lambda interval: busy)
    found = notebook.environment()
    assert found["OMP_WAIT_POLICY"] == "PASSIVE" and ("GOMP_SPINCOUNT" in found) == spins


STEPS = ["01_first", "02_varied.code", "02_varied.reasoning", "03_last"]


def done(text: str) -> list[str]:
    return [name for name in STEPS if f"{name}  done" in text]


@pytest.mark.slow
def test_variants_are_steps_and_a_killed_one_goes_on(varied):
    """Two variants of one notebook: killed in the second, resumed, each with what is its own."""
    stop = varied.root / "stop"
    stop.write_text("")
    wait = f"""import os, time
while domain == "reasoning" and os.path.exists({str(stop)!r}):
    open({str(varied.root / "waits")!r}, "w").close()
    time.sleep(0.1)"""
    varied.varied(wait)
    varied.write("params/tiny/common.yaml", "variants: [02_varied.code, 02_varied.reasoning]\n")
    varied.write("params/tiny/02_varied.yaml", "k: 5\n")
    varied.write("params/tiny/02_varied.code.yaml", "k: 7\n")
    process = spawn(varied)
    wait_for((varied.root / "waits").exists)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    states = [state.statuses(varied.out, STEPS)[name] for name in STEPS]
    assert states == ["done", "done", "interrupted", "absent"]
    stop.unlink()

    code, text = run(varied)
    assert code == 0 and done(text) == STEPS[2:], text
    assert "02_varied.code  fresh" in text and "02_varied.reasoning  runs: it was killed" in text
    assert [metrics(varied, name)["metrics"]["kept"]["value"] for name in STEPS] == [3, 7, 5, 12]
    for name, domain in ((STEPS[1], "code"), (STEPS[2], "reasoning")):
        record = metrics(varied, name)
        assert record["step"] == name and record["provenance"]["params"]["domain"] == domain
        assert record["figures"][0]["file"] == f"02_{domain}_line.png"
        assert (varied.out / "figures" / f"02_{domain}_line.png").exists()
        assert (varied.out / f"{name}.ipynb").exists() and (
            varied.out / f"html/{name}.html"
        ).exists()
    assert [gate["id"] for gate in metrics(varied, STEPS[1])["gates"]] == ["last", "absent"]
    assert metrics(varied, STEPS[2])["gates"] == []
    page = (varied.out / "README.md").read_text()
    assert page.count("**done**") == 4 and "html/02_varied.reasoning.html" in page
    code, text = run(varied)
    assert code == 0 and text.count("fresh, skipped") == 4

    varied.write("params/tiny/02_varied.code.yaml", "k: 8\n")
    code, text = run(varied)
    assert done(text) == ["02_varied.code", "03_last"]
    assert "02_varied.code  runs: parameter: k changed" in text
    varied.write("params/tiny/common.yaml", "variants: [02_varied.reasoning]\n")
    varied.notebook("03_last", "k = job.metrics('02_varied.reasoning')['kept']['value']")
    code, text = run(varied, "only", ["03"])
    assert code == 0 and done(text) == ["03_last"] and metrics(varied, "03_last")["headline"]


@pytest.mark.slow
def test_a_variant_under_plain_papermill_is_named_by_its_parameter(varied):
    varied.write("params/tiny/common.yaml", "variants: [02_varied.reasoning]\nhourly_rate: 1.0\n")
    varied.write("params/tiny/02_varied.reasoning.yaml", "k: 9\n")
    command = [sys.executable, "-m", "papermill", "notebooks/02_varied.ipynb", "out.ipynb"]
    for file in ("common", "02_varied", "02_varied.reasoning"):
        command += ["-f", f"params/tiny/{file}.yaml"]
    command += ["--no-progress-bar", "-p", "domain", "reasoning"]
    finished = subprocess.run(command, cwd=varied.root, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    record = metrics(varied, "02_varied.reasoning")
    assert record["metrics"]["kept"]["value"] == 9
    assert record["provenance"]["params"]["hourly_rate"] == 1.0


def test_a_variant_that_does_not_exist_is_refused_before_anything_runs(varied):
    varied.write("params/tiny/common.yaml", "variants: [02_varied.cod]\n")
    refused(varied, "'02_varied.cod'", "'02_varied.code'")
    varied.write("params/tiny/common.yaml", "variants: [02_varied.code]\n")
    refused(varied, "'02_varied.reasoning'", only=["02_varied.reasoning"])
    varied.write("params/tiny/02_varied.other.yaml", "{}")
    refused(varied, "02_varied.other.yaml belongs to no step")


def answers(project, name="01_first") -> str:
    """What a reader sees below the title of an executed notebook."""
    cells = nbformat.read(project.out / f"{name}.ipynb", as_version=4).cells
    [cell] = [cell for cell in cells if cell.source.endswith("run.answer()")]
    return "\n".join(output["data"]["text/markdown"] for output in cell.outputs)


@pytest.mark.slow
def test_the_answer_stands_below_the_title_of_the_executed_notebook(project):
    waiting = "*Not answered yet: the answer appears here when the notebook has run to its end.*"
    project.notebook("01_first", "1/0")
    assert run(project)[0] == 1 and answers(project) == waiting
    project.notebook("01_first")
    code, _ = run(project)
    assert code == 0 and answers(project) == "**01_first counts 3**"
    assert answers(project, "02_second") == "**02_second counts 3**"
    assert "01_first counts 3" in (project.out / "html/01_first.html").read_text()
    project.write("params/tiny/02_second.yaml", "k: 6\n")
    run(project)
    assert answers(project, "02_second") == "**02_second counts 6**"


def git(folder, *arguments):
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def test_a_run_leaves_a_committed_record_alone(project):
    project.write("outputs/kept/metrics/01_first.json", "{}")
    git(project.root, "init")
    git(project.root, "add", "outputs/kept")
    refused(project, "outputs/kept is a committed record", "--keep outputs/NAME", run="kept")
    git(project.root, "rm", "-r", "--cached", "outputs/kept")
    refused(project, "02_second reads 01_first", run="other", only=["02"])


@pytest.mark.parametrize("profile", ["smoke", "smollm2"])
def test_git_ignores_what_a_run_writes_and_keeps_the_records(profile):
    def ignored(path):
        return subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT).returncode == 0

    assert ignored(f"outputs/{profile}-local/metrics/00_curate.json")
    for record in ("smollm2", "gsm8k_mbpp", "shared_instruct"):
        assert not ignored(f"outputs/{record}/metrics/x.json")
        assert ignored(f"outputs/{record}/artifacts/00_curate/x.jsonl")
        assert ignored(f"outputs/{record}/00_curate.partial.ipynb")
