"""Gates: the verdict comes from the interval; files with a fault are named; thresholds are the
plan's."""

from __future__ import annotations

import math
import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib import stats
from lib.estimates import number
from lib.params import ParameterError
from lib.workbook import gates

GATE = {
    "id": "g",
    "step": "12_n",
    "metric": "m",
    "op": ">=",
    "threshold": 0.5,
    "unit": "",
    "statement": "s",
}
numbers = st.floats(-10, 10, allow_nan=False)


def verdict(op, threshold, metric, **more):
    return gates.judge(GATE | {"op": op, "threshold": threshold} | more, {"m": metric})["verdict"]


@given(st.sampled_from(sorted(gates.OPERATIONS)), numbers, numbers, numbers)
def test_verdict_agrees_with_trying_the_points_of_the_interval(op, threshold, one, other):
    low, high = sorted((one, other))
    points = [low, high] + ([threshold] if op == "==" and low <= threshold <= high else [])
    satisfied = {gates.OPERATIONS[op](point, threshold) for point in points}
    expected = "inconclusive" if len(satisfied) == 2 else "pass" if True in satisfied else "FAIL"
    metric = {"value": (low + high) / 2, "low": low, "high": high, "n": 10}
    assert verdict(op, threshold, metric) == expected


@given(st.sampled_from(sorted(gates.OPERATIONS)), numbers, numbers)
def test_an_exact_value_is_decided(op, threshold, value):
    names = {
        ">=": operator.ge,
        "<=": operator.le,
        ">": operator.gt,
        "<": operator.lt,
        "==": operator.eq,
    }
    assert verdict(op, threshold, value) == ("pass" if names[op](value, threshold) else "FAIL")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.09, 0.11, "pass"),
        (0.02, 0.05, "FAIL"),
        (0.2, 0.3, "FAIL"),
        (0.07, 0.1, "inconclusive"),
        (0.0, 0.3, "inconclusive"),
        (0.1, 0.13, "inconclusive"),
    ],
)
def test_about_is_two_sided(low, high, expected):
    metric = {"value": (low + high) / 2, "low": low, "high": high, "n": 50}
    assert verdict("about", 0.10, metric, tolerance=0.02) == expected


def test_absent_and_none_are_not_measured_and_never_zero():
    assert gates.judge(GATE, {})["verdict"] == "not measured"
    assert verdict("<=", 5, None) == "not measured"
    assert verdict("<=", 5, {"value": None, "n": 0}) == "not measured"


@pytest.mark.parametrize(
    "bad",
    [
        math.nan,
        math.inf,
        {"value": math.nan},
        {"value": 1, "low": math.nan},
        "0.5",
        [1],
        {"value": 1, "low": 2, "high": 0},
    ],
)
def test_what_is_no_number_is_refused_by_name(bad):
    with pytest.raises(ValueError, match="'m'"):
        gates.estimate("m", bad)


def test_numpy_values_become_plain():
    entry = gates.estimate("m", {"value": np.float32(0.5), "n": np.int64(3), "low": None})
    assert (
        entry == {"value": 0.5, "n": 3}
        and type(entry["value"]) is float
        and type(entry["n"]) is int
    )


def test_inconclusive_says_which_n_would_decide():
    metric = stats.proportion(55, 100)
    judged = gates.judge(GATE, {"m": metric})
    assert judged["verdict"] == "inconclusive" and judged["n_to_decide"] > 100
    share = metric["value"]
    more = stats.proportion(round(share * judged["n_to_decide"]) + 1, judged["n_to_decide"])
    assert gates.judge(GATE, {"m": more})["verdict"] == "pass"
    assert f"{judged['n_to_decide']:,}" in gates.verdict_text(judged)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("op: '=>'", ["'g'", "'=>'"]),
        ("threshold: 1e-3", ["1.0e-4"]),
        ("treshold: 1", ["'treshold'", "'threshold'"]),
        ("tolerance: 1", ["'tolerance'"]),
        ("threshold: .nan", ["threshold is no number"]),
        ("threshold: .inf", ["threshold is no number"]),
        (f"threshold: {'9' * 400}", ["threshold is no number"]),
        ("id: [a]", ["id is ['a']", "text"]),
        ("id: ''", ["id is ''", "text"]),
        ("unit:", ["unit is None", "text"]),
        ("statement:", ["statement is None", "text"]),
        ("metric: 5", ["metric is 5", "text"]),
        ("step: xx", ["step is 'xx'", "12_benchmark"]),
        ("op: about\n  tolerance: -1", ["tolerance is negative"]),
    ],
)
def test_a_gate_with_a_fault_is_named(project, change, words):
    text = "\n  ".join(
        f"{k}: '{v}'" if isinstance(v, str) else f"{k}: {v}"
        for k, v in GATE.items()
        if k != change.split(":")[0]
    )
    project.write("params/gates.yaml", f"- {change}\n  {text}\n")
    with pytest.raises(ParameterError) as caught:
        gates.load(project.root)
    assert "gates.yaml" in str(caught.value) and all(word in str(caught.value) for word in words)


def test_an_id_twice_is_refused(project):
    text = (project.root / "params/gates.yaml").read_text()
    project.write("params/gates.yaml", text + text)
    with pytest.raises(ParameterError, match="twice"):
        gates.load(project.root)


def test_the_thresholds_are_those_of_the_plan():
    """A threshold moved after a result shows as a change of this table."""
    held = {
        (g["metric"], (g["op"], g["threshold"])) for g in gates.load()
    }  # 13 and 16 judge one metric apart
    plan = {
        "kept_rows": ("about", 640637),
        "near_duplicate_share": ("about", 0.1),
        "english_share": (">=", 0.994),
        "contaminated_rows": ("==", 0),
        "orphans": ("==", 0),
        "train_hours": ("<=", 18),
        "train_cost_usd": ("<=", 46),
        "greedy_identity": (">=", 0.99),
        "mean_kl": ("<=", 1e-3),
        "gain_over_base": (">=", 0),
        "validation_loss_drop": (">", 0),
        "math_win_share": ("about", 0.06),
        "math_tie_share": ("about", 0.7),
        "code_win_share": ("about", 0.48),
        "code_tie_share": ("about", 0.2),
        "consistency": ("about", 0.1),
        "humaneval": (">", 0.72),
        "mmlu": (">", 0.7),
        "tool_use": (">", 0.75),
        "total_bytes": ("<=", 668e6),
    }
    assert set(plan.items()) <= held


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.912, "share", "91.2 %"),
        (93_100_000, "bytes", "93.1 MB"),
        (1234, "rows", "1,234 rows"),
        (1.5e-5, "", "1.5e-05"),
        (0.31, "USD", "0.31 USD"),
        (None, "share", "-"),
        (-0.02, "difference", "-0.02"),
        (12345.6, "tokens/s", "12,346 tokens/s"),
        (999.6, "", "1,000"),
        (999.4, "", "999"),
    ],
)
def test_numbers_as_a_reader_wants_them(value, unit, text):
    assert number(value, unit) == text
