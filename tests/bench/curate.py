"""The whole of 00 at full size: wall time, memory of all its processes, and where the time goes.

    python tests/bench/curate.py --data FOLDER [--documents 640637] [--workers 2] [--out
    tests/bench/results]

Rows are the corpus of dedup_corpus.py in Alpaca's layout, made of the training rows of FOLDER; they
meet the evaluation sets of FOLDER/evals. The notebook runs as anyone runs it, through lib.run.
Memory is the proportional set size (shared pages counted once) of the run, the kernel and its
workers, added up, looked at twice a second. Writes curate.md and curate.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]


def watch(process, peak: list[int], stop: threading.Event) -> None:
    """Raise peak[0] to the bytes that the tree of a process holds."""
    import psutil

    while not stop.wait(0.5):
        total = 0
        with contextlib.suppress(psutil.Error):  # the run has just ended
            for one in [process, *process.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):  # a worker has
                    total += one.memory_full_info().pss
        peak[0] = max(peak[0], total)


def steps(notebook: Path) -> list[dict]:
    """The table of the executed notebook that says where the time went."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    text = "\n".join(
        "".join(output.get("data", {}).get("text/markdown", ""))
        for cell in cells
        for output in cell.get("outputs", [])
    )
    rows = re.search(r"\| step \| seconds \|.*\n\|[- |]+\n((?:\|.*\n?)+)", text)
    assert rows, f"{notebook} has no table of steps"
    cells = [[cell.strip() for cell in row.strip("| ").split("|")] for row in rows[1].splitlines()]
    return [
        {"step": step, "seconds": float(wall), "cpu_s": float(cpu), "us_a_row": float(us)}
        for step, wall, cpu, us in cells
    ]


def main() -> None:
    import dedup_corpus
    import psutil
    from dedup import processor

    from lib.files import atomic_write_json, atomic_write_text

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--documents", type=int, default=640_637)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    chosen = parser.parse_args()
    name = f"bench-curate-{os.getpid()}"
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "instruct" / "corpus.jsonl"
        rows.parent.mkdir()
        pool = dedup_corpus.sentences(chosen.data)
        dedup_corpus.write(rows, pool, chosen.documents, layout="alpaca")
        (Path(folder) / "evals").symlink_to((Path(chosen.data) / "evals").resolve())
        size, peak, stop = rows.stat().st_size, [0], threading.Event()
        command = [
            sys.executable,
            "-m",
            "lib.run",
            "smollm2",
            "--run",
            name,
            "--only",
            "00",
            "-p",
            f"data={folder}",
            "-p",
            f"workers={chosen.workers}",
        ]
        start = time.perf_counter()
        process = psutil.Process(subprocess.Popen(command, cwd=ROOT).pid)
        thread = threading.Thread(target=watch, args=(process, peak, stop), daemon=True)
        thread.start()
        failed = process.wait()
        seconds = time.perf_counter() - start
        stop.set()
        thread.join()
    if failed:
        raise SystemExit(f"lib.run ended with {failed}; its record is outputs/{name}")
    table = steps(ROOT / "outputs" / name / "00_curate.ipynb")
    shutil.rmtree(ROOT / "outputs" / name)
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "processor": processor(),
        "python": platform.python_version(),
        "documents": chosen.documents,
        "megabytes": round(size / 1e6),
        "workers": chosen.workers,
        "seconds": seconds,
        "peak_gb": peak[0] / 1e9,
        "steps": table,
    }
    atomic_write_json(chosen.out / "curate.json", record)
    lines = [
        "# 00 at full size",
        "",
        (
            f"{record['date']}, {record['processor']}, Python {record['python']}."
            f" {chosen.documents:,} rows, {record['megabytes']:,} MB, {chosen.workers} workers:"
            f" {seconds / 60:.1f} minutes from the command to the page, {record['peak_gb']:.2f} GB"
            " at most in all its processes together."
        ),
        "",
        "| step | seconds | CPU seconds | us of a CPU a row |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['step']} | {row['seconds']:.1f} | {row['cpu_s']:.1f} | {row['us_a_row']:.0f} |"
        for row in table
    ]
    atomic_write_text(chosen.out / "curate.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
