"""The end of curation: splits, rejects and manifest on disk.

Outputs are ordered by content hash, so that any first n rows are a random sample of all sources.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from lib.curation import curate
from lib.files import atomic_write_json, read_jsonl, replacing, sha256_file

SPLITS = ("train", "validation", "calibration", "threshold")
SOURCE_KEYS = ("name", "kind", "fingerprint", "revision", "licence")


def split_of(groups, shares: dict[str, float]):
    """Split number in SPLITS of each instruction hash (uint64).

    The hash itself is the die: rows that ask the same question share a split, and no row changes
    split when others come or go. shares: {"validation": 0.02, ...}, the rest is train.
    """
    import numpy as np

    wanted = [shares[name] for name in SPLITS[1:]]
    if min(wanted) < 0 or sum(wanted) >= 1:
        raise ValueError(
            f"shares of {', '.join(SPLITS[1:])} must be 0 or more and sum to less than 1"
        )
    edges = np.cumsum(wanted) * 2.0**64
    place = np.searchsorted(edges, groups.astype(np.float64), side="right")
    return np.where(place == len(wanted), 0, place + 1).astype(np.int8)


def write(
    stage, records: list[dict], exact, near, out: Path, shares: dict[str, float], about: dict
) -> dict:
    """Write the splits, rejects.jsonl and, last, manifest.json; return the manifest.

    stage, exact, near: from `curate`. records: what `curate.ingest` returned for each source.
    about: parameters and whatever else belongs into the manifest. Raises ValueError when no row is
    left.
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
        sizes[name] = int((member == index).sum())
        with replacing(out / f"{name}.jsonl", "wb") as handle:
            handle.writelines(stage.lines(numbers[member == index]))
    rejected = _write_rejects(stage, exact, near, out)
    for name in (*SPLITS, "rejects"):
        digest = sha256_file(out / f"{name}.jsonl")
        files[f"{name}.jsonl"] = {"rows": sizes.get(name, rejected), "sha256": digest}
    groups = [set(stage.groups[numbers[member == index]].tolist()) for index in range(len(SPLITS))]
    shared = sum(len(a & b) for i, a in enumerate(groups) for b in groups[i + 1 :])
    assert shared == 0, f"{shared} questions stand in two splits"  # cannot be: the hash decides
    manifest = {
        **about,
        "files": files,
        "counts": counts(stage, records, exact, near),
        "splits": sizes,
        "sources": [{key: record["source"][key] for key in SOURCE_KEYS} for record in records],
    }
    atomic_write_json(out / "manifest.json", manifest)
    return manifest


def _write_rejects(stage, exact, near, out: Path) -> int:
    total = 0
    with replacing(out / "rejects.jsonl") as handle:
        for path in stage.paths:
            with open(
                path.with_name(path.name.replace(".rows.", ".rejects.")), encoding="utf-8"
            ) as lines:
                for line in lines:
                    handle.write(line)
                    total += 1
        for label, drops in (("exact duplicate", exact), ("near-duplicate", near)):
            pairs = zip(
                stage.rows(drops["row"]), stage.rows(drops["keeper"]), drops["jaccard"], strict=True
            )
            for row, keeper, jaccard in pairs:
                reason = f"{label} of {keeper['origin']}"
                record = {
                    "stage": label,
                    "reason": reason,
                    "keeper": keeper["id"],
                    "jaccard": float(jaccard),
                }
                handle.write(json.dumps(record | row, ensure_ascii=False) + "\n")
                total += 1
    return total


def counts(stage, records: list[dict], exact, near) -> list[dict]:
    """One row a source: raw rows, rows lost at each stage, rows kept; the last row is the sum."""
    import numpy as np

    lost = {
        "exact duplicate": np.bincount(
            stage.source[exact["row"].to_numpy(np.int64)], minlength=len(records)
        ),
        "near-duplicate": np.bincount(
            stage.source[near["row"].to_numpy(np.int64)], minlength=len(records)
        ),
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


def kept_rows(out: Path) -> Iterator[dict]:
    """All rows of all splits."""
    for name in SPLITS:
        yield from read_jsonl(out / f"{name}.jsonl")
