"""Templates: the beginnings and endings that many texts share, and what lies between them.

Instruction sets wrap short slots in long fixed wording ("Below is an instruction that describes a
task ..."), so most of what two such texts share is the wrapping. The rule: a beginning (or ending)
of at least MIN_WORDS words that at least `min_rows` different texts have in common is template.
Fewer rows that are alike are near-duplicates. Two texts lie in one template as far as their
template parts are the same.
"""

from __future__ import annotations

import numpy as np
from numba import uint64

from lib.dedup import textfile
from lib.dedup.minhash import MIX, kernel

MIN_WORDS = 5  # shorter beginnings ("What is the ...") are plain language
MAX_WORDS = 64  # longer wrapping is cut after this many words


@kernel
def _blank(byte):
    return byte == 32 or 9 <= byte <= 13


@kernel
def text_hashes(buffer, starts, ends, out):
    """A 64-bit hash of the bytes of each text, in `out`."""
    for text in range(len(starts)):
        key, at = uint64(MIX) ^ uint64(ends[text] - starts[text]), starts[text]
        while at + 8 <= ends[text]:
            word = uint64(0)
            for i in range(8):
                word |= uint64(buffer[at + i]) << uint64(8 * i)
            key = (key ^ word) * uint64(MIX)
            key ^= key >> uint64(29)
            at += 8
        for i in range(at, ends[text]):
            key = (key ^ uint64(buffer[i])) * uint64(MIX)
            key ^= key >> uint64(29)
        out[text] = key


@kernel
def walk(buffer, starts, ends, step, rows, words, keys, lengths):
    """Go `words` words further along the beginning (step 1) or ending (-1) of the texts `rows`.

    keys, lengths: hash and length in bytes of each text's beginning so far, updated in place where
    that many more words are there and the text does not end with them; returns for which rows they
    are.
    """
    there = np.zeros(len(rows), np.bool_)
    for i in range(len(rows)):
        row = rows[i]
        start, end = starts[row], ends[row]
        key, length, seen = keys[row], lengths[row], 0
        while length < end - start:
            at = start + length if step > 0 else end - 1 - length
            if length > lengths[row] and _blank(buffer[at - step]) and not _blank(buffer[at]):
                seen += 1
                if seen == words:
                    keys[row], lengths[row], there[i] = key, length, True
                    break
            key = (key ^ uint64(buffer[at])) * uint64(MIX)
            key ^= key >> uint64(29)
            length += 1
    return there


@kernel
def shared_wording(buffer, first, second, limit, step):
    """Length in bytes of the wording that two texts share from positions `first` and `second` on.

    At most `limit` bytes, cut at a word; backwards for step -1. 0 for fewer than MIN_WORDS words.
    """
    length, words, shared = 0, 0, 0
    while True:
        a, b = first + step * length, second + step * length
        if length and _blank(buffer[a - step]) and not (_blank(buffer[a]) and _blank(buffer[b])):
            words += 1
            shared = length
        if length == limit or buffer[a] != buffer[b]:
            return shared if words >= MIN_WORDS else 0
        length += 1


def shared_by(minimum: int):
    """A function that tells, of hashes of beginnings, which occur at least `minimum` times."""

    def frequent(keys):
        _, group, size = np.unique(keys, return_inverse=True, return_counts=True)
        return (size >= minimum)[group]

    return frequent


def found_in(hashes):
    """A function that tells, of hashes of beginnings, which are in a sorted array."""

    def frequent(keys):
        place = np.minimum(np.searchsorted(hashes, keys), max(len(hashes) - 1, 0))
        return hashes[place] == keys if len(hashes) else np.zeros(len(keys), bool)

    return frequent


def beginnings(buffer, starts, ends, step: int, rows, frequent, forget=None):
    """Yield (rows, hashes, lengths in bytes) of the beginnings (step 1) or endings (-1) of texts.

    Of MIN_WORDS words and more, one word longer each time, for rows whose last one was frequent.
    """
    keys, lengths = np.zeros(len(starts), np.uint64), np.zeros(len(starts), np.int64)
    for words in (MIN_WORDS, *[1] * (MAX_WORDS - MIN_WORDS)):
        parts = [
            walk(buffer, starts, ends, step, part, words, keys, lengths)
            for part in textfile.parts(rows, forget)
        ]
        rows = rows[np.concatenate(parts)] if parts else rows
        yield rows, keys[rows], lengths[rows]
        rows = rows[frequent(keys[rows])]
        if not len(rows):
            return


def cut(buffer, starts, ends, rows, frequent_heads, frequent_tails, forget=None):
    """(bytes of template at the beginning, at the end) of the texts `rows`, int64; 0 for others."""
    sides = []
    for step, frequent in ((1, frequent_heads), (-1, frequent_tails)):
        template = np.zeros(len(starts), np.int64)
        for some, keys, lengths in beginnings(buffer, starts, ends, step, rows, frequent, forget):
            shared = frequent(keys)
            template[some[shared]] = lengths[shared]
        sides.append(template)
    return sides


def inner(starts, ends, head, tail):
    """(inner_starts, inner_ends) for `head` and `tail` bytes of template; all template is none."""
    left = head + tail < ends - starts
    return np.where(left, starts + head, starts), np.where(left, ends - tail, ends)


def spans(buffer, starts, ends, min_rows: int = 50, forget=None):
    """(inner_starts, inner_ends), int64: what lies between the shared wording of each text.

    buffer: uint8 of UTF-8; starts, ends: int64 a text. Equal texts count once. Cuts fall on white
    space, so the rest is valid UTF-8. A text that is all template is left whole. forget: of
    `textfile.mapped`, if it is mapped.
    """
    if not min_rows or len(starts) < min_rows:
        return starts.copy(), ends.copy()
    hashes = np.empty(len(starts), np.uint64)
    for part in textfile.parts(np.arange(len(starts)), forget):
        text_hashes(buffer, starts[part], ends[part], hashes[part[0] : part[-1] + 1])
    _, first, group = np.unique(hashes, return_index=True, return_inverse=True)
    head, tail = cut(
        buffer, starts, ends, np.sort(first), shared_by(min_rows), shared_by(min_rows), forget
    )
    return inner(starts, ends, head[first[group]], tail[first[group]])
