"""Near-duplicates: MinHash finds pairs, exact Jaccard decides, and no dropped row is an orphan.

The choice is greedy, against kept rows only.

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
OPTIONS = ("threshold", "permutations", "shingle", "bands", "rows")
STEPS = ("read and sign", "templates", "buckets", "compare")


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
    bands: (bands, rows), "datasketch" for its default, None for `bands.lsh_parameters`.
    template_rows: wording at either end that this many different texts share is template
    (templates.py); two texts in one template must be alike inside it too. 0 turns that off.
    threads: signing threads, without effect on the result. workdir: where the text is put.

    Returns (drops, stats). drops: DataFrame of row, keeper (always a kept row), jaccard (exact, of
    the full texts), in text order. stats: counts, bands, the chance to find a pair at the
    threshold, cluster sizes, templates, seconds and CPU seconds of each step. ValueError on unknown
    options; TypeError naming the row when a text is not a string; OSError when the temporary folder
    is full.
    """
    from lib.dedup import resolve

    _check(shingle, threshold)
    band_count, band_rows = lsh.chosen(bands, threshold, permutations)
    sign, clock = _signer(band_count, band_rows, permutations, shingle, seed), [_now()]
    with tempfile.TemporaryFile(dir=workdir) as file:
        labels, ends, signed = textfile.read(texts, file, shingle == "word5", sign, threads)
        order = _order(priority, len(labels))
        buffer, forget = textfile.mapped(file)
        clock.append(_now())
        known, inner = _templates(buffer, ends, shingle, template_rows, sign, signed, forget)
        clock.append(_now())
        buckets, sizes, sketches = _grouped(signed, band_count, permutations)
        clock.append(_now())
        most = lsh.most_different_bits(threshold, permutations)
        keeper, similarity, counts = resolve.resolve(
            known, buckets, sizes, inner, sketches, most, order, threshold, forget
        )
        clock.append(_now())
        wording = _wording(known, forget)
    drops = _drops(labels, keeper, similarity)
    chosen = (threshold, permutations, shingle, band_count, band_rows)
    about = {"texts": len(labels), "drops": len(drops)} | dict(zip(OPTIONS, chosen, strict=True))
    about["found_at_threshold"] = lsh.found_share(threshold, band_count, band_rows)
    about |= _counted(counts, sizes, drops)
    about |= {"templated_rows": int((inner >= 0).sum()), "templates": wording}
    return drops, about | {
        "seconds": _took([wall for wall, _ in clock]),
        "cpu_seconds": _took([processor for _, processor in clock]),
    }


def _check(shingle: str, threshold: float) -> None:
    if shingle not in SHINGLES or not 0 < threshold <= 1:
        raise ValueError(
            f"shingle {shingle!r} must be one of {SHINGLES}, threshold {threshold} in (0, 1]"
        )


def _signer(band_count: int, band_rows: int, permutations: int, shingle: str, seed: int):
    """Function of (buffer, starts, ends): (band keys (bands, texts), sketches (texts, words))."""
    import numpy as np

    from lib.dedup import minhash

    words, constants = word_characters(shingle), minhash.permutations(permutations, seed)

    def sign(buffer, starts, ends):
        keys = np.empty((band_count, len(starts)), np.uint64)
        sketches = np.empty((len(starts), -(-permutations // 64)), np.uint64)
        minhash.sign(buffer, starts, ends, words, *constants, band_rows, keys, sketches)
        return keys, sketches

    return sign


def _templates(buffer, ends, shingle: str, template_rows: int, sign, signed: list, forget):
    """(`jaccard.Texts`, inner): what templates leave of texts is signed, too, onto `signed`.

    inner: int64, the second entry of each text for finding candidates, -1 for none.
    """
    import numpy as np

    from lib.dedup import jaccard, minhash, templates

    starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
    spans = templates.spans(buffer, starts, ends, template_rows, forget)
    templated = np.flatnonzero(spans[1] - spans[0] < ends - starts)
    inner = np.full(len(ends), -1, np.int64)
    inner[templated] = len(ends) + np.arange(len(templated))
    for part in textfile.parts(templated, forget):
        signed.append(sign(buffer, spans[0][part], spans[1][part]))
        signed[-1][0][:] ^= np.uint64(minhash.MIX)  # parts are never candidates for whole texts
    return jaccard.Texts(buffer, starts, ends, *spans, word_characters(shingle)), inner


def _grouped(signed: list, band_count: int, permutations: int):
    """(buckets, their sizes, sketches) of all entries; `signed` is emptied, its keys are many."""
    import numpy as np

    buckets, sizes = lsh.buckets(signed, band_count)
    none = np.empty((0, -(-permutations // 64)), np.uint64)
    sketches = np.concatenate([none, *(part for _, part in signed)])
    signed.clear()
    return buckets, sizes, sketches


def _drops(labels: list, keeper, similarity):
    import numpy as np
    import pandas as pd

    dropped = np.flatnonzero(keeper >= 0)
    return pd.DataFrame(
        {
            "row": [labels[i] for i in dropped],
            "keeper": [labels[i] for i in keeper[dropped]],
            "jaccard": similarity[dropped],
        }
    )


def _counted(counts, sizes, drops) -> dict:
    names = ("sketches_compared", "pairs_compared", "pairs_alike", "pairs_template_only")
    clusters = Counter(cluster_sizes(drops).values())
    return dict(zip((*names, "most_compared"), map(int, counts), strict=True)) | {
        "largest_bucket": int(sizes.max(initial=1)),
        "cluster_sizes": dict(sorted(clusters.items())),
    }


def _took(marks: list[float]) -> dict[str, float]:
    """Seconds of each step, between the marks."""
    spans = [after - before for before, after in zip(marks, marks[1:], strict=False)]
    return {step: round(span, 3) for step, span in zip(STEPS, spans, strict=True)}


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
    """64-bit shingle keys of a text; one shorter than a shingle has one, equal only to its own."""
    import numpy as np

    from lib.dedup import minhash

    raw = textfile.encode(text, shingle == "word5")
    buffer, _, _ = textfile.pack([raw])
    out, words = np.empty(len(raw) + 1, np.uint64), word_characters(shingle)
    count, _ = minhash.shingle_keys(buffer, 0, 0, len(raw), words, out)
    return set(out[:count].tolist())


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


def _wording(texts, forget, most: int = 20) -> list[dict]:
    """The most frequent template beginnings and endings: rows {"side", "text", "rows"}."""
    buffer, starts, ends, inner_starts, inner_ends, _ = texts
    frequent: Counter = Counter()
    templated = (inner_ends - inner_starts < ends - starts).nonzero()[0]
    for i in chain.from_iterable(textfile.parts(templated, forget)):
        if starts[i] < inner_starts[i]:
            frequent["start", bytes(buffer[starts[i] : inner_starts[i]])] += 1
        if inner_ends[i] < ends[i]:
            frequent["end", bytes(buffer[inner_ends[i] : ends[i]])] += 1
    return [
        {"side": side, "text": raw.decode("utf-8", "replace"), "rows": count}
        for (side, raw), count in frequent.most_common(most)
    ]
