"""Compiled search for candidates: which entries share a band key.

`number_buckets` serves one machine, `candidates` the cluster. Import this module inside functions:
numba loads slowly.
"""

from __future__ import annotations

import numpy as np

from lib.dedup.minhash import different_bits, kernel

# templated texts in one bucket from which their full texts say only that they share the wording
CROWD = 64


@kernel
def number_buckets(packed, mask, first, numbers, sizes):
    """Number the runs of equal keys in one band from `first` on, in `numbers` of the entries.

    -1 where a key is alone. packed: sorted uint64, key in the high bits, entry in those of
    `mask`. Writes the size of each run to `sizes`; returns how many runs there are.
    """
    start, runs = 0, 0
    for i in range(1, len(packed) + 1):
        if i < len(packed) and (packed[i] ^ packed[start]) <= mask:
            continue
        bucket = -1
        if i - start > 1:
            bucket, sizes[runs] = first + runs, i - start
            runs += 1
        for k in range(start, i):
            numbers[packed[k] & mask] = bucket
        start = i
    return runs


@kernel
def candidates(bands, texts, templated, sketches, most):
    """Pairs of entries that share a band key and are alike by their sketches: two arrays of places.

    bands, texts: sorted by band key, then hash of the whole text. Of equal texts the first stands
    for all of them and forms a pair with each. Templated entries form none among themselves in a
    crowd.
    """
    first, second = np.empty(1024, np.int64), np.empty(1024, np.int64)
    pairs, start = 0, 0
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
                if pairs == len(first):
                    first, second = np.concatenate((first, first)), np.concatenate((second, second))
                first[pairs], second[pairs] = other, i
                pairs += 1
            if not copy:
                chosen[different] = i
                different += 1
        start = end
    return first[:pairs], second[:pairs]
