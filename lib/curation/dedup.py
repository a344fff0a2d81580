"""Near-duplicates: MinHash finds pairs, exact Jaccard decides, greedy against kept rows leaves no orphan.

Texts go once through memory into a temporary file; signatures are reduced to band keys as they are made. At
640 k texts the arrays take about 300 MB and the text stays on disk. Sources: Broder 1997 (MinHash);
Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", chapter 3 (bands); datasketch (permutations).
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

SHINGLES = ("char3", "word5")
RECALL_WEIGHTS = (0.05, 0.95)  # exact Jaccard removes false positives, so the weight goes to finding
BLOCK = 8192  # texts a signing call; results do not depend on it


def lsh_parameters(threshold: float, permutations: int = 128, compat: bool = False) -> tuple[int, int]:
    """(bands, rows a band) from datasketch's optimiser.

    compat: datasketch's own default, which weighs false positives and misses alike (9 x 13 for 0.8 and 128,
    finds 40 % of the pairs at 0.8); otherwise weighted for recall (16 x 8, finds 95 %).
    """
    from datasketch import MinHashLSH

    weights = (0.5, 0.5) if compat else RECALL_WEIGHTS
    chosen = MinHashLSH(threshold=threshold, num_perm=permutations, weights=weights)
    return chosen.b, chosen.r


def found_share(jaccard: float, bands: int, rows: int) -> float:
    """Chance that a pair of this Jaccard similarity shares at least one band: 1 - (1 - J^rows)^bands."""
    return 1.0 - (1.0 - jaccard**rows) ** bands


def s_curve(bands: int, rows: int, step: float = 0.05) -> list[dict]:
    """Rows {"jaccard", "found"} of the S-curve from 0.5 to 1."""
    points = [round(0.5 + i * step, 6) for i in range(int(0.5 / step + 1e-9) + 1)]
    return [{"jaccard": j, "found": found_share(j, bands, rows)} for j in points]


def near_duplicates(texts: Iterable | Callable[[], Iterable], priority: Sequence[float] | None = None, *,
                    threshold: float = 0.8, permutations: int = 128, shingle: str = "char3",
                    bands: tuple[int, int] | str | None = None, seed: int = 1, template_rows: int = 50,
                    threads: int = 1, workdir: str | None = None):
    """Which texts to drop so that no kept text is a near-duplicate of a better kept one.

    texts: strings or (row, text) pairs, or a function that returns such an iterable; read once, in order.
    priority: one number a text, LOWER is kept first; ties and None keep the earlier text.
    shingle: "char3", three code points of the text as given, or "word5", five lower-cased words.
    bands: (bands, rows), "datasketch" for its default, None for the choice of `lsh_parameters`.
    template_rows: wording at either end that this many different texts share is template (templates.py); two
    texts in one template must be alike inside it too. 0 turns that off.
    threads: signing threads; the result is the same for any number. workdir: where the temporary file goes.

    Returns (drops, stats). drops: DataFrame of row, keeper (always a kept row), jaccard (exact, of the full
    texts), in text order. stats: counts, bands, the chance to find a pair at the threshold, cluster sizes,
    templates, seconds. ValueError on unknown options; TypeError naming the row when a text is not a string.
    """
    import numpy as np
    import pandas as pd

    from lib.curation import minhash, resolve, templates

    if shingle not in SHINGLES or not 0 < threshold <= 1:
        raise ValueError(f"shingle {shingle!r} must be one of {SHINGLES}, threshold {threshold} in (0, 1]")
    band_count, band_rows = _bands(bands, threshold, permutations)
    clock = [time.perf_counter()]
    with tempfile.TemporaryFile(dir=workdir) as file:
        labels, buffer, starts, ends = _store(texts, file, shingle == "word5")
        order = _order(priority, len(labels))
        clock.append(time.perf_counter())
        spans = templates.spans(buffer, starts, ends, template_rows)
        clock.append(time.perf_counter())
        words = _words(shingle)
        rows, templated = len(labels), np.flatnonzero(spans[1] - spans[0] < ends - starts)
        # what a template leaves of a text is a second entry for finding candidates
        firsts, lasts = (np.concatenate([whole, span[templated]])
                         for whole, span in zip((starts, ends), spans, strict=True))
        inner = np.full(rows, -1, np.int64)
        inner[templated] = rows + np.arange(len(templated))
        keys = np.empty((band_count, len(firsts)), np.uint64)
        constants = (words, *minhash.permutations(permutations, seed), band_rows)

        def sign(low: int) -> None:
            part = slice(low, low + BLOCK)
            minhash.band_keys(buffer, firsts[part], lasts[part], *constants, keys[:, part])

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(sign, range(0, len(firsts), BLOCK)))
        keys[:, rows:] ^= np.uint64(minhash.MIX)  # parts are never candidates for whole texts
        clock.append(time.perf_counter())
        buckets, bucket_count, largest = _buckets(keys)
        keeper, jaccard, counts = (
            resolve.resolve(buffer, starts, ends, *spans, words, buckets, bucket_count, inner, order, threshold)
            if labels else (np.empty(0, np.int32), np.empty(0), [0] * 4))
        clock.append(time.perf_counter())
        wording = _wording(buffer, starts, ends, *spans)
    dropped = np.flatnonzero(keeper >= 0)
    drops = pd.DataFrame({"row": [labels[i] for i in dropped], "keeper": [labels[i] for i in keeper[dropped]],
                          "jaccard": jaccard[dropped]})
    names = ("read", "templates", "sign", "resolve")
    return drops, {
        "texts": len(labels), "drops": len(drops), "threshold": threshold, "permutations": permutations,
        "shingle": shingle, "bands": band_count, "rows": band_rows,
        "found_at_threshold": found_share(threshold, band_count, band_rows),
        "pairs_compared": int(counts[0]), "pairs_alike": int(counts[1]),
        "pairs_template_only": int(counts[2]),
        "most_compared": int(counts[3]), "largest_bucket": largest,
        "cluster_sizes": dict(sorted(Counter(cluster_sizes(drops).values()).items())),
        "templated_rows": len(templated), "templates": wording,
        "seconds": {name: round(b - a, 3) for name, a, b in zip(names, clock, clock[1:], strict=False)},
    }


def cluster_sizes(drops) -> dict:
    """Rows in the cluster of each keeper: {keeper: 1 + its drops}, largest first."""
    return {keeper: 1 + count for keeper, count in Counter(drops["keeper"].tolist()).most_common()}


def jaccard(a: str, b: str, shingle: str = "char3") -> float:
    """Exact Jaccard similarity of the shingle sets of two texts."""
    first, second = shingles(a, shingle), shingles(b, shingle)
    return len(first & second) / len(first | second)


def shingles(text: str, shingle: str = "char3") -> set[int]:
    """Set of 64-bit shingle keys of a text; one shorter than a shingle has one key, equal only to its own."""
    import numpy as np

    from lib.curation import minhash

    raw = np.frombuffer(_encode(text, shingle == "word5") + b"\n", np.uint8)
    out = np.empty(len(raw), np.uint64)
    return set(out[:minhash.shingle_keys(raw, 0, len(raw) - 1, _words(shingle), out)].tolist())


def signatures(texts: Sequence[str], permutations: int = 128, shingle: str = "char3", seed: int = 1):
    """MinHash signatures, uint32 (texts, permutations); equal to datasketch's (see tests/test_dedup.py)."""
    import numpy as np

    from lib.curation import minhash

    with tempfile.TemporaryFile() as file:
        _, buffer, starts, ends = _store(texts, file, shingle == "word5")
        out = np.empty((len(starts), permutations), np.uint32)
        factors, offsets = minhash.permutations(permutations, seed)
        minhash.signatures(buffer, starts, ends, _words(shingle), factors, offsets, out)
    return out


def strip_templates(texts: Sequence[str], min_rows: int = 50) -> list[str]:
    """Each text without the beginning and ending that `min_rows` different texts share (see templates.py)."""
    from lib.curation import templates

    with tempfile.TemporaryFile() as file:
        _, buffer, starts, ends = _store(texts, file, False)
        spans = templates.spans(buffer, starts, ends, min_rows)
        return [bytes(buffer[a:b]).decode("utf-8", "surrogatepass") for a, b in zip(*spans, strict=True)]


def _bands(bands, threshold: float, permutations: int) -> tuple[int, int]:
    if bands is None or bands == "datasketch":
        return lsh_parameters(threshold, permutations, compat=bands == "datasketch")
    if isinstance(bands, str) or len(bands) != 2 or min(bands) < 1 or bands[0] * bands[1] > permutations:
        raise ValueError(f'bands is (bands, rows) with bands x rows <= {permutations}, "datasketch" or None, '
                         f"not {bands!r}")
    return tuple(bands)


def _encode(text: str, lower: bool) -> bytes:
    return (text.lower() if lower else text).encode("utf-8", "surrogatepass")


def _store(texts, file, lower: bool):
    """Write the texts to an open file; return row labels, the file as a uint8 memory map, starts and ends."""
    from array import array

    import numpy as np

    labels, stops = [], array("q", [0])
    for position, entry in enumerate(texts() if callable(texts) else texts):
        label, text = (position, entry) if isinstance(entry, str) else entry
        if not isinstance(text, str):
            raise TypeError(f"row {label}: the text is a {type(text).__name__}; reject the row first")
        encoded = _encode(text, lower)
        file.write(encoded)
        labels.append(label)
        stops.append(stops[-1] + len(encoded))
    file.write(b"\n")  # an empty file cannot be mapped
    file.flush()
    limits = np.frombuffer(stops, np.int64)
    return labels, np.memmap(file, np.uint8, "r"), limits[:-1].copy(), limits[1:].copy()


def _order(priority, count: int):
    import numpy as np

    values = np.zeros(count) if priority is None else np.asarray(priority, dtype=float)
    if values.shape != (count,) or np.isnan(values).any():
        raise ValueError(f"priority needs one number for each of the {count} texts, got shape {values.shape}")
    return np.argsort(values, kind="stable")


def _words(shingle: str):
    import numpy as np

    from lib.curation import minhash

    return minhash.word_table() if shingle == "word5" else np.empty(0, np.bool_)


def _buckets(keys):
    """Number the groups of equal keys within each band, in place: (int64 (bands, texts), groups, largest)."""
    import numpy as np

    buckets, total, largest = keys.view(np.int64), 0, 0
    for band in range(len(keys) if keys.shape[1] else 0):
        _, group, size = np.unique(keys[band], return_inverse=True, return_counts=True)
        number = np.where(size > 1, total + np.cumsum(size > 1) - 1, -1)
        buckets[band] = number[group]
        total, largest = total + int((size > 1).sum()), max(largest, int(size.max()))
    return buckets, total, largest


def _wording(buffer, starts, ends, inner_starts, inner_ends, most: int = 20) -> list[dict]:
    """The most frequent template beginnings and endings: rows {"side", "text", "rows"}."""
    found: Counter = Counter()
    for i in (inner_ends - inner_starts < ends - starts).nonzero()[0]:
        for side, low, high in (("start", starts[i], inner_starts[i]), ("end", inner_ends[i], ends[i])):
            if low < high:
                found[side, bytes(buffer[low:high])] += 1
    return [{"side": side, "text": raw.decode("utf-8", "replace"), "rows": count}
            for (side, raw), count in found.most_common(most)]
