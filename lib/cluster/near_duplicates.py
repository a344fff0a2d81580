"""Near-duplicates beyond one machine: a job on Ray Data with the result of `lib.dedup`.

    read and sign (map) -> shuffle by band key -> candidate pairs (group) -> shuffle by pair ->
    exact check (group) -> rounds over the pairs that are left (driver)

Texts are never shuffled: a row travels as shard and number, and who checks a pair reads its two
rows again. Equal texts are one class, of which a bucket compares one row. The rounds: a class is
kept when every better class that is alike has been dropped, and dropped when one of them is kept;
that is the greedy choice in order of priority, so no dropped row is an orphan (Blelloch, Fineman,
Shun 2012: the rounds are few). A task that is lost with its worker is done again by Ray from the
same chunk, with the same result (`pytest -m cluster` kills one; tests/bench/dedup_ray.py measures).
A worker holds one chunk (some megabytes of lines, or a whole row group of Parquet), or what is
shuffled of PARTITION bytes of text: its memory does not grow with the rows. Starting the workers
takes longer than the work below some hundred thousand rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from lib.cluster import rounds, tasks
from lib.cluster import shards as files
from lib.dedup import bands as lsh

# bytes of shards whose band keys, about one and a half times as much, a task of a shuffle holds
PARTITION = 32_000_000
# times as many groups as partitions: groups are hashed to partitions, and few of them would fill
# some twice
GROUPS = 8


def find(
    shards: list[str],
    text: Callable[[dict], str],
    priority: Callable[[dict, int], tuple],
    *,
    threshold: float = 0.8,
    permutations: int | None = None,
    shingle: str = "char3",
    bands: tuple[int, int] | str | None = None,
    seed: int = 1,
    template_rows: int = 50,
    partitions: int | None = None,
    skip: frozenset[int] = frozenset(),
    piece: int | None = None,
):
    """(drops, stats) of the rows of some shards, as `lib.dedup` gives them for the rows in order.

    shards: from `shards.find`. text: what is compared of a row. priority: of a row and the number
    of its shard, two integers from 0 to 2^64 - 1; lower ones are kept first, the earlier row on a
    tie. partitions: tasks of a shuffle, None for one each PARTITION bytes of the shards; what one
    holds must fit in a worker's memory (about 75 bytes x bands x rows / partitions, some times
    over). skip: keys of rows to leave out. piece: bytes of a chunk. Rows are named by key: shard <<
    NUMBER | number. Needs a running Ray (`ray.init`). Raises what a task raised: TypeError for a
    text that is none, ShardError.
    """
    import ray

    permutations = permutations or lsh.PERMUTATIONS
    band_count, band_rows = lsh.chosen(bands, threshold, permutations)
    pieces = files.chunks(shards, piece or files.PIECE)
    options = {
        "threshold": threshold,
        "permutations": permutations,
        "shingle": shingle,
        "bands": band_count,
        "rows": band_rows,
    }
    job = options | {"text": text, "priority": priority, "seed": seed, "skip": skip}
    job |= _shared_out(shards, pieces, partitions, threshold, permutations)
    clock = [time.perf_counter()]
    chunks = ray.data.from_items(pieces, override_num_blocks=max(len(pieces), 1))
    job |= _templates(chunks, job, template_rows if pieces else 0)
    clock.append(time.perf_counter())
    alike = _alike(chunks, job) if pieces else _no_pairs()
    clock.append(time.perf_counter())
    drops = rounds.resolve(alike)
    clock.append(time.perf_counter())
    return drops, options | {
        "drops": len(drops),
        "pairs_alike": len(alike),
        "partitions": job["partitions"],
        "found_at_threshold": lsh.found_share(threshold, band_count, band_rows),
        "chunks": len(pieces),
        "seconds": _took(clock),
    }


def _shared_out(shards, pieces, partitions, threshold: float, permutations: int) -> dict:
    """What a job says of its shards and shuffles; `partitions` by the bytes where None."""
    partitions = partitions or 1 + sum(chunk["bytes"] for chunk in pieces) // PARTITION
    return {
        "shards": shards,
        "partitions": partitions,
        "groups": GROUPS * partitions,
        "most": lsh.most_different_bits(threshold, permutations),
    }


def _took(clock: list[float]) -> dict[str, float]:
    spans = [round(after - before, 3) for before, after in zip(clock, clock[1:], strict=False)]
    return dict(zip(("templates", "sign, shuffle, check", "resolve"), spans, strict=True))


def _templates(chunks, job: dict, template_rows: int) -> dict:
    """Hashes of the frequent beginnings and endings, sorted: {"heads", "tails"}; 0 looks for none.

    First five words of every text, then the longer ones of what five words have shown.
    """
    import numpy as np
    import ray

    frequent = {side: np.empty(0, np.uint64) for side in tasks.SIDES}
    for level in (0, 1) if template_rows else ():
        asked = ray.put(job | frequent | {"level": level, "minimum": template_rows})
        shuffled = chunks.map_batches(tasks.beginnings, batch_size=1, fn_args=[asked])
        wording = _by_group(shuffled, job["partitions"], tasks.frequent, asked).take_all()
        for number, side in enumerate(tasks.SIDES):
            keys = np.array([row["key"] for row in wording if row["side"] == number], np.uint64)
            frequent[side] = np.unique(np.concatenate([frequent[side], keys]))
    return frequent


def _alike(chunks, job: dict):
    """The near-duplicate pairs of all rows, as `rounds.resolve` takes them: a DataFrame."""
    import ray

    reference = ray.put(job)
    signed = chunks.map_batches(tasks.sign, batch_size=1, fn_args=[reference])
    pairs = _by_group(signed, job["partitions"], tasks.pairs, reference).materialize()
    if not pairs.count():
        return _no_pairs()
    return _by_group(pairs, job["partitions"], tasks.check, reference).to_pandas()


def _no_pairs():
    import pandas as pd

    return pd.DataFrame()


def _by_group(rows, partitions: int, function, reference):
    """The rows that `function` makes of each group of rows, after a shuffle."""
    groups = rows.groupby("group", num_partitions=partitions)
    return groups.map_groups(function, batch_format="numpy", fn_args=[reference])
