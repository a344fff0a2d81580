"""Compiled search for what a text shares with an index: runs of words, whole questions, lines."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numba import uint64

from lib.dedup.minhash import MIX, code_point, kernel, word_table

SPACE, WORD, SIGN, CLOSING, BREAK = range(5)  # what a code point is; runs of WORD make a word
CLOSES = "?.!:;,\"'"  # signs that end a question and say nothing


@lru_cache(maxsize=1)
def classes() -> np.ndarray:
    """What each code point is, uint8: \\w, \\s and line ends as `re` and `splitlines` have them."""
    table = np.where(word_table(), WORD, SIGN).astype(np.uint8)
    for point in range(0x3001):  # no blank stands above the ideographic one
        if chr(point).isspace():
            table[point] = BREAK if len(f"a{chr(point)}b".splitlines()) > 1 else SPACE
    table[[ord(sign) for sign in CLOSES]] = CLOSING
    return table


@kernel
def tokens(buffer, kinds):
    """(hashes uint64, kinds uint8) of the words, single signs and line ends of UTF-8 bytes.

    kinds: of `classes`. A token's kind is WORD, SIGN, CLOSING or BREAK (hash 0); blanks are none.
    """
    hashes, made = np.empty(len(buffer) + 1, np.uint64), np.empty(len(buffer) + 1, np.uint8)
    count, at, word, inside = 0, 0, uint64(0), False
    while at < len(buffer):
        point, at = code_point(buffer, at)
        kind = kinds[point]
        if kind == WORD:
            word = (word ^ uint64(point)) * uint64(MIX)
            word ^= word >> uint64(29)
            inside = True
            continue
        if inside:
            hashes[count], made[count] = word, WORD
            count += 1
            word, inside = uint64(0), False
        if kind == BREAK and point == 10 and at > 1 and buffer[at - 2] == 13:
            continue  # "\r\n" ends one line, and its "\r" has ended it
        if kind != SPACE:
            sign = uint64(point) * uint64(MIX)
            hashes[count] = uint64(0) if kind == BREAK else sign ^ (sign >> uint64(29))
            made[count] = kind
            count += 1
    if inside:
        hashes[count], made[count] = word, WORD
        count += 1
    return hashes[:count], made[:count]


@kernel
def _mixed(rolling, length):
    key = (rolling ^ uint64(length)) * uint64(MIX)
    return key ^ (key >> uint64(32))


@kernel
def whole(words):
    """Hash, uint64, of all words of an array of hashes: of a run of that many words."""
    rolling = uint64(0)
    for i in range(len(words)):
        rolling = rolling * uint64(MIX) + words[i]
    return _mixed(rolling, len(words))


@kernel
def windows(words, length):
    """Hash, uint64, of every run of `length` word hashes: a rolling polynomial in MIX, mixed."""
    out = np.empty(max(0, len(words) - length + 1), np.uint64)
    rolling, leaving = uint64(0), uint64(1)
    for _ in range(length):
        leaving *= uint64(MIX)
    for i in range(len(words)):
        rolling = rolling * uint64(MIX) + words[i]
        if i >= length:
            rolling -= words[i - length] * leaving
        if i >= length - 1:
            out[i - length + 1] = _mixed(rolling, length)
    return out


@kernel
def _two_bits(key):
    return uint64(1) << (key & uint64(63)) | uint64(1) << ((key >> uint64(6)) & uint64(63))


@kernel
def filter_bits(keys):
    """A Bloom filter of two bits a key in one of its words, uint64.

    It tells all but one in a hundred keys outside apart, and half a million keys take two
    megabytes, which stay near the processor (Putze, Sanders, Singler 2007).
    """
    size = 16
    while 2 * size < len(keys):
        size *= 2
    bits = np.zeros(size, np.uint64)
    for key in keys:
        bits[(key >> uint64(12)) & uint64(size - 1)] |= _two_bits(key)
    return bits


@kernel
def position(key, keys, bits):
    """Position of a key in sorted `keys`, -1 where it is not there. bits: their `filter_bits`."""
    wanted = _two_bits(key)
    if bits[(key >> uint64(12)) & uint64(len(bits) - 1)] & wanted == wanted:
        at = np.searchsorted(keys, key)
        if at < len(keys) and keys[at] == key:
            return at
    return -1


@kernel
def find(hashes, kinds, lengths, keys, bits):
    """Runs of words, of each of the `lengths`, that the sorted `keys` hold.

    Returns int64 rows (position in keys, start, length); start counts words.
    """
    words, count = hashes[kinds == WORD], 0
    out = np.empty((len(words) * len(lengths), 3), np.int64)
    for length in lengths:
        runs = windows(words, length)
        for start in range(len(runs)):
            at = position(runs[start], keys, bits)
            if at >= 0:
                out[count, 0], out[count, 1], out[count, 2] = at, start, length
                count += 1
    return out[:count]


@kernel
def find_questions(
    hashes, kinds, questions, question_bits, minimum, starts, start_bits, edges, lengths
):
    """Positions in the sorted `questions` (`whole` hashes) of lines and runs of the tokens.

    A line counts without its closing signs. A run begins with `minimum` tokens of the sorted
    `starts`, and lengths[edges[i]:edges[i + 1]] says how long questions of that beginning are.
    """
    out, count = np.empty(len(hashes) + 1, np.int64), 0
    first = 0
    for i in range(len(hashes) + 1):
        if i == len(hashes) or kinds[i] == BREAK:
            last = i
            while last > first and kinds[last - 1] == CLOSING:
                last -= 1
            at = (
                position(whole(hashes[first:last]), questions, question_bits)
                if last > first
                else -1
            )
            if at >= 0:
                out[count] = at
                count += 1
            first = i + 1
    signs = hashes[kinds != BREAK]
    beginnings = windows(signs, minimum)
    for start in range(len(beginnings)):
        beginning = position(beginnings[start], starts, start_bits)
        for length in (
            lengths[edges[beginning] : edges[beginning + 1]] if beginning >= 0 else lengths[:0]
        ):
            at = (
                position(whole(signs[start : start + length]), questions, question_bits)
                if start + length <= len(signs)
                else -1
            )
            if at >= 0:
                if count == len(out):
                    out = np.concatenate((out, out))
                out[count] = at
                count += 1
    return out[:count]
