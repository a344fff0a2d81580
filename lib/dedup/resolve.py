"""Compiled greedy choice of the rows to keep: candidates from shared bands, decided by exact
Jaccard."""

from __future__ import annotations

import numpy as np
from numba import uint64

from lib.dedup import textfile
from lib.dedup.minhash import CHUNK, MIX, different_bits, kernel, ones, shingle_keys
from lib.dedup.templates import shared_wording

# templated texts in one bucket from which their full texts say only that they share the wording
CROWD = 64


@kernel
def number_buckets(packed, mask, first, numbers, sizes):
    """Number the runs of equal keys in one band, from `first` on: numbers[entry], -1 where a key is
    alone.

    packed: sorted uint64, key in the high bits, entry in those of `mask`. Writes the size of each
    run to `sizes`; returns how many runs there are."""
    start, found = 0, 0
    for i in range(1, len(packed) + 1):
        if i < len(packed) and (packed[i] ^ packed[start]) <= mask:
            continue
        bucket = -1
        if i - start > 1:
            bucket, sizes[found] = first + found, i - start
            found += 1
        for k in range(start, i):
            numbers[packed[k] & mask] = bucket
        start = i
    return found


@kernel
def _slot(key, size):
    """Slot in a table of `size`, a power of two. All three code points must bear on it: without the
    fold the first one would hardly, and look-ups would take thirty times as long."""
    return (((key ^ (key >> uint64(31))) * uint64(MIX)) >> uint64(40)) & uint64(size - 1)


@kernel
def _widened(table, marks, size, stamp, wanted):
    """The entries of table[:size] marked `stamp` or later, in tables with room for `wanted`
    entries; and the size."""
    larger = size
    while 3 * larger < 4 * wanted:
        larger *= 2
    new_table, new_marks = np.empty(larger, np.uint64), np.zeros(larger, np.int64)
    for i in range(size):
        if marks[i] >= stamp:
            slot = _slot(table[i], larger)
            while new_marks[slot] >= stamp:
                slot = (slot + uint64(1)) & uint64(larger - 1)
            new_table[slot], new_marks[slot] = table[i], marks[i]
    return new_table, new_marks, larger


@kernel
def _put(keys, count, table, marks, size, stamp):
    """Put keys[:count] into table[:size] under `stamp`; how many are new."""
    new, mask = 0, uint64(size - 1)
    for i in range(count):
        key = keys[i]
        slot = _slot(key, size)
        while marks[slot] >= stamp and table[slot] != key:
            slot = (slot + uint64(1)) & mask
        if marks[slot] < stamp:
            table[slot], marks[slot] = key, stamp
            new += 1
    return new


@kernel
def _meet(keys, count, table, marks, size, stamp):
    """Put keys[:count] where _put has been: how many are new, and how many distinct ones were there
    before."""
    new, both, mask = 0, 0, uint64(size - 1)
    for i in range(count):
        key = keys[i]
        slot = _slot(key, size)
        while marks[slot] >= stamp and table[slot] != key:
            slot = (slot + uint64(1)) & mask
        if marks[slot] < stamp:
            table[slot], marks[slot] = key, stamp + 2
            new += 1
        elif marks[slot] == stamp:
            marks[slot] = stamp + 1
            both += 1
    return new, both


@kernel
def jaccard(buffer, low, high, other_low, other_high, words, keys, table, marks, stamp):
    """(exact Jaccard similarity of two stretches of the buffer, table, marks).

    keys: room for CHUNK shingles. table, marks: open addressing, a power of two long, entries valid
    from `stamp` on, which must lie three above that of the call before; larger ones come back when
    the texts need them.
    """
    size, used, both = 64, 0, 0
    while 3 * size < 4 * (high - low + other_high - other_low) and size < len(table):
        size *= 2  # a table as small as the texts allow stays in the processor's cache
    position = low
    while position >= 0:
        count, position = shingle_keys(buffer, low, position, high, words, keys)
        if 4 * (used + count) > 3 * size:
            table, marks, size = _widened(table, marks, size, stamp, used + count)
        used += _put(keys, count, table, marks, size, stamp)
    position = other_low
    while position >= 0:
        count, position = shingle_keys(buffer, other_low, position, other_high, words, keys)
        if 4 * (used + count) > 3 * size:
            table, marks, size = _widened(table, marks, size, stamp, used + count)
        new, met = _meet(keys, count, table, marks, size, stamp)
        used, both = used + new, both + met
    return both / used, table, marks


@kernel
def alike(
    buffer,
    starts,
    ends,
    inner_starts,
    inner_ends,
    row,
    other,
    threshold,
    words,
    keys,
    table,
    marks,
    stamp,
):
    """(exact Jaccard of two texts, are they near-duplicates, table, marks).

    They are when the full texts reach the threshold and, where both lie in one template, what they
    hold inside it reaches it, too. Takes six stamps."""
    value, table, marks = jaccard(
        buffer, starts[row], ends[row], starts[other], ends[other], words, keys, table, marks, stamp
    )
    near = value >= threshold
    if (
        near
        and inner_ends[row] - inner_starts[row] < ends[row] - starts[row]
        and inner_ends[other] - inner_starts[other] < ends[other] - starts[other]
    ):
        head = shared_wording(
            buffer,
            starts[row],
            starts[other],
            min(inner_starts[row] - starts[row], inner_starts[other] - starts[other]),
            1,
        )
        tail = shared_wording(
            buffer,
            ends[row] - 1,
            ends[other] - 1,
            min(ends[row] - inner_ends[row], ends[other] - inner_ends[other]),
            -1,
        )
        if 0 < head + tail < min(ends[row] - starts[row], ends[other] - starts[other]):
            within, table, marks = jaccard(
                buffer,
                starts[row] + head,
                ends[row] - tail,
                starts[other] + head,
                ends[other] - tail,
                words,
                keys,
                table,
                marks,
                stamp + 3,
            )
            near = within >= threshold
    return value, near, table, marks


def resolve(
    buffer,
    starts,
    ends,
    inner_starts,
    inner_ends,
    words,
    buckets,
    sizes,
    inner,
    sketches,
    most,
    order,
    threshold,
    forget=None,
):
    """Drop a row when a KEPT row before it in `order` is a near-duplicate of it (see `alike`).

    buckets: int32 (bands, entries): entries that share a band key share a number, -1 where one is
    alone; sizes: entries of each number. Entry i is the full text of row i; inner[i], -1 for none,
    is the entry of what its template leaves. sketches: of the entries; a pair with more than
    most[0] different bits in the first two words, or most[1] in all, is not looked at. forget: of
    `textfile.mapped`, called after every few rows. Returns keeper (-1 kept), Jaccard with the
    keeper (the most alike kept row; the earlier in order on a tie), and counts: sketches compared,
    pairs compared, near-duplicate pairs, pairs that only their template made alike, most pairs
    compared for one row.
    """
    rows = len(starts)
    # kept entries of a bucket: rows outside templates from the front of its stretch, rows inside
    # from the back
    begin = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])
    # with the beginnings of their sketches, which are met in order there and all over the memory in
    # `sketches`
    kept, front, back = (
        np.empty(begin[-1], np.int32),
        np.zeros(len(sizes), np.int32),
        np.zeros(len(sizes), np.int32),
    )
    begun = np.zeros((len(kept), 2), np.uint64)
    rank = np.empty(rows, np.int32)
    rank[order] = np.arange(rows)
    owner = np.arange(buckets.shape[1], dtype=np.int32)
    templated = np.flatnonzero(inner >= 0)
    owner[inner[templated]] = templated
    crowd = np.zeros(len(sizes), np.int32)
    for numbers in buckets:
        crowd += np.bincount(
            numbers[templated][numbers[templated] >= 0], minlength=len(sizes)
        ).astype(np.int32)
    seen = np.full(rows, -1, np.int32)
    keeper, similarity, counts = np.full(rows, -1, np.int32), np.zeros(rows), np.zeros(5, np.int64)
    size = 64
    while size < min(2 * (ends - starts).max(initial=0), 1 << 20):
        size *= 2
    keys, table, marks, stamp = (
        np.empty(CHUNK, np.uint64),
        np.empty(size, np.uint64),
        np.zeros(size, np.int64),
        1,
    )
    for part in textfile.parts(order, forget):
        table, marks, stamp = _resolve(
            buffer,
            starts,
            ends,
            inner_starts,
            inner_ends,
            words,
            buckets,
            inner,
            sketches,
            most,
            part,
            threshold,
            begin,
            kept,
            begun,
            front,
            back,
            crowd,
            rank,
            owner,
            seen,
            keeper,
            similarity,
            counts,
            keys,
            table,
            marks,
            stamp,
        )
    return keeper, similarity, counts


@kernel
def _resolve(
    buffer,
    starts,
    ends,
    inner_starts,
    inner_ends,
    words,
    buckets,
    inner,
    sketches,
    most,
    order,
    threshold,
    begin,
    kept,
    begun,
    front,
    back,
    crowd,
    rank,
    owner,
    seen,
    keeper,
    similarity,
    counts,
    keys,
    table,
    marks,
    stamp,
):
    """The rows of one stretch of `order`, given what those before them left; returns (table, marks,
    stamp)."""
    bands, width = len(buckets), sketches.shape[1]
    for row in order:
        templated = inner[row] >= 0
        compared = 0
        for kind in range(2 if templated else 1):
            entry = row if kind == 0 else inner[row]
            word, next_word = sketches[entry, 0], sketches[entry, 1] if width > 1 else uint64(0)
            for band in range(bands):
                bucket = buckets[band, entry]
                if bucket < 0:
                    continue
                low, high = begin[bucket], begin[bucket] + front[bucket]
                for among in range(2):
                    if among == 1:
                        low, high = begin[bucket + 1] - back[bucket], begin[bucket + 1]
                        if templated and kind == 0 and crowd[bucket] > CROWD:
                            continue
                    counts[0] += high - low
                    for at in range(low, high):
                        if (
                            ones(begun[at, 0] ^ word) + ones(begun[at, 1] ^ next_word) > most[0]
                            or different_bits(sketches, entry, kept[at], width) > most[1]
                        ):
                            continue
                        other = owner[kept[at]]
                        if seen[other] == row:
                            continue
                        seen[other] = row
                        compared += 1
                        value, near, table, marks = alike(
                            buffer,
                            starts,
                            ends,
                            inner_starts,
                            inner_ends,
                            row,
                            other,
                            threshold,
                            words,
                            keys,
                            table,
                            marks,
                            stamp,
                        )
                        stamp += 6
                        if value < threshold:
                            continue
                        counts[2] += near
                        counts[3] += not near
                        if near and (
                            value > similarity[row]
                            or (value == similarity[row] and rank[other] < rank[keeper[row]])
                        ):
                            keeper[row], similarity[row] = other, value
        counts[1] += compared
        counts[4] = max(counts[4], compared)
        if keeper[row] < 0:
            for kind in range(2 if templated else 1):
                entry = row if kind == 0 else inner[row]
                for band in range(bands):
                    bucket = buckets[band, entry]
                    if bucket < 0:
                        continue
                    if templated:
                        back[bucket] += 1
                        at = begin[bucket + 1] - back[bucket]
                    else:
                        at = begin[bucket] + front[bucket]
                        front[bucket] += 1
                    kept[at], begun[at, 0] = entry, sketches[entry, 0]
                    if width > 1:
                        begun[at, 1] = sketches[entry, 1]
    return table, marks, stamp


@kernel
def check(buffer, starts, ends, inner_starts, inner_ends, words, first, second, threshold):
    """(exact Jaccard, are they near-duplicates, are the texts equal) of the pairs of texts
    first[i], second[i]."""
    value, near, same = (
        np.empty(len(first)),
        np.zeros(len(first), np.bool_),
        np.zeros(len(first), np.bool_),
    )
    keys, table, marks = (
        np.empty(CHUNK, np.uint64),
        np.empty(1 << 16, np.uint64),
        np.zeros(1 << 16, np.int64),
    )
    for i in range(len(first)):
        a, b = first[i], second[i]
        value[i], near[i], table, marks = alike(
            buffer,
            starts,
            ends,
            inner_starts,
            inner_ends,
            a,
            b,
            threshold,
            words,
            keys,
            table,
            marks,
            1 + 6 * i,
        )
        size = ends[a] - starts[a]
        same[i] = size == ends[b] - starts[b]
        at = 0
        while same[i] and at < size:
            same[i] = buffer[starts[a] + at] == buffer[starts[b] + at]
            at += 1
    return value, near, same


@kernel
def candidates(bands, texts, templated, sketches, most):
    """Pairs of entries that share a band key and look alike by their sketches: two arrays of
    places.

    bands, texts: sorted by band key, then hash of the whole text. Of equal texts the first stands
    for all of them and forms a pair with each. Templated entries form none among themselves in a
    crowd."""
    first, second, found, start = np.empty(1024, np.int64), np.empty(1024, np.int64), 0, 0
    chosen = np.empty(len(bands), np.int64)
    while start < len(bands):
        end, crowd, different = start, 0, 0
        while end < len(bands) and bands[end] == bands[start]:
            crowd += templated[end]
            end += 1
        for i in range(start, end):
            copy = i > start and texts[i] == texts[i - 1]
            for k in range(different - 1 if copy else 0, different):
                other = chosen[k]
                if not copy and (
                    templated[i]
                    and templated[other]
                    and crowd > CROWD
                    or different_bits(sketches, i, other, 2) > most[0]
                    or different_bits(sketches, i, other, sketches.shape[1]) > most[1]
                ):
                    continue
                if found == len(first):
                    first, second = np.concatenate((first, first)), np.concatenate((second, second))
                first[found], second[found] = other, i
                found += 1
            if not copy:
                chosen[different] = i
                different += 1
        start = end
    return first[:found], second[:found]
