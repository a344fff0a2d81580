"""The account of a curation that 00 shows: tables of sources, stages, reasons, time; a figure."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable

from lib import plots
from lib.curation import curate, filters, normalise, sources
from lib.dedup import bands

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


def listed(counts: dict[str, int], between: str = ", ") -> str:
    """{"name": 3} as "name 3, ..." in a sentence."""
    return between.join(f"{name} {count:,}" for name, count in counts.items())


def origins(named: list[dict], limits: list[int]) -> list[dict]:
    """Where the raw rows come from: a row a source of `sources.find`, with its limit, 0 for all."""
    return [
        {
            "source": source["name"],
            "from": source["kind"],
            "revision or SHA-256": source["revision"],
            "licence": source["licence"],
            "raw rows read": limit or "all",
        }
        for source, limit in zip(named, limits, strict=True)
    ]


def before_and_after(stage, named: list[dict], count: int, max_bytes: int) -> list[dict]:
    """A passed row of `count` sources, spread over the list: {"source", "came", "now"} as text."""
    shown = []
    for source in named[:: max(1, len(named) // count)][:count]:
        numbers = (stage.source == named.index(source)).nonzero()[0]
        if not len(numbers):
            continue
        now = next(stage.rows(numbers[:1]))
        line = int(now.pop("origin").rpartition(":")[2])
        came = next((row for at, row, _ in sources.read(source, max_bytes) if at == line), None)
        texts = {"came": _fields(came or {}), "now": _fields(now)}
        shown.append({"source": source["name"]} | texts)
    return shown


def _fields(row: dict) -> str:
    """A row as text: a field a paragraph, strings as they are."""
    shown = (v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in row.values())
    return "\n\n".join(f"{name}: {text}" for name, text in zip(row, shown, strict=True))


def notices(records: list[dict]) -> list[dict]:
    """Sources that look like evaluation sets: rows {"source", "why", "rows kept so far"}."""
    layouts = {name for name, _, _, evaluation in normalise.SCHEMAS if evaluation}
    suspects = []
    for record in records:
        name, counts = record["source"]["name"], record["counts"]
        match = EVALUATION_NAMES.search(name.lower())
        why = [f"the name says {match.group().strip('_')!r}"] if match else []
        why += [f"the layout of {layout}" for layout in record["layouts"] if layout in layouts]
        share = counts.get("contaminated", 0) / max(counts.get("raw", 0), 1)
        why += [f"{share:.0%} of its rows repeat evaluation items"] if share >= SUSPECT else []
        if why:
            suspects.append(
                {"source": name, "why": "; ".join(why), "rows kept so far": counts.get("passed", 0)}
            )
    return suspects


def templates(stats: dict, most: int, chars: int) -> list[dict]:
    """The wording that most texts share, from the statistics of `near_duplicates.find`."""
    return [
        {"side": wording["side"], "rows": wording["rows"], "text": excerpt(wording["text"], chars)}
        for wording in stats.get("templates", [])[:most]
    ]


def doubted(rows: list[dict], chars: int) -> list[dict]:
    """Rows that `audit.second_opinion` gave back, for a table."""
    return [
        {
            "said to be": row["language"],
            "score": row["score"],
            "source": row["source"],
            "row": excerpt(f"{row['instruction']} | {row['response']}", chars),
        }
        for row in rows
    ]


def stages(counts: list[dict]) -> tuple[list[dict], list[dict]]:
    """The table of `splits.counts` in two of six columns: what stages take, and what is kept."""
    first = ("source", "raw", *curate.STAGES[:4])
    second = ("source", *curate.STAGES[4:], "kept")
    return tuple([{key: row[key] for key in keys} for row in counts] for keys in (first, second))


def worst(counts: list[dict]) -> dict:
    """The source of `splits.counts` that loses the largest share of its rows."""
    return min(counts[:-1], key=lambda row: row["kept"] / max(row["raw"], 1))


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
    lengths: dict[str, list[int]] = {}
    for row in rows:
        seen.setdefault(row["domain"], Counter())[row["difficulty"]] += 1
        lengths.setdefault(row["domain"], []).append(len(row["response"].split()))
    return [
        {
            "domain": name,
            "rows": levels.total(),
            **{level: levels[level] for level in filters.LEVELS},
            "median words of a response": float(statistics.median(lengths[name])),
        }
        for name, levels in sorted(seen.items(), key=lambda pair: -pair[1].total())
    ]


def binned(sizes: dict[int, int]) -> dict[str, int]:
    """Clusters by size in classes of a histogram: {"2": clusters, ..., "20+": clusters}."""
    classes = {"2": 2, "3": 3, "4": 4, "5": 5, "6-9": 9, "10-19": 19, "20+": 10**9}
    low, table = 2, {}
    for label, high in classes.items():
        table[label] = sum(count for size, count in sizes.items() if low <= size <= high)
        low = high + 1
    return table


def figure(counts: list[dict], sizes: dict[int, int], stats: dict):
    """Raw rows by the stage that takes them, sizes of clusters, and how surely a pair is found.

    counts: of `splits.counts`. sizes: {rows of a cluster: clusters}. stats: of
    `near_duplicates.find`, whose bands stand beside the 9 of 13 of the plan.
    """
    figure, axes = plots.figure(
        3, width=12, height=2.56 + 0.24 * len(counts), width_ratios=[2, 1, 1]
    )
    _stage_bars(axes[0], counts[:-1])
    bins = binned(sizes)
    axes[1].bar(bins.keys(), bins.values(), color=plots.BLUE)
    axes[1].set(title="Clusters of duplicates", xlabel="rows in the cluster", ylabel="clusters")
    axes[1].set(yscale="log")
    chosen = [(stats["bands"], stats["rows"]), (9, 13)]
    bands.s_curves(axes[2], chosen, stats["threshold"])
    return figure


def _stage_bars(axes, counts: list[dict]) -> None:
    colours = (plots.GREEN, plots.INK, plots.QUIET, plots.ORANGE, plots.RED, plots.PURPLE)
    colours += (plots.BROWN, plots.BLUE)
    names, left = [row["source"] for row in counts], [0] * len(counts)
    for stage, colour in zip(("kept", *curate.STAGES), colours, strict=True):
        rows = [row[stage] for row in counts]
        axes.barh(names, rows, left=left, color=colour, label=stage)
        left = [low + width for low, width in zip(left, rows, strict=True)]
    axes.invert_yaxis()
    axes.set(title="Where the raw rows go", xlabel="rows")
    axes.legend(fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.16))


def now() -> tuple[float, float]:
    """(wall clock, CPU seconds of this process and of its children that have ended)."""
    import os
    import time

    return time.perf_counter(), sum(os.times()[:4])


def took(marks: list[tuple[str, tuple[float, float]]], rows: int) -> list[dict]:
    """What each step cost: rows {"step", "seconds", "CPU seconds", "us a row"}, the last their sum.

    marks: (step, `now` at its end); the first one is the start. rows: raw rows.
    """
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


def projected(stats: dict, text_bytes: float, sizes=(10**6, 10**7, 10**8, 10**9)) -> list[dict]:
    """What near-duplicates need of other numbers of documents, a row a need; [] without times.

    stats: of `near_duplicates.find`. text_bytes: mean size of a text. The work a row is constant
    but for sketches compared, which grow with the rows (taken as 10 ns each: a row of memory out of
    cache). 73 bytes a band and row are shuffled; the driver holds 50 bytes a near-duplicate pair. A
    core at 0.05 USD an hour is an assumption.
    """
    if not stats.get("texts") or "cpu_seconds" not in stats:
        return []
    needs = {size: _needs(stats, text_bytes, size) for size in sizes}
    return [
        {"documents": name} | {f"{size:,}": f"{needs[size][name]:,.3g}" for size in sizes}
        for name in needs[sizes[0]]
    ]


def _needs(stats: dict, text_bytes: float, size: int) -> dict[str, float]:
    rows = stats["texts"]
    sketches = stats["sketches_compared"] / rows * max(size / rows - 1, 0) * 10e-9
    hours = size * (sum(stats["cpu_seconds"].values()) / rows + sketches) / 3600
    return {
        "CPU hours": hours,
        "hours on 64 cores": hours / 64,
        "USD": 0.05 * hours,
        "text GB": size * text_bytes / 1e9,
        "shuffled GB": size * stats["bands"] * 73 / 1e9,
        "GB at the driver": size * stats["pairs_alike"] / rows * 50 / 1e9,
    }
