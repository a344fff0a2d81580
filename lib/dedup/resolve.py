"""Compiled greedy choice of the rows to keep: shared bands make candidates, exact Jaccard decides.

Import this module inside functions: numba loads slowly.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import uint64

from lib.dedup import textfile
from lib.dedup.candidates import CROWD
from lib.dedup.jaccard import Texts, alike, scratch
from lib.dedup.minhash import different_bits, inlined, kernel, ones


class Entries(NamedTuple):
    """What rows are found by: entry i is the full text of row i, later ones what a template leaves.

    buckets: int32 (bands, entries), equal for entries that share a band key, -1 where one is alone.
    inner: the second entry of each row, -1 for none. owner: the row of each entry. sketches: uint64
    (entries, words). crowd: templated rows of each bucket.
    """

    buckets: np.ndarray
    inner: np.ndarray
    owner: np.ndarray
    sketches: np.ndarray
    crowd: np.ndarray


class Kept(NamedTuple):
    """Kept entries of every bucket, in its stretch begin[bucket]:begin[bucket + 1].

    Rows outside templates stand from the front of it, `front` of them, rows inside from the back.
    sketches: the first two words of each one's, which are met in order here and all over the memory
    in those of `Entries`.
    """

    begin: np.ndarray
    entries: np.ndarray
    sketches: np.ndarray
    front: np.ndarray
    back: np.ndarray


class Choice(NamedTuple):
    """What is known of each row. seen: the last row that was compared with it. counts: five."""

    rank: np.ndarray
    seen: np.ndarray
    keeper: np.ndarray
    similarity: np.ndarray
    counts: np.ndarray


def resolve(texts: Texts, buckets, sizes, inner, sketches, most, order, threshold, forget=None):
    """Drop a row when a KEPT row before it in `order` is a near-duplicate of it (`jaccard.alike`).

    buckets, inner, sketches: of `Entries`; sizes: entries of each bucket. A pair with more than
    most[0] different bits in the first two words of its sketches, or most[1] in all, is not looked
    at. forget: of `textfile.mapped`, called after every few rows. Returns keeper (-1 kept), Jaccard
    with the keeper (the most alike kept row; the earlier in order on a tie), and counts: sketches
    compared, pairs compared, near-duplicate pairs, pairs that only their template made alike, most
    pairs compared for one row.
    """
    rows = len(texts.starts)
    counts = np.zeros(5, np.int64)
    if not rows:
        return np.empty(0, np.int32), np.empty(0), counts
    entries, kept = _entries(buckets, sizes, inner, sketches), _nothing_kept(sizes)
    rank = np.empty(rows, np.int32)
    rank[order] = np.arange(rows)
    unknown = np.full(rows, -1, np.int32)
    choice = Choice(rank, unknown, unknown.copy(), np.zeros(rows), counts)
    size, longest = 64, 2 * (texts.ends - texts.starts).max(initial=0)
    while size < min(longest, 1 << 20):
        size *= 2
    work, stamp = scratch(size), 1
    for part in textfile.parts(order, forget):
        work, stamp = _resolve(texts, entries, kept, choice, most, threshold, part, work, stamp)
    return choice.keeper, choice.similarity, counts


def _entries(buckets, sizes, inner, sketches) -> Entries:
    owner = np.arange(buckets.shape[1], dtype=np.int32)
    templated = np.flatnonzero(inner >= 0)
    owner[inner[templated]] = templated
    crowd = np.zeros(len(sizes), np.int32)
    for numbers in buckets:
        shared = numbers[templated][numbers[templated] >= 0]
        crowd += np.bincount(shared, minlength=len(sizes)).astype(np.int32)
    return Entries(buckets, inner, owner, sketches, crowd)


def _nothing_kept(sizes) -> Kept:
    begin = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])
    front, back = np.zeros(len(sizes), np.int32), np.zeros(len(sizes), np.int32)
    room = np.empty(begin[-1], np.int32)
    return Kept(begin, room, np.zeros((len(room), 2), np.uint64), front, back)


@kernel
def _resolve(texts, entries, kept, choice, most, threshold, order, scratch, stamp):
    """The rows of one stretch of `order`, given what those before them left: (scratch, stamp)."""
    counts = choice.counts
    for row in order:
        compared, scratch, stamp = _compare(
            texts, entries, kept, choice, most, threshold, row, scratch, stamp
        )
        counts[1] += compared
        counts[4] = max(counts[4], compared)
        if choice.keeper[row] < 0:
            _keep(entries, kept, row)
    return scratch, stamp


@inlined
def _compare(texts, entries, kept, choice, most, threshold, row, scratch, stamp):
    """Compare a row with the kept rows of its buckets: (pairs compared, scratch, stamp)."""
    buckets, inner, owner, sketches, crowd = entries
    begin, others, begun, front, back = kept
    seen, counts, compared = choice.seen, choice.counts, 0
    templated, width = inner[row] >= 0, sketches.shape[1]
    for kind in range(2 if templated else 1):
        entry = row if kind == 0 else inner[row]
        word, next_word = sketches[entry, 0], sketches[entry, 1] if width > 1 else uint64(0)
        for band in range(len(buckets)):
            bucket = buckets[band, entry]
            if bucket < 0:
                continue
            for among in range(2):
                low, high = begin[bucket], begin[bucket] + front[bucket]
                if among == 1:
                    low, high = begin[bucket + 1] - back[bucket], begin[bucket + 1]
                    if templated and kind == 0 and crowd[bucket] > CROWD:
                        continue
                counts[0] += high - low
                for at in range(low, high):
                    if (
                        ones(begun[at, 0] ^ word) + ones(begun[at, 1] ^ next_word) > most[0]
                        or different_bits(sketches, entry, others[at], width) > most[1]
                    ):
                        continue
                    other = owner[others[at]]
                    if seen[other] == row:
                        continue
                    seen[other] = row
                    compared += 1
                    scratch = _decide(texts, choice, threshold, row, other, scratch, stamp)
                    stamp += 6
    return compared, scratch, stamp


@kernel
def _decide(texts, choice, threshold, row, other, scratch, stamp):
    """Compare two rows; a kept one that is more alike, or as alike and better, is the keeper."""
    value, near, scratch = alike(texts, row, other, threshold, scratch, stamp)
    if value >= threshold:
        choice.counts[2] += near
        choice.counts[3] += not near
        keeper, similarity, rank = choice.keeper, choice.similarity, choice.rank
        if near and (
            value > similarity[row]
            or (value == similarity[row] and rank[other] < rank[keeper[row]])
        ):
            keeper[row], similarity[row] = other, value
    return scratch


@inlined
def _keep(entries, kept, row):
    """Put the entries of a row that stays into their buckets."""
    buckets, inner, _, sketches, _ = entries
    begin, others, begun, front, back = kept
    templated, width = inner[row] >= 0, sketches.shape[1]
    for kind in range(2 if templated else 1):
        entry = row if kind == 0 else inner[row]
        for band in range(len(buckets)):
            bucket = buckets[band, entry]
            if bucket < 0:
                continue
            if templated:
                back[bucket] += 1
                at = begin[bucket + 1] - back[bucket]
            else:
                at = begin[bucket] + front[bucket]
                front[bucket] += 1
            others[at], begun[at, 0] = entry, sketches[entry, 0]
            if width > 1:
                begun[at, 1] = sketches[entry, 1]
