"""Compiled kernels of near-duplicate search: shingles, MinHash signatures, exact Jaccard against kept rows.

A text is bytes of UTF-8 in one large buffer; a shingle is a 64-bit key (three code points packed, or a hash
of five words). A signature equals datasketch's MinHash(scheme="affine32", seed=1) over the keys' 32-bit
hashes, so datasketch is the oracle of the tests. Import this module inside functions: numba loads slowly.
"""

from __future__ import annotations

import numpy as np
from numba import njit, uint32, uint64

MIX = 0x9E3779B97F4A7C15  # odd: (key * MIX) >> 32 is a universal hash of the key (Dietzfelbinger et al. 1997)
SHORT = 1 << 63  # set in the one key of a text too short for a shingle; packed code points use 63 bits


def kernel(function):
    """njit that keeps its machine code beside the module or in the user's cache; where both are read-only
    numba raises, and the code is compiled anew in every process."""
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:
        return njit(nogil=True)(function)


def permutations(count: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The odd factors and offsets, uint32, that datasketch's affine32 scheme draws."""
    draw = np.random.RandomState(seed)
    factors = draw.randint(0, 1 << 31, count, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    return factors, draw.randint(0, 1 << 32, count, dtype=np.uint32)


def word_table() -> np.ndarray:
    """True for the code points of a word: alphanumeric or underscore, as in the regular expression \\w."""
    table = np.fromiter((chr(i).isalnum() for i in range(0x110000)), np.bool_, 0x110000)
    table[ord("_")] = True
    return table


@kernel
def _code_point(buffer, position):
    """Code point at a position of valid UTF-8 (surrogates passed through) and the position after it."""
    first = uint32(buffer[position])
    if first < uint32(0x80):
        return first, position + 1
    size = 2 if first < uint32(0xE0) else (3 if first < uint32(0xF0) else 4)
    point = first & uint32(0xFF >> (size + 1))
    for i in range(1, size):
        point = uint32(point << uint32(6)) | (uint32(buffer[position + i]) & uint32(0x3F))
    return uint32(point), position + size


@kernel
def shingle_keys(buffer, low, high, words, out):
    """Write the 64-bit shingle keys of buffer[low:high], repeats included, to `out`; return how many, >= 1.

    words: table of word characters for shingles of five words, or an empty array for three code points. A
    text shorter than a shingle gets one key, a hash of all its code points: it equals only equal texts.
    out: uint64, at least high - low + 1 long.
    """
    count, position, whole = 0, low, uint64(MIX)
    if len(words) == 0:
        gram, points = uint64(0), 0
        while position < high:
            point, position = _code_point(buffer, position)
            gram = ((gram << uint64(21)) | uint64(point)) & uint64(0x7FFFFFFFFFFFFFFF)
            points += 1
            if points < 3:
                whole = (whole ^ uint64(point)) * uint64(MIX)
            else:
                out[count] = gram
                count += 1
    else:
        last = np.zeros(5, np.uint64)
        found, word, inside = 0, uint64(0), False
        while position <= high:
            point, after = uint32(32), position + 1  # a blank behind the last word ends it
            if position < high:
                point, after = _code_point(buffer, position)
                whole = (whole ^ uint64(point)) * uint64(MIX)
            if words[point]:
                word = (word ^ uint64(point)) * uint64(MIX)
                word ^= word >> uint64(29)
                inside = True
            elif inside:
                last[found % 5] = word
                found += 1
                word, inside = uint64(0), False
                if found >= 5:
                    key = uint64(0)
                    for i in range(found, found + 5):
                        key = (key ^ last[i % 5]) * uint64(MIX)
                        key ^= key >> uint64(32)
                    out[count] = key >> uint64(1)
                    count += 1
            position = after
    if count == 0:
        out[0] = whole | uint64(SHORT)
        count = 1
    return count


@kernel
def _sign(keys, count, factors, offsets, recent, signature):
    """Minima of the affine permutations over the hashes of keys[:count]; overwrites keys.

    `recent` remembers keys by slot and skips most repeats; one that slips through cannot change a minimum.
    """
    recent[:] = uint64(0)
    hashes = np.empty(count, np.uint32)
    distinct = 0
    for i in range(count):
        mixed = keys[i] * uint64(MIX)
        slot = mixed >> uint64(52)
        if recent[slot] == keys[i] + uint64(1):
            continue
        recent[slot] = keys[i] + uint64(1)
        h = uint32(mixed >> uint64(32))
        h = uint32((h ^ (h >> uint32(16))) * uint32(0x85EBCA6B))  # MurmurHash3 finaliser, as in datasketch
        h = uint32((h ^ (h >> uint32(13))) * uint32(0xC2B2AE35))
        hashes[distinct] = h ^ (h >> uint32(16))
        distinct += 1
    for k in range(len(factors)):
        factor, offset, least = factors[k], offsets[k], uint32(0xFFFFFFFF)
        for i in range(distinct):
            least = min(least, uint32(factor * hashes[i] + offset))
        signature[k] = least


@kernel
def signatures(buffer, starts, ends, words, factors, offsets, out):
    """MinHash signatures, uint32 (texts, permutations), of buffer[starts[i]:ends[i]]."""
    keys = np.empty((ends - starts).max() + 1, np.uint64)
    recent = np.empty(4096, np.uint64)
    for row in range(len(starts)):
        count = shingle_keys(buffer, starts[row], ends[row], words, keys)
        _sign(keys, count, factors, offsets, recent, out[row])


@kernel
def band_keys(buffer, starts, ends, words, factors, offsets, rows, out):
    """One 64-bit key a band and text, uint64 (bands, texts), from `rows` signature values; the signature is
    forgotten at once."""
    keys = np.empty((ends - starts).max() + 1, np.uint64)
    recent = np.empty(4096, np.uint64)
    signature = np.empty(len(factors), np.uint32)
    for text in range(len(starts)):
        count = shingle_keys(buffer, starts[text], ends[text], words, keys)
        _sign(keys, count, factors, offsets, recent, signature)
        for band in range(len(out)):
            key = uint64(0)
            for i in range(band * rows, (band + 1) * rows):
                key = (key ^ uint64(signature[i])) * uint64(MIX)
                key ^= key >> uint64(32)
            out[band, text] = key


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
def _similarity(mine, table, stamps, stamp, fresh, theirs, keys, count):
    shared = _shared(table, stamps, stamp, fresh, keys, count)
    return shared / (mine + theirs - shared)


@kernel
def resolve(buffer, starts, ends, inner_starts, inner_ends, words, buckets, bucket_count, order, threshold):
    """Drop a row when a KEPT row before it in `order` is at least `threshold` alike by exact Jaccard.

    buckets: int64 (bands, texts), rows that share a band key share a number, -1 where a row is alone. A row
    whose inner span is narrower than its text lies in a template: what lies inside must be as alike as well.
    Returns keeper (-1 kept), Jaccard with the keeper (the most alike kept row; the earlier in order on a
    tie), and counts: pairs compared, pairs at the threshold or above, pairs that only their template made
    alike, most comparisons for one row.
    """
    bands, texts = buckets.shape
    head, after = np.full(bucket_count, -1, np.int32), np.full((bands, texts), -1, np.int32)
    distinct, inside = np.zeros(texts, np.int32), np.zeros(texts, np.int32)
    seen = np.full(texts, -1, np.int32)
    keeper, jaccard = np.full(texts, -1, np.int32), np.zeros(texts, np.float64)
    counts = np.zeros(4, np.int64)
    longest = (ends - starts).max() + 1
    size = 64
    while size < 2 * longest:
        size *= 2
    keys, tables = np.empty(longest, np.uint64), np.empty((2, size), np.uint64)
    stamps, stamp = np.zeros((2, size), np.int64), np.int64(0)
    rank = np.empty(texts, np.int32)
    for place in range(texts):
        rank[order[place]] = place
    for place in range(texts):
        row = order[place]
        alone = True
        for band in range(bands):
            alone = alone and buckets[band, row] < 0
        if alone:
            continue
        count = shingle_keys(buffer, starts[row], ends[row], words, keys)
        size = 64  # a small table stays in the processor's cache; it is as large as this text needs
        while size < 2 * count:
            size *= 2
        table, marks = tables[0, :size], stamps[0, :size]
        stamp += 1
        own = stamp
        distinct[row] = _load(table, marks, own, keys, count)
        wrapped = inner_ends[row] - inner_starts[row] < ends[row] - starts[row]
        inner_table, inner_marks = table, marks
        inside[row] = distinct[row]
        if wrapped:
            count = shingle_keys(buffer, inner_starts[row], inner_ends[row], words, keys)
            inner_table, inner_marks = tables[1, :size], stamps[1, :size]
            inside[row] = _load(inner_table, inner_marks, own, keys, count)
        compared = 0
        for band in range(bands):
            other = head[buckets[band, row]] if buckets[band, row] >= 0 else -1
            while other >= 0 and jaccard[row] < 1.0:
                following = after[band, other]
                if seen[other] != row:
                    seen[other] = row
                    small, large = min(distinct[row], distinct[other]), max(distinct[row], distinct[other])
                    if small / large >= threshold:
                        compared += 1
                        stamp += 1
                        count = shingle_keys(buffer, starts[other], ends[other], words, keys)
                        alike = _similarity(distinct[row], table, marks, own, stamp, distinct[other],
                                            keys, count)
                        inner = alike
                        narrow = inner_ends[other] - inner_starts[other] < ends[other] - starts[other]
                        if alike >= threshold and (wrapped or narrow):
                            stamp += 1
                            count = shingle_keys(buffer, inner_starts[other], inner_ends[other], words,
                                                 keys)
                            inner = _similarity(inside[row], inner_table, inner_marks, own, stamp,
                                                inside[other], keys, count)
                        counts[1] += alike >= threshold
                        counts[2] += alike >= threshold and inner < threshold
                        best = keeper[row]
                        if alike >= threshold and inner >= threshold and (
                                alike > jaccard[row] or (alike == jaccard[row] and rank[other] < rank[best])):
                            keeper[row], jaccard[row] = other, alike
                other = following
        counts[0] += compared
        counts[3] = max(counts[3], compared)
        if keeper[row] < 0:
            for band in range(bands):
                bucket = buckets[band, row]
                if bucket >= 0:
                    after[band, row] = head[bucket]
                    head[bucket] = row
    return keeper, jaccard, counts
