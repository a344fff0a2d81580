"""The live line of a run: which step, which cell, how long, the last line the cell printed."""

from __future__ import annotations

import os
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path

REFRESH_S, PLAIN_S = 0.5, 15.0  # in place on a terminal; as lines where the output goes to a file


def clock(seconds: float) -> str:
    """1:02:03, or 2:03 under an hour."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Context manager around one execution; `engine` names the papermill engine that reports to it.

    environment: set for the kernel alone. log: file for what the kernel itself writes to stderr.
    """

    def __init__(
        self,
        label: str,
        stream,
        *,
        environment: dict | None = None,
        log: Path | None = None,
        plain_s: float = PLAIN_S,
    ):
        self.label, self.stream, self.plain_s = label, stream, plain_s
        self.environment, self.log = os.environ | (environment or {}), log or Path(os.devnull)
        self.live = bool(getattr(stream, "isatty", lambda: False)())
        self.engine = f"watched by {id(self)}"
        self.cells, self.index, self.heading = [], 0, ""
        self.began = time.monotonic()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._refresh, daemon=True)

    def __enter__(self) -> Progress:
        from papermill.clientwrap import PapermillNotebookClient
        from papermill.engines import Engine, papermill_engines

        watcher = self

        class Watched(Engine):
            @classmethod
            def execute_managed_notebook(cls, nb_man, kernel_name, **_):
                begin = nb_man.cell_start

                def cell_start(cell, cell_index=None, **rest):
                    watcher.enter(nb_man.nb.cells, cell_index or 0)
                    return begin(cell, cell_index, **rest)

                nb_man.cell_start = cell_start
                client = PapermillNotebookClient(
                    nb_man, kernel_name=kernel_name, coalesce_streams=True
                )
                with open(watcher.log, "ab") as log:
                    return client.execute(env=watcher.environment, stderr=log)

        papermill_engines.register(self.engine, Watched)
        self.thread.start()
        return self

    def __exit__(self, *error) -> None:
        self.stop.set()
        self.thread.join()
        if self.live:
            self._write("\r\x1b[K")

    def enter(self, cells: list, index: int) -> None:
        """A cell starts; a Markdown heading stays the label of the code below it."""
        self.cells, self.index = cells, index
        first = next((line for line in cells[index].source.splitlines() if line.strip()), "")
        if cells[index].cell_type == "markdown" and first.startswith("#"):
            self.heading = first.lstrip("# ")
        elif cells[index].cell_type == "code" and not self.heading:
            self.heading = first

    def line(self) -> str:
        """The status as one line of text."""
        text = f"{self.label}  {clock(time.monotonic() - self.began)}"
        if not self.cells:
            return f"{text}  starting the kernel"
        text += f"  cell {self.index + 1}/{len(self.cells)}"
        last = self._last_output()
        return f"{text}  {self.heading}" + (f" | {last}" if last else "")

    def _last_output(self) -> str:
        if not self.cells or self.cells[self.index].cell_type != "code":
            return ""
        texts = [
            output.text
            for output in self.cells[self.index].outputs
            if output.get("name") == "stdout"
        ]
        lines = texts[-1].replace("\r", "\n").split("\n") if texts else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def _refresh(self) -> None:
        while not self.stop.wait(REFRESH_S if self.live else self.plain_s):
            if self.live:
                width = shutil.get_terminal_size().columns - 1
                self._write("\r" + self.line()[:width] + "\x1b[K")
            elif self.cells:
                self._write(self.line()[:200] + "\n")

    def _write(self, text: str) -> None:
        with suppress(OSError):  # a closed terminal
            self.stream.write(text)
            self.stream.flush()
