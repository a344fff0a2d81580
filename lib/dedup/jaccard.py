"""Compiled exact Jaccard similarity of two texts, and whether they are near-duplicates.

Import this module inside functions: numba loads slowly.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import uint64

from lib.dedup.minhash import CHUNK, MIX, kernel, shingle_keys
from lib.dedup.templates import shared_wording


class Texts(NamedTuple):
    """Texts in one buffer of UTF-8: text i is buffer[starts[i]:ends[i]].

    Its template leaves buffer[inner_starts[i]:inner_ends[i]]. words: table of word characters for
    shingles of five words, empty for three code points.
    """

    buffer: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    inner_starts: np.ndarray
    inner_ends: np.ndarray
    words: np.ndarray


class Scratch(NamedTuple):
    """What a comparison works in: room for CHUNK shingles, and a hash table with its marks.

    Open addressing, a power of two long; an entry is valid while its mark is `stamp` or later.
    """

    keys: np.ndarray
    table: np.ndarray
    marks: np.ndarray


def scratch(size: int) -> Scratch:
    """An empty one with a table of `size`, a power of two."""
    return Scratch(np.empty(CHUNK, np.uint64), np.empty(size, np.uint64), np.zeros(size, np.int64))


@kernel
def _slot(key, size):
    """Slot in a table of `size`, a power of two.

    All three code points must bear on it: without the fold the first one would hardly, and look-ups
    would take thirty times as long.
    """
    return (((key ^ (key >> uint64(31))) * uint64(MIX)) >> uint64(40)) & uint64(size - 1)


@kernel
def _widened(table, marks, size, stamp, wanted):
    """(table, marks, size) with room for `wanted` entries: those marked `stamp` or later."""
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
    """Put keys[:count] where _put has been: (how many are new, how many distinct were there)."""
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
def jaccard(buffer, span, other, words, scratch, stamp):
    """(exact Jaccard similarity of two spans (low, high) of the buffer, scratch).

    stamp must lie three above that of the call before; a larger scratch comes back when the texts
    need one.
    """
    keys, table, marks = scratch
    size, used, both = 64, 0, 0
    while 3 * size < 4 * (span[1] - span[0] + other[1] - other[0]) and size < len(table):
        size *= 2  # a table as small as the texts allow stays in the processor's cache
    position = span[0]
    while position >= 0:
        count, position = shingle_keys(buffer, span[0], position, span[1], words, keys)
        if 4 * (used + count) > 3 * size:
            table, marks, size = _widened(table, marks, size, stamp, used + count)
        used += _put(keys, count, table, marks, size, stamp)
    position = other[0]
    while position >= 0:
        count, position = shingle_keys(buffer, other[0], position, other[1], words, keys)
        if 4 * (used + count) > 3 * size:
            table, marks, size = _widened(table, marks, size, stamp, used + count)
        new, met = _meet(keys, count, table, marks, size, stamp)
        used, both = used + new, both + met
    return both / used, Scratch(keys, table, marks)


@kernel
def _shared_template(texts, row, other):
    """Bytes of template that two texts share at the beginning and at the end."""
    starts, ends = texts.starts, texts.ends
    first, second = texts.inner_starts, texts.inner_ends
    most = min(first[row] - starts[row], first[other] - starts[other])
    head = shared_wording(texts.buffer, starts[row], starts[other], most, 1)
    most = min(ends[row] - second[row], ends[other] - second[other])
    return head, shared_wording(texts.buffer, ends[row] - 1, ends[other] - 1, most, -1)


@kernel
def _templated(texts, row):
    whole = texts.ends[row] - texts.starts[row]
    return texts.inner_ends[row] - texts.inner_starts[row] < whole


@kernel
def alike(texts, row, other, threshold, scratch, stamp):
    """(exact Jaccard of two texts, are they near-duplicates, scratch). Takes six stamps.

    They are when the full texts reach the threshold and, where both lie in one template, what they
    hold inside it reaches it, too.
    """
    low, high = texts.starts[row], texts.ends[row]
    other_low, other_high = texts.starts[other], texts.ends[other]
    value, scratch = jaccard(
        texts.buffer, (low, high), (other_low, other_high), texts.words, scratch, stamp
    )
    near = value >= threshold
    if near and _templated(texts, row) and _templated(texts, other):
        head, tail = _shared_template(texts, row, other)
        if 0 < head + tail < min(high - low, other_high - other_low):
            span, other_span = (low + head, high - tail), (other_low + head, other_high - tail)
            within, scratch = jaccard(
                texts.buffer, span, other_span, texts.words, scratch, stamp + 3
            )
            near = within >= threshold
    return value, near, scratch


@kernel
def check(texts, first, second, threshold, scratch):
    """(exact Jaccard, near-duplicates or not, equal or not) of the pairs first[i], second[i]."""
    value = np.empty(len(first))
    near, same = np.zeros(len(first), np.bool_), np.zeros(len(first), np.bool_)
    for i in range(len(first)):
        a, b = first[i], second[i]
        value[i], near[i], scratch = alike(texts, a, b, threshold, scratch, 1 + 6 * i)
        size = texts.ends[a] - texts.starts[a]
        same[i] = size == texts.ends[b] - texts.starts[b]
        at = 0
        while same[i] and at < size:
            same[i] = texts.buffer[texts.starts[a] + at] == texts.buffer[texts.starts[b] + at]
            at += 1
    return value, near, same
