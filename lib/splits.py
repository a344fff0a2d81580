"""The end of curation: splits and rejects on disk, and what can be checked on them afterwards.

Outputs are ordered by content hash, so that any first n rows are a random sample of all sources.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from lib import curate, dedup, language, stats
from lib.files import atomic_write_json, read_jsonl, replacing, sha256_file, write_jsonl

SPLITS = ("train", "validation", "calibration", "threshold")
SOURCE_KEYS = ("name", "kind", "fingerprint", "revision", "licence")


def split_of(groups, shares: dict[str, float]):
    """Split number in SPLITS of each instruction hash (uint64).

    The hash itself is the die: rows that ask the same question share a split, and no row changes split when
    others come or go. shares: {"validation": 0.02, ...}, the rest is train.
    """
    import numpy as np

    wanted = [shares[name] for name in SPLITS[1:]]
    if min(wanted) < 0 or sum(wanted) >= 1:
        raise ValueError(f"shares of {', '.join(SPLITS[1:])} must be 0 or more and sum to less than 1")
    edges = np.cumsum(wanted) * 2.0**64
    place = np.searchsorted(edges, groups.astype(np.float64), side="right")
    return np.where(place == len(wanted), 0, place + 1).astype(np.int8)


def write(stage, records: list[dict], exact, near, out: Path, shares: dict[str, float], about: dict) -> dict:
    """Write the splits, rejects.jsonl and, last, manifest.json; return the manifest.

    stage, exact, near: from `curate`. records: what `curate.ingest` returned for each source. about:
    parameters and whatever else belongs into the manifest. Raises ValueError when no row is left.
    """
    import numpy as np

    kept = np.ones(len(stage), bool)
    kept[exact["row"].to_numpy(np.int64)] = False
    kept[near["row"].to_numpy(np.int64)] = False
    numbers = np.flatnonzero(kept)
    if not len(numbers):
        raise ValueError("no row is left: read the rejects, then widen the filters or the sources")
    numbers = numbers[np.argsort(stage.ids[numbers], kind="stable")]
    member = split_of(stage.groups[numbers], shares)
    sizes, files = {}, {}
    for index, name in enumerate(SPLITS):
        sizes[name] = write_jsonl(out / f"{name}.jsonl", stage.rows(numbers[member == index]))
    rejected = _write_rejects(stage, exact, near, out)
    for name in (*SPLITS, "rejects"):
        digest = sha256_file(out / f"{name}.jsonl")
        files[f"{name}.jsonl"] = {"rows": sizes.get(name, rejected), "sha256": digest}
    groups = [set(stage.groups[numbers[member == index]].tolist()) for index in range(len(SPLITS))]
    shared = sum(len(a & b) for i, a in enumerate(groups) for b in groups[i + 1 :])
    assert shared == 0, f"{shared} questions stand in two splits"  # cannot be: the hash decides
    manifest = {
        **about, "files": files, "counts": counts(stage, records, exact, near), "splits": sizes,
        "sources": [{key: record["source"][key] for key in SOURCE_KEYS} for record in records],
    }  # fmt: skip
    atomic_write_json(out / "manifest.json", manifest)
    return manifest


def _write_rejects(stage, exact, near, out: Path) -> int:
    total = 0
    with replacing(out / "rejects.jsonl") as handle:
        for path in stage.paths:
            for row in read_jsonl(path.with_name(path.name.replace(".rows.", ".rejects."))):
                handle.write(json.dumps(row, ensure_ascii=False) + "\n")
                total += 1
        for label, drops in (("exact duplicate", exact), ("near-duplicate", near)):
            pairs = zip(stage.rows(drops["row"]), stage.rows(drops["keeper"]), drops["jaccard"], strict=True)
            for row, keeper, jaccard in pairs:
                reason = f"{label} of {keeper['origin']}"
                record = {"stage": label, "reason": reason, "keeper": keeper["id"], "jaccard": float(jaccard)}
                handle.write(json.dumps(record | row, ensure_ascii=False) + "\n")
                total += 1
    return total


def counts(stage, records: list[dict], exact, near) -> list[dict]:
    """One row a source: raw rows, rows lost at each stage, rows kept; the last row is the sum."""
    import numpy as np

    lost = {
        "exact duplicate": np.bincount(stage.source[exact["row"].to_numpy(np.int64)], minlength=len(records)),
        "near-duplicate": np.bincount(stage.source[near["row"].to_numpy(np.int64)], minlength=len(records)),
    }
    table = []
    for index, record in enumerate(records):
        known = record["counts"]
        row = {"source": record["source"]["name"], "raw": known.get("raw", 0)}
        row |= {name: known.get(name, 0) for name in curate.STAGES[:5]}
        row |= {name: int(lost[name][index]) for name in curate.STAGES[5:]}
        row["kept"] = known.get("passed", 0) - row["exact duplicate"] - row["near-duplicate"]
        table.append(row)
    total = {key: sum(row[key] for row in table) for key in table[0] if key != "source"}
    return [*table, {"source": "all", **total}]


def overlap(stage, *drops):
    """Cross-source matrix: rows of the source at the left dropped for a kept row of the source above."""
    import pandas as pd

    names = pd.Categorical.from_codes
    every = pd.concat(drops, ignore_index=True)
    codes = [stage.source[every[column].to_numpy("int64")] for column in ("row", "keeper")]
    dropped, keeper = (names(code, categories=stage.names) for code in codes)
    return pd.crosstab(dropped, keeper, rownames=["dropped"], colnames=["kept"], dropna=False)


def orphans(stage, near, threshold: float, check: int = 2000) -> int:
    """Dropped near-duplicates without a kept row as similar as `threshold`: recounted from the text.

    Every keeper is looked up; Jaccard is computed anew for the first `check` drops of the hash order.
    """
    import numpy as np

    rows, keepers = near["row"].to_numpy(np.int64), near["keeper"].to_numpy(np.int64)
    lost = int(np.isin(keepers, rows).sum())
    some = np.argsort(stage.ids[rows], kind="stable")[:check]
    for a, b in zip(stage.rows(rows[some]), stage.rows(keepers[some]), strict=True):
        texts = [f"{row['instruction']}\n{row['response']}" for row in (a, b)]
        lost += dedup.jaccard(*texts) < threshold - 1e-9
    return lost


def kept_rows(out: Path) -> Iterator[dict]:
    """All rows of all splits."""
    for name in SPLITS:
        yield from read_jsonl(out / f"{name}.jsonl")


def english_share(rows: Iterable[dict]) -> tuple[dict, list[dict]]:
    """(estimate, residual): the share of kept rows that the second, independent model calls English or leaves
    undetermined, and the rows it does not, with the code and score it gives."""
    total, residual = 0, []
    for row in rows:
        total += 1
        code, score = language.of_row(row, "bayes")
        if not language.english(code):
            residual.append({"language": code, "score": round(score, 3), **row})
    estimate = stats.proportion(total - len(residual), total)
    return estimate, sorted(residual, key=lambda row: -row["score"])


def contaminated(rows: Iterable[dict], index) -> list[dict]:
    """Rows that still match an evaluation item: must be none."""
    return [row for row in rows if index.match(curate.evidence(row))]


def injected(truth: Iterable[dict], rejects: Iterable[dict]) -> tuple[list[dict], set[str]]:
    """(table, origins): what was injected into the packaged data against what curation took out.

    truth: rows {"kind", "origin", "stages", "of"?}: an injection counts as caught when its own row was
    refused in one of `stages`, or, for copies, when the row it was made `of` went instead. origins: both.
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
