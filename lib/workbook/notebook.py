"""One execution of one step: a temporary file while it runs, a state that is never done early."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import psutil

from lib.files import atomic_write_text, sha256_file
from lib.params import notebook_path
from lib.workbook import state
from lib.workbook.progress import Progress

KERNEL = {
    "OMP_WAIT_POLICY": "PASSIVE",  # see `environment`
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # one set in the user's shell hides figures
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    # this environment's kernel, not one of the same name in the home folder
    "JUPYTER_PREFER_ENV_PATH": "1",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}

# per cent of all cores that others may use while threads still wait for each other by spinning
IDLE = 40
SPINS = "100000"  # rounds before a waiting thread sleeps; ten times as many were no faster


def environment() -> dict[str, str]:
    """Environment of a kernel that starts now; how its threads wait depends on the machine's load.

    On two idle cores, bare loops of SmolLM2-135M (Intel Xeon with AMX): spinning makes a training
    step without dropout 1.7, generation 1.9 and llama.cpp 3 times as fast as sleeping; beside
    another such job, 3 to 5 times as slow. Whole notebooks gain less where they train (10: a
    tenth), and 11 loses, whose 4-bit layers bring an OpenMP of their own.
    """
    idle = psutil.cpu_percent(interval=0.5) < IDLE
    return KERNEL | ({"GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", SPINS)} if idle else {})


class Execution:
    """`begin` marks the step as running and drops its old metrics, `execute` runs it to an end."""

    def __init__(
        self, name: str, label: str, values: dict, parts: dict, out: Path, root: Path, stream
    ):
        self.name, self.label, self.values, self.parts = name, label, values, parts
        self.out, self.root, self.stream = out, root, stream
        self.partial = out / f"{name}.partial.ipynb"
        self.metrics = out / "metrics" / f"{name}.json"
        self.log = out / "artifacts" / ".state" / f"{name}.log"
        self.seconds = self.earlier = 0.0

    def begin(self) -> None:
        """From here until the end of `execute` the step counts as running, and has no numbers."""
        self.earlier = self._earlier_seconds()
        self.began, self.clock = time.time(), time.monotonic()  # the one steps when it is set
        state.mark(
            self.out, self.name, "running", began=self.began, earlier=self.earlier, parts=self.parts
        )
        for old in (self.metrics, self.partial, self.log):
            old.unlink(missing_ok=True)

    def execute(self) -> str:
        """Run the notebook. Returns its error in words, empty when it is done.

        KeyboardInterrupt passes through.
        """
        failure, status = "", "interrupted"
        try:
            failure = self._papermill()
            if not failure and not self.metrics.exists():
                failure = "it ended without run.finish, so there are no metrics"
                self._note_on_top(failure)
            status = "failed" if failure else "done"
        finally:
            self.seconds = round(time.monotonic() - self.clock, 1)
            if self.partial.exists():
                text = self.partial.read_text(encoding="utf-8")
                text = text.replace(f"{self.root}/", "")  # a record names no machine
                atomic_write_text(self.partial, text)
                if status != "interrupted":
                    os.replace(self.partial, self.out / f"{self.name}.ipynb")
            end = {"failure": failure}
            if status == "done":
                end = {"metrics": sha256_file(self.metrics)}
            times = {"began": self.began, "seconds": self.seconds, "earlier": self.earlier}
            state.mark(self.out, self.name, status, **times, parts=self.parts, **end)
        return failure

    def headline(self) -> str:
        """The sentence that the notebook finished with."""
        return json.loads(self.metrics.read_text(encoding="utf-8"))["headline"]

    def _papermill(self) -> str:
        import papermill
        from papermill.exceptions import PapermillExecutionError

        folder = self.root / "notebooks"
        variables = environment() | {"WORKBOOK_EARLIER_SECONDS": str(self.earlier)}
        try:
            with Progress(self.label, self.stream, environment=variables, log=self.log) as progress:
                papermill.execute_notebook(
                    str(notebook_path(self.name, self.root)),
                    str(self.partial),
                    parameters=self.values,
                    engine_name=progress.engine,
                    progress_bar=False,
                    cwd=str(folder),
                    kernel_name="python3",
                )
        except PapermillExecutionError as error:  # papermill has put it on top of the notebook
            return f"cell {error.exec_count}: {error.ename}: {error.evalue}"
        except Exception as error:  # a dead kernel (out of memory), a full disk
            log = self.log.read_text(errors="replace") if self.log.exists() else ""
            failure = "\n  ".join([f"{type(error).__name__}: {error}", *log.splitlines()[-3:]])
            self._note_on_top(failure)
            return failure
        return ""

    def _note_on_top(self, message: str) -> None:
        """Papermill marks a failed cell itself; a run that broke outside a cell is marked here."""
        import nbformat

        if self.partial.exists():
            notebook = nbformat.read(self.partial, as_version=4)
            text = f"**The run broke:** {message}\n\nThe last cell with output is where to look."
            note = nbformat.v4.new_markdown_cell(
                text, metadata={"tags": ["papermill-error-cell-tag"]}
            )
            notebook.cells.insert(0, note)
            nbformat.write(notebook, self.partial)

    def _earlier_seconds(self) -> float:
        """Seconds that unfinished attempts have cost; a killed one until its last saved cell."""
        before = state.read(self.out, self.name)
        if before.get("status") in ("failed", "interrupted"):
            return before.get("earlier", 0.0) + before.get("seconds", 0.0)
        if before.get("status") == "running":
            began = before.get("began", 0.0)
            last = self.partial.stat().st_mtime if self.partial.exists() else began
            return round(before.get("earlier", 0.0) + max(0.0, last - began), 1)
        return 0.0
