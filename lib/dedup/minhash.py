"""Compiled kernels of near-duplicate search: shingles, MinHash signatures, band keys, sketches.

A text is bytes of UTF-8 in one large buffer; a shingle is a 64-bit key (three code points packed,
or a hash of five words). A signature equals datasketch's MinHash(scheme="affine32", seed=1) over
the keys' 32-bit hashes, so datasketch is the oracle of the tests. Import this module inside
functions: numba loads slowly.
"""

from __future__ import annotations

import llvmlite.binding
import numba
import numpy as np
from numba import njit, uint32, uint64

features = llvmlite.binding.get_host_cpu_features()
if features.get("avx512f"):  # LLVM takes half of the registers' width by itself
    wide = f"{features.flatten()},-prefer-256-bit"
    # a user's NUMBA_CPU_FEATURES goes first
    numba.config.CPU_FEATURES = numba.config.CPU_FEATURES or wide

# odd: (key * MIX) >> 32 is a universal hash of the key (Dietzfelbinger et al. 1997)
MIX = 0x9E3779B97F4A7C15
# set in the one key of a text too short for a shingle; packed code points use 63 bits
SHORT = 1 << 63
CHUNK = 8192  # shingles held at a time, so that memory does not grow with the length of a text


def kernel(function):
    """njit that keeps its machine code beside the module or in the user's cache.

    Where both are read-only numba raises, and the code is compiled anew in every process.
    """
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:
        return njit(nogil=True)(function)


def inlined(function):
    """A kernel that becomes part of its caller: handing over many arrays a row takes time."""
    return njit(inline="always")(function)


def permutations(count: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The odd factors and offsets, uint32, that datasketch's affine32 scheme draws."""
    draw = np.random.RandomState(seed)
    factors = draw.randint(0, 1 << 31, count, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    return factors, draw.randint(0, 1 << 32, count, dtype=np.uint32)


def word_table() -> np.ndarray:
    """True for the code points of a word: alphanumeric or underscore, as for the pattern \\w."""
    table = np.fromiter((chr(i).isalnum() for i in range(0x110000)), np.bool_, 0x110000)
    table[ord("_")] = True
    return table


@kernel
def code_point(buffer, position):
    """Code point at a position of valid UTF-8 (surrogates pass through), and the next position."""
    first = uint32(buffer[position])
    if first < uint32(0x80):
        return first, position + 1
    size = 2 if first < uint32(0xE0) else (3 if first < uint32(0xF0) else 4)
    point = first & uint32(0xFF >> (size + 1))
    for i in range(1, size):
        point = uint32(point << uint32(6)) | (uint32(buffer[position + i]) & uint32(0x3F))
    return uint32(point), position + size


@kernel
def _trigrams(buffer, position, high, out):
    count, points, gram = 0, 0, uint64(0)
    before = last = position
    while position < high:
        if count == len(out):
            return count, before  # the next trigram begins with the last code point but one
        before, last = last, position
        point, position = code_point(buffer, position)
        gram = ((gram << uint64(21)) | uint64(point)) & uint64(0x7FFFFFFFFFFFFFFF)
        points += 1
        if points >= 3:
            out[count] = gram
            count += 1
    return count, -1


@kernel
def _five_words(buffer, position, high, words, out):
    last, starts = np.zeros(5, np.uint64), np.zeros(5, np.int64)
    count, complete, word, inside = 0, 0, uint64(0), False
    while position <= high:
        if count == len(out):
            return count, starts[(complete - 4) % 5]  # where the next run of five begins
        point, after = uint32(32), position + 1  # a blank behind the last word ends it
        if position < high:
            point, after = code_point(buffer, position)
        if words[point]:
            if not inside:
                starts[complete % 5] = position
            word = (word ^ uint64(point)) * uint64(MIX)
            word ^= word >> uint64(29)
            inside = True
        elif inside:
            last[complete % 5] = word
            complete += 1
            word, inside = uint64(0), False
            if complete >= 5:
                key = uint64(0)
                for i in range(complete, complete + 5):
                    key = (key ^ last[i % 5]) * uint64(MIX)
                    key ^= key >> uint64(32)
                out[count] = key >> uint64(1)
                count += 1
        position = after
    return count, -1


@kernel
def shingle_keys(buffer, low, position, high, words, out):
    """Write shingle keys of buffer[low:high] from `position` on, with repeats, to `out` (uint64).

    words: table of word characters for shingles of five words, or an empty array for three code
    points. A text shorter than a shingle gets one key, a hash of all its code points: it equals
    only equal texts. Returns how many were written and the position to go on from, -1 at the end of
    the text.
    """
    if len(words) == 0:
        count, after = _trigrams(buffer, position, high, out)
    else:
        count, after = _five_words(buffer, position, high, words, out)
    if count == 0 and position == low:
        key, at = uint64(MIX), low
        while at < high:
            point, at = code_point(buffer, at)
            key = (key ^ uint64(point)) * uint64(MIX)
        out[0] = key | uint64(SHORT)
        count = 1
    return count, after


@kernel
def _sign(buffer, low, high, words, factors, offsets, recent, keys, hashes, signature):
    """Minima of the affine permutations over the hashes of the shingles of buffer[low:high].

    `recent` remembers hashes by their high bits and skips most repeats; one that slips through
    cannot change a minimum.
    """
    recent[:] = uint32(0)  # no hash of slot 1 and above
    recent[0] = uint32(0xFFFFFFFF)  # no hash of slot 0
    signature[:] = uint32(0xFFFFFFFF)
    position = low
    while position >= 0:
        count, position = shingle_keys(buffer, low, position, high, words, keys)
        for i in range(count):
            h = uint32((keys[i] * uint64(MIX)) >> uint64(32))
            # MurmurHash3 finaliser, as in datasketch
            h = uint32((h ^ (h >> uint32(16))) * uint32(0x85EBCA6B))
            h = uint32((h ^ (h >> uint32(13))) * uint32(0xC2B2AE35))
            hashes[i] = h ^ (h >> uint32(16))
        distinct = 0
        for i in range(count):
            h = hashes[i]
            slot = h >> uint32(20)
            hashes[distinct] = h
            distinct += 1 if recent[slot] != h else 0
            recent[slot] = h
        for k in range(0, len(factors) - 1, 2):  # two at a time: half the loads
            factor, offset, least = factors[k], offsets[k], signature[k]
            second, shift, lowest = factors[k + 1], offsets[k + 1], signature[k + 1]
            for i in range(distinct):
                least = min(least, uint32(factor * hashes[i] + offset))
                lowest = min(lowest, uint32(second * hashes[i] + shift))
            signature[k], signature[k + 1] = least, lowest
        for k in range(len(factors) // 2 * 2, len(factors)):
            for i in range(distinct):
                signature[k] = min(signature[k], uint32(factors[k] * hashes[i] + offsets[k]))


@kernel
def sign(buffer, starts, ends, words, factors, offsets, rows, bands, sketches):
    """What finds candidates, of each text; its signature is forgotten at once.

    bands: uint64 (bands, texts), one key from `rows` signature values each. sketches: uint64
    (texts, words of 64 permutations), one bit a permutation: two texts agree in a bit if the
    permutation's minimum is the same, else by chance one half, so the share of equal bits is (1 +
    J) / 2 (b-bit MinHash with b = 1, Li and Koenig 2010).
    """
    keys, hashes = np.empty(CHUNK, np.uint64), np.empty(CHUNK, np.uint32)
    recent, signature = np.empty(4096, np.uint32), np.empty(len(factors), np.uint32)
    for text in range(len(starts)):
        _sign(
            buffer,
            starts[text],
            ends[text],
            words,
            factors,
            offsets,
            recent,
            keys,
            hashes,
            signature,
        )
        for band in range(len(bands)):
            key = uint64(0)
            for i in range(band * rows, (band + 1) * rows):
                key = (key ^ uint64(signature[i])) * uint64(MIX)
                key ^= key >> uint64(32)
            bands[band, text] = key
        for cell in range(sketches.shape[1]):
            bits = uint64(0)
            for i in range(64 * cell, min(64 * cell + 64, len(factors))):
                bits = (bits << uint64(1)) | uint64(
                    uint32(signature[i] * uint32(0x9E3779B1)) >> uint32(31)
                )
            sketches[text, cell] = bits


@kernel
def ones(x):
    """How many bits of a uint64 are set (Warren, Hacker's Delight, section 5-1)."""
    x -= (x >> uint64(1)) & uint64(0x5555555555555555)
    x = (x & uint64(0x3333333333333333)) + ((x >> uint64(2)) & uint64(0x3333333333333333))
    x = (x + (x >> uint64(4))) & uint64(0x0F0F0F0F0F0F0F0F)
    return int((x * uint64(0x0101010101010101)) >> uint64(56))


@kernel
def different_bits(sketches, one, other, words):
    """How many bits of the first `words` words of two sketches differ."""
    different = 0
    for cell in range(min(words, sketches.shape[1])):
        different += ones(sketches[one, cell] ^ sketches[other, cell])
    return different
