"""Near-duplicates: MinHash finds pairs, exact Jaccard decides, greedy against kept rows leaves no
orphan.

Texts go once through memory into a temporary file and are signed on the way; a signature is reduced
to band keys and a sketch at once. At 640 k texts the arrays take about 600 MB and the text stays on
disk. Sources: Broder 1997 (MinHash); Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets",
chapter 3 (bands); datasketch (permutations).
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain

from lib.dedup import bands as lsh
from lib.dedup import textfile

SHINGLES = ("char3", "word5")


def find(
    texts: Iterable | Callable[[], Iterable],
    priority: Sequence[float] | None = None,
    *,
    threshold: float = 0.8,
    permutations: int = lsh.PERMUTATIONS,
    shingle: str = "char3",
    bands: tuple[int, int] | str | None = None,
    seed: int = 1,
    template_rows: int = 50,
    threads: int = 1,
    workdir: str | None = None,
):
    """Which texts to drop so that no kept text is a near-duplicate of a better kept one.

    texts: strings or (row, text) pairs, or a function that returns such an iterable; read once, in
    order.
    priority: one number a text, LOWER is kept first; ties and None keep the earlier text.
    shingle: "char3", three code points of the text as given, or "word5", five lower-cased words.
    bands: (bands, rows), "datasketch" for its default, None for the choice of
    `bands.lsh_parameters`.
    template_rows: wording at either end that this many different texts share is template
    (templates.py); two texts in one template must be alike inside it too. 0 turns that off.
    threads: signing threads; the result is the same for any number. workdir: where the temporary
    file goes.

    Returns (drops, stats). drops: DataFrame of row, keeper (always a kept row), jaccard (exact, of
    the full texts), in text order. stats: counts, bands, the chance to find a pair at the
    threshold, cluster sizes, templates, seconds and CPU seconds of each step. ValueError on unknown
    options; TypeError naming the row when a text is not a string; OSError when the temporary folder
    is full.
    """
    import numpy as np
    import pandas as pd

    from lib.dedup import minhash, resolve, templates

    if shingle not in SHINGLES or not 0 < threshold <= 1:
        raise ValueError(
            f"shingle {shingle!r} must be one of {SHINGLES}, threshold {threshold} in (0, 1]"
        )
    band_count, band_rows = lsh.chosen(bands, threshold, permutations)
    words, constants = word_characters(shingle), minhash.permutations(permutations, seed)
    names, clock = ("read and sign", "templates", "buckets", "compare"), [_now()]

    def sign(buffer, starts, ends):
        keys = np.empty((band_count, len(starts)), np.uint64)
        sketches = np.empty((len(starts), -(-permutations // 64)), np.uint64)
        minhash.sign(buffer, starts, ends, words, *constants, band_rows, keys, sketches)
        return keys, sketches

    with tempfile.TemporaryFile(dir=workdir) as file:
        labels, ends, signed = textfile.read(texts, file, shingle == "word5", sign, threads)
        starts, rows = np.concatenate([[0], ends[:-1]]) if len(labels) else ends, len(labels)
        order = _order(priority, rows)
        buffer, forget = textfile.mapped(file)
        clock.append(_now())
        spans = templates.spans(buffer, starts, ends, template_rows, forget)
        # what a template leaves of a text is a second entry for finding candidates
        templated = np.flatnonzero(spans[1] - spans[0] < ends - starts)
        inner = np.full(rows, -1, np.int64)
        inner[templated] = rows + np.arange(len(templated))
        for part in textfile.parts(templated, forget):
            signed.append(sign(buffer, spans[0][part], spans[1][part]))
            signed[-1][0][:] ^= np.uint64(minhash.MIX)  # parts are never candidates for whole texts
        clock.append(_now())
        buckets, sizes = lsh.buckets(signed, band_count)
        sketches = np.concatenate(
            [np.empty((0, -(-permutations // 64)), np.uint64), *(part for _, part in signed)]
        )
        signed.clear()
        clock.append(_now())
        keeper, jaccard, counts = (
            resolve.resolve(
                buffer,
                starts,
                ends,
                *spans,
                words,
                buckets,
                sizes,
                inner,
                sketches,
                lsh.most_different_bits(threshold, permutations),
                order,
                threshold,
                forget,
            )
            if rows
            else (np.empty(0, np.int32), np.empty(0), [0] * 5)
        )
        clock.append(_now())
        wording = _wording(buffer, starts, ends, *spans, forget)
    dropped = np.flatnonzero(keeper >= 0)
    drops = pd.DataFrame(
        {
            "row": [labels[i] for i in dropped],
            "keeper": [labels[i] for i in keeper[dropped]],
            "jaccard": jaccard[dropped],
        }
    )
    took = [
        {name: round(b[i] - a[i], 3) for name, a, b in zip(names, clock, clock[1:], strict=False)}
        for i in (0, 1)
    ]
    return drops, {
        "texts": rows,
        "drops": len(drops),
        "threshold": threshold,
        "permutations": permutations,
        "shingle": shingle,
        "bands": band_count,
        "rows": band_rows,
        "found_at_threshold": lsh.found_share(threshold, band_count, band_rows),
        "sketches_compared": int(counts[0]),
        "pairs_compared": int(counts[1]),
        "pairs_alike": int(counts[2]),
        "pairs_template_only": int(counts[3]),
        "most_compared": int(counts[4]),
        "largest_bucket": int(sizes.max(initial=1)),
        "cluster_sizes": dict(sorted(Counter(cluster_sizes(drops).values()).items())),
        "templated_rows": len(templated),
        "templates": wording,
        "seconds": took[0],
        "cpu_seconds": took[1],
    }


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def cluster_sizes(drops) -> dict:
    """Rows in the cluster of each keeper: {keeper: 1 + its drops}, largest first."""
    return {keeper: 1 + count for keeper, count in Counter(drops["keeper"].tolist()).most_common()}


def jaccard(a: str, b: str, shingle: str = "char3") -> float:
    """Exact Jaccard similarity of the shingle sets of two texts."""
    first, second = shingles(a, shingle), shingles(b, shingle)
    return len(first & second) / len(first | second)


def shingles(text: str, shingle: str = "char3") -> set[int]:
    """Set of 64-bit shingle keys of a text; one shorter than a shingle has one key, equal only to
    its own."""
    import numpy as np

    from lib.dedup import minhash

    raw = textfile.encode(text, shingle == "word5")
    buffer, _, _ = textfile.pack([raw])
    out = np.empty(len(raw) + 1, np.uint64)
    return set(
        out[
            : minhash.shingle_keys(buffer, 0, 0, len(raw), word_characters(shingle), out)[0]
        ].tolist()
    )


def signatures(
    texts: Sequence[str], permutations: int = 128, shingle: str = "char3", seed: int = 1
):
    """MinHash signatures, uint32 (texts, permutations); equal to datasketch's (see
    tests/test_dedup.py)."""
    import numpy as np

    from lib.dedup import minhash

    packed = textfile.pack([textfile.encode(text, shingle == "word5") for text in texts])
    out = np.empty((len(texts), permutations), np.uint32)
    minhash.signatures(
        *packed, word_characters(shingle), *minhash.permutations(permutations, seed), out
    )
    return out


def _order(priority, count: int):
    import numpy as np

    values = np.zeros(count) if priority is None else np.asarray(priority, dtype=float)
    if values.shape != (count,) or np.isnan(values).any():
        raise ValueError(
            f"priority needs one number for each of the {count} texts, got shape {values.shape}"
        )
    return np.argsort(values, kind="stable")


def word_characters(shingle: str):
    """Table of word characters for word shingles, empty for characters."""
    import numpy as np

    from lib.dedup import minhash

    return minhash.word_table() if shingle == "word5" else np.empty(0, np.bool_)


def _wording(buffer, starts, ends, inner_starts, inner_ends, forget, most: int = 20) -> list[dict]:
    """The most frequent template beginnings and endings: rows {"side", "text", "rows"}."""
    found: Counter = Counter()
    templated = (inner_ends - inner_starts < ends - starts).nonzero()[0]
    for i in chain.from_iterable(textfile.parts(templated, forget)):
        for side, low, high in (
            ("start", starts[i], inner_starts[i]),
            ("end", inner_ends[i], ends[i]),
        ):
            if low < high:
                found[side, bytes(buffer[low:high])] += 1
    return [
        {"side": side, "text": raw.decode("utf-8", "replace"), "rows": count}
        for (side, raw), count in found.most_common(most)
    ]
