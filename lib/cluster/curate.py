"""All of 00 over shards, as a command, on a Ray cluster or on processes of this machine.

    python -m lib.cluster.curate s3://bucket/raw/*.jsonl --out s3://bucket/clean \\
        --profile llama8b -p data=../mydata

Raw rows in the layouts of 00 (JSON lines or Parquet, on any fsspec path; earlier sources win over
later ones) are normalised, filtered, checked for language and evaluation items, deduplicated, and
written as shards of each split, by the functions of 00 with the parameters of 00: the rows that
stay are those that 00 keeps. Beside them `rejects/` with the reason of every row that was refused,
`drops/` with the keeper of every duplicate, and `manifest.json`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from functools import partial
from pathlib import Path

from lib import params
from lib.cluster import job as cluster_job
from lib.cluster import near_duplicates, session, shards
from lib.curation import curate, decontaminate, readers, sources, splits
from lib.evaluation import tasks
from lib.files import ROOT, content_hash
from lib.packaged import rows as packaged_rows

SHARES = ("validation", "calibration", "threshold")


def judge_rows(
    named: list[str], out: str, index, settings: dict, piece: int | None = None
) -> dict[str, Counter]:
    """Write raw rows that pass the per-row stages into out/rows, the others into out/rejects.

    index, settings: as `curate.ingest` takes them. Returns the counters of `curate.judge`. Needs a
    running Ray.
    """
    import ray

    job = ray.put({"out": out.rstrip("/"), "index": index, "settings": settings})
    chunks = ray.data.from_items(shards.chunks(named, piece or shards.PIECE))
    total: dict[str, Counter] = {}
    for row in chunks.map_batches(_judge, batch_size=1, fn_args=[job]).take_all():
        for what, counter in json.loads(row["seen"]).items():
            total.setdefault(what, Counter()).update(counter)
    return total


def _judge(chunk: dict, job) -> dict:
    import numpy as np

    job, chunk = session.held(job), session.of_batch(chunk)
    name = source_of(chunk["path"])
    source = {
        "name": name,
        "kind": "file",
        "path": chunk["path"],
        "licence": sources.licence_of(name),
    }
    raw = _raw(chunk, job["settings"]["max_row_bytes"])
    kept, rejected, seen = curate.judge(
        raw, source=source, name=name, index=job["index"], settings=job["settings"]
    )
    for folder, rows in (("rows", kept), ("rejects", rejected)):
        if rows:
            shards.write(rows, f"{job['out']}/{folder}/{cluster_job.part(chunk)}.jsonl")
    return {"seen": np.array([json.dumps(seen)])}


def source_of(path: str) -> str:
    """The source that a shard belongs to: its file name without suffix and number.

    Where that leaves a word that says nothing, its folder's name: "a/dolly-00001-of-00004.parquet"
    is dolly, "a/dolly/train-00001.jsonl", too.
    """
    name = re.sub(
        r"([-_]\d+)?([-_]of[-_]\d+)?$", "", sources.stem(Path(path)).removesuffix(".parquet")
    )
    return (
        Path(path).parent.name
        if name.isdigit() or name in ("", "train", "part", "data", "shard", "rows")
        else name
    )


def _raw(chunk: dict, most: int):
    """(place, row, reason) of the raw rows of a chunk, as `readers` gives them."""
    if chunk["path"].endswith(".parquet"):
        yield from ((f"row {number}", row, None) for number, _, row in shards.read(chunk))
        return
    for at, line in shards.lines(chunk, most):
        if line is None:
            yield f"byte {at}", None, readers.too_long(most)
        elif line.strip():
            yield f"byte {at}", *readers.parse(line)


def priority(row: dict, shard: int, first: list[int]) -> tuple[int, int]:
    """The keep rule of 00 for a row of a shard of out/rows; first: the source's number by shard."""
    return curate.importance(row, first[shard])


def split(row: dict, shares: dict[str, float]) -> str:
    """The split of a row that stays, by the hash of its instruction."""
    import numpy as np

    group = np.array([int(content_hash(row["instruction"]), 16)], np.uint64)
    return splits.SPLITS[int(splits.split_of(group, shares)[0])]


def run(
    paths: list[str],
    out: str,
    values: dict,
    suffix: str = ".jsonl",
    piece: int | None = None,
    partitions: int | None = None,
) -> dict:
    """Curate the raw shards at `paths` into `out`; returns what is written to its manifest.json.

    values: parameters of 00_curate, from `params.effective`. Needs a running Ray. Raises ShardError
    for shards that are missing or hold no row that passes, and for a folder that holds shards
    already.
    """
    out = out.rstrip("/")
    named = shards.find(paths)
    for folder in (out, *(f"{out}/{name}" for name in ("rows", "rejects", *splits.SPLITS))):
        cluster_job.check_out(folder, suffix)
    index = _index(values)
    settings = {
        key: values[key] for key in ("min_chars", "max_chars", "max_repetition", "max_row_bytes")
    }
    seen = judge_rows(named, out, index, settings, piece)
    if not seen["counts"]["passed"]:
        raise shards.ShardError(
            f"no row is left: read {out}/rejects, then widen the filters or the sources"
        )
    rows = shards.find([f"{out}/rows"])
    drops, stats = near_duplicates.find(
        rows,
        curate.evidence,
        partial(priority, first=_source_numbers(rows, named)),
        threshold=values["near_threshold"],
        piece=piece,
        permutations=values["permutations"],
        template_rows=values["template_rows"],
        partitions=partitions,
    )
    shares = {name: values[f"{name}_share"] for name in SHARES}
    kept = cluster_job.write_kept(rows, drops, out, suffix, piece, partial(split, shares=shares))
    cluster_job.write_drops(rows, drops, out)
    manifest = {
        "parameters": values,
        "shards": len(named),
        "counts": seen["counts"] | {"duplicates": len(drops)},
        "reasons": dict(seen["reasons"].most_common(40)),
        "contaminated_by": seen["hits"],
        "evaluation_items": index.counts,
        "deduplication": stats,
        "splits": {name: made for name, made in sorted(kept.items()) if name},
    }
    _write_manifest(manifest, out)
    return manifest


def _index(values: dict) -> decontaminate.Index:
    """What no row may repeat: the evaluation items of the data that the parameters name."""
    packaged = values["data"] == tasks.PACKAGED
    data = values["data"] if packaged else str(ROOT / Path(values["data"]).expanduser())
    clean = packaged_rows.background() if packaged else ()
    return decontaminate.Index(tasks.evaluation_texts(data), n=values["ngram"], ignore=clean)


def _source_numbers(rows: list[str], named: list[str]) -> list[int]:
    """The number of the source of each shard of out/rows, in the order of the raw shards."""
    order = list(dict.fromkeys(map(source_of, named)))
    numbers = (int(Path(path).name.split("-")[1]) for path in rows)
    return [order.index(source_of(named[number])) for number in numbers]


def _write_manifest(manifest: dict, out: str) -> None:
    import fsspec

    system, inner = fsspec.core.url_to_fs(f"{out}/manifest.json")
    system.pipe(inner, json.dumps(manifest, indent=1, ensure_ascii=False).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "paths", nargs="+", help="files, folders or patterns of raw shards, on any fsspec path"
    )
    parser.add_argument("--out", required=True, help="folder of the shards that are written")
    parser.add_argument("--profile", default="llama8b", help="whose parameters of 00_curate hold")
    parser.add_argument(
        "-p", action="append", default=[], metavar="key=value", help="a parameter of 00_curate"
    )
    parser.add_argument("--suffix", default=".jsonl", choices=shards.SUFFIXES)
    session.add_options(parser)
    chosen = parser.parse_args()
    try:
        overrides = dict(map(params.parse_override, chosen.p))
        values = params.effective(chosen.profile, ["00_curate"], overrides)["00_curate"]
        shards.find(chosen.paths)  # before a cluster is started for nothing
        session.start(chosen.address, chosen.workers)
        manifest = run(
            chosen.paths, chosen.out, values, chosen.suffix, partitions=chosen.partitions
        )
    except (params.ParameterError, shards.ShardError) as error:
        parser.exit(2, f"error: {error}\n")
    print(json.dumps({key: manifest[key] for key in ("counts", "splits", "reasons")}, indent=1))


if __name__ == "__main__":
    main()
