"""Near-duplicates of shards as a command, on a Ray cluster or on processes of this machine.

    python -m lib.curation.cluster_job s3://bucket/raw/*.parquet --out s3://bucket/clean [--field text] [--address auto]

Reads JSON lines or Parquet on any fsspec path, writes the rows that stay as shards beside each other (one a chunk, the
same ones whoever writes them), and `drops.parquet`: for every row that went its keeper and their exact Jaccard
similarity. The row that is kept is the first one in the order of shards and rows.
"""

from __future__ import annotations

import argparse
import json
from functools import partial

from lib.curation import cluster, shards


def write_kept(named: list[str], drops, out: str, suffix: str = ".parquet", piece: int | None = None) -> dict:
    """Write the rows of the shards `named` that are not in `drops` (of `cluster.near_duplicates`) as shards into `out`.

    Returns {"rows", "shards"} written; a chunk that keeps nothing writes none. Needs a running Ray. Raises ValueError
    for another suffix than .jsonl or .parquet, and for a folder that holds shards already.
    """
    import numpy as np
    import ray

    _check_out(out, suffix)
    job = ray.put({"drops": np.sort(drops["row"].to_numpy(np.uint64)), "out": out.rstrip("/"), "suffix": suffix})
    chunks = ray.data.from_items(shards.chunks(named, piece or shards.PIECE))
    counts = [row["rows"] for row in chunks.map_batches(_write, batch_size=1, fn_args=[job]).take_all()]
    return {"rows": int(sum(counts)), "shards": sum(count > 0 for count in counts)}


def _check_out(out: str, suffix: str) -> None:
    if suffix not in shards.SUFFIXES:
        raise ValueError(f"suffix is {suffix!r}; write {' or '.join(shards.SUFFIXES)}")
    if old := _present(out):
        raise ValueError(f"{out} holds {len(old)} shards already, {old[0]} first; name an empty folder")


def _present(out: str) -> list[str]:
    try:
        return shards.find([out])
    except shards.ShardError:
        return []


def _write(chunk: dict, job) -> dict:
    import numpy as np

    job = cluster._held(job)
    chunk = {name: column[0] if name == "path" else int(column[0]) for name, column in chunk.items()}
    found = list(shards.read(chunk))
    keys = np.array([chunk["shard"] << cluster.NUMBER | number for number, *_ in found], np.uint64)
    kept = [row for (*_, row), gone in zip(found, np.isin(keys, job["drops"]), strict=True) if not gone]
    if kept:
        shards.write(kept, f"{job['out']}/part-{chunk['shard']:05d}-{chunk['low']:013d}{job['suffix']}")
    return {"rows": np.array([len(kept)])}


def text_of(row: dict, field: str) -> str:
    """The text of a row; ShardError when it has no such field."""
    if not isinstance(row.get(field), str):
        held = ", ".join(sorted(row)) or "nothing"
        raise shards.ShardError(f"a row has no text in {field!r} (it has {held}); name its field by --field, or reject "
                                "such rows first")
    return row[field]


def first_in_order(row: dict, shard: int) -> tuple[int, int]:
    """The priority that keeps the first row."""
    return 0, 0


def run(paths: list[str], out: str, field: str = "text", suffix: str = ".parquet", piece: int | None = None,
        **options) -> dict:
    """Drop near-duplicates of the shards at `paths` and write what stays to `out`; returns the statistics.

    options: those of `cluster.near_duplicates`. Needs a running Ray.
    """
    _check_out(out, suffix)  # before the work, not after it
    named = shards.find(paths)
    drops, stats = cluster.near_duplicates(named, partial(text_of, field=field), first_in_order, piece=piece, **options)
    stats |= {"kept": write_kept(named, drops, out, suffix, piece)}

    def place(key: int) -> tuple[str, int]:
        return named[key >> cluster.NUMBER], key & ((1 << cluster.NUMBER) - 1)

    names = ("path", "number", "keeper_path", "keeper_number", "jaccard")
    columns = (drops[name].tolist() for name in ("row", "keeper", "jaccard"))
    rows = [dict(zip(names, (*place(row), *place(keeper), value), strict=True))
            for row, keeper, value in zip(*columns, strict=True)]  # fmt: skip
    shards.write(rows, f"{out.rstrip('/')}/drops/drops.parquet")
    return stats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="+", help="files, folders or patterns of shards, on any fsspec path")
    parser.add_argument("--out", required=True, help="folder of the shards that are written")
    parser.add_argument("--field", default="text", help="field of a row that is compared")
    parser.add_argument("--suffix", default=".parquet", choices=shards.SUFFIXES)
    parser.add_argument("--threshold", type=float, default=0.8)
    parser.add_argument("--partitions", type=int, help="tasks of a shuffle; more need less memory each; by bytes")
    parser.add_argument("--address", default="", help="of a running cluster; empty starts one on this machine")
    parser.add_argument("--workers", type=int, default=2, help="processes where none runs yet")
    chosen = parser.parse_args()
    cluster.start(chosen.address, chosen.workers)
    stats = run(chosen.paths, chosen.out, chosen.field, chosen.suffix, threshold=chosen.threshold,
                partitions=chosen.partitions)
    print(json.dumps(stats, indent=1))


if __name__ == "__main__":
    main()
