"""Fixtures of more than one test file: a small project of its own notebooks in a temporary
folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from lib.files import ROOT

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MPLBACKEND", "Agg")
if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # before torch starts its threads: two workers with all cores each only wait
    os.environ.setdefault("OMP_NUM_THREADS", "1")

PARAMETERS = """out = "outputs/tiny-local"  # folder of this run
k = 3  # samples
rate = 0.5  # learning rate, higher is faster
data = "packaged"  # packaged, or a folder
hourly_rate = 0.0  # USD an hour"""
START = """from pathlib import Path
from lib import plots, run
job = run.start("{name}", globals(), root=Path("{root}"))"""
FINISH = """run.finish(job, headline=f"{name} counts {{k}}", metrics={{"kept": k}},
           stands_in=["toys stand in"])"""
GATES = """
- {id: first, step: 01_first, metric: kept, op: ">=", threshold: 2, unit: rows, statement: "rows kept"}
- {id: last, step: 02_second, metric: kept, op: ">=", threshold: 5, unit: rows, statement: "more rows"}
- {id: absent, step: 02_second, metric: other, op: "<", threshold: 1, unit: "", statement: "others"}
"""  # noqa: E501


def pytest_collection_modifyitems(items):
    """The long runs of notebooks first, the longest in front: another worker does the many short
    tests beside them."""

    def seconds(item):
        allowed = item.get_closest_marker("timeout")
        return 0 if not item.get_closest_marker("notebook") else allowed.args[0] if allowed else 300

    items.sort(key=seconds, reverse=True)


class Project:
    """notebooks/, params/ and outputs/ in a folder of their own; the second notebook reads the
    first."""

    upstream = {"01_first": [], "02_second": ["01_first"]}

    def __init__(self, root: Path):
        self.root = root
        self.out = root / "outputs" / "tiny-local"
        self.write("params/gates.yaml", GATES)
        for file in ("common", *self.upstream):
            self.write(f"params/tiny/{file}.yaml", "{}\n")
        self.notebook("01_first")
        self.notebook("02_second", 'before = job.metrics("01_first")["kept"]["value"]')

    def write(self, path: str, text: str) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return file

    def notebook(
        self, name: str, *cells: str, parameters: str = PARAMETERS, finish: str = FINISH
    ) -> Path:
        """Write a notebook: heading, parameters, run.start, the cells, run.finish."""
        import nbformat

        v4 = nbformat.v4
        made = [v4.new_markdown_cell(f"# {name}")]
        made += [v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
        made += [v4.new_code_cell(START.format(name=name, root=self.root))]
        made += [v4.new_code_cell(cell) for cell in cells] + [
            v4.new_code_cell(finish.format(name=name))
        ]
        for number, cell in enumerate(made):
            cell["id"] = f"c{number:02d}"
        kernel = {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}
        }
        path = self.root / "notebooks" / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(v4.new_notebook(cells=made, metadata=kernel), path)
        return path


@pytest.fixture
def project(tmp_path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def shared_data() -> Path:
    """Real public data beside the repository; the test is skipped where there is none."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no shared data beside the repository")
    return folder


@pytest.fixture
def copy_of_repository(tmp_path) -> Path:
    """notebooks/ and params/ of this repository in a temporary folder, to be broken by a test."""
    for folder in ("notebooks", "params"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    return tmp_path
