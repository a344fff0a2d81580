"""Parameters: every trap of papermill and YAML ends in one sentence that names file, key and
nearest key."""

from __future__ import annotations

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lib import params
from lib.params import ParameterError

NAMES = ["01_first", "02_second"]


def refused(project, *words, profile="tiny", overrides=None):
    with pytest.raises(ParameterError) as caught:
        params.effective(profile, NAMES, overrides, project.root)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_defaults_then_common_then_notebook_then_command_line(project):
    project.write("params/tiny/common.yaml", "hourly_rate: 4\n")
    project.write("params/tiny/02_second.yaml", "k: 5\nhourly_rate: 5\n")
    (project.root / "mine").mkdir()
    values = params.effective("tiny", NAMES, {"data": "mine"}, project.root)
    assert [values[n]["k"] for n in NAMES] == [3, 5]
    rates = [values[n]["hourly_rate"] for n in NAMES]
    assert rates == [4.0, 5.0] and all(type(rate) is float for rate in rates)
    assert values["02_second"]["data"] == "mine"


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("common", "k: 4", ["common.yaml", "'k' is not common to notebooks"]),
        ("common", "sed: 4", ["common.yaml", "'sed' is not common", "'seed'"]),
        ("01_first", "kk: 4", ["01_first.yaml", "notebook 01_first", "'kk'", "'k'"]),
        ("02_second", "ratee: 4", ["02_second.yaml", "'ratee'", "'rate'"]),
        ("01_first", "k: 1.5", ["01_first.yaml", "k is the number 1.5", "integer"]),
        ("01_first", "k: true", ["k is the boolean true"]),
        ("01_first", "k:", ["k is an empty value"]),
        ("01_first", "rate: 1e-4", ["rate is the text '1e-4'", "1.0e-4"]),
        ("01_first", "rate: .nan", ["rate is nan", "finite"]),
        ("01_first", "rate: .inf", ["finite"]),
        ("common", "hourly_rate: 1e-4", ["common.yaml", "hourly_rate is the text", "1.0e-4"]),
        ("common", "data: 5", ["data is the integer 5", "quotes"]),
        ("common", "data: yes", ["data is the boolean true", "quotes"]),
        ("common", "data:\n  path: x", ["common.yaml", "data is nested", "flat"]),
        ("common", "data: [[1]]", ["data is nested"]),
        ("common", "data: [a]", ["data is the list"]),
        ("common", "k: 1\nk: 2", ["common.yaml", "'k' stands twice"]),
        ("common", "k: [1", ["common.yaml", "line", "YAML"]),
        ("common", "- k", ["common.yaml", "key: value"]),
        ("common", "just words", ["common.yaml", "key: value"]),
        ("04_fourth", "k: 1", ["04_fourth.yaml", "belongs to no notebook"]),
        ("02_second.code", "k: 1", ["02_second.code.yaml", "belongs to no step", "'02_second'"]),
        ("01_first", "k: !!int x", ["01_first.yaml", "YAML"]),
        ("01_first", "k: !!timestamp x", ["01_first.yaml", "YAML"]),
        ("01_first", f"k: {'9' * 5000}", ["01_first.yaml", "YAML"]),
        ("01_first", f"rate: {'9' * 400}", ["rate has 400 digits", "finite"]),
        ("01_first", f"k: {'[' * 3000}", ["01_first.yaml", "YAML"]),
        ("01_first", "k: 3\0", ["01_first.yaml", "YAML"]),
        ("01_first", "data: ''", ["01_first.yaml", "data is ''"]),
        ("01_first", "data: ~nobody-here/x", ["no such folder"]),
        ("01_first", f"data: {'a' * 5000}", ["no such folder"]),
    ],
)
def test_a_profile_with_a_fault_is_one_clear_sentence(project, file, text, words):
    project.write(f"params/tiny/{file}.yaml", text)
    refused(project, *words)


def test_missing_profile_file_and_notebook_name_the_nearest(project):
    refused(project, "params/tinny is no profile", "'tiny'", profile="tinny")
    (project.root / "params/tiny/02_second.yaml").unlink()
    refused(project, "params/tiny/02_second.yaml is missing")
    (project.root / "notebooks/02_second.ipynb").unlink()
    refused(project, "notebooks/02_second.ipynb is missing")


def test_a_folder_that_is_not_there_is_named_before_anything_runs(project):
    (project.root / "shared" / "data").mkdir(parents=True)
    project.write("params/tiny/common.yaml", "data: shared/date\n")
    refused(project, "common.yaml", "data is 'shared/date'", "'shared/data'")
    project.write("params/tiny/common.yaml", "data: packaged\n")
    refused(project, "-p on the command line", "data is '../nope'", overrides={"data": "../nope"})


def test_override_must_be_declared_somewhere(project):
    refused(project, "command line", "'kk'", "'k'", overrides={"kk": 1})
    refused(project, "k is the text 'x'", overrides={"k": "x"})


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("k = 3  # samples, k=3 is the default", ["'k'", "second '='"]),
        ('k = "a=b"  # text', ["'k'", "second '='"]),
        ("k = 2 + 3  # sum", ["'k'", "literal"]),
        ("k = [\n 1]  # list", ["line 1"]),
        ("k = 1\nk = 2", ["'k' is declared twice"]),
        ("import os", ["line 1"]),
        ("k = = 1", ["line 1"]),
    ],
)
def test_a_parameters_cell_that_papermill_would_misread(project, cell, words):
    path = project.notebook("01_first", parameters=cell)
    with pytest.raises(ParameterError) as caught:
        params.declared(path, project.root)
    assert all(word in str(caught.value) for word in ["notebooks/01_first.ipynb", *words])


def test_the_traps_are_real(project):
    """The oracle: papermill and YAML do what the checks above protect from."""
    import papermill

    path = project.notebook("01_first", parameters="k = 3  # samples, k=3\nrate = 0.5  # rate")
    assert list(papermill.inspect_notebook(str(path))) == ["rate"]
    assert yaml.safe_load("rate: 1e-4") == {"rate": "1e-4"}
    assert yaml.safe_load("rate: 1.0e-4") == {"rate": 1e-4}
    assert yaml.safe_load("k: 1\nk: 2") == {"k": 2}


def test_declared_agrees_with_papermill(project):
    import papermill

    path = project.notebook("01_first")
    ours, theirs = params.declared(path, project.root), papermill.inspect_notebook(str(path))
    assert list(ours) == list(theirs)
    for name, parameter in ours.items():
        assert repr(parameter.default).strip("'") == theirs[name]["default"].strip("\"'")
        assert parameter.comment == theirs[name]["help"]


def test_no_or_two_tagged_cells(project):
    import nbformat

    path = project.notebook("01_first")
    notebook = nbformat.read(path, as_version=4)
    for tags, count in (([], 0), (["parameters"], 2)):
        notebook.cells[2].metadata.tags = tags
        notebook.cells[3].metadata.tags = tags
        nbformat.write(notebook, path)
        with pytest.raises(ParameterError, match=f"found {count}"):
            params.declared(path, project.root)


@given(
    st.one_of(st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers())),
    st.sampled_from([True, 3, 0.5, "text", [1]]),
)
def test_a_value_passes_only_with_the_type_of_its_default(value, default):
    fits = type(value) is type(default) or (type(default) is float and type(value) is int)
    finite = not isinstance(value, float) or math.isfinite(value)
    if fits and finite:
        assert params.check("here", "k", value, default) == value
    else:
        with pytest.raises(ParameterError, match="here: k"):
            params.check("here", "k", value, default)


def test_list_elements_take_the_type_of_the_first_default():
    assert params.check("f", "grid", [1, 2.5], [0.5]) == [1.0, 2.5]
    with pytest.raises(ParameterError, match=r"grid\[1\] is the text 'x'"):
        params.check("f", "grid", [1, "x"], [0.5])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("k=5", 5),
        ("rate=1.0e-4", 1e-4),
        ("data=../x", "../x"),
        ("data=a=b", "a=b"),
        ("names=[a, b]", ["a", "b"]),
    ],
)
def test_override_values_are_yaml(text, value):
    assert params.parse_override(text) == (text.split("=")[0], value)


@pytest.mark.parametrize("text", ["k", "=5", "2k=5", ""])
def test_override_without_a_key(text):
    with pytest.raises(ParameterError, match="key=value"):
        params.parse_override(text)


def test_an_override_is_for_the_notebooks_that_run_alone(project):
    """A name that another notebook uses for another type is no fault while that notebook does not
    run."""
    project.notebook(
        "02_second",
        parameters="k = [1]  # samples\nout = 'outputs/tiny-local'  # folder of this run",
    )
    values = params.effective("tiny", NAMES, {"k": [4, 5]}, project.root, ["02_second"])
    assert values["02_second"]["k"] == [4, 5] and values["01_first"]["k"] == 3
    with pytest.raises(ParameterError, match="k is the list"):
        params.effective("tiny", NAMES, {"k": [4, 5]}, project.root)
    with pytest.raises(ParameterError, match="'rate'"):
        params.effective("tiny", NAMES, {"rate": 1.0}, project.root, ["02_second"])


def test_a_file_that_nothing_would_read_is_named(project):
    for name in ("01_first.yml", "01_first.YAML"):
        file = project.write(f"params/tiny/{name}", "k: 9")
        refused(project, f"{name} is read by nothing; it must end in .yaml")
        file.unlink()


def test_a_profile_file_that_is_a_folder_is_a_sentence(project):
    file = project.root / "params/tiny/01_first.yaml"
    file.unlink()
    file.mkdir()
    refused(project, "params/tiny/01_first.yaml cannot be read")


@pytest.mark.parametrize("name", ["", ".", "..", "tiny/", "../params/tiny", "x" * 300])
def test_a_profile_is_the_name_of_a_folder_of_params(project, name):
    refused(
        project,
        f"params/{name} is no profile",
        "tiny",
        profile=name,
    )


@pytest.mark.parametrize("text", ["[]", '{"cells": 5}', '{"cells": ["a"]}', "{}"])
def test_a_file_that_is_no_notebook_is_a_sentence(project, text):
    path = project.write("notebooks/01_first.ipynb", text)
    with pytest.raises(ParameterError, match="not a notebook"):
        params.declared(path, project.root)


def test_an_override_that_stands_twice_is_refused():
    assert params.parse_overrides(["k=1", "rate=2"]) == {"k": 1, "rate": 2}
    with pytest.raises(ParameterError, match="-p k: the key stands twice"):
        params.parse_overrides(["k=1", "rate=2", "k=3"])
    with pytest.raises(ParameterError, match="-p k={a: 1, a: 2}: the key 'a' stands twice"):
        params.parse_overrides(["k={a: 1, a: 2}"])
