"""Near-duplicates of shards as a command, on a Ray cluster or on processes of this machine.

    python -m lib.cluster.job s3://bucket/raw/*.parquet --out s3://bucket/clean [--field text]
    [--address auto]

Reads JSON lines or Parquet on any fsspec path, writes the rows that stay as shards beside each
other (one a chunk, the same ones whoever writes them), and `drops.parquet`: for every row that went
its keeper and their exact Jaccard similarity. The row that is kept is the first one in the order of
shards and rows.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial

from lib.cluster import near_duplicates, session, shards


def write_kept(
    named: list[str],
    drops,
    out: str,
    suffix: str = ".parquet",
    piece: int | None = None,
    folder: Callable[[dict], str] | None = None,
) -> dict[str, dict]:
    """Write the rows that are not in `drops` (of `near_duplicates.find`) as shards into `out`.

    named: the shards. folder: names the folder of `out` for a row, `out` itself where None.
    Returns {folder: {"rows", "shards"}} of what was written, "" for `out` itself; a chunk that
    keeps nothing writes none. Needs a running Ray. Raises ValueError for another suffix than .jsonl
    or .parquet, ShardError for a folder that holds shards already.
    """
    import numpy as np
    import ray

    check_out(out, suffix)
    job = ray.put(
        {
            "drops": np.sort(drops["row"].to_numpy(np.uint64)),
            "out": out.rstrip("/"),
            "suffix": suffix,
            "folder": folder or (lambda row: ""),
        }
    )
    chunks = ray.data.from_items(shards.chunks(named, piece or shards.PIECE))
    table: dict[str, dict] = {}
    for row in chunks.map_batches(_write, batch_size=1, fn_args=[job]).take_all():
        made = table.setdefault(row["folder"], {"rows": 0, "shards": 0})
        made["rows"] += row["rows"]
        made["shards"] += row["rows"] > 0
    return table


def check_out(out: str, suffix: str) -> None:
    """ShardError for a folder that holds shards, ValueError for a suffix that no shard has."""
    if suffix not in shards.SUFFIXES:
        raise ValueError(f"suffix is {suffix!r}; write {' or '.join(shards.SUFFIXES)}")
    try:
        old = shards.find([out])
    except shards.ShardError:
        return
    raise shards.ShardError(
        f"{out} holds {len(old)} shards already, {old[0]} first; name an empty folder"
    )


def _write(chunk: dict, job) -> dict:
    import numpy as np

    job, chunk = session.held(job), session.of_batch(chunk)
    numbered = list(shards.read(chunk))
    keys = np.array([chunk["shard"] << shards.NUMBER | place for place, *_ in numbered], np.uint64)
    # one entry for certain: Ray wants a row to know the columns by
    kept: dict[str, list[dict]] = {"": []}
    for (*_, row), gone in zip(numbered, np.isin(keys, job["drops"]), strict=True):
        if not gone:
            kept.setdefault(job["folder"](row), []).append(row)
    for folder, rows in kept.items():
        if rows:
            place = (job["out"], folder, part(chunk) + job["suffix"])
            shards.write(rows, "/".join(filter(None, place)))
    return {"folder": np.array(list(kept)), "rows": np.array([len(rows) for rows in kept.values()])}


def part(chunk: dict) -> str:
    """Name, without suffix, of the shard made of a chunk: the same whoever makes it, in order."""
    return f"part-{chunk['shard']:05d}-{chunk['low']:013d}"


def text_of(row: dict, field: str) -> str:
    """The text of a row; ShardError when it has no such field."""
    if not isinstance(row.get(field), str):
        held = ", ".join(sorted(row)) or "nothing"
        raise shards.ShardError(
            f"a row has no text in {field!r} (it has {held}); name its field by --field, or reject "
            "such rows first"
        )
    return row[field]


def first_in_order(row: dict, shard: int) -> tuple[int, int]:
    """The priority that keeps the first row."""
    return 0, 0


def run(
    paths: list[str],
    out: str,
    field: str = "text",
    suffix: str = ".parquet",
    piece: int | None = None,
    **options,
) -> dict:
    """Drop near-duplicates of the shards at `paths`, write what stays to `out`: the statistics.

    options: those of `near_duplicates.find`. Needs a running Ray.
    """
    check_out(out, suffix)  # before the work, not after it
    named = shards.find(paths)
    drops, stats = near_duplicates.find(
        named, partial(text_of, field=field), first_in_order, piece=piece, **options
    )
    stats |= {"kept": write_kept(named, drops, out, suffix, piece)[""]}
    write_drops(named, drops, out)
    return stats


def write_drops(named: list[str], drops, out: str) -> None:
    """Write out/drops/drops.parquet: places of every dropped row and its keeper, and Jaccard."""

    def place(key: int) -> tuple[str, int]:
        return named[key >> shards.NUMBER], key & ((1 << shards.NUMBER) - 1)

    names = ("path", "number", "keeper_path", "keeper_number", "jaccard")
    columns = (drops[name].tolist() for name in ("row", "keeper", "jaccard"))
    rows = [
        dict(zip(names, (*place(row), *place(keeper), value), strict=True))
        for row, keeper, value in zip(*columns, strict=True)
    ]
    shards.write(rows, f"{out.rstrip('/')}/drops/drops.parquet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "paths", nargs="+", help="files, folders or patterns of shards, on any fsspec path"
    )
    parser.add_argument("--out", required=True, help="folder of the shards that are written")
    parser.add_argument("--field", default="text", help="field of a row that is compared")
    parser.add_argument("--suffix", default=".parquet", choices=shards.SUFFIXES)
    parser.add_argument("--threshold", type=float, default=0.8)
    session.add_options(parser)
    chosen = parser.parse_args()
    try:
        shards.find(chosen.paths)  # before a cluster is started for nothing
        session.start(chosen.address, chosen.workers)
        stats = run(
            chosen.paths,
            chosen.out,
            chosen.field,
            chosen.suffix,
            threshold=chosen.threshold,
            partitions=chosen.partitions,
        )
    except shards.ShardError as error:
        parser.exit(2, f"error: {error}\n")
    print(json.dumps(stats, indent=1))


if __name__ == "__main__":
    main()
