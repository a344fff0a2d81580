"""What Ray's workers do to find near-duplicates: functions of a batch and of what a job holds.

In order: `beginnings` and `frequent` tell which wording is template; `sign` makes the band keys of
every text, `pairs` the candidates of every band; `check` reads the texts of the candidates again
and compares them exactly.
"""

from __future__ import annotations

from lib.cluster import session, shards
from lib.dedup import near_duplicates, textfile

FULL, TEMPLATED, INNER = 0, 1, 2  # an entry: a text, one with template, what its template leaves
SIDES = ("heads", "tails")


def read_texts(chunk: dict, job: dict):
    """(keys uint64, sizes, buffer, starts, ends) of the rows of a chunk (a batch of one)."""
    import numpy as np

    keys, sizes, texts = [], [], []
    chunk = session.of_batch(chunk)
    for number, size, row in shards.read(chunk):
        key = chunk["shard"] << shards.NUMBER | number
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


def group_of(keys, job):
    """The group of each key, int64: what Ray shuffles by."""
    import numpy as np

    from lib.dedup.minhash import MIX

    return ((keys * np.uint64(MIX)) >> np.uint64(40)).astype(np.int64) % job["groups"]


def beginnings(chunk, job):
    """Rows (group, side, key, text): beginnings and endings of a chunk's texts, text hashes."""
    import numpy as np

    from lib.dedup import templates

    job = session.held(job)
    _, _, buffer, starts, ends = read_texts(chunk, job)
    hashes = np.empty(len(starts), np.uint64)
    templates.text_hashes(buffer, starts, ends, hashes)
    # one beginning of nothing, the same everywhere and never frequent: Ray wants a row to know the
    # columns by
    columns = [(np.zeros(1, np.int8), np.zeros(1, np.uint64), np.zeros(1, np.uint64))]
    for side, step in enumerate((1, -1)):
        # asked once, after five words
        deeper = [templates.found_in(job[SIDES[side]])] if job["level"] else []

        def known(keys, deeper=deeper):
            return deeper.pop()(keys) if deeper else np.full(len(keys), job["level"] > 0)

        some = templates.beginnings(buffer, starts, ends, step, np.arange(len(starts)), known)
        columns += [
            (np.full(len(rows), side, np.int8), keys, hashes[rows])
            for depth, (rows, keys, _) in enumerate(some)
            if (depth > 0) == (job["level"] > 0)
        ]
    side, keys, texts = map(np.concatenate, zip(*columns, strict=True))
    return {"group": group_of(keys, job), "side": side, "key": keys, "text": texts}


def frequent(group, job):
    """The beginnings that enough different texts of a group share."""
    import numpy as np

    triples = np.unique(
        np.stack([group["side"].astype(np.uint64), group["key"], group["text"]], axis=1), axis=0
    )
    wording, texts = np.unique(triples[:, :2], axis=0, return_counts=True)
    wording = wording[texts >= session.held(job)["minimum"]]
    return {"side": wording[:, 0].astype(np.int8), "key": wording[:, 1]}


def _spans(buffer, starts, ends, job):
    """(inner_starts, inner_ends) of the texts, by the wording that the job has found frequent."""
    import numpy as np

    from lib.dedup import templates

    heads, tails = (templates.found_in(job[side]) for side in SIDES)
    return templates.inner(
        starts, ends, *templates.cut(buffer, starts, ends, np.arange(len(starts)), heads, tails)
    )


def sign(chunk, job):
    """One row a band and entry of a chunk's texts: group, band, row, size, kind, text, sketch.

    band, row, text: uint64 keys of the band, of the row, and of the bytes of the text.
    """
    import numpy as np

    from lib.dedup import minhash, templates

    job = session.held(job)
    rows, sizes, buffer, starts, ends = read_texts(chunk, job)
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
    words = near_duplicates.word_characters(job["shingle"])
    drawn = minhash.permutations(job["permutations"], job["seed"])
    minhash.sign(buffer, low, high, words, *drawn, job["rows"], keys, sketches)
    keys[:, len(starts) :] ^= np.uint64(minhash.MIX)
    numbers = np.arange(1, job["bands"] + 1, dtype=np.uint64)
    keys ^= numbers[:, None] * np.uint64(minhash.SHORT // 127)
    again = np.tile(source, job["bands"])
    return {
        "group": group_of(keys.ravel(), job),
        "band": keys.ravel(),
        "row": rows[again],
        "size": sizes[again],
        "kind": np.tile(kind, job["bands"]),
        "text": hashes[again],
        **{f"s{i}": np.tile(column, job["bands"]) for i, column in enumerate(sketches.T)},
    }


def pairs(group, job):
    """Candidate pairs among the entries of one group: rows (group, a, b, a_size, b_size), a < b."""
    import numpy as np

    from lib.dedup import candidates

    job = session.held(job)
    order = np.lexsort((group["row"], group["text"], group["band"]))
    entries = {name: np.ascontiguousarray(column[order]) for name, column in group.items()}
    width = -(-job["permutations"] // 64)
    sketches = np.stack([entries[f"s{i}"] for i in range(width)], axis=1)
    templated, rows = entries["kind"] == TEMPLATED, entries["row"]
    first, second = candidates.candidates(
        entries["band"], entries["text"], templated, sketches, job["most"]
    )
    if len(first):
        swap = rows[first] > rows[second]
        first, second = np.where(swap, second, first), np.where(swap, first, second)
        pair = np.stack([rows[first], rows[second]], axis=1)
        _, once = np.unique(pair, axis=0, return_index=True)
        first, second = first[once], second[once]
    return {
        "group": group_of(rows[first], job),
        "a": rows[first],
        "b": rows[second],
        "a_size": entries["size"][first],
        "b_size": entries["size"][second],
    }


def check(group, job):
    """The near-duplicate pairs of one group: rows (a, b, jaccard, same text, both priorities)."""
    import numpy as np

    from lib.dedup import jaccard

    job = session.held(job)
    pairs, once = np.unique(np.stack([group["a"], group["b"]], axis=1), axis=0, return_index=True)
    sizes = np.stack([group["a_size"], group["b_size"]], axis=1)[once]
    words, parts = near_duplicates.word_characters(job["shingle"]), []
    for low in range(0, len(pairs), 4096):  # texts of a few thousand pairs in memory at a time
        rows, at = np.unique(pairs[low : low + 4096], return_inverse=True)
        row_sizes = np.zeros(len(rows), np.int64)
        row_sizes[at.ravel()] = sizes[low : low + 4096].ravel()
        buffer, starts, ends, ranks = _fetched(rows, row_sizes, job)
        first, second = at.reshape(-1, 2).T
        spans = _spans(buffer, starts, ends, job)
        texts = jaccard.Texts(buffer, starts, ends, *spans, words)
        work = jaccard.scratch(1 << 16)
        value, near, same = jaccard.check(texts, first, second, job["threshold"], work)
        part = [rows[first], rows[second], value, same, *ranks[first].T, *ranks[second].T]
        parts.append([column[near] for column in part])
    names = ("a", "b", "jaccard", "same", "a_high", "a_low", "b_high", "b_low")
    kinds = (np.uint64, np.uint64, np.float64, bool, *[np.uint64] * 4)
    return {
        name: np.concatenate([np.empty(0, kind), *columns])
        for name, kind, *columns in zip(names, kinds, *parts, strict=True)
    }


def _fetched(rows, sizes, job):
    """(buffer, starts, ends, priorities uint64 (rows, 2)) of rows by key, read again."""
    import numpy as np

    texts, ranks = [], np.empty((len(rows), 2), np.uint64)
    shard = (rows >> np.uint64(shards.NUMBER)).astype(np.int64)
    for number in np.unique(shard).tolist():
        in_shard = shard == number
        numbers = (rows[in_shard] & np.uint64((1 << shards.NUMBER) - 1)).tolist()
        for row in shards.fetch(job["shards"][number], numbers, sizes[in_shard].tolist()):
            ranks[len(texts)] = job["priority"](row, number)
            texts.append(textfile.encode(job["text"](row), job["shingle"] == "word5"))
    return *textfile.pack(texts), ranks
