"""Steps: the page of the pipeline, which variants run, and how a step is named."""

from __future__ import annotations

import pytest

from lib import params
from lib.params import ParameterError
from lib.workbook import steps
from lib.workbook.steps import EVERYTHING, Step

PAGE = (
    Step("00_a"),
    Step("30_b.code", reads=["00_a"], parameter="domain"),
    Step("30_b.reasoning", reads=["00_a"], parameter="domain"),
    Step("40_c", reads=["30_b"]),
    Step("50_d", reads=EVERYTHING, judges=True),
)
NAMES = [step.name for step in PAGE]


def test_a_step_knows_its_notebook_and_its_variant():
    assert (PAGE[1].notebook, PAGE[1].variant) == ("30_b", "code")
    assert (PAGE[0].notebook, PAGE[0].variant) == ("00_a", "")


def test_a_reader_of_a_notebook_reads_all_variants_that_run_and_the_judge_reads_all():
    both = {step.name: step for step in steps.of_run(PAGE)}
    assert both["40_c"].reads == ("30_b.code", "30_b.reasoning")
    assert both["50_d"].reads == tuple(NAMES[:-1]) and both["50_d"].judges
    one = {step.name: step for step in steps.of_run(PAGE, ["30_b.reasoning"])}
    assert list(one) == ["00_a", "30_b.reasoning", "40_c", "50_d"]
    assert one["40_c"].reads == ("30_b.reasoning",)
    assert one["50_d"].reads == ("00_a", "30_b.reasoning", "40_c")
    assert [step.name for step in steps.of_run(PAGE, [])] == ["00_a", "40_c", "50_d"]
    assert steps.reads("40_c", PAGE) == ["30_b.code", "30_b.reasoning"]


@pytest.mark.parametrize("name", ["30_b.cod", "00_a", "30_b"])
def test_a_variant_that_is_not_on_the_page_is_refused_with_the_nearest(name):
    with pytest.raises(ParameterError, match=f"no step '{name}'.*30_b.code"):
        steps.of_run(PAGE, [name])


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("00", ["00_a"]),
        ("00_a", ["00_a"]),
        ("notebooks/40_c.ipynb", ["40_c"]),
        ("30", ["30_b.code", "30_b.reasoning"]),
        ("30_b", ["30_b.code", "30_b.reasoning"]),
        ("30_b.code", ["30_b.code"]),
        ("30_b.r", ["30_b.reasoning"]),
    ],
)
def test_a_step_is_named_by_its_beginning_and_a_notebook_means_all_its_variants(text, names):
    assert steps.steps_named(text, NAMES) == names


@pytest.mark.parametrize("text", ["", "x", "30_b.x", "30_b."])
def test_a_name_that_is_none_or_several_is_refused(text):
    with pytest.raises(ParameterError, match="names [05 2]+ steps"):
        steps.steps_named(text, NAMES)


def test_a_choice_keeps_the_order_of_the_page():
    assert steps.select(NAMES, None, None, ["40", "30_b.code"]) == ["30_b.code", "40_c"]
    assert steps.select(NAMES, "30", "30", None) == ["30_b.code", "30_b.reasoning"]
    assert steps.select(NAMES, "30_b.reasoning", None, None) == NAMES[2:]
    with pytest.raises(ParameterError, match="comes after"):
        steps.select(NAMES, "30_b.reasoning", "30_b.code", None)


VARIED = ["01_first", "02_varied.code", "02_varied.reasoning", "03_last"]


def effective(project, overrides=None, names=VARIED):
    pinned = {name: {"domain": name.partition(".")[2]} for name in names if "." in name}
    return params.effective("tiny", names, overrides, project.root, None, pinned)


def test_a_variant_has_the_values_of_its_notebook_under_its_own(varied):
    varied.write("params/tiny/02_varied.yaml", "k: 5\nrate: 1\n")
    varied.write("params/tiny/02_varied.code.yaml", "k: 7\ndomain: code\n")
    values = effective(varied)
    assert [values[name]["k"] for name in VARIED] == [3, 7, 5, 3]
    assert [values[name]["rate"] for name in VARIED] == [0.5, 1.0, 1.0, 0.5]
    assert values["02_varied.reasoning"]["domain"] == "reasoning"


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("02_varied.code", "domain: reasoning", "domain of the step 02_varied.code is 'code'"),
        ("02_varied", "domain: reasoning", "domain of the step 02_varied.code is 'code'"),
        ("02_varied.cod", "{}", "belongs to no step; the nearest valid one is '02_varied.code'"),
        ("04_gone.code", "{}", "belongs to no notebook: notebooks/04_gone.ipynb is missing"),
        ("02_varied.code", "kk: 1", "02_varied.code.yaml: notebook 02_varied has no parameter"),
    ],
)
def test_a_file_that_contradicts_its_step_is_refused(varied, file, text, words):
    varied.write(f"params/tiny/{file}.yaml", text)
    with pytest.raises(ParameterError, match=words):
        effective(varied)


def test_the_variant_is_not_for_the_command_line_and_its_file_is_not_optional(varied):
    with pytest.raises(ParameterError, match="-p on the command line: domain of the step"):
        effective(varied, {"domain": "reasoning"})
    (varied.root / "params/tiny/02_varied.reasoning.yaml").unlink()
    with pytest.raises(ParameterError, match="02_varied.reasoning.yaml is missing"):
        effective(varied)


def test_one_step_alone_does_not_mind_the_files_of_variants(varied):
    assert effective(varied, names=["01_first"]).keys() == {"01_first"}


def test_variants_is_a_list_in_common_yaml(varied):
    assert params.variants("tiny", varied.root) is None
    varied.write("params/tiny/common.yaml", "variants: [02_varied.code]\n")
    assert params.variants("tiny", varied.root) == ["02_varied.code"]
    for text in ("variants: 02_varied.code", "variants:", "variants: [1]"):
        varied.write("params/tiny/common.yaml", text)
        with pytest.raises(ParameterError, match="common.yaml: variants"):
            params.variants("tiny", varied.root)
