"""Gates: thresholds written before a run, and a verdict from the interval of what was measured."""

from __future__ import annotations

import math
import operator
import re
import sys
from pathlib import Path

from lib.estimates import Estimate, number
from lib.files import ROOT, whole
from lib.params import ParameterError, nearest, read_yaml

OPERATIONS = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
}
STEP = re.compile(r"\d\d_\w+(\.\w+)?")  # 12_benchmark, 30_modifier.code
LARGEST = sys.float_info.max
KEYS = {"id", "step", "metric", "op", "threshold", "unit", "statement"}


def load(root: Path = ROOT) -> list[dict]:
    """The gates of params/gates.yaml. Raises ParameterError naming the gate and the fault.

    `about` asks for threshold - tolerance <= metric <= threshold + tolerance, both ends written in
    the gate.
    """
    path = root / "params" / "gates.yaml"
    gates = read_yaml(path, root)
    if not isinstance(gates, list) or not all(isinstance(gate, dict) for gate in gates):
        raise ParameterError("params/gates.yaml must be a list of gates, each a mapping")
    seen = set()
    for place, gate in enumerate(gates, 1):
        where = f"params/gates.yaml, gate {gate.get('id', place)!r}"
        _check(where, gate)
        if gate["id"] in seen:
            raise ParameterError(f"{where}: this id stands twice")
        seen.add(gate["id"])
    return gates


def _check(where: str, gate: dict) -> None:
    """ParameterError for a gate that could not be judged, or not be shown, when its step ends."""
    wanted = KEYS | ({"tolerance"} if gate.get("op") == "about" else set())
    for key in gate.keys() - wanted:
        raise ParameterError(f"{where}: unknown key {key!r}; {nearest(key, wanted)}")
    for key in sorted(wanted - gate.keys()):
        raise ParameterError(f"{where}: the key {key!r} is missing")
    operations = [*OPERATIONS, "about"]
    if gate["op"] not in operations:
        near = nearest(gate["op"], operations)
        raise ParameterError(f"{where}: unknown op {gate['op']!r}; {near}")
    for key in sorted(wanted & {"threshold", "tolerance"}):
        if isinstance(gate[key], bool) or not isinstance(gate[key], (int, float)):
            raise ParameterError(
                f"{where}: {key} is {gate[key]!r}, not a number (write 1.0e-4, not 1e-4)"
            )
        if not -LARGEST <= gate[key] <= LARGEST:  # NaN, too, is not between them
            raise ParameterError(f"{where}: {key} is no number that can be compared")
    if gate.get("tolerance", 0) < 0:
        raise ParameterError(f"{where}: tolerance is negative, which nothing satisfies")
    for key in sorted(KEYS - {"threshold"}):
        if not isinstance(gate[key], str) or (key != "unit" and not gate[key].strip()):
            raise ParameterError(f"{where}: {key} is {gate[key]!r}; it must be text, in quotes")
    if not STEP.fullmatch(gate["step"]):
        raise ParameterError(f"{where}: step is {gate['step']!r}; write 12_benchmark")


def estimate(name: str, value) -> Estimate | None:
    """A metric as an Estimate with a finite `value`; None where it was not measured.

    value: an Estimate, a dict or a number; None, and a dict whose value is None, are not measured.
    Raises ValueError for NaN, infinity, a reversed interval, or a value that is no number.
    """
    value = plain(value)
    entry = (
        {key: part for key, part in value.items() if part is not None}
        if isinstance(value, dict)
        else {}
    )
    if not isinstance(value, dict) and value is not None:
        entry = {"value": value}
    if "value" not in entry:
        return None
    for key in ("value", "low", "high", "n"):
        part = entry.get(key, 0)
        if isinstance(part, bool) and key == "value":
            entry[key] = part = int(part)
        if not isinstance(part, (int, float)) or not math.isfinite(part):
            raise ValueError(f"metric {name!r}: {key} is {part!r}; leave out what was not measured")
    if entry.get("low", -math.inf) > entry.get("high", math.inf):
        raise ValueError(
            f"metric {name!r}: the interval [{entry['low']}, {entry['high']}] is reversed"
        )
    return Estimate(entry)


def plain(value):
    """Numpy scalars and arrays, tuples, paths, texts and nested containers as JSON values."""
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(part) for part in value]
    if isinstance(value, (str, Path)):
        return whole(str(value))
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return value


def bounds(gate: dict) -> list[tuple[str, float]]:
    """The comparisons that a gate asks for: one, or two for `about`."""
    threshold = gate["threshold"]
    if gate["op"] == "about":
        return [(">=", threshold - gate["tolerance"]), ("<=", threshold + gate["tolerance"])]
    return [(gate["op"], threshold)]


def judge(gate: dict, metrics: dict) -> dict:
    """The gate with `verdict`, `measured` (estimate or None) and, if inconclusive, `n_to_decide`.

    pass: the whole interval satisfies the threshold. FAIL: all of it violates. inconclusive: it
    straddles. not measured: the metric is absent. Without an interval the value is exact.
    """
    measured = estimate(gate["metric"], metrics.get(gate["metric"]))
    if measured is None:
        return gate | {"verdict": "not measured", "measured": None}
    low, high = measured.get("low", measured["value"]), measured.get("high", measured["value"])
    verdicts = [_verdict(op, threshold, low, high) for op, threshold in bounds(gate)]
    if "FAIL" in verdicts or "inconclusive" not in verdicts:
        return gate | {"verdict": "FAIL" if "FAIL" in verdicts else "pass", "measured": measured}
    from lib import stats

    needed = [
        stats.n_to_decide(measured, threshold)
        for (_, threshold), verdict in zip(bounds(gate), verdicts, strict=True)
        if verdict == "inconclusive"
    ]
    enough = None if any(n is None for n in needed) else max(needed)
    return gate | {"verdict": "inconclusive", "measured": measured, "n_to_decide": enough}


def _verdict(op: str, threshold: float, low: float, high: float) -> str:
    satisfied = OPERATIONS[op]
    if op == "==":
        if low == high:
            return "pass" if low == threshold else "FAIL"
        return "inconclusive" if low <= threshold <= high else "FAIL"
    ends = satisfied(low, threshold), satisfied(high, threshold)
    return "pass" if all(ends) else "inconclusive" if any(ends) else "FAIL"


def judge_all(metrics_of: dict[str, dict], root: Path = ROOT) -> list[dict]:
    """Every gate judged against {step: metrics}; of a step that did not run: not measured."""
    return [judge(gate, metrics_of.get(gate["step"], {})) for gate in load(root)]


def threshold_text(gate: dict) -> str:
    """The threshold in words, in the unit of the gate."""
    unit = gate["unit"]
    if gate["op"] == "about":
        return f"{number(gate['threshold'], unit)} ± {number(gate['tolerance'], unit)}"
    return f"{gate['op']} {number(gate['threshold'], unit)}"


def verdict_text(gate: dict) -> str:
    """The verdict, and for an inconclusive one the number of items that would decide it."""
    if gate["verdict"] != "inconclusive":
        return gate["verdict"]
    needed = gate.get("n_to_decide")
    return f"inconclusive ({f'n {needed:,}' if needed else 'no n'} would decide)"
