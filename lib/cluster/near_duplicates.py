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

import os
import time
from collections.abc import Callable

FULL, TEMPLATED, INNER = (
    0,
    1,
    2,
)  # what an entry of a bucket is: a text, one with template, what its template leaves
SIDES = ("heads", "tails")
# bytes of shards whose band keys, about one and a half times as much, a task of a shuffle holds
PARTITION = 32_000_000
# times as many groups as partitions: groups are hashed to partitions, and few of them would fill
# some twice
GROUPS = 8
NUMBER = 44  # low bits of a row's key that hold its number in the shard, the shard stands above


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
    import numpy as np
    import pandas as pd
    import ray

    from lib.cluster import rounds
    from lib.cluster import shards as files
    from lib.dedup import bands as lsh

    permutations = permutations or lsh.PERMUTATIONS
    band_count, band_rows = lsh.chosen(bands, threshold, permutations)
    pieces = files.chunks(shards, piece or files.PIECE)
    partitions = partitions or 1 + sum(chunk["bytes"] for chunk in pieces) // PARTITION
    job = {
        "text": text,
        "priority": priority,
        "threshold": threshold,
        "permutations": permutations,
        "shingle": shingle,
        "bands": band_count,
        "rows": band_rows,
        "seed": seed,
        "partitions": partitions,
        "most": lsh.most_different_bits(threshold, permutations),
        "groups": GROUPS * partitions,
        "skip": skip,
        "shards": shards,
        "heads": np.empty(0, np.uint64),
        "tails": np.empty(0, np.uint64),
    }
    clock = [time.perf_counter()]
    chunks = ray.data.from_items(pieces, override_num_blocks=max(len(pieces), 1))
    if template_rows and pieces:
        for level in (
            0,
            1,
        ):  # five words of every text, then the longer ones of what five words have shown
            found = _grouped(
                chunks, job, _beginnings, _frequent, {"level": level, "minimum": template_rows}
            )
            for number, side in enumerate(SIDES):
                keys = np.array([row["key"] for row in found if row["side"] == number], np.uint64)
                job[side] = np.unique(np.concatenate([job[side], keys]))
    clock.append(time.perf_counter())
    reference = ray.put(job)
    signed = chunks.map_batches(_sign, batch_size=1, fn_args=[reference])
    pairs = (
        signed.groupby("group", num_partitions=partitions)
        .map_groups(_pairs, batch_format="numpy", fn_args=[reference])
        .materialize()
        if pieces
        else chunks
    )
    checked = (
        pairs.groupby("group", num_partitions=partitions)
        .map_groups(_check, batch_format="numpy", fn_args=[reference])
        .to_pandas()
        if pairs.count()
        else pd.DataFrame()
    )
    clock.append(time.perf_counter())
    drops = rounds.resolve(checked)
    clock.append(time.perf_counter())
    names = ("templates", "sign, shuffle, check", "resolve")
    return drops, {
        "drops": len(drops),
        "threshold": threshold,
        "permutations": permutations,
        "shingle": shingle,
        "bands": band_count,
        "rows": band_rows,
        "pairs_alike": len(checked),
        "partitions": partitions,
        "found_at_threshold": lsh.found_share(threshold, band_count, band_rows),
        "chunks": len(pieces),
        "seconds": {
            name: round(b - a, 3) for name, a, b in zip(names, clock, clock[1:], strict=False)
        },
    }


def _grouped(chunks, job, mapped, grouped, more: dict) -> list[dict]:
    import ray

    reference = ray.put(job | more)
    shuffled = chunks.map_batches(mapped, batch_size=1, fn_args=[reference])
    groups = shuffled.groupby("group", num_partitions=job["partitions"])
    return groups.map_groups(grouped, batch_format="numpy", fn_args=[reference]).take_all()


def _texts(chunk: dict, job: dict):
    """(keys uint64, sizes, buffer, starts, ends) of the rows of a chunk (a batch of one)."""
    import numpy as np

    from lib.cluster import shards as files
    from lib.dedup import textfile

    keys, sizes, texts = [], [], []
    chunk = of_batch(chunk)
    for number, size, row in files.read(chunk):
        key = chunk["shard"] << NUMBER | number
        if key in job["skip"]:
            continue
        text = job["text"](row)
        if not isinstance(text, str):
            raise TypeError(
                f"{chunk['path']}, row {number}: the text is a {type(text).__name__}; reject it"
                " first"
            )
        keys.append(key)
        sizes.append(size)
        texts.append(textfile.encode(text, job["shingle"] == "word5"))
    return np.array(keys, np.uint64), np.array(sizes, np.int64), *textfile.pack(texts)


def _group(keys, job):
    import numpy as np

    from lib.dedup.minhash import MIX

    return ((keys * np.uint64(MIX)) >> np.uint64(40)).astype(np.int64) % job["groups"]


def _beginnings(chunk, job):
    """Rows (group, side, key, text): a beginning or ending of the texts of a chunk, and the hash of
    the text."""
    import numpy as np

    from lib.dedup import templates

    job = held(job)
    _, _, buffer, starts, ends = _texts(chunk, job)
    hashes = np.empty(len(starts), np.uint64)
    templates.text_hashes(buffer, starts, ends, hashes)
    # one beginning of nothing, the same everywhere and never frequent: Ray wants a row to know the
    # columns by
    found = [(np.zeros(1, np.int8), np.zeros(1, np.uint64), np.zeros(1, np.uint64))]
    for side, step in enumerate((1, -1)):
        deeper = (
            [templates.found_in(job[SIDES[side]])] if job["level"] else []
        )  # asked once, after five words

        def frequent(keys, deeper=deeper):
            return deeper.pop()(keys) if deeper else np.full(len(keys), job["level"] > 0)

        some = templates.beginnings(buffer, starts, ends, step, np.arange(len(starts)), frequent)
        found += [
            (np.full(len(rows), side, np.int8), keys, hashes[rows])
            for depth, (rows, keys, _) in enumerate(some)
            if (depth > 0) == (job["level"] > 0)
        ]
    side, keys, texts = map(np.concatenate, zip(*found, strict=True))
    return {"group": _group(keys, job), "side": side, "key": keys, "text": texts}


def of_batch(chunk: dict) -> dict:
    """A chunk of `shards.chunks` from the batch of one that Ray hands out."""
    return {name: column[0] if name == "path" else int(column[0]) for name, column in chunk.items()}


def held(job):
    """What all tasks of a job share, from Ray's store."""
    import ray

    return ray.get(job) if isinstance(job, ray.ObjectRef) else job


def _frequent(group, job):
    """The beginnings that enough different texts of a group share."""
    import numpy as np

    triples = np.unique(
        np.stack([group["side"].astype(np.uint64), group["key"], group["text"]], axis=1), axis=0
    )
    found, counts = np.unique(triples[:, :2], axis=0, return_counts=True)
    found = found[counts >= held(job)["minimum"]]
    return {"side": found[:, 0].astype(np.int8), "key": found[:, 1]}


def _spans(buffer, starts, ends, job):
    import numpy as np

    from lib.dedup import templates

    heads, tails = (templates.found_in(job[side]) for side in ("heads", "tails"))
    return templates.inner(
        starts, ends, *templates.cut(buffer, starts, ends, np.arange(len(starts)), heads, tails)
    )


def _sign(chunk, job):
    """One row a band and entry of the texts of a chunk: group, band key, row key, size, kind, text
    hash, sketch."""
    import numpy as np

    from lib.dedup import minhash, near_duplicates, templates

    job = held(job)
    rows, sizes, buffer, starts, ends = _texts(chunk, job)
    hashes = np.empty(len(starts), np.uint64)
    templates.text_hashes(buffer, starts, ends, hashes)
    spans = _spans(buffer, starts, ends, job)
    cut = np.flatnonzero(spans[1] - spans[0] < ends - starts)
    source = np.concatenate([np.arange(len(starts)), cut])
    kind = np.full(len(source), INNER, np.int8)
    kind[: len(starts)] = FULL
    kind[cut] = TEMPLATED
    low, high = np.concatenate([starts, spans[0][cut]]), np.concatenate([ends, spans[1][cut]])
    keys = np.empty((job["bands"], len(source)), np.uint64)
    sketches = np.empty((len(source), -(-job["permutations"] // 64)), np.uint64)
    minhash.sign(
        buffer,
        low,
        high,
        near_duplicates.word_characters(job["shingle"]),
        *minhash.permutations(job["permutations"], job["seed"]),
        job["rows"],
        keys,
        sketches,
    )
    keys[:, len(starts) :] ^= np.uint64(minhash.MIX)
    keys ^= np.arange(1, job["bands"] + 1, dtype=np.uint64)[:, None] * np.uint64(
        minhash.SHORT // 127
    )
    again = np.tile(source, job["bands"])
    return {
        "group": _group(keys.ravel(), job),
        "band": keys.ravel(),
        "row": rows[again],
        "size": sizes[again],
        "kind": np.tile(kind, job["bands"]),
        "text": hashes[again],
        **{f"s{i}": np.tile(column, job["bands"]) for i, column in enumerate(sketches.T)},
    }


def _pairs(group, job):
    """Candidate pairs among the entries of one group: rows (group, a, b, a_size, b_size), a < b."""
    import numpy as np

    from lib.dedup import resolve

    job = held(job)
    order = np.lexsort((group["row"], group["text"], group["band"]))
    found = {name: np.ascontiguousarray(column[order]) for name, column in group.items()}
    width = -(-job["permutations"] // 64)
    sketches = np.stack([found[f"s{i}"] for i in range(width)], axis=1)
    first, second = resolve.candidates(
        found["band"], found["text"], found["kind"] == TEMPLATED, sketches, job["most"]
    )
    if len(first):
        swap = found["row"][first] > found["row"][second]
        first, second = np.where(swap, second, first), np.where(swap, first, second)
        pair = np.stack([found["row"][first], found["row"][second]], axis=1)
        _, once = np.unique(pair, axis=0, return_index=True)
        first, second = first[once], second[once]
    return {
        "group": _group(found["row"][first], job),
        "a": found["row"][first],
        "b": found["row"][second],
        "a_size": found["size"][first],
        "b_size": found["size"][second],
    }


def _check(group, job):
    """The pairs of one group that are near-duplicates: rows (a, b, jaccard, same text, priorities
    of both)."""
    import numpy as np

    from lib.dedup import near_duplicates, resolve

    job = held(job)
    pairs, once = np.unique(np.stack([group["a"], group["b"]], axis=1), axis=0, return_index=True)
    sizes = np.stack([group["a_size"], group["b_size"]], axis=1)[once]
    found = []
    for low in range(0, len(pairs), 4096):  # texts of a few thousand pairs in memory at a time
        rows, at = np.unique(pairs[low : low + 4096], return_inverse=True)
        row_sizes = np.zeros(len(rows), np.int64)
        row_sizes[at.ravel()] = sizes[low : low + 4096].ravel()
        buffer, starts, ends, ranks = _fetched(rows, row_sizes, job)
        first, second = at.reshape(-1, 2).T
        value, near, same = resolve.check(
            buffer,
            starts,
            ends,
            *_spans(buffer, starts, ends, job),
            near_duplicates.word_characters(job["shingle"]),
            first,
            second,
            job["threshold"],
        )
        part = [rows[first], rows[second], value, same, *ranks[first].T, *ranks[second].T]
        found.append([column[near] for column in part])
    names = ("a", "b", "jaccard", "same", "a_high", "a_low", "b_high", "b_low")
    kinds = (np.uint64, np.uint64, np.float64, bool, *[np.uint64] * 4)
    return {
        name: np.concatenate([np.empty(0, kind), *parts])
        for name, kind, *parts in zip(names, kinds, *found, strict=True)
    }


def _fetched(rows, sizes, job):
    """(buffer, starts, ends, priorities uint64 (rows, 2)) of rows by key, read again from their
    shards."""
    import numpy as np

    from lib.cluster import shards as files
    from lib.dedup import textfile

    texts, ranks = [], np.empty((len(rows), 2), np.uint64)
    shard = (rows >> np.uint64(NUMBER)).astype(np.int64)
    for number in np.unique(shard).tolist():
        mine = shard == number
        numbers = (rows[mine] & np.uint64((1 << NUMBER) - 1)).tolist()
        for row in files.fetch(job["shards"][number], numbers, sizes[mine].tolist()):
            ranks[len(texts)] = job["priority"](row, number)
            texts.append(textfile.encode(job["text"](row), job["shingle"] == "word5"))
    return *textfile.pack(texts), ranks


def start(address: str = "", workers: int = 1, store: int = 1_000_000_000) -> None:
    """Join the Ray cluster at an address, or start one of `workers` processes on this machine, with
    `store` bytes of shared memory for what is shuffled; more goes to disk. ModuleNotFoundError
    without the extra `cluster`.
    """
    # Read by the cluster that is started. Ray ends a process that is idle for a second and keeps as
    # many as there are processors, but uses several kinds of them, so it started one for every few
    # tasks: two thirds of the time.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "3600000")
    os.environ.setdefault("RAY_num_workers_soft_limit", str(4 * workers))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "engine ray needs the extra: pip install -e '.[cluster]'"
        ) from error

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.op_resource_reservation_enabled = (
        False  # else half of the processors wait for the other half's stage
    )
    context.shuffle_compression = (  # hashes hardly shrink: the default, zstd, only takes longer
        "lz4"
    )
    if address:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
    else:  # reachable from this machine alone
        context.shuffle_input_batch_bytes = (
            64_000_000  # the default gathers a gigabyte in one process
        )
        ray.init(
            num_cpus=workers,
            object_store_memory=store,
            ignore_reinit_error=True,
            include_dashboard=False,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )
