"""The near-duplicate job on Ray with one worker and with two, beside the one-machine engine:
seconds and memory.

    python tests/bench/dedup_ray.py [--documents 150000 640637] [--shards 16] [--data
    packaged|FOLDER]

Needs the extra `cluster`. Each side is a process of its own and reads the same JSON lines; a side
of n workers has n processors and no more. The drops must be the same rows. A worker's memory is the
largest resident size that any of its processes had, without what it shares with others (libraries,
Ray's object store), looked at four times a second. Writes results/dedup_ray.md and .json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]


def watch(peaks: dict, stop: threading.Event) -> None:
    """Largest resident bytes, unshared, of each Ray worker process below this one."""
    import psutil

    while not stop.wait(0.25):
        for process in psutil.Process().children(recursive=True):
            try:
                title = " ".join(process.cmdline())
                if title.startswith("ray::"):
                    held = process.memory_info()
                    peaks[process.pid] = max(peaks.get(process.pid, 0), held.rss - held.shared)
            except psutil.Error:
                continue


def child(workers: int, folder: str) -> dict:
    """One side: 0 workers is the one-machine engine on one thread."""
    import orjson

    from lib.cluster import job as cluster_job
    from lib.cluster import session, shards
    from lib.dedup import near_duplicates

    named = shards.find([folder])
    if not workers:

        def texts():
            for path in named:
                with open(path.removeprefix("file://"), "rb") as handle:
                    for line in handle:
                        yield orjson.loads(line)["text"]

        near_duplicates.find(["warm", "up"])
        start = time.perf_counter()
        drops, _ = near_duplicates.find(texts)
        return {"seconds": time.perf_counter() - start, "drops": sorted(drops["row"].tolist())}
    os.sched_setaffinity(0, set(range(workers)))  # Ray counts processors and does not keep to them
    session.start(workers=workers)
    peaks, stop = {}, threading.Event()
    thread = threading.Thread(target=watch, args=(peaks, stop), daemon=True)
    thread.start()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        stats = cluster_job.run([folder], out, suffix=".jsonl")
        seconds = time.perf_counter() - start
        gone = [
            row
            for path in shards.find([f"{out}/drops"])
            for chunk in shards.chunks([path])
            for _, _, row in shards.read(chunk)
        ]
        kept = sum(path.read_bytes().count(b"\n") for path in Path(out).glob("part-*.jsonl"))
    stop.set()
    thread.join()
    place, at = {}, 0
    for number, path in enumerate(named):
        for chunk in shards.chunks([path]):
            for offset, _, _ in shards.read(chunk):
                place[number, offset] = at
                at += 1
    order = {path: number for number, path in enumerate(named)}
    assert kept + len(gone) == at, f"{kept} kept and {len(gone)} dropped of {at}"
    return {
        "seconds": seconds,
        "partitions": stats["partitions"],
        "parts": stats["seconds"],
        "worker_gb": max(peaks.values()) / 1e9,
        "processes": len(peaks),
        "drops": sorted(place[order[row["path"]], row["number"]] for row in gone),
    }


def main() -> None:
    import dedup_corpus

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, nargs="+", default=[150_000, 640_637])
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--data", default="packaged")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        print(json.dumps(child(int(chosen.child[0]), chosen.child[1])))
        return
    pool, rows = dedup_corpus.sentences(chosen.data), []
    for count in chosen.documents:
        with tempfile.TemporaryDirectory() as folder:
            whole, parts = Path(folder) / "whole.jsonl", Path(folder) / "shards"
            dedup_corpus.write(whole, pool, count)
            parts.mkdir()
            with open(whole, "rb") as lines:
                for number in range(chosen.shards):
                    some = islice(lines, -(-count // chosen.shards))
                    (parts / f"{number:03d}.jsonl").write_bytes(b"".join(some))
            rows += sides(count, parts)
    save(chosen, rows)


def sides(count: int, parts: Path) -> list[dict]:
    rows, truth = [], []
    for workers in (0, 1, 2):
        command = [sys.executable, __file__, "--child", str(workers), str(parts)]
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "NUMBA")}
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=os.environ | threads | {"PYTHONPATH": paths},
        )
        if done.returncode:
            raise RuntimeError(f"{workers} workers failed:\n{done.stderr[-3000:]}")
        found = json.loads(done.stdout.splitlines()[-1])
        drops = found.pop("drops")
        truth = truth if workers else drops
        assert drops == truth, (
            f"{workers} workers drop {len(drops)} rows, one machine {len(truth)}, not the same"
        )
        rows.append({"documents": count, "workers": workers, "dropped": len(drops), **found})
    return rows


def save(chosen, rows: list[dict]) -> None:
    from lib.files import atomic_write_json, atomic_write_text

    about = {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "ray": version("ray"),
        "shards": chosen.shards,
    }
    faster = {
        count: one["seconds"] / two["seconds"]
        for count in chosen.documents
        for one, two in [[row for row in rows if row["documents"] == count and row["workers"]]]
    }
    record = about | {
        "rows": rows,
        "speedup_two_workers": {str(count): ratio for count, ratio in faster.items()},
    }
    atomic_write_json(chosen.out / "dedup_ray.json", record)
    told = ", ".join(f"{k} {v}" for k, v in about.items())
    lines = [
        "# Near-duplicates on Ray",
        "",
        f"{told}. The same rows are dropped by all.",
        "",
        (
            "| documents | engine | seconds | dropped | partitions | GB of the largest worker |"
            " stages, seconds |"
        ),
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        name = f"Ray, {row['workers']} workers" if row["workers"] else "one machine, one thread"
        stages = ", ".join(f"{k} {v:.1f}" for k, v in row.get("parts", {}).items())
        memory = f"{row['worker_gb']:.2f}" if "worker_gb" in row else ""
        lines.append(
            f"| {row['documents']:,} | {name} | {row['seconds']:.1f} | {row['dropped']:,} | "
            f"{row.get('partitions', '')} | {memory} | {stages} |"
        )
    told = " and ".join(
        f"{ratio:.2f} times as fast as one at {count:,}" for count, ratio in faster.items()
    )
    lines += [
        "",
        (
            f"Two workers are {told}. Seconds with Ray include starting its worker processes,"
            " reading, shuffling through its object store and writing the rows that stay; starting"
            " the cluster is not in them."
        ),
    ]
    atomic_write_text(chosen.out / "dedup_ray.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
