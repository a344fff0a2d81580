"""From raw sources to training splits, streaming: stage files on disk, hashes in memory.

Stages, in order: read and normalise, fitness filters, English, decontamination (one pass a source,
`ingest`); exact duplicates, near-duplicates (`deduplicate`, over all sources); splits
(`lib.curation.splits`). Every row that goes leaves a line in the rejects with stage, reason and
text. A killed run keeps the sources it has ingested.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from lib import domains, meaning
from lib.curation import filters, language, normalise, parallel, sources
from lib.dedup import near_duplicates
from lib.files import atomic_write_json, content_hash, replacing

STAGES = (
    "unreadable",
    "unusable",
    "unfit",
    "foreign",
    "contaminated",
    "exact duplicate",
    "near-duplicate",
)
CODE = ("normalise", "filters", "language", "readers", "decontaminate", "word_runs", "curate")


def code_key() -> str:
    """Hash of the modules that decide about a row: stage files of older rules are not reused."""
    decide = [Path(__file__).with_name(f"{name}.py") for name in CODE]
    return meaning.of_files([*decide, Path(domains.__file__)])


def ingest(
    source: dict,
    folder: Path,
    index,
    settings: dict,
    limit: int = 0,
    progress=True,
    workers: int = 1,
) -> dict:
    """Read one source into `folder`; returns what <name>.json, written last, says of it.

    Beside it stand <name>.rows.jsonl and <name>.rejects.jsonl. source: from `sources.find`. index:
    `decontaminate.Index` of the evaluation sets. settings: min_chars, max_chars, max_repetition,
    max_row_bytes and `evaluation` (a key of the evaluation texts). limit: raw rows to read, 0 for
    all. workers: processes that judge rows; the files are the same for any number. Those of an
    earlier run are reused when source, settings and code are unchanged. Stage rows carry `origin`,
    "file:line".
    """
    from tqdm import tqdm

    name = source["name"].replace("/", "__")
    marker = folder / f"{name}.json"
    parts = [source["fingerprint"], source["name"], source["licence"], settings, limit, code_key()]
    key = content_hash(json.dumps(parts, sort_keys=True))
    if marker.exists() and (known := json.loads(marker.read_text(encoding="utf-8")))["key"] == key:
        return known
    marker.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(f".{name}.*"):  # left by a killed run
        stale.unlink(missing_ok=True)
    total: dict[str, Counter] = {
        name: Counter() for name in ("counts", "reasons", "languages", "layouts", "hits")
    }
    raw = sources.read(source, settings["max_row_bytes"], limit)
    shown = {"file": sys.stdout, "mininterval": 5, "ascii": True, "disable": not progress}
    paths = folder / f"{name}.rows.jsonl", folder / f"{name}.rejects.jsonl"
    judged_by = partial(_judge_batch, source=source, name=name, index=index, settings=settings)
    with replacing(paths[0]) as kept, replacing(paths[1]) as rejected:
        judged = parallel.map_batches(
            judged_by, tqdm(raw, desc=source["name"], unit=" rows", **shown), workers
        )
        for lines, refused, seen in judged:
            kept.write(lines)
            rejected.write(refused)
            for what, counter in seen.items():
                total[what].update(counter)
    record = {
        "key": key,
        "source": source,
        "counts": dict(total["counts"]),
        "reasons": dict(total["reasons"].most_common(40)),
        "languages": dict(total["languages"]),
        "layouts": dict(total["layouts"]),
        "contaminated_by": dict(total["hits"]),
    }
    atomic_write_json(marker, record)
    return record


def _judge_batch(batch, **about):
    """`judge` with the rows as lines, made in the process that judged them."""
    kept, rejected, seen = judge(batch, **about)
    lines = (
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        for rows in (kept, rejected)
    )
    return *lines, seen


def judge(
    batch, *, source: dict, name: str, index, settings: dict
) -> tuple[list[dict], list[dict], dict]:
    """(rows that pass, rows refused, counters) of raw (place, row, reason): the stages of `ingest`.

    place: line, or another word for where in the source a row stands; row None is one that could
    not be read, for that reason. Rows carry `origin`, "file:place"; those refused carry stage and
    reason, too. counters: Counter by name: "counts" of raw rows, of those that passed and of those
    that each stage refused, "reasons", "hits" and so on.
    """
    seen = {what: Counter() for what in ("counts", "reasons", "languages", "layouts", "hits")}
    kept, rejected = [], []
    for place, row, reason in batch:
        seen["counts"]["raw"] += 1
        origin = (
            f"{Path(source['path']).name}:{place}"
            if source["kind"] == "file"
            else f"{name}:{place}"
        )
        for made, stage, why in _judge(
            row, reason, source, index, settings, seen["languages"], seen["layouts"]
        ):
            if stage is None:
                seen["counts"]["passed"] += 1
                kept.append(made | {"origin": origin})
                continue
            seen["counts"][stage] += 1
            label = why.partition(" (")[0] if stage == "foreign" else why
            label = "overlap with " + why.split("/")[0] if stage == "contaminated" else label
            seen["reasons"][f"{stage}: {label}"] += 1
            if stage == "contaminated":
                seen["hits"][why.split("/")[0]] += 1
            rejected.append({"stage": stage, "reason": why, "origin": origin, **made})
    return kept, rejected, seen


def _judge(
    row, reason, source, index, settings, codes, layouts
) -> Iterator[tuple[dict, str | None, str]]:
    """(row or excerpt, stage that refuses it or None, why) for every row that one raw row gives."""
    if row is None:
        yield {"source": source["name"]}, "unreadable", reason
        return
    schema = normalise.detect(frozenset(str(key).strip().lower() for key in row))
    layouts[schema[0] if schema else "unknown"] += 1
    try:
        rows = normalise.normalise(row, source["name"], source["licence"])
    except normalise.Unusable as error:
        excerpt = json.dumps(row, ensure_ascii=False, default=str)[:400]
        yield {"source": source["name"], "raw": excerpt}, "unusable", str(error)
        return
    limits = {key: settings[key] for key in ("min_chars", "max_chars", "max_repetition")}
    for made in rows:
        why = filters.unfit(made, **limits)
        if why:
            yield made, "unfit", why
            continue
        code, score = language.of_row(made)
        codes[code] += 1
        if not language.english(code):
            yield made, "foreign", f"language {code} ({score:.2f})"
            continue
        repeated = index.match(evidence(made), made["instruction"])
        if repeated:
            yield made, "contaminated", f"{repeated[0][0]}: {repeated[0][1]}"
        else:
            yield made, None, ""


def evidence(row: dict) -> str:
    """All turns of a row in order: what is compared, and where an evaluation item could hide."""
    turns = [turn for pair in row.get("history") or [] for turn in pair]
    return "\n".join([*turns, row["instruction"], row["response"]])


class Stage:
    """The rows that passed ingest, by number: arrays in memory, text on disk.

    ids, groups: uint64 content hashes of the row and of its instruction; source: int16 position in
    `names`;
    lengths: response characters; offsets: byte position in the file of its source.
    """

    def __init__(self, folder: Path, names: list[str]):
        from array import array

        import numpy as np
        import orjson

        self.names = names
        self.paths = [folder / f"{name.replace('/', '__')}.rows.jsonl" for name in names]
        ids, groups, lengths, offsets = array("Q"), array("Q"), array("q"), array("q")
        sizes = []
        for path in self.paths:
            before, position = len(ids), 0
            with open(path, "rb") as handle:
                for line in handle:
                    row = orjson.loads(line)
                    ids.append(int(row["id"], 16))
                    groups.append(int(content_hash(row["instruction"]), 16))
                    lengths.append(len(row["response"]))
                    offsets.append(position)
                    position += len(line)
            sizes.append(len(ids) - before)
        self.ids, self.groups = np.array(ids, np.uint64), np.array(groups, np.uint64)
        self.lengths, self.offsets = np.array(lengths, np.int64), np.array(offsets, np.int64)
        self.source = np.repeat(np.arange(len(names), dtype=np.int16), sizes)

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, numbers) -> Iterator[dict]:
        """Rows by number, in the order asked for."""
        import orjson

        return map(orjson.loads, self.lines(numbers))

    def lines(self, numbers) -> Iterator[bytes]:
        """The lines of rows by number, as they stand in the stage files."""
        handles = [open(path, "rb") for path in self.paths]  # noqa: SIM115 (closed below, as many as sources)
        try:
            for number in numbers:
                handle = handles[self.source[number]]
                handle.seek(int(self.offsets[number]))
                yield handle.readline()
        finally:
            for handle in handles:
                handle.close()

    def priority(self):
        """Rank of every row, lower stays: earlier source, longer response, smaller id."""
        import numpy as np

        rank = np.empty(len(self), np.float64)
        rank[np.lexsort((self.ids, -self.lengths, self.source))] = np.arange(len(self))
        return rank


def deduplicate(stage: Stage, search: Callable | None = None, workers: int = 1, **options):
    """(exact, near, stats): DataFrames of row, keeper, jaccard (exact: 1.0), and statistics.

    The text compared is the whole conversation: two different answers to one question may both
    stay. Two rows are exact duplicates when their ids, hashes of their text, are the same. search:
    another engine (`lib.cluster.engine`), a function of (exact, **options) that returns (near,
    stats); None looks on this machine with `workers` signing threads. options: threshold,
    permutations and the rest, as `near_duplicates.find` takes them.
    """
    import numpy as np
    import pandas as pd

    rank = stage.priority()
    order = np.argsort(rank, kind="stable")
    _, first, group = np.unique(stage.ids[order], return_index=True, return_inverse=True)
    keeper = np.empty(len(stage), np.int64)
    keeper[order] = order[first][group]
    lost = np.flatnonzero(keeper != np.arange(len(stage)))
    exact = pd.DataFrame({"row": lost, "keeper": keeper[lost], "jaccard": np.ones(len(lost))})
    if search is not None:
        return exact, *search(exact, **options)
    left = np.flatnonzero(keeper == np.arange(len(stage)))

    def texts():
        for number, row in zip(left, stage.rows(left), strict=True):
            yield int(number), evidence(row)

    return exact, *near_duplicates.find(texts, rank[left], threads=workers, **options)


def importance(row: dict, source: int) -> tuple[int, int]:
    """The keep rule of `Stage.priority` for one row alone, as two integers, lower stays."""
    return source << 48 | (1 << 48) - 1 - len(row["response"]), int(row["id"], 16)
