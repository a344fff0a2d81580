"""Compiled kernels of near-duplicate search: shingles, MinHash signatures, band keys.

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
