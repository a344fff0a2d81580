"""What the metrics of a run add up to: verdict, systems, ledgers. For 50_validate and the page."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from lib.files import shown
from lib.params import ParameterError
from lib.workbook import state

# Targets of the plan that are no gates: shown beside what was measured.
PLAN_MODEL = "Llama-3.1-8B-Instruct"
PLAN_USD = {"10_train_base": (36.0, 46.0)}
PLAN_HOURS = {"10_train_base": 18.0}
PLAN_TOTAL_USD = 1717.0  # all phases of the first system
PLAN_SYSTEM_BYTES = 668e6  # the plan's total, though its parts add up to more
PLAN_BYTES = {
    "compressed base": 520e6,
    "code modifier": 47e6,
    "reasoning modifier": 48e6,
    "automation modifier": 40e6,
    "router": 13e6,
    "escalation detector": 3e6,
}  # fmt: skip


KEYS = ("headline", "metrics", "systems", "figures", "stands_in", "gates", "provenance")


def load(out: Path, names: Iterable[str]) -> dict[str, dict]:
    """{step: record} of the metrics files under outputs/<run>, in the order of `names`."""
    paths = [(name, out / "metrics" / f"{name}.json") for name in names]
    return {name: read(path) for name, path in paths if path.exists()}


def read(path: Path, keys: Iterable[str] = KEYS) -> dict:
    """What `run.finish` wrote. ParameterError naming a file that is damaged, or lacks `keys`."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        reason = next((f"no {key!r} in it" for key in keys if key not in entry), "")
    except (ValueError, TypeError) as error:
        reason = str(error)
    if reason:
        raise ParameterError(f"{shown(path)} is damaged ({reason}); run {path.stem} again")
    return entry


def relative(out: Path, path: str | Path) -> str:
    """A path inside a run as the record keeps it; a name of the Hub or an outer path as it is."""
    return str(Path(path).relative_to(out)) if Path(path).is_relative_to(out) else str(path)


def handed_over(out: Path, name: str) -> dict:
    """The system `name` of a run as its maker handed it over: {"name", "path", ...}.

    Paths are absolute. Raises FileNotFoundError when no step made it or its files are gone,
    ValueError when two did or when what it was made from has been made anew since.
    """
    makers = {}
    for file in sorted((out / "metrics").glob("*.json")):
        entry = read(file, ["systems"])["systems"].get(name, {})
        if "path" in entry:
            makers[file.stem] = entry
    if not makers:
        raise FileNotFoundError(
            f"no step of {out.name} has made the model {name!r} yet; run it first"
        )
    if len(makers) > 1:
        raise ValueError(f"the model {name!r} was made twice, by {' and '.join(makers)}")
    [(step, entry)] = makers.items()
    if state.statuses(out, [step])[step] == "stale":
        raise ValueError(f"{step}, which made {name!r}, is older than what it reads: run it again")
    system = {"name": name, "made_by": step, "revision": entry.get("revision", "")}
    for key in ("path", "adapter", "tokenizer"):
        if key in entry:
            inside = out / entry[key]
            gone = not inside.exists() or (inside.is_dir() and not any(inside.iterdir()))
            if gone and entry[key].startswith("artifacts/"):
                raise FileNotFoundError(f"{out.name}/{entry[key]} is missing: run {step} again")
            system[key] = entry[key] if gone else str(inside)
    return system


def systems(records: dict[str, dict]) -> dict[str, dict]:
    """{system: {column: estimate}} over all records; a later step replaces an earlier one."""
    merged: dict[str, dict] = {}
    for entry in records.values():
        for system, columns in entry["systems"].items():
            merged.setdefault(system, {}).update(columns)
    return merged


def makers(records: dict[str, dict]) -> dict[str, dict]:
    """{system: {column: the step that measured what `systems` shows}}."""
    made: dict[str, dict] = {}
    for step, entry in records.items():
        for system, columns in entry["systems"].items():
            made.setdefault(system, {}).update(dict.fromkeys(columns, step))
    return made


def verdict(judged: list[dict]) -> str:
    """How many gates pass, fail, are inconclusive, are not measured, as a sentence."""
    count = Counter(gate["verdict"] for gate in judged)
    measured = len(judged) - count["not measured"]
    if not measured:
        return f"None of the {len(judged)} gates is measured yet."
    verb = "is" if measured == 1 else "are"
    return (
        f"Of {len(judged)} gates {measured} {verb} measured: {count['pass']} pass, {count['FAIL']}"
        f" fail, {count['inconclusive']} inconclusive."
    )


def cost_ledger(records: dict[str, dict]) -> list[dict]:
    """A row a step and a total: hours, unfinished attempts included, and USD, beside the plan's."""
    rows = []
    for name, record in records.items():
        origin = record["provenance"]
        low, high = PLAN_USD.get(name, (None, None))
        rows.append(
            {
                "notebook": name,
                "hours": (origin["seconds"] + origin.get("earlier_seconds", 0.0)) / 3600,
                "hours, plan": f"{PLAN_HOURS[name]:g}" if name in PLAN_HOURS else "",
                "machine": origin["machine_cost"],
                "API": origin["api_spend"],
                "USD": origin["cost"],
                "USD, plan": f"{low:g} to {high:g}" if low else "",
            }
        )
    sums = {key: float(sum(row[key] for row in rows)) for key in ("hours", "machine", "API", "USD")}
    return [
        *rows,
        {
            "notebook": "total",
            "hours": sums["hours"],
            "hours, plan": "",
            "machine": sums["machine"],
            "API": sums["API"],
            "USD": sums["USD"],
            "USD, plan": f"{PLAN_TOTAL_USD:,.0f}",
        },
    ]


def spent(ledger: list[dict]) -> str:
    """The total of a cost ledger in words; a machine without an hourly rate has no price, not 0."""
    total = ledger[-1]
    machine = (
        f"{total['machine']:.2f} USD for the machine"
        if total["machine"]
        else "no price for the machine (its hourly_rate is 0)"
    )
    return f"{total['hours']:.2f} hours, {machine} and {total['API']:.2f} USD for endpoints"


def size_ledger(records: dict[str, dict]) -> list[dict]:
    """Bytes on disk, plan beside measured: parts of the finished system, then systems measured."""
    measured = {s: c["bytes"]["value"] for s, c in systems(records).items() if "bytes" in c}
    rows = [{"part": part, "plan": plan, "measured": None} for part, plan in PLAN_BYTES.items()]
    rows.append({"part": "sum of these parts", "plan": sum(PLAN_BYTES.values()), "measured": None})
    rows.append(
        {
            "part": "finished system, as the plan puts it",
            "plan": PLAN_SYSTEM_BYTES,
            "measured": None,
        }
    )
    return rows + [
        {"part": f"{name} model", "plan": None, "measured": size} for name, size in measured.items()
    ]


def moved(judged: list[dict], records: dict[str, dict]) -> list[str]:
    """Ids of gates whose metric or threshold is no longer what the step ran against."""
    then = {gate["id"]: gate for record in records.values() for gate in record["gates"]}
    keys = ("metric", "op", "threshold", "tolerance")
    return [
        gate["id"]
        for gate in judged
        if gate["step"] in records
        and any(then.get(gate["id"], {}).get(key) != gate.get(key) for key in keys)
    ]
