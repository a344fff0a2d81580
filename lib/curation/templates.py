"""Templates: the beginnings and endings that many different texts share, and what lies between them.

Instruction sets wrap short slots in long fixed wording ("Below is an instruction that describes a task ..."),
so most of what two such texts share is the wrapping. The rule: a beginning (or ending) of at least MIN_WORDS
words that at least `min_rows` different texts have in common is template. Fewer rows that are alike are
near-duplicates. Two texts lie in one template as far as their template parts are the same.
"""

from __future__ import annotations

import numpy as np
from numba import uint64

from lib.curation.minhash import MIX, kernel

MIN_WORDS = 5  # shorter beginnings ("What is the ...") are plain language
MAX_WORDS = 64  # longer wrapping is cut after this many words


@kernel
def _blank(byte):
    return byte == 32 or 9 <= byte <= 13


@kernel
def _text_hashes(buffer, starts, ends, out):
    for text in range(len(starts)):
        key = uint64(0)
        for i in range(starts[text], ends[text]):
            key = (key ^ uint64(buffer[i])) * uint64(MIX)
            key ^= key >> uint64(29)
        out[text] = key


@kernel
def _walk(buffer, start, end, step, counts, min_rows):
    """Count the word-aligned beginnings (step 1) or endings (step -1) of a text when min_rows is 0; else
    return the length in bytes and words of the longest one that min_rows texts share."""
    key, words, length, cell = uint64(0), 0, 0, uint64(len(counts) - 1)
    while length < end - start and words < MAX_WORDS:
        at = start + length if step > 0 else end - 1 - length
        if length and _blank(buffer[at - step]) and not _blank(buffer[at]):
            slot = (key * uint64(MIX) >> uint64(32)) & cell
            if min_rows == 0:
                counts[slot] += 1
            elif counts[slot] < min_rows:
                break
            words += 1
            shared = length
        key = (key ^ uint64(buffer[at])) * uint64(MIX)
        key ^= key >> uint64(29)
        length += 1
    return (shared, words) if words else (0, 0)


@kernel
def _count(buffer, starts, ends, rows, heads, tails):
    for row in rows:
        _walk(buffer, starts[row], ends[row], 1, heads, 0)
        _walk(buffer, starts[row], ends[row], -1, tails, 0)


@kernel
def _cut(buffer, starts, ends, heads, tails, min_rows, inner_starts, inner_ends):
    for row in range(len(starts)):
        head, head_words = _walk(buffer, starts[row], ends[row], 1, heads, min_rows)
        tail, tail_words = _walk(buffer, starts[row], ends[row], -1, tails, min_rows)
        head = head if head_words >= MIN_WORDS else 0
        tail = tail if tail_words >= MIN_WORDS else 0
        if head + tail < ends[row] - starts[row]:  # else nothing is left: a frequent text, no template
            inner_starts[row], inner_ends[row] = starts[row] + head, ends[row] - tail


@kernel
def shared_wording(buffer, first, second, limit, step):
    """Length in bytes of the wording that two texts share from byte positions `first` and `second` on, at most
    `limit` bytes and cut at a word; backwards for step -1. 0 for fewer than MIN_WORDS words."""
    length, words, shared = 0, 0, 0
    while True:
        a, b = first + step * length, second + step * length
        if length and _blank(buffer[a - step]) and not (_blank(buffer[a]) and _blank(buffer[b])):
            words += 1
            shared = length
        if length == limit or buffer[a] != buffer[b]:
            return shared if words >= MIN_WORDS else 0
        length += 1


def spans(buffer, starts, ends, min_rows: int = 50):
    """(inner_starts, inner_ends), int64 byte positions of what lies between the shared wording of each text.

    buffer: uint8 of UTF-8; starts, ends: int64 a text. Equal texts count once. Cuts fall on white space, so
    the rest is valid UTF-8. A text that is all template is left whole.
    """
    inner_starts, inner_ends = starts.copy(), ends.copy()
    if min_rows and len(starts) >= min_rows:
        hashes = np.empty(len(starts), np.uint64)
        _text_hashes(buffer, starts, ends, hashes)
        first = np.sort(np.unique(hashes, return_index=True)[1])
        cells = 1 << 16  # counters of hashed beginnings: collisions add at most about min_rows / 8 to one
        while cells < 8 * MAX_WORDS * len(starts) / min_rows:
            cells *= 2
        heads, tails = np.zeros(cells, np.uint32), np.zeros(cells, np.uint32)
        _count(buffer, starts, ends, first, heads, tails)
        _cut(buffer, starts, ends, heads, tails, min_rows, inner_starts, inner_ends)
    return inner_starts, inner_ends
