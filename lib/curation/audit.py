"""What can be checked once rows are curated: overlap, clusters, language, leaks, known faults."""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterable
from functools import partial
from itertools import chain

from lib import stats
from lib.curation import curate, language, parallel
from lib.curation.account import excerpt
from lib.dedup import near_duplicates
from lib.estimates import NOT_MEASURED, Estimate
from lib.files import content_hash


def clusters(stage, exact, near, most: int, chars: int) -> tuple[dict[int, int], list[dict]]:
    """({size: clusters}, the `most` largest): a cluster is a kept row and what went for it."""
    sizes = Counter(near["keeper"].tolist()) + Counter(exact["keeper"].tolist())
    largest = sizes.most_common(most)
    rows = stage.rows([keeper for keeper, _ in largest])
    shown = [
        {
            "rows": size + 1,
            "source": row["source"],
            "instruction": excerpt(row["instruction"], chars),
            "response": excerpt(row["response"], chars),
        }
        for (_, size), row in zip(largest, rows, strict=True)
    ]
    return dict(sorted(Counter(size + 1 for size in sizes.values()).items())), shown


def removed_pairs(stage, near, count: int, chars: int, seed: int) -> list[dict]:
    """A random sample of dropped rows beside the row that stands in for each."""
    some = near.sample(min(count, len(near)), random_state=seed).sort_values("jaccard")
    pairs = zip(stage.rows(some["row"]), stage.rows(some["keeper"]), some["jaccard"], strict=True)
    return [
        {
            "jaccard": round(float(jaccard), 3),
            "dropped": f"{row['source']}: {both(row, chars)}",
            "kept": f"{keeper['source']}: {both(keeper, chars)}",
        }
        for row, keeper, jaccard in pairs
    ]


def both(row: dict, chars: int) -> str:
    """The beginning of a row's instruction and response on one line."""
    return excerpt(f"{row['instruction']} | {row['response']}", chars)


def overlap(stage, *drops) -> list[dict]:
    """Whose rows stand in for whose: rows {"dropped of", "kept of", "rows"}, most first."""
    import pandas as pd

    every = pd.concat(drops, ignore_index=True)
    codes = (stage.source[every[column].to_numpy("int64")] for column in ("row", "keeper"))
    pairs = Counter(zip(*(code.tolist() for code in codes), strict=True))
    return [
        {"dropped of": stage.names[dropped], "kept of": stage.names[kept], "rows": count}
        for (dropped, kept), count in sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0]))
    ]


def orphans(stage, near, threshold: float, check: int = 2000) -> int:
    """Dropped near-duplicates without a kept row as similar as `threshold`, counted from the text.

    Every keeper is looked up; Jaccard is computed anew for the first `check` drops of the hash
    order.
    """
    import numpy as np

    rows, keepers = near["row"].to_numpy(np.int64), near["keeper"].to_numpy(np.int64)
    lost = int(np.isin(keepers, rows).sum())
    some = np.argsort(stage.ids[rows], kind="stable")[:check]
    for a, b in zip(stage.rows(rows[some]), stage.rows(keepers[some]), strict=True):
        lost += near_duplicates.jaccard(curate.evidence(a), curate.evidence(b)) < threshold - 1e-9
    return lost


def contaminated(paths: Iterable, index, workers: int = 1) -> list[dict]:
    """Rows of some JSON lines that repeat an evaluation item, every row looked at once more."""
    lines = chain.from_iterable(map(_lines, paths))
    return list(
        chain.from_iterable(parallel.map_batches(partial(_matched, index=index), lines, workers))
    )


def _lines(path):
    with open(path, "rb") as handle:
        yield from handle


def _matched(lines: list[bytes], index) -> list[dict]:
    rows = map(json.loads, lines)
    return [row for row in rows if index.match(curate.evidence(row), row["instruction"])]


def sample(paths: Iterable, count: int) -> list[dict]:
    """The `count` rows of some JSON lines with the smallest hash, whatever their order."""
    import orjson

    rows = map(orjson.loads, chain.from_iterable(map(_lines, paths)))
    return heapq.nsmallest(count, rows, key=lambda row: content_hash("sample", row["id"]))


def second_opinion(rows: list[dict]) -> tuple[Estimate, list[dict]]:
    """(share of rows that the second language model calls English, the others, surest first).

    It is another model with other training data than the filter's; it leaves rows undetermined for
    want of prose as the filter does, and those count as English. The others carry code and score.
    """
    doubted = []
    for row in rows:
        code, score = language.of_row(row, "bayes")
        if not language.english(code):
            doubted.append({"language": code, "score": round(score, 3), **row})
    if not rows:
        return NOT_MEASURED, doubted
    share = stats.proportion(len(rows) - len(doubted), len(rows))
    return share, sorted(doubted, key=lambda row: -row["score"])


def injected(truth: Iterable[dict], rejects: Iterable[dict]) -> tuple[list[dict], set[str]]:
    """(table, origins): what was injected into the packaged data, and what curation took out of it.

    truth: rows {"kind", "origin", "stages", "of"?}: an injection counts as caught when its own row
    was refused in one of `stages`, or, for copies, when the row it was made `of` went instead.
    origins: both.
    """
    refused: dict[str, set[str]] = {}
    for row in rejects:
        refused.setdefault(row["origin"], set()).add(row["stage"])
    table: dict[str, Counter] = {}
    origins = set()
    for item in truth:
        pair = (item["origin"], item.get("of"))
        caught = any(refused.get(origin, set()) & set(item["stages"]) for origin in pair)
        table.setdefault(item["kind"], Counter())[caught] += 1
        origins.update(pair)
    rows = []
    for kind, seen in sorted(table.items()):
        total = sum(seen.values())
        recall = stats.proportion(seen[True], total)
        rows.append({"kind": kind, "injected": total, "caught": seen[True], "recall": recall})
    return rows, origins


def pooled(table: list[dict]) -> Estimate:
    """The share of all injected rows that was found; NOT_MEASURED without any."""
    total = sum(row["injected"] for row in table)
    if not total:
        return NOT_MEASURED
    return stats.proportion(sum(row["caught"] for row in table), total)


def least_found(table: list[dict]) -> dict | None:
    """The row of `injected` that was found least surely; None without any."""
    return min(table, key=lambda row: (row["recall"]["value"], row["recall"]["low"]), default=None)


def not_injected(rejects: Iterable[dict], origins: set[str]) -> dict[str, int]:
    """Rows refused by stage that nobody injected: natural finds or mistakes."""
    return dict(
        Counter(row["stage"] for row in rejects if row["origin"] not in origins).most_common()
    )
