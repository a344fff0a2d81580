"""Near-duplicate engines on one corpus, alternately in one run: documents a CPU second, recall,
precision, memory.

    python tests/bench/dedup.py [--data packaged|FOLDER] [--quality 50000] [--sample 1500]
                                [--sizes 100000 640637 2000000] [--rounds 5] [--out
                                tests/bench/results]

Three parts. Speed: ours and the installed peers read the same JSON lines, in turn, each in a
process of its own; what counts is user and system time of that process, because machines are
shared. Quality: on `quality` documents with known copies every pair of Jaccard 0.8 and more is
found exactly, and each engine is held to it. Growth: ours alone at the `sizes`, with peak memory,
and the line through them continued to ten million. Writes dedup.json and dedup.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

THRESHOLD = 0.8


def grams(text: str) -> set[str]:
    return {text[i : i + 3] for i in range(len(text) - 2)} or {text}


def read(path: str) -> list[str]:
    import orjson

    with open(path, "rb") as handle:
        return [orjson.loads(line)["text"] for line in handle]


def ours(path: str, **options):
    """(drops {row: keeper}, statistics) of lib.dedup.near_duplicates."""
    import orjson

    from lib.dedup import near_duplicates

    def texts():
        with open(path, "rb") as handle:
            for line in handle:
                yield orjson.loads(line)["text"]

    drops, stats = near_duplicates.find(texts, threshold=THRESHOLD, **options)
    return dict(zip(drops["row"].tolist(), drops["keeper"].tolist(), strict=True)), stats


def naive(path: str):
    """The usual loop: a MinHash a document, `update` a shingle, query, compare estimates,
    insert."""
    from datasketch import MinHash, MinHashLSH

    index, sketches, drops = MinHashLSH(threshold=THRESHOLD, num_perm=128), [], {}
    for number, text in enumerate(read(path)):
        sketch = MinHash(num_perm=128, scheme="affine32")
        for gram in grams(text):
            sketch.update(gram.encode())
        for other in index.query(sketch):
            if sketch.jaccard(sketches[other]) >= THRESHOLD:
                drops[number] = other
                break
        index.insert(number, sketch)
        sketches.append(sketch)
    return drops, {}


def bulk(path: str):
    """datasketch at its best: MinHash.generator, then the index."""
    from datasketch import MinHash, MinHashLSH

    index, sketches, drops = MinHashLSH(threshold=THRESHOLD, num_perm=128), [], {}
    made = MinHash.generator(
        ([g.encode() for g in grams(t)] for t in read(path)), num_perm=128, scheme="affine32"
    )
    for number, sketch in enumerate(made):
        for other in index.query(sketch):
            if sketch.jaccard(sketches[other]) >= THRESHOLD:
                drops[number] = other
                break
        index.insert(number, sketch, check_duplication=False)
        sketches.append(sketch)
    return drops, {}


def rensa(path: str):
    """rensa's deduplicator (Rust), fed with token lists."""
    import rensa as library

    engine, drops = (
        library.RMinHashDeduplicator(threshold=THRESHOLD, num_perm=128, use_lsh=True),
        {},
    )
    texts = read(path)
    for low in range(0, len(texts), 2000):
        pairs = [
            (str(low + i), list(grams(text))) for i, text in enumerate(texts[low : low + 2000])
        ]
        drops |= {low + i: -1 for i, new in enumerate(engine.add_pairs(pairs)) if not new}
    return drops, {}


ENGINES = {
    "ours": ours,
    "datasketch update loop": naive,
    "datasketch generator": bulk,
    "rensa": rensa,
}
NEEDS = {
    "datasketch update loop": "datasketch",
    "datasketch generator": "datasketch",
    "rensa": "rensa",
}


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def processor() -> str:
    """Name of the processor and whether it has 512-bit vectors, of which the signing loop makes
    much."""
    path = Path("/proc/cpuinfo")
    found = dict(
        re.findall(
            r"^(model name|flags)\s*:\s*(.*)$", path.read_text() if path.exists() else "", re.M
        )
    )
    wide = " with AVX-512" if "avx512f" in found.get("flags", "") else ""
    return found.get("model name", platform.machine()) + wide


def peak_bytes() -> int:
    """Largest resident size of this process. `getrusage` would give that of the parent which forked
    it, if larger."""
    (line,) = [
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    ]
    return 1024 * int(line.split()[1])


def child(engine: str, path: str, warm: str) -> None:
    """Run one engine and print its record; a small corpus first, so that compiling is not
    counted."""
    ENGINES[engine](warm)
    start, began = time.process_time(), time.perf_counter()
    drops, stats = ENGINES[engine](path)
    record = {
        "cpu_s": time.process_time() - start,
        "wall_s": time.perf_counter() - began,
        "drops": drops,
        "peak_gb": peak_bytes() / 1e9,
        **{
            key: stats[key]
            for key in ("cpu_seconds", "pairs_compared", "bands", "rows")
            if key in stats
        },
    }
    print(json.dumps(record))


def measure(engine: str, path: Path, warm: Path) -> dict:
    command = [sys.executable, __file__, "--child", engine, str(path), str(warm)]
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
        **{f"{name}_NUM_THREADS": "1" for name in ("OMP", "NUMBA", "RAYON", "OPENBLAS")},
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{engine} failed:\n{done.stderr[-2000:]}")
    record = json.loads(done.stdout.splitlines()[-1])
    record["drops"] = {int(row): keeper for row, keeper in record["drops"].items()}
    return record


def truth(texts: list[str]) -> dict[tuple[int, int], float]:
    """{(i, j): Jaccard} of all pairs at the threshold or above: exact, on Python's own sets.

    Bit maps of the shingles rule out the other pairs for certain: the shingles two texts share are
    at most the bits they share, plus those that collided in one of them."""
    import numpy as np
    from numba import njit

    sets = [grams(text) for text in texts]
    bits, size = np.zeros((len(texts), 64), np.uint64), np.array([len(s) for s in sets])
    for row, held in enumerate(sets):
        places = np.unique(
            np.array([hash(gram) for gram in held], np.int64).view(np.uint64) % np.uint64(4096)
        )
        np.bitwise_or.at(
            bits[row],
            (places >> np.uint64(6)).astype(int),
            np.uint64(1) << (places & np.uint64(63)),
        )
    lost = size - np.bitwise_count(bits).sum(axis=1)

    @njit
    def possible(bits, size, lost, threshold, first, second):
        found = 0
        for i in range(len(size)):
            for j in range(i):
                wanted = threshold / (1 + threshold) * (size[i] + size[j]) - 1e-9
                if min(size[i], size[j]) < wanted:
                    continue
                shared = min(lost[i], lost[j])
                for cell in range(bits.shape[1]):
                    x = bits[i, cell] & bits[j, cell]
                    x -= (x >> np.uint64(1)) & np.uint64(0x5555555555555555)
                    x = (x & np.uint64(0x3333333333333333)) + (
                        (x >> np.uint64(2)) & np.uint64(0x3333333333333333)
                    )
                    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
                    shared += np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))
                if shared >= wanted:
                    if found < len(first):
                        first[found], second[found] = j, i
                    found += 1
        return found

    first, second = np.empty(50_000_000, np.int32), np.empty(50_000_000, np.int32)
    count = possible(bits, size, lost, THRESHOLD, first, second)
    assert count <= len(first), f"{count:,} pairs to look at, room for {len(first):,}"
    pairs = {}
    for i, j in zip(first[:count].tolist(), second[:count].tolist(), strict=True):
        shared = len(sets[i] & sets[j])
        if (value := shared / (size[i] + size[j] - shared)) >= THRESHOLD:
            pairs[i, j] = float(value)
    return pairs


def quality(drops: dict[int, int], pairs: dict[tuple[int, int], float], count: int) -> dict:
    """recall and precision over dropped rows, orphans, pairs left among the kept rows.

    What should go is the greedy choice in text order over the exact pairs. A drop is right when a
    better row at the threshold exists; an orphan has no such row among the kept ones."""
    from lib import stats

    near: dict[int, set[int]] = {}
    for i, j in pairs:
        near.setdefault(i, set()).add(j)
        near.setdefault(j, set()).add(i)
    expected: set[int] = set()
    for row in range(count):
        if any(other < row and other not in expected for other in near.get(row, ())):
            expected.add(row)
    right = sum(any(other < row for other in near.get(row, ())) for row in drops)
    recorded = [row for row, keeper in drops.items() if keeper >= 0]
    recall, precision = (
        stats.proportion(hits, of)
        for hits, of in (
            (sum(row in drops for row in expected), len(expected)),
            (right, len(drops)),
        )
    )
    return {
        "should_go": len(expected),
        "dropped": len(drops),
        "recall": recall["value"],
        "recall_interval": [recall["low"], recall["high"]],
        "precision": precision["value"],
        "precision_interval": [precision["low"], precision["high"]],
        "orphans": sum(all(other in drops for other in near.get(row, ())) for row in drops),
        "kept_pairs": sum(i not in drops and j not in drops for i, j in pairs),
        "wrong_keepers": sum(
            drops[row] in drops or drops[row] not in near.get(row, ()) for row in recorded
        ),
    }


def fitted(sizes: dict[int, dict]) -> dict:
    """CPU seconds = a n + b n^2 through the measured sizes: {"a", "b", "cpu_s_10m"}. Least squares
    of the seconds a document, a and b not negative."""
    import numpy as np
    from scipy.optimize import nnls

    n = np.array(sorted(sizes), float)
    measured = np.array([sizes[int(size)]["cpu_s"] for size in n])
    terms = np.stack([np.ones(len(n)), n], axis=1)[:, : len(n)]  # one size says nothing of n^2
    found = [*nnls(terms, measured / n)[0].tolist(), 0.0]
    return {"a": found[0], "b": found[1], "cpu_s_10m": found[0] * 1e7 + found[1] * 1e14}


def main() -> None:
    import dedup_corpus

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="packaged")
    parser.add_argument("--quality", type=int, default=50_000)
    parser.add_argument("--sample", type=int, default=1500)
    parser.add_argument("--sizes", type=int, nargs="*", default=[100_000, 640_637, 2_000_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        return child(*chosen.child)
    engines = [name for name in ENGINES if name not in NEEDS or installed(NEEDS[name])]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        pool = dedup_corpus.sentences(chosen.data)
        for name, count in (("warm", 300), ("sample", chosen.sample), ("quality", chosen.quality)):
            dedup_corpus.write(place / f"{name}.jsonl", pool, count, seed=2)
        speed: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(chosen.rounds):
            for name in engines:  # alternately: what else the machine does hits all of them
                file = "quality" if name == "ours" else "sample"
                record = measure(name, place / f"{file}.jsonl", place / "warm.jsonl")
                speed[name].append(
                    (chosen.quality if name == "ours" else chosen.sample) / record["cpu_s"]
                )
        texts = read(str(place / "quality.jsonl"))
        pairs = truth(texts)
        table = []
        for name in engines:
            row = {
                "engine": name,
                "documents_per_cpu_s": max(speed[name]),
                "ratio_to_naive": max(speed[name]) / max(speed["datasketch update loop"]),
            }
            if name != "datasketch update loop":
                # its answers are those of the generator, minutes later
                drops = measure(name, place / "quality.jsonl", place / "warm.jsonl")["drops"]
                row |= quality(drops, pairs, len(texts))
            table.append(row)
        sizes = {}
        for count in chosen.sizes:
            dedup_corpus.write(place / "size.jsonl", pool, count)
            runs = [measure("ours", place / "size.jsonl", place / "warm.jsonl") for _ in range(2)]
            sizes[count] = min(runs, key=lambda found: found["cpu_s"])
            sizes[count]["drops"] = len(sizes[count]["drops"])
            (place / "size.jsonl").unlink()
    save(chosen, table, sizes, len(pairs), sum(map(len, texts)) / len(texts))


def save(chosen, table: list[dict], sizes: dict[int, dict], pairs: int, mean: float) -> None:
    from lib.files import atomic_write_json, atomic_write_text

    mine, full = table[0], sizes.get(640_637, {})
    packages = ("datasketch", "rensa", "numba", "numpy", "orjson")
    versions = {name: installed(name) for name in packages if installed(name)}
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "processor": processor(),
        "python": platform.python_version(),
        "versions": versions,
        "data": "packaged" if chosen.data == "packaged" else "folder",
        "documents": chosen.quality,
        "mean_characters": round(mean),
        "pairs_at_threshold": pairs,
        "engines": table,
        "sizes": {str(count): found for count, found in sizes.items()},
        **{key: mine[key] for key in ("ratio_to_naive", "recall", "precision", "orphans")},
    }
    if full:  # a size that was not measured is absent
        record |= {"cpu_s_640k": full["cpu_s"], "peak_gb_640k": full["peak_gb"]}
    if sizes:
        record["growth"] = fitted(sizes)
    atomic_write_json(chosen.out / "dedup.json", record)
    about = f"{record['date']}, {record['processor']}, Python {record['python']}, "
    lines = [
        "# Near-duplicate engines",
        "",
        about
        + ", ".join(f"{name} {number}" for name, number in versions.items())
        + f". {chosen.quality:,} documents of {mean:,.0f} characters with {pairs:,} pairs at"
        f" Jaccard {THRESHOLD} or above; one thread, CPU seconds of the process from JSON lines"
        " to the set of dropped rows; best of the rounds; sizes, best of two.",
        "",
    ]
    keys = [
        "engine",
        "documents_per_cpu_s",
        "ratio_to_naive",
        "recall",
        "precision",
        "orphans",
        "kept_pairs",
    ]
    lines += [
        "| " + " | ".join(key.replace("_", " ") for key in keys) + " |",
        "|---" * len(keys) + "|",
    ]
    for row in table:
        cells = [row.get(key, "") for key in keys]
        for key, of in (("recall", "should_go"), ("precision", "dropped")):
            if key in row:
                low, high = row[f"{key}_interval"]
                cells[keys.index(key)] = f"{row[key]:.4f} [{low:.4f}, {high:.4f}], n {row[of]:,}"
        lines.append(
            "| "
            + " | ".join(
                (
                    f"{c:,.4g}"
                    if isinstance(c, float) and c < 1000
                    else f"{c:,.0f}"
                    if isinstance(c, float)
                    else str(c)
                )
                for c in cells
            )
            + " |"
        )
    lines += [
        "",
        "| documents | CPU seconds | us a document | peak GB | dropped |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {count:,} | {found['cpu_s']:.1f} | {1e6 * found['cpu_s'] / count:.1f} |"
        f" {found['peak_gb']:.2f} | {found['drops']:,} |"
        for count, found in sizes.items()
    ]
    if sizes:
        fit = record["growth"]
        lines += [
            "",
            (
                f"CPU seconds = {fit['a'] * 1e6:.2f} us n + {fit['b'] * 1e12:.3f} ps n^2: "
                f"{fit['cpu_s_10m']:,.0f} s for ten million documents (extrapolated)."
            ),
        ]
    atomic_write_text(chosen.out / "dedup.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
