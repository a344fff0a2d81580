"""The frame of a notebook (`start`, `say`, `show`, `finish`) and the command line `python -m
lib.run`."""

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
from lib.files import ROOT, atomic_write_json
from lib.workbook import gates, provenance


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
        """outputs/<run>/artifacts/<notebook>: what this notebook writes for others; not
        committed."""
        return self.out / "artifacts" / self.name

    @property
    def figures(self) -> Path:
        """outputs/<run>/figures."""
        return self.out / "figures"

    def path(self, text: str) -> Path:
        """A path of a parameter, relative to the repository whatever the working directory."""
        return self.root / Path(text).expanduser()

    def read(self, name: str) -> Path:
        """The artifacts of an earlier notebook of this run. FileNotFoundError tells which to run
        first."""
        folder = self.out / "artifacts" / name
        if not folder.is_dir():
            shown = params.shown(folder, self.root)
            raise FileNotFoundError(f"{shown} is missing: run notebook {name} first")
        return folder

    def metrics(self, name: str) -> dict:
        """The metrics of an earlier notebook of this run, {key: estimate}. FileNotFoundError
        likewise."""
        path = self.out / "metrics" / f"{name}.json"
        if not path.exists():
            raise FileNotFoundError(
                f"{params.shown(path, self.root)} is missing: run notebook {name} first"
            )
        return json.loads(path.read_text(encoding="utf-8"))["metrics"]

    def settings(self, name: str) -> dict:
        """The parameters that an earlier notebook of this run was executed with, so that none is
        typed twice."""
        path = self.out / "metrics" / f"{name}.json"
        if not path.exists():
            raise FileNotFoundError(
                f"{params.shown(path, self.root)} is missing: run notebook {name} first"
            )
        return json.loads(path.read_text(encoding="utf-8"))["provenance"]["params"]


def say(text: str) -> None:
    """Display Markdown."""
    from IPython.display import Markdown, display

    display(Markdown(text))


def table(rows: list[dict]) -> str:
    """Rows with the same keys as a Markdown table."""
    if not rows:
        return "*(no rows)*"
    keys = list(rows[0])
    cells = [
        [str(row.get(key, "")).replace("|", "\\|").replace("\n", " ") for key in keys]
        for row in rows
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in [keys, ["---"] * len(keys), *cells])


def start(name: str, values: dict, *, root: Path = ROOT) -> Job:
    """Check and print the parameters of notebook `name`, with commit, device and versions; make its
    folders.

    values: the notebook's globals(). Raises ParameterError for a wrong type, and for a parameter
    injected by papermill that the notebook does not declare (papermill itself only logs a warning).
    """
    # plain progress lines are wanted, so the missing widget library is no news
    warnings.filterwarnings("ignore", message="IProgress not found")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it asks the Hub for a faster kernel
    declared = params.declared(params.notebook_path(name, root), root)
    for key in _injected(values):
        if key not in declared:
            near = params.nearest(key, declared)
            raise params.ParameterError(f"notebook {name} has no parameter {key!r}; {near}")
    missing = [key for key in declared if key not in values]
    if missing:
        raise params.ParameterError(
            f"notebook {name}: run the parameters cell first, it sets {missing[0]}"
        )
    here = {
        key: params.check(f"notebook {name}", key, values[key], p.default)
        for key, p in declared.items()
    }
    params.known_dtype(f"notebook {name}", here)
    record = {
        "commit": provenance.commit(root),
        "device": provenance.device(),
        "versions": provenance.versions(),
    }
    if (
        here.get("dtype") == "auto"
    ):  # decided once, here; all that follows and the record see what it came to
        here["dtype"] = values["dtype"] = record["device"]["fast_dtype"]
    out = root / Path(here.get("out", "outputs/smollm2")).expanduser()
    record["earlier_seconds"] = float(os.environ.get("WORKBOOK_EARLIER_SECONDS", 0))
    began = datetime.now(UTC).isoformat(timespec="seconds")
    job = Job(name, here, root, out, began, time.monotonic(), record)
    job.artifacts.mkdir(parents=True, exist_ok=True)
    plots.style()
    device = record["device"]
    gpu = f", {', '.join(device['gpu'])}" if "gpu" in device else ", no GPU"
    versions = ", ".join(f"{library} {version}" for library, version in record["versions"].items())
    say(
        f"**Commit** {record['commit']}  \n**Device** {device['cpu']}, {device['cores']} cores, "
        f"{device.get('memory_gib', '?')} GiB{gpu}  \n**Versions** {versions}"
    )
    say(table([_row(p, here[p.name]) for p in declared.values()]))
    return job


def _row(parameter: params.Parameter, value) -> dict:
    changed = f"`{parameter.default!r}`" if value != parameter.default else ""
    return {
        "parameter": parameter.name,
        "value": f"`{value!r}`",
        "default, if changed": changed,
        "meaning": parameter.comment,
    }


def _injected(values: dict) -> list[str]:
    """Names that papermill's injected cell assigns, found in IPython's history of executed
    cells."""
    import ast

    cells = [source for source in values.get("In", []) if source.startswith("# Parameters\n")]
    statements = [
        s for source in cells for s in ast.parse(source).body if isinstance(s, ast.Assign)
    ]
    return [s.targets[0].id for s in statements if isinstance(s.targets[0], ast.Name)]


def show(job: Job, fig, name: str, caption: str = "") -> None:
    """Save a figure as figures/<number>_<name>.png and display that very picture with its
    caption."""
    from IPython.display import Image, display

    path = job.figures / f"{job.name.split('_')[0]}_{name}.png"
    plots.save(fig, path)
    display(Image(filename=str(path), alt=caption or name))
    if caption:
        say(f"*{caption}*")
    job.shown = [f for f in job.shown if f["file"] != path.name] + [
        {"file": path.name, "caption": caption}
    ]


def finish(
    job: Job,
    *,
    headline: str,
    metrics: dict,
    systems: dict | None = None,
    tables: dict | None = None,
    stands_in: list[str] | None = None,
    api_spend: float = 0.0,
) -> None:
    """Judge this notebook's gates, write metrics/<name>.json atomically, display gates and
    headline.

    A failed gate is a result and does not raise. A metric of None is left out as not measured; NaN
    raises ValueError. api_spend: USD. The cost is seconds / 3600 * hourly_rate + api_spend.
    """
    kept = {
        key: entry
        for key, value in metrics.items()
        if (entry := gates.estimate(key, value)) is not None
    }
    seconds = time.monotonic() - job.clock
    paid = (
        (seconds + job.provenance["earlier_seconds"])
        / 3600
        * float(job.params.get("hourly_rate", 0.0))
    )
    judged = [gates.judge(g, kept) for g in gates.load(job.root) if g["notebook"] == job.name]
    record = {
        "notebook": job.name,
        "headline": headline,
        "metrics": kept,
        "systems": _systems(systems or {}),
        "tables": {title: _rows(rows) for title, rows in (tables or {}).items()},
        "figures": job.shown,
        "stands_in": list(stands_in or []),
        "gates": judged,
        "provenance": (
            job.provenance
            | {
                "params": job.params,
                "started": job.started,
                "seconds": round(seconds, 1),
                "machine_cost": round(paid, 4),
                "api_spend": float(api_spend),
                "cost": round(paid + float(api_spend), 4),
            }
        ),
    }
    atomic_write_json(job.out / "metrics" / f"{job.name}.json", gates.plain(record))
    if judged:
        say(table(gate_rows(judged)))
    say(f"**{headline}**")


def gate_rows(judged: list[dict]) -> list[dict]:
    """Judged gates as rows for a table: statement, threshold, measured with interval, verdict."""
    return [
        {
            "gate": gate["statement"],
            "threshold": gates.threshold_text(gate),
            "measured [95 % interval], n": gates.written(gate["measured"], gate["unit"]),
            "verdict": gates.verdict_text(gate),
        }
        for gate in judged
    ]


COLUMNS = ("quality", "bytes", "speed", "cost")  # of the report's table of systems


def _systems(systems: dict) -> dict:
    result = {}
    for system, entry in systems.items():
        for key in entry.keys() - set(COLUMNS):
            raise ValueError(
                f"system {system!r}: unknown column {key!r}; {params.nearest(key, COLUMNS)}"
            )
        numbers = {key: gates.estimate(f"{system}.{key}", value) for key, value in entry.items()}
        result[system] = {key: value for key, value in numbers.items() if value is not None}
    return result


def _rows(rows) -> list[dict]:
    """A small table as JSON rows; NaN of a DataFrame is a missing value and becomes null."""
    if hasattr(rows, "to_json"):
        return json.loads(rows.to_json(orient="records"))
    return gates.plain(list(rows))


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code: 0 done, 1 a notebook failed, 2 wrong input, 130
    interrupted."""
    from lib.workbook import pipeline

    return pipeline.command(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
