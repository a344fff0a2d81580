"""Fixtures of more than one test file: small projects with notebooks of a few lines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lib.files import ROOT
from lib.workbook.steps import Step

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MPLBACKEND", "Agg")
if "PYTEST_XDIST_WORKER" in os.environ:
    # before torch starts its threads: two workers with all cores each only wait
    os.environ.setdefault("OMP_NUM_THREADS", "1")

PARAMETERS = """out = "outputs/tiny-local"  # folder of this run
k = 3  # samples
rate = 0.5  # learning rate, higher is faster
data = "packaged"  # packaged, or a folder
hourly_rate = 0.0  # USD an hour"""
ANSWER = "from lib import run\n\nrun.answer()"
START = """from pathlib import Path
from lib import plots
job = run.start("{name}", globals(), {variant}root=Path("{root}"))"""
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
    """notebooks/, params/, outputs/ in a folder of their own; the second step reads the first."""

    page = (Step("01_first"), Step("02_second", reads=["01_first"]))
    gates = GATES

    def __init__(self, root: Path):
        self.root = root
        self.out = root / "outputs" / "tiny-local"
        self.write("params/gates.yaml", self.gates)
        for step in self.page:
            for file in ("common", step.notebook, step.name):
                self.write(f"params/tiny/{file}.yaml", "{}\n")
        self.notebook("01_first")
        self.notebook("02_second", 'before = job.metrics("01_first")["kept"]["value"]')

    def write(self, path: str, text: str) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return file

    def notebook(
        self,
        name: str,
        *cells: str,
        parameters: str = PARAMETERS,
        finish: str = FINISH,
        variant: str = "",
    ) -> Path:
        """Write a notebook: heading, answer, parameters, run.start, the cells, run.finish.

        variant: the parameter that names the variant, for a notebook that has some.
        """
        import nbformat

        v4 = nbformat.v4
        made = [v4.new_markdown_cell(f"# {name}")]
        made += [v4.new_code_cell(ANSWER)]
        made += [v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
        passed = f"variant={variant}, " if variant else ""
        start = START.format(name=name, root=self.root, variant=passed)
        made += [v4.new_code_cell(text) for text in (start, *cells, finish.format(name=name))]
        for number, cell in enumerate(made):
            cell["id"] = f"c{number:02d}"
        kernel = {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}
        }
        path = self.root / "notebooks" / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(v4.new_notebook(cells=made, metadata=kernel), path)
        return path


class VariedProject(Project):
    """One notebook that runs as two steps, between one that they read and one that reads both."""

    page = (
        Step("01_first"),
        Step("02_varied.code", reads=["01_first"], parameter="domain"),
        Step("02_varied.reasoning", reads=["01_first"], parameter="domain"),
        Step("03_last", reads=["02_varied"]),
    )
    gates = GATES.replace("02_second", "02_varied.code")
    parameters = PARAMETERS + '\ndomain = "code"  # which variant'
    figure = """fig, axes = plots.figure()
axes.plot([1, k])
run.show(job, fig, "line", f"{domain} rises to {k}")"""
    both = """names = ["02_varied.code", "02_varied.reasoning"]
k = sum(job.metrics(name)["kept"]["value"] for name in names)"""

    def __init__(self, root: Path):
        super().__init__(root)
        (root / "notebooks" / "02_second.ipynb").unlink()
        self.varied()
        self.notebook("03_last", self.both)

    def varied(self, *cells: str) -> None:
        """Write the notebook with the variants; the cells come before its figure."""
        cells = (*cells, self.figure)
        self.notebook("02_varied", *cells, parameters=self.parameters, variant="domain")


@pytest.fixture
def project(tmp_path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def varied(tmp_path) -> VariedProject:
    return VariedProject(tmp_path)


@pytest.fixture
def shared_data() -> Path:
    """Real public data beside the repository; the test is skipped where there is none."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no shared data beside the repository")
    return folder
