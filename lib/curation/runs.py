"""Compiled search for runs of words: hashes of all windows of a row, looked up in a sorted table."""

from __future__ import annotations

import numpy as np
from numba import uint64

from lib.curation.minhash import MIX, kernel


@kernel
def windows(words, length):
    """Hash, uint64, of every run of `length` word hashes: a rolling polynomial in MIX, mixed once more."""
    out = np.empty(max(0, len(words) - length + 1), np.uint64)
    rolling, leaving = uint64(0), uint64(1)
    for _ in range(length):
        leaving *= uint64(MIX)
    for i in range(len(words)):
        rolling = rolling * uint64(MIX) + words[i]
        if i >= length:
            rolling -= words[i - length] * leaving
        if i >= length - 1:
            key = (rolling ^ uint64(length)) * uint64(MIX)
            out[i - length + 1] = key ^ (key >> uint64(32))
    return out


@kernel
def filter_bits(keys):
    """Booleans by the low bits of a key, one in sixteen true at most: most keys outside are told apart."""
    size = 1024
    while size < 16 * len(keys):
        size *= 2
    bits = np.zeros(size, np.bool_)
    for key in keys:
        bits[key & uint64(size - 1)] = True
    return bits


@kernel
def find(words, length, keys, bits):
    """Runs of `length` words that the sorted `keys` hold: (start in words, place in keys), int64 each."""
    found = windows(words, length)
    starts, places, count = np.empty(len(found), np.int64), np.empty(len(found), np.int64), 0
    mask = uint64(len(bits) - 1)
    for start in range(len(found)):
        if bits[found[start] & mask]:
            place = np.searchsorted(keys, found[start])
            if place < len(keys) and keys[place] == found[start]:
                starts[count], places[count] = start, place
                count += 1
    return starts[:count], places[:count]
