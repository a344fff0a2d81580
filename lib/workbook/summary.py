"""What the page of a run says, as blocks for `page`: phases, systems, gates, steps, cost."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path

from lib import params
from lib.estimates import known, number, words
from lib.workbook import gates, record, state
from lib.workbook.page import Badge, Link, Strong
from lib.workbook.progress import clock

# Phases of the plan: the number of the last step in it, name, question, the step whose headline
# answers it (one of several variants counts as that step).
PHASES = (
    (9, "0", "Data", "Which rows are good enough to train on?", "00_curate"),
    (12, "1A", "Base model", "Does training beat the model it started from?", "12_benchmark"),
    (16, "1B", "Consistency", "Does it become more consistent, and more right?", "16_rebenchmark"),
    (18, "1C", "Distillation", "Do a teacher's examples help on new failures?", "18_distill"),
    (29, "2", "Compression", "How small does it get, and how like its source?", "22_gguf"),
    (39, "3", "Modifiers", "What does a modifier win back in its domain?", "30_modifier"),
    (44, "4", "Routing", "What do routing and escalation gain, at which cost?", "42_threshold"),
    (49, "5", "Deployment", "Does the bundle serve what was measured?", "45_deploy"),
    (99, "", "Verdict", "Which targets of the plan are reached?", "50_validate"),
)  # fmt: skip
SYSTEMS = (
    "base",
    "tuned",
    "consistent",
    "distilled",
    "compressed",
    "modifiers",
    "routed",
    "reference",
)
MEASURED = {  # column of a system: heading, unit
    "quality": ("quality [95 % interval], n", None),
    "bytes": ("on disk", "bytes"),
    "speed": ("speed", None),
    "cost": ("cost", "USD"),
}
VERDICTS = ("pass", "FAIL", "inconclusive", "not measured")
STATUS = {  # where the word itself does not say it
    "absent": "not run",
    "stale": "older than what it reads",
}


def phase_of(step: str) -> tuple:
    """The row of PHASES that a step belongs to, by its number."""
    number = int(step[:2])
    return next(phase for phase in PHASES if number <= phase[0])


def phase_title(phase: tuple) -> str:
    """`1A Base model`."""
    return " ".join(filter(None, phase[1:3]))


def by_phase(judged: list[dict]) -> dict[tuple, list[dict]]:
    """{row of PHASES: its judged gates}, where there are any."""
    groups = {phase: [g for g in judged if phase_of(g["step"]) == phase] for phase in PHASES}
    return {phase: rows for phase, rows in groups.items() if rows}


def title(step: str) -> str:
    """`30_modifier.code` as a reader wants it: 30 Modifier, code."""
    number, _, rest = step.partition("_")
    name, _, variant = rest.partition(".")
    name = name.upper() if name == "gguf" else name.replace("_", " ").capitalize()
    return f"{number} {name}{', ' * bool(variant)}{variant}"


def flat(text: str) -> str:
    """A headline or a caption without its Markdown marks."""
    return re.sub(r"[*`]", "", text)


def lead(status: dict, records: dict, judged: list[dict]) -> list[tuple]:
    """Which model ran, what did not finish or lies ahead, how the gates stand; a sentence each."""
    ahead = [step for step, word in status.items() if word in ("running", "pending")]
    broken = [step for step, word in status.items() if word in ("failed", "interrupted")]
    sentences = [f"{', '.join(broken)} did not finish."] if broken else []
    if ahead:
        sentences.append(f"This run is under way, with {len(ahead)} of {len(status)} steps ahead.")
    return [("lead", " ".join([*_model(records), *sentences, record.verdict(judged)]))]


def _model(records: dict) -> list[str]:
    """The model that ran, where it is not the one that the plan's targets are for."""
    models = {entry["provenance"]["params"].get("model", "") for entry in records.values()} - {""}
    if not models or all("llama-3.1-8b" in model.lower() for model in models):
        return []
    return [f"Run with {', '.join(sorted(models))} in place of the plan's {record.PLAN_MODEL}."]


def stand_ins(records: dict) -> list[tuple]:
    """What stood in for the real thing, from all steps."""
    texts = sorted({text for entry in records.values() for text in entry["stands_in"]})
    return [("note", f"What stood in for the real thing: {'; '.join(texts)}.")] if texts else []


def phases(out: Path, status: dict, records: dict, judged: list[dict]) -> list[tuple]:
    """A row a phase: question, headline of the step that decides it, how its gates stand."""
    rows = []
    for phase in PHASES:
        *_, question, decides = phase
        steps = [step for step in status if phase_of(step) == phase]
        deciding = [step for step in steps if step.partition(".")[0] == decides] or [decides]
        answers = [part for step in deciding for part in _answer(out, step, status, records)]
        verdicts = Counter(gate["verdict"] for gate in judged if phase_of(gate["step"]) == phase)
        counts = _counts(verdicts, f"#gates-{slug(phase)}") or "no gates yet"
        rows.append([Strong(phase_title(phase)), [Strong(question), *answers], counts])
    return [("h2", "Phases"), ("table", ["phase", "question and answer", "gates"], rows)]


def slug(phase: tuple) -> str:
    """The name of a phase inside a link."""
    return phase[2].lower().replace(" ", "-")


def _answer(out: Path, step: str, status: dict, records: dict) -> list:
    if step not in records:
        word = status.get(step, "absent")
        return [Badge(STATUS.get(word, word), word), f"in {title(step)}"]
    link = _link(out, step, status)
    return [flat(records[step]["headline"]), *([link] if isinstance(link, Link) else [])]


def _counts(verdicts: Counter, href: str = "") -> list:
    """`3 pass`, `2 FAIL` and so on, those that occur."""
    order = [*VERDICTS, *(verdict for verdict in verdicts if verdict not in VERDICTS)]
    return [
        Badge(f"{verdicts[verdict]} {verdict}", css(verdict), href=href)
        for verdict in order
        if verdicts[verdict]
    ]


def css(verdict: str) -> str:
    """The CSS class of a verdict."""
    return verdict.replace(" ", "-")


def systems(records: dict) -> list[tuple]:
    """A row a system that something was measured of; what was not measured of any is said below."""
    measured = {
        name: {column: known(columns[column]) for column in MEASURED if column in columns}
        for name, columns in record.systems(records).items()
    }
    measured = {name: columns for name, columns in measured.items() if columns}
    columns = [c for c in MEASURED if any(c in system for system in measured.values())]
    order = sorted(measured, key=lambda s: SYSTEMS.index(s) if s in SYSTEMS else len(SYSTEMS))
    rows = [
        [Strong(name), *(words(measured[name].get(c), MEASURED[c][1]) for c in columns)]
        for name in order
    ]
    blocks: list[tuple] = [("h2", "Systems")]
    if rows:
        blocks.append(("table", ["system", *(MEASURED[c][0] for c in columns)], rows))
    absent = [name for name in SYSTEMS if name not in measured]
    absent += [f"{column} of any system" for column in MEASURED if column not in columns]
    notes = [f"Not measured in this run: {', '.join(absent)}."] if absent else []
    return blocks + [("note", note) for note in [*_comparable(measured, records), *notes]]


def _comparable(measured: dict, records: dict) -> list[str]:
    """What the columns of the table of systems do not allow to be read out of them."""
    items = {columns["quality"].get("n") for columns in measured.values() if "quality" in columns}
    speeds = [columns["speed"] for columns in measured.values() if "speed" in columns]
    notes = []
    if len(items) > 1:
        notes.append("Qualities of unlike n are not of the same items: compare only equal n.")
    if len(speeds) > 1:
        notes.append(
            "Speed is one run each, with the batch, the length of answers and the load of the"
            " machine that it met: no comparison of systems."
        )
    for name, steps in record.makers(records).items():
        if len({steps[column] for column in measured.get(name, {})}) > 1:
            parts = [
                f"{MEASURED[c][0].split(' [')[0]} of {title(steps[c])}" for c in measured[name]
            ]
            notes.append(f"{name.capitalize()}: {', '.join(parts)}.")
    return [" ".join(notes)] if notes else []


def gate_tables(judged: list[dict], records: dict) -> list[tuple]:
    """All gates, folded by phase."""
    moved = record.moved(judged, records)
    blocks: list[tuple] = [("h2", "Gates")]
    columns = ["gate", "verdict", "threshold", "measured [95 % interval], n", "step"]
    for phase, of_phase in by_phase(judged).items():
        counts = _counts(Counter(gate["verdict"] for gate in of_phase))
        rows = [_gate_row(gate, gate["id"] in moved) for gate in of_phase]
        # a link to a place inside opens what is folded around it
        inner = [("anchor", f"gates-{slug(phase)}"), ("table", columns, rows)]
        blocks.append(("details", [Strong(phase_title(phase)), *counts], inner))
    how = (
        "Thresholds are written before a run and judged from the 95 % interval: pass when all of it"
        " satisfies, FAIL when all of it violates, inconclusive when it straddles. Not measured is"
        " not zero."
    )
    return [*blocks, ("note", how)]


def _gate_row(gate: dict, moved: bool) -> list:
    _, _, more = gates.verdict_text(gate).rstrip(")").partition(" (")
    more += " threshold changed since it ran" if moved else ""
    badge = Badge(gate["verdict"], css(gate["verdict"]), more.strip())
    return [gate["statement"], badge, gates.threshold_text(gate), _measured(gate), gate["step"][:2]]


def _measured(gate: dict) -> str:
    """What was measured, with an end in full that reads like the threshold but is not it."""
    measured, unit = gate["measured"], gate["unit"]
    if not measured:
        return ""
    text = words(measured, unit)
    for _, threshold in gates.bounds(gate):
        for name in ("low", "high"):
            end = measured.get(name, threshold)
            if end != threshold and number(end, unit) == number(threshold, unit):
                exact = f"{100 * end:.5g} %" if unit == "share" else f"{end:.5g}"
                text += f"; {name} end {exact}"
    return text


def phase_counts(judged: list[dict]) -> list[dict]:
    """Rows for a table: phase, and how many of its gates have each verdict."""
    rows = []
    for phase, of_phase in by_phase(judged).items():
        counts = Counter(gate["verdict"] for gate in of_phase)
        rows.append({"phase": phase_title(phase)} | {word: counts[word] for word in VERDICTS})
    return rows


def open_gates(judged: list[dict]) -> list[dict]:
    """Rows for a table of the inconclusive gates, those first that few items would decide."""
    undecided = [gate for gate in judged if gate["verdict"] == "inconclusive"]
    undecided.sort(key=lambda gate: gate.get("n_to_decide") or math.inf)
    return [
        {
            "gate": gate["statement"],
            "threshold": gates.threshold_text(gate),
            "measured [95 % interval], n": words(gate["measured"], gate["unit"]),
            "n that would decide": f"{needed:,}" if (needed := gate.get("n_to_decide")) else "no n",
        }
        for gate in undecided
    ]


def unlike_parameters(records: dict) -> list[dict]:
    """Rows for a table of the common parameters that steps ran with in more than one value."""
    rows = []
    for key in params.COMMON:
        steps_by_value: dict[str, list[str]] = {}
        for step, entry in records.items():
            values = entry["provenance"]["params"]
            if key in values:
                steps_by_value.setdefault(repr(values[key]), []).append(step[:2])
        if len(steps_by_value) > 1:
            rows += [
                {"parameter": key, "value": value, "steps": ", ".join(numbers)}
                for value, numbers in steps_by_value.items()
            ]
    return rows


def steps(out: Path, status: dict, records: dict) -> list[tuple]:
    """A row a step: status, time, headline, links to its notebook and its transcripts."""
    rows = []
    for step, word in status.items():
        origin = records[step]["provenance"] if step in records else None
        links = [_link(out, step, status)]
        if step in records and (out / "transcripts" / f"{step}.html").exists():
            links.append(Link("transcripts", f"transcripts/{step}.html"))
        seconds = clock(origin["seconds"] + origin["earlier_seconds"]) if origin else ""
        headline = records[step]["headline"] if origin else state.read(out, step).get("failure", "")
        rows.append([links, Badge(STATUS.get(word, word), word), seconds, flat(headline)])
    return [("h2", "Steps"), ("table", ["step", "status", "time", "headline"], rows)]


def _link(out: Path, step: str, status: dict) -> Link | str:
    """The executed notebook of a step, or only its title while there is none."""
    executed = (out / "html" / f"{step}.html").exists()
    if executed and status.get(step) not in ("pending", "running"):
        return Link(title(step), f"html/{step}.html")
    return title(step)


def cost_rows(ledger: list[dict]) -> list[dict]:
    """`record.cost_ledger` in six columns for a reader, hours and USD as text."""
    priced = ledger[-1]["machine"] > 0  # without an hourly rate the cost is not known, not 0
    rows = []
    for row in ledger:
        step, *_ = row.values()
        hours, usd = row["hours, plan"], row["USD, plan"]
        plan = [f"{hours} hours" if hours else "", f"{usd} USD" if usd else ""]
        plan += ["all phases"] if step == "total" else []
        rows.append(
            {
                "step": step,
                "hours": f"{row['hours']:.3f}",
                "machine, USD": f"{row['machine']:.3f}" if priced else "not priced",
                "API, USD": f"{row['API']:.3f}",
                "USD": f"{row['USD']:.3f}",
                "plan": ", ".join(filter(None, plan)),
            }
        )
    return rows


def cost(records: dict) -> list[tuple]:
    """The total as a sentence, each step behind a click."""
    ledger = record.cost_ledger(records)
    rows = cost_rows(ledger)
    cells = [[_named(row["step"]), *list(row.values())[1:]] for row in rows]
    allowed = f"the plan allows {record.PLAN_TOTAL_USD:,.0f} USD for all phases"
    sentence = f"{record.spent(ledger)}; {allowed}."
    table = ("table", list(rows[0]), cells)
    return [("h2", "Cost"), ("p", sentence), ("details", "Each step", [table])]


def _named(step: str) -> str:
    return step if step == "total" else title(step)


def provenance(records: dict) -> list[tuple]:
    """A row for each combination of commit, device and versions, with the steps that share it."""
    groups: dict[tuple, list[str]] = {}
    for step, entry in records.items():
        origin, device = entry["provenance"], entry["provenance"]["device"]
        gpu = ", ".join(device.get("gpu", ["no GPU"]))
        memory = f"{device.get('memory_gib', '?')} GiB"
        machine = f"{device['cpu']}, {device['cores']} cores, {memory}, {gpu}"
        versions = ", ".join(f"{name} {version}" for name, version in origin["versions"].items())
        when = origin["started"][:16].replace("T", " ")
        groups.setdefault((origin["commit"], machine, versions), []).append(f"{step[:2]} ({when})")
    rows = [[", ".join(who), *shared] for shared, who in groups.items()]
    columns = ["step (start, UTC)", "commit", "device", "versions"]
    what = f"Commit, device and versions: {len(rows)} of them"
    return [("h2", "Provenance"), ("details", what, [("table", columns, rows)])] if rows else []
