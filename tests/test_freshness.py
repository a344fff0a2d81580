"""Freshness: what is meant and used counts, and nothing else."""

from __future__ import annotations

import shutil
import time
from types import MappingProxyType

import nbformat
import pytest

from lib.files import ROOT
from lib.workbook import definitions, freshness, state, steps

MODULE = '''"""About."""
import os
from lib import tools
from lib.tools import half

LIMIT = 3  # rows
SPARE = 4


def top(rows):
    """Rows, counted."""
    return middle(rows) + os.getpid() * 0


def middle(rows, most=LIMIT):
    return [deep(row) for row in rows][:most]


def deep(row):
    # why
    return half(row) * 2


def unused(row):
    return row + SPARE
'''
TOOLS = "def half(x):\n    return x / 2\n\n\ndef other(x):\n    return x\n"


@pytest.fixture
def written(project):
    """The toy project with a library; its first notebook uses lib.counts.top."""
    project.write("lib/__init__.py", '"""All."""\n')
    project.write("lib/counts.py", MODULE)
    project.write("lib/tools.py", TOOLS)
    project.notebook("01_first", "from lib import counts\n\ncounts.top([1])")
    return project


def parts(project, step="01_first", **values):
    values = {"k": 1, "out": "a", **values}
    return freshness.parts(step, values, [], project.out, project.root)


def library(project, code, files=MappingProxyType({})):
    for name, text in files.items():
        project.write(f"lib/{name}.py", text)
    return set(freshness.library([code], project.root))


def reason(project, before, **values):
    """Why the first step would run, had it been done with `before`."""
    path = project.write("outputs/tiny-local/metrics/01_first.json", "{}")
    project.write("outputs/tiny-local/01_first.ipynb", "")
    (project.out / "artifacts" / "01_first").mkdir(parents=True, exist_ok=True)
    digest = freshness.sha256_file(path)
    state.mark(project.out, "01_first", "done", parts=before, metrics=digest, seconds=1)
    return state.stale(project.out, "01_first", parts(project, **values))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# why", "# because"),
        ("# rows", "# items, at most"),
        ('"""Rows, counted."""', '"""Rows,\n\n    counted with care."""'),
        ('"""About."""', '"""Of counts."""'),
        ("return row + SPARE", "return row - SPARE"),
        ("SPARE = 4", "SPARE = 5"),
        ("def unused", "def never"),
        (
            "[deep(row) for row in rows][:most]",
            "[\n        deep(row) for row in rows\n    ][:most]",
        ),
        ("import os\n", "import os\nimport sys\n"),
    ],
)
def test_what_is_not_meant_or_not_used_makes_nothing_stale(written, old, new):
    before = parts(written)
    assert MODULE.count(old) == 1
    written.write("lib/counts.py", MODULE.replace(old, new))
    assert parts(written) == before and reason(written, before) == ""


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("half(row) * 2", "half(row) * 3", "counts.deep"),
        ("LIMIT = 3", "LIMIT = 4", "counts.LIMIT"),
        ("most=LIMIT", "most=2", "counts.LIMIT, counts.middle"),
        ("def top(rows)", "@tools.other\ndef top(rows)", "counts.top, tools.other"),
        ("SPARE = 4", "SPARE = 4\nprint(1)", "counts.top level"),
    ],
)
def test_what_is_used_makes_it_stale_and_is_named(written, old, new, name):
    before = parts(written)
    written.write("lib/counts.py", MODULE.replace(old, new))
    assert reason(written, before) == f"lib: {name} changed"


def test_a_number_three_calls_deep_in_another_module_is_seen(written):
    before = parts(written)
    written.write("lib/tools.py", TOOLS.replace("x / 2", "x / 3"))
    assert reason(written, before) == "lib: tools.half changed"
    written.write("lib/tools.py", TOOLS.replace("return x\n", "return -x\n"))
    assert reason(written, before) == ""


@pytest.mark.parametrize(
    ("code", "used"),
    [
        ("from lib import m", set()),
        ("from lib import m\nm.f()", {"m.f"}),
        ("from lib.m import f\nf()", {"m.f"}),
        ("import lib.m\nlib.m.f()", {"m.f"}),
        ("import lib.m as n\nn.f()", {"m.f"}),
        ("def g():\n    from lib.m import f as h\n    return h", {"m.f"}),
        ("def g():\n    from lib import m\n    return lambda: m.f(1)", {"m.f"}),
        ("from lib import m\n\ndef g(m):\n    return m.f", set()),
        ("from lib import m\n\ndef g():\n    m = 1\n    return m", set()),
        ("from lib import m\n\ndef g(x: m.f):\n    return x", set()),
        ("from lib import m\n[m.f for m in 'ab']", set()),
        ("from lib import m\n\ndef g():\n    return [m for m in 'ab'], m.f", {"m.f"}),
        ("from lib import m\n\ndef g():\n    class A:\n        m = 1\n    return m.f", {"m.f"}),
        ("from lib import m\n\n@m.f\ndef g():\n    pass", {"m.f"}),
        ("class A:\n    from lib import m\n    x = m.f", {"m.f"}),
        ("from lib import m\n\ndef g(x=m.C):\n    pass", {"m.C", "m.N"}),
        ("from lib import m\nm.C.method", {"m.C", "m.N"}),
        ("from lib import m\nm.again()", {"m.f"}),
        ("from lib import m\nprint(m)", {"m.f", "m.C", "m.N", "m.run by name"}),
        ("from lib import m\nm.unknown", {"m.f", "m.C", "m.N", "m.run by name"}),
        ("from lib.m import *", {"m.f", "m.C", "m.N", "m.run by name"}),
        ('run(["python", "-m", "lib.m"])', {"m.f", "m.C", "m.N", "m.run by name"}),
        ("%time import lib.m", {"m.f", "m.C", "m.N", "m.run by name"}),
        ("%load_ext x\nfrom lib import m\nm.f()", {"m.f"}),
        ("%%time\nfrom lib import m\nm.f()", {"m.f"}),
        ("from lib import m\n%time m.f()", {"m.f"}),
        ("from lib import m\nx = %time m.f()", {"m.f"}),
        ("from lib import m\nif m.N:\n    !echo {m.f()}", {"m.N", "m.f"}),
        ("from lib import m\n?m.f", {"m.f"}),
        ("from lib import m\nm.f?", {"m.f"}),
        ("%time from lib.m import f\nf()", {"m.f", "m.C", "m.N", "m.run by name"}),
        ("%%sh\necho it is\nfrom lib import m\necho m.f", {"m.f", "m.C", "m.N", "m.run by name"}),
        ("import lib\nlib.m.N", {"m.N"}),
        ("print('nothing of lib')\nimport os\nos.path.join('m.py')", set()),
    ],
)
def test_names_are_followed_to_the_definitions_that_they_mean(project, code, used):
    module = (
        "from lib.m import f as again\n\nN = 1\n\n\ndef f():\n    return 1\n\n\n"
        "class C:\n    def method(self):\n        return N\n\n\n"
        'if __name__ == "__main__":\n    f()\n'
    )
    assert library(project, code, {"__init__": "", "m": module}) == used


def test_relative_imports_packages_and_files_beside_the_module(project):
    files = {
        "__init__": "",
        "used": "def f():\n    from lib.deep import g\n    return g\n",
        "deep": "from . import deeper\nfrom .inner.leaf import y\n\n\n"
        "def g():\n    return deeper.x, y\n",
        "deeper": "x = 1",
        "inner/__init__": "",
        "inner/leaf": "from ..deeper import x as z\n\ny = z\n",
        "inner/alone": "w = 1\n",
        "starts": 'from pathlib import Path\n\nCHILD = Path(__file__).with_name("child.py")\n'
        'STYLE = "style.css"\nRULES = ("lib/deeper.py",)\n',
        "child": "import sys\n\n\ndef run():\n    pass\n\n\nrun()\n",
    }
    project.write("lib/style.css", "a {}")
    code = "from lib import used\nused.f()"
    assert library(project, code, files) == {
        "used.f",
        "deep.g",
        "deeper.x",
        "inner.leaf.y",
    }
    assert library(project, "from lib import starts\nstarts.CHILD") == {
        "starts.CHILD",
        "child.run",
        "child.top level",
    }
    assert library(project, "from lib.starts import STYLE as s\ns") == {
        "starts.STYLE",
        "style.css",
    }
    assert library(project, "from lib.starts import RULES\nRULES") == {
        "starts.RULES",
        "deeper.x",
    }
    assert library(project, "from lib import inner\nprint(inner)") == {
        "inner.leaf.y",
        "inner.alone.w",
        "deeper.x",
    }


def test_a_module_run_by_name_as_a_subprocess_counts_whole(written):
    text = 'def start():\n    return ["python", "-m", "lib.worker"]\n'
    written.write("lib/starts.py", text)
    written.write("lib/worker.py", "def work():\n    return 1\n\n\nif True:\n    work()\n")
    written.notebook("01_first", "from lib import starts\n\nstarts.start()")
    before = parts(written)
    written.write("lib/worker.py", "def work():\n    return 2\n\n\nif True:\n    work()\n")
    assert reason(written, before) == "lib: worker.work changed"


def test_a_number_behind_a_magic_is_seen_from_another_cell(written):
    written.notebook(
        "01_first", "%load_ext autoreload\nfrom lib import counts", "x = !ls {counts.top([1])}"
    )
    before = parts(written)
    assert {"counts.top", "counts.deep", "tools.half"} <= before["lib"].keys()
    written.write("lib/tools.py", TOOLS.replace("x / 2", "x / 3"))
    assert reason(written, before) == "lib: tools.half changed"


def change(project, cell, text, kind="code"):
    path = project.root / "notebooks/01_first.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[cell].source = text
    nbformat.write(notebook, path)


def test_markdown_comments_and_outputs_of_the_notebook_do_not_count(written):
    before = parts(written)
    path = written.root / "notebooks/01_first.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source = "# Another heading"
    notebook.cells[2].source = notebook.cells[2].source.replace("# samples", "# how many")
    notebook.cells[4].source = "# counted\n" + notebook.cells[4].source
    notebook.cells[4].outputs = [nbformat.v4.new_output("stream", text="x")]
    notebook.cells[4].execution_count = 4
    notebook.cells.insert(4, nbformat.v4.new_code_cell("# nothing"))
    nbformat.write(notebook, path)
    assert parts(written) == before
    notebook.cells[5].source += "\ncounts.top([2])"
    nbformat.write(notebook, path)
    assert reason(written, before) == "notebook: 01_first changed"


def test_the_value_of_a_parameter_counts_and_the_folder_of_the_run_does_not(written):
    before = parts(written)
    assert parts(written, out="b") == before
    assert reason(written, before, k=2) == "parameter: k changed"


def test_data_that_a_parameter_names_counts_by_size_and_time(written, monkeypatch):
    written.write("mine/rows.jsonl", "{}")
    monkeypatch.setenv("HOME", str(written.root))
    for name in ("mine", "~/mine", str(written.root / "mine")):
        written.write("mine/rows.jsonl", "{}")
        before = parts(written, data=name)
        written.write("mine/rows.jsonl", "{}\n{}")
        assert parts(written, data=name)["file"] != before["file"], name


@pytest.mark.parametrize("text", ["a" * 300, "~ or so", "b\0c", ["a" * 300], {"a": "b"}, [["a"]]])
def test_a_parameter_that_can_be_no_path_is_no_fault(written, text):
    assert parts(written, text=text)["file"] == {}


@pytest.fixture
def copied(tmp_path):
    """notebooks/, params/ and lib/ of this repository, to be changed by a test."""
    for folder in ("notebooks", "params", "lib"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignore)
    return tmp_path


def all_parts(root):
    nothing = root / "outputs" / "none"
    run = steps.of_run()
    return {step.name: freshness.parts(step.name, {}, step.reads, nothing, root) for step in run}


def test_of_the_real_library_what_is_meant_counts_and_it_is_fast(copied):
    definitions.read.cache_clear()
    began = time.process_time()
    before = all_parts(copied)
    assert time.process_time() - began < 2, "seconds for the whole pipeline"
    kernel = copied / "lib" / "dedup" / "minhash.py"
    text = kernel.read_text()
    kernel.write_text(f"# a comment\n{text}\n\ndef nobody_asks():\n    return 1\n")
    assert all_parts(copied) == before
    kernel.write_text(text.replace('"""', '"""Said otherwise: ', 1))
    assert all_parts(copied) == before
    assert any(name.startswith("dedup.minhash.") for name in before["00_curate"]["lib"])
    assert not any(name.startswith("dedup.minhash.") for name in before["13_consistency"]["lib"])


def test_no_result_depends_on_what_runs_notebooks_and_draws_the_page():
    used = freshness.library(["from lib import run\nrun.start\nrun.finish\nrun.main"], ROOT)
    assert {"run.start", "run.Job", "workbook.gates.judge"} <= used.keys()
    runners = {name.removeprefix("lib.") for name in freshness.RUNNERS}
    assert not {name for name in used if name.rpartition(".")[0] in runners}
    for name in freshness.RUNNERS:
        assert (ROOT / name.replace(".", "/")).with_suffix(".py").exists(), name
