"""What can be checked and shown once rows are curated: overlap, clusters, language, leaks, known
faults."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from functools import partial
from itertools import chain

from lib import stats
from lib.curation import curate, filters, language, normalise, parallel, sources
from lib.dedup import near_duplicates

EVALUATION_NAMES = re.compile(
    r"gsm8k|human_?eval|mbpp|mmlu|\bbbh|big_?bench|\barc_|truthful|ifeval|mt_bench|alpaca_eval|arena_hard|bfcl|"
    r"(?:^|_)test(?:set)?(?:_|$)|_eval(?:_|$)"
)
# share of a source's rows that repeat evaluation items from which the source itself is suspect
SUSPECT = 0.2


def excerpt(text: str, chars: int) -> str:
    """The beginning of a text on one line, at most `chars` characters."""
    line = " ".join(text.split())
    return line if len(line) <= chars else line[: max(chars - 3, 0)] + "..."


def notices(records: list[dict]) -> list[dict]:
    """Sources that look like evaluation sets by name, layout or content: rows {"source", "why",
    ...}."""
    layouts = {name for name, _, _, evaluation in normalise.SCHEMAS if evaluation}
    found = []
    for record in records:
        name, counts = record["source"]["name"], record["counts"]
        match = EVALUATION_NAMES.search(name.lower())
        why = [f"the name says {match.group().strip('_')!r}"] if match else []
        why += [f"the layout of {layout}" for layout in record["layouts"] if layout in layouts]
        share = counts.get("contaminated", 0) / max(counts.get("raw", 0), 1)
        why += [f"{share:.0%} of its rows repeat evaluation items"] if share >= SUSPECT else []
        if why:
            found.append(
                {"source": name, "why": "; ".join(why), "rows kept so far": counts.get("passed", 0)}
            )
    return found


def clusters(stage, exact, near, most: int, chars: int) -> tuple[dict[int, int], list[dict]]:
    """({size: clusters}, the `most` largest): a cluster is a kept row and what was dropped for
    it."""
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


def binned(sizes: dict[int, int]) -> dict[str, int]:
    """Clusters by size in classes fit for a histogram: {"2": clusters, ..., "20+": clusters}."""
    classes = {"2": 2, "3": 3, "4": 4, "5": 5, "6-9": 9, "10-19": 19, "20+": 10**9}
    low, table = 2, {}
    for label, high in classes.items():
        table[label] = sum(count for size, count in sizes.items() if low <= size <= high)
        low = high + 1
    return table


def removed_pairs(stage, near, count: int, chars: int, seed: int) -> list[dict]:
    """A random sample of dropped rows beside the row that stands in for each."""
    some = near.sample(min(count, len(near)), random_state=seed).sort_values("jaccard")
    pairs = zip(stage.rows(some["row"]), stage.rows(some["keeper"]), some["jaccard"], strict=True)
    return [
        {
            "jaccard": round(float(jaccard), 3),
            "dropped": (
                f"{row['source']}: {excerpt(row['instruction'] + ' | ' + row['response'], chars)}"
            ),
            "kept": (
                f"{keeper['source']}:"
                f" {excerpt(keeper['instruction'] + ' | ' + keeper['response'], chars)}"
            ),
        }
        for row, keeper, jaccard in pairs
    ]


def overlap(stage, *drops):
    """Cross-source matrix: rows of the source at the left dropped for a kept row of the source
    above."""
    import pandas as pd

    names = pd.Categorical.from_codes
    every = pd.concat(drops, ignore_index=True)
    codes = [stage.source[every[column].to_numpy("int64")] for column in ("row", "keeper")]
    dropped, keeper = (names(code, categories=stage.names) for code in codes)
    return pd.crosstab(dropped, keeper, rownames=["dropped"], colnames=["kept"], dropna=False)


def orphans(stage, near, threshold: float, check: int = 2000) -> int:
    """Dropped near-duplicates without a kept row as similar as `threshold`: recounted from the
    text.

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


def recheck(paths: Iterable, index, workers: int = 1) -> tuple[dict, list[dict], list[dict]]:
    """Every row of some JSON lines looked at once more: (English estimate, residual, contaminated).

    English is the share that the second, independent model calls English or leaves undetermined;
    residual, the rows it does not, with its code and score, the surest first. contaminated: rows
    that match an evaluation item: must be none.
    """
    total, residual, still = 0, [], []
    lines = chain.from_iterable(map(_lines, paths))
    for count, doubted, matched in parallel.each(partial(_recheck, index=index), lines, workers):
        total, residual, still = total + count, residual + doubted, still + matched
    estimate = stats.proportion(total - len(residual), total)
    return estimate, sorted(residual, key=lambda row: -row["score"]), still


def _lines(path):
    with open(path, "rb") as handle:
        yield from handle


def _recheck(lines: list[bytes], index) -> tuple[int, list[dict], list[dict]]:
    doubted, matched = [], []
    for row in map(json.loads, lines):
        code, score = language.of_row(row, "bayes")
        if not language.english(code):
            doubted.append({"language": code, "score": round(score, 3), **row})
        if index.match(curate.evidence(row), row["instruction"]):
            matched.append(row)
    return len(lines), doubted, matched


def injected(truth: Iterable[dict], rejects: Iterable[dict]) -> tuple[list[dict], set[str]]:
    """(table, origins): what was injected into the packaged data against what curation took out.

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
    found = []
    for kind, seen in sorted(table.items()):
        total = sum(seen.values())
        recall = stats.proportion(seen[True], total)
        found.append({"kind": kind, "injected": total, "caught": seen[True], "recall": recall})
    return found, origins


def pooled(table: list[dict]) -> dict | None:
    """The share of all injected rows that was found, over the kinds of `injected`; None without
    any."""
    total = sum(row["injected"] for row in table)
    return stats.proportion(sum(row["caught"] for row in table), total) if total else None


def not_injected(rejects: Iterable[dict], origins: set[str]) -> dict[str, int]:
    """Rows refused by stage that nobody injected: natural finds or mistakes."""
    return dict(
        Counter(row["stage"] for row in rejects if row["origin"] not in origins).most_common()
    )


def reasons(records: list[dict], most: int) -> list[dict]:
    """The most frequent reasons of the per-row stages over all sources."""
    total: Counter = Counter()
    for record in records:
        total.update(record["reasons"])
    return [{"reason": reason, "rows": count} for reason, count in total.most_common(most)]


def hits(records: list[dict]) -> list[dict]:
    """Contaminated rows by evaluation set, with the source that holds most of them."""
    table: dict[str, Counter] = {}
    for record in records:
        for name, count in record["contaminated_by"].items():
            table.setdefault(name, Counter())[record["source"]["name"]] += count
    return [
        {"evaluation set": name, "rows": seen.total(), "most of them in": seen.most_common(1)[0][0]}
        for name, seen in sorted(table.items(), key=lambda pair: -pair[1].total())
    ]


def balance(rows: Iterable[dict]) -> list[dict]:
    """Kept rows by domain and difficulty, with the median words of a response."""
    import statistics

    seen: dict[str, Counter] = {}
    words: dict[str, list[int]] = {}
    for row in rows:
        seen.setdefault(row["domain"], Counter())[row["difficulty"]] += 1
        words.setdefault(row["domain"], []).append(len(row["response"].split()))
    return [
        {
            "domain": name,
            "rows": levels.total(),
            **{level: levels[level] for level in filters.LEVELS},
            "median words of a response": statistics.median(words[name]),
        }
        for name, levels in sorted(seen.items(), key=lambda pair: -pair[1].total())
    ]


def before_and_after(
    stage, found: list[dict], count: int, chars: int, max_bytes: int
) -> list[dict]:
    """A passed row of `count` sources, spread over the list, as it was read and as it is now."""
    some, shown = found[:: max(1, len(found) // count)][:count], []
    for source in some:
        numbers = (stage.source == found.index(source)).nonzero()[0]
        if not len(numbers):
            continue
        now = next(stage.rows(numbers[:1]))
        line = int(now.pop("origin").rpartition(":")[2])
        came = next((row for at, row, _ in sources.read(source, max_bytes) if at == line), None)
        pair = {"as it came": excerpt(str(came), chars), "now": excerpt(str(now), chars)}
        shown.append({"source": source["name"], **pair})
    return shown


def now() -> tuple[float, float]:
    """(wall clock, CPU seconds of this process and of its children that have ended)."""
    import os
    import time

    return time.perf_counter(), sum(os.times()[:4])


def took(marks: list[tuple[str, tuple[float, float]]], rows: int) -> list[dict]:
    """What each step cost: rows {"step", "seconds", "CPU seconds", "us a row"} from (step, `now`)
    pairs at its end; the first mark is the start."""
    steps = [
        (step, *(b - a for a, b in zip(before, after, strict=True)))
        for (_, before), (step, after) in zip(marks, marks[1:], strict=False)
    ]
    steps.append(("all", sum(wall for _, wall, _ in steps), sum(cpu for *_, cpu in steps)))
    return [
        {
            "step": step,
            "seconds": round(wall, 1),
            "CPU seconds": round(cpu, 1),
            "us a row": round(1e6 * cpu / max(rows, 1)),
        }
        for step, wall, cpu in steps
    ]


def projected(found_by: dict, text_bytes: float, sizes=(10**6, 10**7, 10**8, 10**9)) -> list[dict]:
    """What the near-duplicate job needs at other sizes, from one run; [] without its times.

    found_by: the statistics of `near_duplicates.find`. text_bytes: mean size of a text. The
    work a row is constant but for sketches compared, which grow with the rows (taken as 10 ns each:
    a row of memory out of cache). 73 bytes a band and row are shuffled; the driver holds 50 bytes a
    near-duplicate pair. A core at 0.05 USD an hour is an assumption.
    """
    rows, table = found_by.get("texts", 0), []
    for size in sizes if rows and "cpu_seconds" in found_by else ():
        sketches = found_by["sketches_compared"] / rows * max(size / rows - 1, 0) * 10e-9
        hours = size * (sum(found_by["cpu_seconds"].values()) / rows + sketches) / 3600
        amounts = {
            "CPU hours": hours,
            "hours on 64 cores": hours / 64,
            "USD": 0.05 * hours,
            "text GB": size * text_bytes / 1e9,
            "shuffled GB": size * found_by["bands"] * 73 / 1e9,
            "GB at the driver": size * found_by["pairs_alike"] / rows * 50 / 1e9,
        }
        table.append(
            {"documents": f"{size:,}"}
            | {name: f"{amount:,.3g}" for name, amount in amounts.items()}
        )
    return table
