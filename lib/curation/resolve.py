"""Compiled greedy choice of the rows to keep: candidates from shared bands, decided by exact Jaccard."""

from __future__ import annotations

import numpy as np
from numba import uint64

from lib.curation.minhash import MIX, kernel, shingle_keys
from lib.curation.templates import shared_wording

NEIGHBOURS = 32  # rows of a bucket that two templated texts are compared over by full text: all share the wording


@kernel
def _load(table, stamps, stamp, keys, count):
    """Put keys[:count] into an open-addressing table under a new stamp; return how many are distinct."""
    mask = uint64(len(table) - 1)
    distinct = 0
    for i in range(count):
        slot = (keys[i] * uint64(MIX) >> uint64(20)) & mask
        while stamps[slot] >= stamp and table[slot] != keys[i]:
            slot = (slot + uint64(1)) & mask
        if stamps[slot] < stamp:
            table[slot], stamps[slot] = keys[i], stamp
            distinct += 1
    return distinct


@kernel
def _shared(table, stamps, stamp, fresh, keys, count):
    """Distinct keys[:count] that the table holds; marks them with `fresh`, a stamp above all earlier ones."""
    mask = uint64(len(table) - 1)
    shared = 0
    for i in range(count):
        slot = (keys[i] * uint64(MIX) >> uint64(20)) & mask
        while stamps[slot] >= stamp and table[slot] != keys[i]:
            slot = (slot + uint64(1)) & mask
        if stamps[slot] >= stamp and stamps[slot] != fresh:
            stamps[slot] = fresh
            shared += 1
    return shared


@kernel
def _room(tables, count):
    """Slots for `count` keys: a table as small as they allow stays in the processor's cache."""
    size = 64
    while size < 2 * count:
        size *= 2
    return min(size, tables.shape[1])


@kernel
def _inside(buffer, starts, ends, inner_starts, inner_ends, words, row, other, keys, tables, stamps, stamp):
    """Exact Jaccard of what two texts hold inside the template that they share; -1 when they share none.

    Uses the second and third table, and three stamps from `stamp` on."""
    head = shared_wording(buffer, starts[row], starts[other],
                          min(inner_starts[row] - starts[row], inner_starts[other] - starts[other]), 1)
    tail = shared_wording(buffer, ends[row] - 1, ends[other] - 1,
                          min(ends[row] - inner_ends[row], ends[other] - inner_ends[other]), -1)
    if head + tail == 0 or head + tail >= min(ends[row] - starts[row], ends[other] - starts[other]):
        return -1.0
    count = shingle_keys(buffer, starts[other] + head, ends[other] - tail, words, keys)
    size = _room(tables, count)
    theirs = _load(tables[2, :size], stamps[2, :size], stamp, keys, count)
    count = shingle_keys(buffer, starts[row] + head, ends[row] - tail, words, keys)
    size = _room(tables, count)
    mine = _load(tables[1, :size], stamps[1, :size], stamp + 1, keys, count)
    count = shingle_keys(buffer, starts[other] + head, ends[other] - tail, words, keys)
    both = _shared(tables[1, :size], stamps[1, :size], stamp + 1, stamp + 2, keys, count)
    return both / (mine + theirs - both)


@kernel
def resolve(buffer, starts, ends, inner_starts, inner_ends, words, buckets, bucket_count, inner, order, threshold):
    """Drop a row when a KEPT row before it in `order` is at least `threshold` alike by exact Jaccard.

    buckets: int64 (bands, entries): entries that share a band key share a number, -1 where one is alone. Entry i is
    the full text of row i; inner[i], -1 for none, is the entry of what its template leaves. Two texts in one template
    must be as alike inside it too. Returns keeper (-1 kept), Jaccard with the keeper (the most alike kept row; the
    earlier in order on a tie), and counts: pairs compared, pairs at the threshold or above, pairs that only their
    template made alike, most comparisons for one row.
    """
    bands, entries = buckets.shape
    rows = len(starts)
    # two lists of kept entries a bucket: rows outside templates, rows inside
    head, after = np.full((bucket_count, 2), -1, np.int32), np.full((bands, entries), -1, np.int32)
    owner = np.arange(entries).astype(np.int32)
    rank = np.empty(rows, np.int32)
    for place in range(rows):
        rank[order[place]] = place
    for row in range(rows):
        if inner[row] >= 0:
            owner[inner[row]] = row
    distinct, seen = np.zeros(rows, np.int32), np.full(rows, -1, np.int32)
    keeper, jaccard = np.full(rows, -1, np.int32), np.zeros(rows, np.float64)
    counts, stamp = np.zeros(4, np.int64), np.int64(0)
    longest = (ends - starts).max() + 1
    size = 64
    while size < 2 * longest:
        size *= 2
    keys, tables, stamps = np.empty(longest, np.uint64), np.empty((3, size), np.uint64), np.zeros((3, size), np.int64)
    for place in range(rows):
        row = order[place]
        templated = inner[row] >= 0
        alone = True
        for band in range(bands):
            alone = alone and buckets[band, row] < 0 and (not templated or buckets[band, inner[row]] < 0)
        if alone:
            continue
        count = shingle_keys(buffer, starts[row], ends[row], words, keys)
        size = _room(tables, count)
        table, marks = tables[0, :size], stamps[0, :size]
        stamp += 1
        own = stamp
        distinct[row] = _load(table, marks, own, keys, count)
        compared = 0
        for kind in range(2 if templated else 1):
            entry = row if kind == 0 else inner[row]
            for walk in range(2 * bands):
                band, among = walk // 2, walk % 2
                bucket = buckets[band, entry]
                left = NEIGHBOURS if templated and kind == 0 and among == 1 else rows
                at = head[bucket, among] if bucket >= 0 else -1
                while at >= 0 and left > 0 and jaccard[row] < 1.0:
                    other = owner[at]
                    at = after[band, at]
                    left -= 1
                    if seen[other] == row:
                        continue
                    seen[other] = row
                    small, large = min(distinct[row], distinct[other]), max(distinct[row], distinct[other])
                    if small / large < threshold:
                        continue
                    compared += 1
                    stamp += 1
                    count = shingle_keys(buffer, starts[other], ends[other], words, keys)
                    shared = _shared(table, marks, own, stamp, keys, count)
                    alike = shared / (distinct[row] + distinct[other] - shared)
                    if alike < threshold:
                        continue
                    counts[1] += 1
                    inside = -1.0
                    if templated and inner[other] >= 0:
                        inside = _inside(buffer, starts, ends, inner_starts, inner_ends, words, row, other, keys,
                                         tables, stamps, stamp + 1)
                        stamp += 3
                    if 0 <= inside < threshold:
                        counts[2] += 1
                    elif alike > jaccard[row] or (alike == jaccard[row] and rank[other] < rank[keeper[row]]):
                        keeper[row], jaccard[row] = other, alike
        counts[0] += compared
        counts[3] = max(counts[3], compared)
        if keeper[row] < 0:
            for kind in range(2 if templated else 1):
                entry = row if kind == 0 else inner[row]
                for band in range(bands):
                    bucket = buckets[band, entry]
                    if bucket >= 0:
                        after[band, entry] = head[bucket, 1 if templated else 0]
                        head[bucket, 1 if templated else 0] = entry
    return keeper, jaccard, counts
