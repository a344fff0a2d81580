"""The frame of a notebook (`answer`, `start`, `say`, `show`, `finish`), and `python -m lib.run`."""

from __future__ import annotations

import json
import logging
import os
import time
import warnings
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from lib import params, plots
from lib.estimates import Estimate, words
from lib.files import ROOT, atomic_write_json, from_root, whole
from lib.markdown import folded, quote, table
from lib.workbook import gates, provenance, record
from lib.workbook import transcripts as pages

__all__ = ["Job", "answer", "finish", "quote", "say", "show", "start", "table"]
ANSWER = "answer"  # names the display below the title


@dataclass
class Job:
    """One running notebook: its parameters, its folders, what it has shown. Made by `start`."""

    name: str
    params: dict
    root: Path
    out: Path
    started: str
    clock: float
    provenance: dict
    shown: list[dict] = field(default_factory=list)

    @property
    def artifacts(self) -> Path:
        """outputs/<run>/artifacts/<step>: what this step writes for others; not committed."""
        return self.out / "artifacts" / self.name

    @property
    def figures(self) -> Path:
        """outputs/<run>/figures."""
        return self.out / "figures"

    def path(self, text: str) -> Path:
        """The path that a parameter means, whatever the working directory; `~` is the home."""
        return from_root(text, self.root)

    def read(self, step: str) -> Path:
        """The artifacts of an earlier step. FileNotFoundError tells which step to run first."""
        folder = self.out / "artifacts" / step
        if not folder.is_dir():
            shown = params.shown(folder, self.root)
            raise FileNotFoundError(f"{shown} is missing: run {step} first")
        return folder

    def metrics(self, step: str) -> dict:
        """{key: Estimate} that an earlier step of this run measured. FileNotFoundError likewise."""
        measured = self._record(step)["metrics"]
        return {key: Estimate(value) for key, value in measured.items()}

    def settings(self, step: str) -> dict:
        """The parameters that an earlier step ran with, so that none is typed twice."""
        return self._record(step)["provenance"]["params"]

    def model(self, name: str) -> dict:
        """What an earlier step handed over as systems={name: {"path": ...}}: {"name", "path", ...}.

        Its paths are absolute, as `evaluation.systems.answer` takes them. Raises FileNotFoundError
        when no step made it, ValueError when its maker is older than what it was made from.
        """
        return record.handed_over(self.out, name)

    def has_model(self, name: str) -> bool:
        """Whether a step of this run has handed `name` over; for what a notebook can do without.

        Raises ValueError, as `model` does, when its maker is older than what it was made from.
        """
        try:
            return bool(self.model(name))
        except FileNotFoundError:
            return False

    def _record(self, step: str) -> dict:
        path = self.out / "metrics" / f"{step}.json"
        if not path.exists():
            shown = params.shown(path, self.root)
            raise FileNotFoundError(f"{shown} is missing: run {step} first")
        return record.read(path, ["metrics", "provenance"])


def answer() -> None:
    """The place below the title where `finish` puts the answer, so that a reader meets it first."""
    from IPython.display import Markdown, display

    waiting = "*Not answered yet: the answer appears here when the notebook has run to its end.*"
    display(Markdown(waiting), display_id=ANSWER)


def say(*parts: str | list[dict]) -> None:
    """Display Markdown; a list of rows becomes a table."""
    from IPython.display import Markdown, display

    text = "\n\n".join(p if isinstance(p, str) else table(p) for p in parts)
    display(Markdown(whole(text)))  # half a surrogate pair would stop the kernel's message


def start(name: str, values: dict, *, variant: str = "", root: Path = ROOT) -> Job:
    """Check the parameters of notebook `name`, print them with commit, device and versions.

    values: the notebook's globals(). variant: run as step <name>.<variant>. Makes the folders.
    Raises ParameterError for a wrong type, and for a parameter injected by papermill that the
    notebook does not declare (papermill itself only logs a warning).
    """
    # plain progress lines are wanted, so the missing widget library is no news
    warnings.filterwarnings("ignore", message="IProgress not found")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it asks the Hub for a faster kernel
    declared = params.declared(params.notebook_path(name, root), root)
    chosen = _checked(name, declared, values)
    origin = {
        "commit": provenance.commit(root),
        "device": provenance.device(),
        "versions": provenance.versions(),
        "earlier_seconds": float(os.environ.get("WORKBOOK_EARLIER_SECONDS", 0)),
    }
    if chosen.get("dtype") == "auto":  # decided once, here: all that follows sees what it came to
        chosen["dtype"] = values["dtype"] = origin["device"]["fast_dtype"]
    out = from_root(chosen["out"], root)
    began = datetime.now(UTC).isoformat(timespec="seconds")
    step = f"{name}.{variant}" if variant else name
    job = Job(step, chosen, root, out, began, time.monotonic(), origin)
    job.artifacts.mkdir(parents=True, exist_ok=True)
    plots.style()
    rows = [_row(parameter, chosen[parameter.name]) for parameter in declared.values()]
    changed = sum(bool(row["default, if changed"]) for row in rows)
    say(
        folded(f"{len(rows)} parameters, {changed} changed from their defaults", table(rows)),
        folded(f"Commit {origin['commit']}, device, versions", provenance.text(origin)),
    )
    return job


def _checked(name: str, declared: dict, values: dict) -> dict:
    """The notebook's own values of what it declares, checked."""
    for key in _injected(values):
        if key not in {*declared, *params.COMMON, params.VARIANTS}:
            near = params.nearest(key, declared)
            raise params.ParameterError(f"notebook {name} has no parameter {key!r}; {near}")
    missing = [key for key in declared if key not in values]
    if missing:
        raise params.ParameterError(
            f"notebook {name}: run the parameters cell first, it sets {missing[0]}"
        )
    where = f"notebook {name}"
    chosen = {
        key: params.check(where, key, values[key], parameter.default)
        for key, parameter in declared.items()
    }
    params.known_dtype(where, chosen)
    return chosen


def _row(parameter: params.Parameter, value) -> dict:
    changed = f"`{parameter.default!r}`" if value != parameter.default else ""
    return {
        "parameter": parameter.name,
        "value": f"`{value!r}`",
        "default, if changed": changed,
        "meaning": parameter.comment,
    }


def _injected(values: dict) -> list[str]:
    """Names that papermill's injected cell assigns, as IPython's history of cells holds it."""
    import ast

    cells = [source for source in values.get("In", []) if source.startswith("# Parameters\n")]
    statements = [
        s for source in cells for s in ast.parse(source).body if isinstance(s, ast.Assign)
    ]
    return [s.targets[0].id for s in statements if isinstance(s.targets[0], ast.Name)]


def show(job: Job, fig, name: str, caption: str = "") -> None:
    """Save a figure as figures/<number>_<name>.png; display that very picture and its caption."""
    from IPython.display import Image, display

    notebook, _, variant = job.name.partition(".")
    parts = [notebook.partition("_")[0], variant, name]
    path = job.figures / f"{'_'.join(part for part in parts if part)}.png"
    plots.save(fig, path)
    display(Image(filename=str(path), alt=caption or name))
    if caption:
        say(f"*{caption}*")
    others = [figure for figure in job.shown if figure["file"] != path.name]
    job.shown = [*others, {"file": path.name, "caption": caption}]


def finish(
    job: Job,
    *,
    headline: str,
    metrics: dict,
    systems: dict | None = None,
    tables: dict | None = None,
    transcripts: list[dict] | None = None,
    stands_in: list[str] | None = None,
    api_spend: float = 0.0,
) -> None:
    """Judge the gates of this step, write metrics/<step>.json atomically, display gates and answer.

    headline: the answer, one sentence with one interval; it also appears below the title.
    metrics: {key: Estimate or number}; one that was not measured is left out, NaN raises
    ValueError. systems: {name: columns of the report's table ("quality", "bytes", "speed", "cost"),
    and what a later step loads by `Job.model(name)`: "path", "adapter", "tokenizer", "revision"}.
    transcripts: rows of `answers.transcripts`, for transcripts/<step>.html. api_spend: USD; the
    cost is seconds / 3600 * hourly_rate + api_spend. A failed gate is a result and does not raise.
    """
    from IPython.display import Markdown, update_display

    kept = {key: known for key, value in metrics.items() if (known := gates.estimate(key, value))}
    judged = [gates.judge(g, kept) for g in gates.load(job.root) if g["step"] == job.name]
    if transcripts:
        pages.write(job.out, job.name, transcripts)
    entry = {
        "step": job.name,
        "headline": headline,
        "metrics": kept,
        "systems": {name: _system(job, name, entry) for name, entry in (systems or {}).items()},
        "tables": {title: _rows(rows) for title, rows in (tables or {}).items()},
        "figures": job.shown,
        "stands_in": list(stands_in or []),
        "gates": judged,
        "provenance": _provenance(job, float(api_spend)),
    }
    atomic_write_json(job.out / "metrics" / f"{job.name}.json", gates.plain(entry))
    if judged:
        say(gate_rows(judged))
    say(f"**{headline}**")
    update_display(Markdown(whole(f"**{headline}**")), display_id=ANSWER)


def _provenance(job: Job, api_spend: float) -> dict:
    seconds = time.monotonic() - job.clock
    rate = float(job.params.get("hourly_rate", 0.0))
    machine = (seconds + job.provenance["earlier_seconds"]) / 3600 * rate
    return job.provenance | {
        "params": job.params,
        "started": job.started,
        "seconds": round(seconds, 1),
        "machine_cost": round(machine, 4),
        "api_spend": api_spend,
        "cost": round(machine + api_spend, 4),
    }


def gate_rows(judged: list[dict]) -> list[dict]:
    """Judged gates as rows for a table: statement, threshold, measured with interval, verdict."""
    return [
        {
            "gate": gate["statement"],
            "threshold": gates.threshold_text(gate),
            "measured [95 % interval], n": words(gate["measured"], gate["unit"]),
            "verdict": gates.verdict_text(gate),
        }
        for gate in judged
    ]


COLUMNS = ("quality", "bytes", "speed", "cost")  # of the report's table of systems
HANDED_OVER = ("path", "adapter", "tokenizer", "revision")  # what `Job.model` reads


def _system(job: Job, name: str, entry: dict) -> dict:
    for key in entry.keys() - {*COLUMNS, *HANDED_OVER}:
        near = params.nearest(key, (*COLUMNS, *HANDED_OVER))
        raise ValueError(f"system {name!r}: unknown column {key!r}; {near}")
    numbers = {key: gates.estimate(f"{name}.{key}", entry.get(key)) for key in COLUMNS}
    columns = {key: value for key, value in numbers.items() if value}
    texts = {key: entry[key] for key in HANDED_OVER if entry.get(key)}
    return columns | {key: record.relative(job.out, value) for key, value in texts.items()}


def _rows(rows) -> list[dict]:
    """A small table as JSON rows; NaN of a DataFrame is a missing value and becomes null."""
    if hasattr(rows, "to_json"):
        return json.loads(rows.to_json(orient="records"))
    return [
        {key: str(v) if isinstance(v, Estimate) else gates.plain(v) for key, v in row.items()}
        for row in rows
    ]


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code: 0 done, 1 a step failed, 2 wrong input, 130 stopped."""
    from lib.workbook import pipeline

    return pipeline.command(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
