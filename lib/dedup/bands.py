"""Bands and sketches: which pairs of signatures become candidates, and how surely one is found."""

from __future__ import annotations

from lib import plots

# exact Jaccard removes false positives, so the weight goes to finding
RECALL_WEIGHTS = (0.002, 0.998)
PERMUTATIONS = 256  # 32 bands of 8: finds 99.7 % of the pairs at 0.8; 128 find 95 %
SKETCH_MISSES = 1e-6  # share of pairs at the threshold that comparing sketches first may lose


def lsh_parameters(
    threshold: float, permutations: int = PERMUTATIONS, compat: bool = False
) -> tuple[int, int]:
    """(bands, rows a band) from datasketch's optimiser.

    compat: datasketch's own default, which weighs false positives and misses alike (9 x 13 for 0.8
    and 128, finds 40 % of the pairs at 0.8); otherwise weighted for recall (32 x 8 for 256, finds
    99.7 %).
    """
    from datasketch import MinHashLSH

    weights = (0.5, 0.5) if compat else RECALL_WEIGHTS
    chosen = MinHashLSH(threshold=threshold, num_perm=permutations, weights=weights)
    return chosen.b, chosen.r


def found_share(jaccard: float, bands: int, rows: int) -> float:
    """Chance that a pair of this similarity shares a band: 1 - (1 - J^rows)^bands."""
    return 1.0 - (1.0 - jaccard**rows) ** bands


def s_curve(bands: int, rows: int, step: float = 0.05) -> list[dict]:
    """Rows {"jaccard", "found"} of the S-curve from 0.5 to 1."""
    points = [round(0.5 + i * step, 6) for i in range(int(0.5 / step + 1e-9) + 1)]
    return [{"jaccard": j, "found": found_share(j, bands, rows)} for j in points]


def s_curves(axis, chosen: list[tuple[int, int]], at: float) -> None:
    """Draw how surely (bands, rows a band) find a pair, by Jaccard similarity; a line at `at`."""
    for count, rows in chosen:
        points = s_curve(count, rows)
        similarity, share = ([point[key] for point in points] for key in ("jaccard", "found"))
        axis.plot(similarity, share, label=f"{count} bands of {rows}")
    axis.axvline(at, color=plots.QUIET, linewidth=0.8)
    axis.set(title="Pairs that share a band", xlabel="Jaccard similarity", ylabel="share found")
    axis.legend(fontsize=7)


def most_different_bits(threshold: float, permutations: int) -> tuple[int, int]:
    """Most different sketch bits of a pair at the threshold: in the first two words, and in all.

    All but SKETCH_MISSES of such pairs stay within: each bit is different with probability
    (1 - J) / 2, independently (binomial quantile).
    """
    from scipy.stats import binom

    return tuple(
        int(binom.isf(SKETCH_MISSES / 2, bits, (1 - threshold) / 2))
        for bits in (min(128, permutations), permutations)
    )


def chosen(bands, threshold: float, permutations: int) -> tuple[int, int]:
    """(bands, rows) of an option: a pair, "datasketch", or None for `lsh_parameters`."""
    if bands is None or bands == "datasketch":
        return lsh_parameters(threshold, permutations, compat=bands == "datasketch")
    if (
        isinstance(bands, str)
        or len(bands) != 2
        or min(bands) < 1
        or bands[0] * bands[1] > permutations
    ):
        raise ValueError(
            f'bands is (bands, rows) with bands x rows <= {permutations}, "datasketch" or None, '
            f"not {bands!r}"
        )
    return tuple(bands)


def buckets(signed: list, bands: int):
    """Number the entries that share a band key: int32 (bands, entries), -1 where alone; sizes.

    signed: [(uint64 (bands, texts), sketches)] of the blocks of entries in order; the keys of a
    band are gathered, sorted with the entry in the low bits, and numbered, one band at a time.
    Entries, not keys, take bits: at 16 M entries 40 bits of a key are left, and a chance agreement
    costs one comparison of sketches.
    """
    import numpy as np

    from lib.dedup import candidates

    entries = sum(keys.shape[1] for keys, _ in signed)
    mask = np.uint64((1 << max(entries - 1, 1).bit_length()) - 1)
    numbers, sizes, total = np.empty((bands, entries), np.int32), [np.empty(0, np.int32)], 0
    for band in range(bands if entries else 0):
        packed = np.concatenate([keys[band] for keys, _ in signed])
        packed &= ~mask
        packed |= np.arange(entries, dtype=np.uint64)
        packed.sort()
        room = np.empty(entries // 2 + 1, np.int32)
        count = candidates.number_buckets(packed, mask, total, numbers[band], room)
        sizes.append(room[:count].copy())
        total += count
    return numbers, np.concatenate(sizes)
