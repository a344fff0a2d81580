"""Notebooks as committed: skeleton, sizes, parameters, profiles; and a smoke run of them all."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

from lib import params
from lib.files import ROOT
from lib.workbook import gates, publish, steps, summary
from tests.openai_server import Server

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in PATHS]
STEPS = [step.name for step in steps.STEPS]
COMMON = ["out", "model", "model_revision", "data", "seed", "dtype", "hourly_rate"]
each = pytest.mark.parametrize("path", PATHS, ids=NAMES)


@cache
def cells(path: Path) -> list[dict]:
    made = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell | {"text": "".join(cell["source"])} for cell in made]


def is_parameters(cell: dict) -> bool:
    return cell["metadata"].get("tags") == ["parameters"]


@cache
def code(path: Path) -> list[str]:
    """The code cells but the parameters."""
    codes = [cell for cell in cells(path) if cell["cell_type"] == "code"]
    return [cell["text"] for cell in codes if not is_parameters(cell)]


def nodes(path: Path, kind: type) -> list:
    """All syntax nodes of a kind in the code cells but the parameters."""
    return [
        node for text in code(path) for node in ast.walk(ast.parse(text)) if isinstance(node, kind)
    ]


@each
def test_committed_without_outputs_and_with_stable_ids(path):
    for number, cell in enumerate(cells(path)):
        assert not cell.get("outputs") and cell.get("execution_count") is None, (
            f"cell {number} has outputs"
        )
        assert cell["id"] == f"c{number:02d}"
    assert set(json.loads(path.read_text())["metadata"]) <= {"kernelspec", "language_info"}


@each
def test_skeleton(path):
    made = cells(path)
    heading = f"# {summary.title(path.stem)}"
    assert made[0]["cell_type"] == "markdown" and made[0]["text"].splitlines()[0] == heading
    assert re.search(r"^> .*\?", made[0]["text"], re.M), "the question stands in a blockquote"
    for word in ("Reads", "Writes", "Costs"):
        assert re.search(rf"^\*\*{word}\*\* \S", made[0]["text"], re.M), word
    assert (
        made[1]["cell_type"] == "code" and made[1]["text"] == "from lib import run\n\nrun.answer()"
    )
    assert is_parameters(made[2])
    varied = {step.notebook: f", variant={step.parameter}" for step in steps.STEPS if step.variant}
    start = f'job = run.start("{path.stem}", globals(){varied.get(path.stem, "")})'
    assert start in made[3]["text"]
    last = "## What this does not show"
    assert made[-2]["cell_type"] == "markdown" and made[-2]["text"].startswith(last)
    assert re.search(r"run\.finish\(\s*job", made[-1]["text"])


@each
def test_size(path):
    for text in code(path):
        assert len(text.splitlines()) <= 25 and len(text) <= 900, text
    assert sum(len(text.splitlines()) for text in code(path)) <= 180
    markdown = sum(cell["cell_type"] == "markdown" for cell in cells(path))
    assert 2 * markdown >= len(code(path)), "a markdown cell for every two code cells"
    assert len(nodes(path, ast.FunctionDef)) <= 1


@each
def test_estimates_print_themselves(path):
    assert not re.search(r"\bwords\(", "\n".join(code(path)))


@each
def test_parameters_are_commented_on_their_line_and_the_common_ones_come_first(path):
    declared = params.declared(path)
    common = [name for name in COMMON if name in declared]
    assert list(declared)[: len(common)] == common and {"out", "hourly_rate"} <= set(common)
    assert all(parameter.comment for parameter in declared.values())
    [cell] = filter(is_parameters, cells(path))
    for line in cell["text"].splitlines():
        assert len(line) <= 100 or line.endswith("# fmt: skip"), line


@each
def test_every_declared_parameter_is_used(path):
    """`out` and `hourly_rate` are used by run.start; SETTINGS of a module names what it takes."""
    used = {"out", "hourly_rate"} | {node.id for node in nodes(path, ast.Name)}
    used |= set(re.findall(r"job\.params\[[\"'](\w+)", "\n".join(code(path))))
    modules = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in nodes(path, ast.ImportFrom)
        for alias in node.names
    }
    for node in nodes(path, ast.Attribute):
        if node.attr == "SETTINGS" and isinstance(node.value, ast.Name):
            used |= set(importlib.import_module(modules[node.value.id]).SETTINGS)
    assert params.declared(path).keys() <= used


@each
def test_at_least_one_figure_and_one_table_and_both_are_read_aloud(path):
    text = "\n".join(code(path))
    assert "run.show(" in text and "run.say(f" in text.replace("\n", "").replace(" ", "")


@each
def test_reads_only_what_its_upstream_writes(path):
    calls = r"job\.(?:read|metrics|settings)\(\s*[\"']([\w.]+)"
    named = set(re.findall(calls, "\n".join(code(path))))
    for step in steps.STEPS:
        if step.notebook == path.stem:
            assert named <= set(steps.reads(step.name))


MAKERS = {
    "10_train_base": ["tuned-adapter"],
    "11_merge": ["tuned"],
    "15_train_consistent": ["consistent", "unfiltered"],
    "18_distill": ["distilled"],
    "20_prune": ["pruned"],
    "21_quantize": ["awq", "awq-source"],
    "22_gguf": ["f16", "compressed"],
    "24_recover": ["recovered"],
}


@each
def test_a_model_is_taken_from_a_step_that_is_read(path):
    """Otherwise a model made anew would leave its readers fresh."""
    calls = [
        n for n in nodes(path, ast.Call) if ast.unparse(n.func) in ("job.model", "job.has_model")
    ]
    parts = [part for call in calls for part in ast.walk(call.args[0])]
    names = {part.value for part in parts if isinstance(part, ast.Constant)}
    names |= {
        params.declared(path)["source"].default for p in parts if getattr(p, "id", "") == "source"
    }
    made = {name for step in steps.reads(path.stem) for name in MAKERS.get(step, [])}
    assert {name for name in names if any(name in models for models in MAKERS.values())} <= made


@each
def test_imports_no_inside_of_a_room(path):
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    contracts = settings["importlinter"]["contracts"]
    insides = {name for rule in contracts for name in rule.get("protected_modules", [])}
    nodes = [node for text in code(path) for node in ast.walk(ast.parse(text))]
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    names = {f"{node.module}.{alias.name}" for node in imports for alias in node.names}
    assert len(insides) > 20 and not insides & (names | {node.module for node in imports})


def test_the_pipeline_knows_every_notebook_and_no_other():
    assert list(dict.fromkeys(step.notebook for step in steps.STEPS)) == NAMES
    before: set[str] = set()
    for step in steps.STEPS:
        assert step.reads == steps.EVERYTHING or set(step.reads) <= before, step.name
        assert bool(step.variant) == bool(step.parameter), step.name
        before |= {step.name, step.notebook}
    assert {gate["step"] for gate in gates.load()} <= {step.name for step in steps.STEPS}


@pytest.mark.parametrize("profile", params.profiles())
def test_every_profile_is_complete_and_valid(profile):
    values = params.effective(profile, STEPS)
    assert {own["out"] for own in values.values()} == {f"outputs/{profile}-local"}
    for key in COMMON:
        same = {own[key] for own in values.values() if key in own}
        assert len(same) == 1, f"{key} differs between notebooks"


def test_the_defaults_of_the_notebooks_are_the_embedded_profile():
    for name, own in params.effective("smollm2", STEPS).items():
        defaults = {
            key: p.default
            for key, p in params.declared(ROOT / "notebooks" / f"{name}.ipynb").items()
        }
        assert own == defaults


def test_the_plan_s_settings_are_in_llama8b():
    train = params.effective("llama8b", STEPS)["10_train_base"]
    plan = {
        "epochs": 3,
        "lora_r": 64,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "learning_rate": 5e-6,
        "effective_batch": 64,
        "max_length": 2048,
        "model": "meta-llama/Meta-Llama-3.1-8B-Instruct",
    }
    assert plan.items() <= train.items()
    values = params.effective("llama8b", STEPS)
    distil, consistent = values["14_self_distill"], values["15_train_consistent"]
    assert dict(zip(distil["categories"], distil["examples"], strict=True)) == {
        "math": 500,
        "code": 164,
        "reasoning": 0,
        "knowledge": 0,
        "instruction": 0,
        "creativity": 0,
    }
    assert distil["temperatures"] == [0.0, 0.0, 0.1, 0.0, 0.2, 0.7] and distil["targets"][-1] == 0.3
    assert (consistent["epochs"], consistent["learning_rate"], consistent["mix_share"]) == (
        2,
        5e-6,
        0.1,
    )


def test_the_parameters_of_a_profile_work_with_plain_papermill(tmp_path):
    """papermill takes each profile's two files as the README says; it stops before the kernel."""
    for profile in params.profiles():
        for path in PATHS:
            files = [ROOT / "params" / profile / f"{stem}.yaml" for stem in ("common", path.stem)]
            import papermill
            from papermill.iorw import read_yaml_file

            values = {
                key: value
                for file in files
                for key, value in (read_yaml_file(str(file)) or {}).items()
            }
            notebook = papermill.execute_notebook(
                str(path), str(tmp_path / "x.ipynb"), values, prepare_only=True
            )
            assert not values or notebook.cells[3].source.startswith("# Parameters\n")


@pytest.mark.notebook
@pytest.mark.timeout(3000)
def test_the_smoke_profile_runs_end_to_end_and_is_fresh_afterwards():
    """The whole workbook with tiny limits, as a user calls it, twice; then judged twice."""
    run = f"smoke-test-{os.getpid()}"
    command = [sys.executable, "-m", "lib.run", "smoke", "--run", run]
    out = ROOT / "outputs" / run
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        for name in STEPS:
            record = json.loads((out / "metrics" / f"{name}.json").read_text())
            assert record["provenance"]["params"]["out"] == f"outputs/{run}"
            headline = record["headline"]
            assert headline and headline.count("[") <= 1, (
                f"{name}: more than one interval: {headline}"
            )
            assert headline in answer(out / f"{name}.ipynb"), name
            assert str(ROOT) not in (out / f"{name}.ipynb").read_text()
            html = (out / "html" / f"{name}.html").read_text()
            assert "<script" not in html and not re.search(
                r"""(?:src|<link[^>]*href)=["']https?:""", html
            )
        page = (out / "index.html").read_text()
        assert (
            "did not finish" not in page
            and "under way" not in page
            and page.count("data:image/png") == len(publish.FIGURES)
        )
        unmeasured = {
            g["id"] for g in publish.collect(out, ROOT, STEPS)[2] if g["measured"] is None
        }
        allowed = {
            "train-cost",
            "distill-spend",
            "distill-reference",
        }  # no rate, no paid teacher, no right reference
        assert {name for name in unmeasured if not name.startswith("final-")} <= allowed
        judged = json.loads((out / "metrics/50_validate.json").read_text())["metrics"]
        assert judged["shared_contents"]["value"] == 0
        again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert again.returncode == 0 and again.stdout.count("fresh, skipped") == len(STEPS)
        judged_twice(command, out)
    finally:
        import shutil

        shutil.rmtree(out, ignore_errors=True)


def answer(path: Path) -> str:
    """What stands below the title of an executed notebook."""
    [cell] = [
        c for c in json.loads(path.read_text())["cells"] if "run.answer()" in "".join(c["source"])
    ]
    return "".join(text for output in cell["outputs"] for text in output["data"]["text/markdown"])


def judged_twice(command, out):
    """12 and 16 again; the judge likes what is shown first: all pairs flip, and are paid once."""
    with Server(lambda body: json.dumps({"reason": "it stands first", "verdict": "A"})) as server:
        judge = [f"judge_base_url={server.url}", "judge_model=judge", "judge_prices=[1.0, 2.0]"]
        more = ["--only", "12", "--only", "16", *(part for pair in judge for part in ("-p", pair))]
        asked = []
        for _ in range(2):
            environment = os.environ | {"JUDGE_API_KEY": "sk-only-in-the-environment"}
            done = subprocess.run(
                command + more, cwd=ROOT, capture_output=True, text=True, env=environment
            )
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
            asked.append(len(server.requests))
            more = [*more, "--again"]
    for name in ("12_benchmark", "16_rebenchmark"):
        files = list((out / "artifacts" / name).glob("verdicts*.jsonl"))
        rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        assert rows and all(row["tie_kind"] == "flip" for row in rows), (name, files)
        record = json.loads((out / "metrics" / f"{name}.json").read_text())
        assert record["provenance"]["api_spend"] > 0
        assert "sk-only" not in (out / f"{name}.ipynb").read_text()
    assert asked[0] == asked[1] > 0
