"""Shards of a data set on any fsspec path, JSON lines or Parquet: written whole or not at all.

A row is known by its shard and a number: the byte where its line begins, or its place in a Parquet
file. A chunk is a stretch of lines or one row group; what it holds does not depend on who reads it,
so a lost task can be done again.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager

PIECE = 16_000_000  # bytes of JSON lines in a chunk
SUFFIXES = (".jsonl", ".parquet")
NUMBER = 44  # low bits of a row's key that hold its number in the shard, the shard stands above


class ShardError(OSError):
    """A shard that is missing, incomplete, unreadable or in the way; says which, and what to do."""


def find(paths: list[str]) -> list[str]:
    """Shards named by files, folders or patterns, sorted within each; ShardError for none."""
    import fsspec

    named = []
    for path in paths:
        system, inner = fsspec.core.url_to_fs(str(path))
        if system.isdir(inner):
            names = [
                name
                for name in system.ls(inner, detail=False)
                if name.endswith(SUFFIXES) and not name.rpartition("/")[2].startswith(".")
            ]
        else:
            names = system.glob(inner) if "*" in inner else [inner] if system.exists(inner) else []
        if not names:
            raise ShardError(
                f"{path}: no shard there; wanted a file, a folder or a pattern of"
                f" {' or '.join(SUFFIXES)}"
            )
        named += [system.unstrip_protocol(name) for name in sorted(names)]
    return named


def chunks(shards: list[str], piece: int = PIECE) -> list[dict]:
    """The chunks of all shards in order: {"shard": number, "path", "low", "high", "bytes"}.

    low, high: bytes of a file of lines, row groups of a Parquet file.
    """
    import fsspec
    import pyarrow.parquet as pq

    pieces = []
    for number, path in enumerate(shards):
        system, inner = fsspec.core.url_to_fs(path)
        if path.endswith(".parquet"):
            try:
                with system.open(inner) as handle:
                    groups = pq.ParquetFile(handle).metadata
                edges = range(groups.num_row_groups + 1)
                sizes = [groups.row_group(i).total_byte_size for i in range(groups.num_row_groups)]
            except Exception as error:  # pyarrow raises ArrowInvalid, fsspec OSError of many kinds
                raise ShardError(
                    f"{path}: not a whole Parquet file ({error}); write the shard again"
                ) from error
        else:
            edges = [*range(0, system.size(inner), piece), system.size(inner)]
            sizes = [high - low for low, high in zip(edges, edges[1:], strict=False)]
        pieces += [
            {"shard": number, "path": path, "low": low, "high": high, "bytes": size}
            for low, high, size in zip(edges, edges[1:], sizes, strict=False)
            if low < high
        ]
    return pieces


def read(chunk: dict) -> Iterator[tuple[int, int, dict]]:
    """(number, size in bytes, row) of the rows of a chunk; a line belongs to where it begins.

    ShardError when the shard is gone, or holds what is no JSON.
    """
    if chunk["path"].endswith(".parquet"):
        yield from _read_group(chunk)
        return
    for at, line in lines(chunk):
        if line.strip():
            yield at, len(line), _parsed(line, chunk["path"], at)


def lines(chunk: dict, most: int = 0) -> Iterator[tuple[int, bytes | None]]:
    """(byte, line) of the lines of JSON that begin in a chunk; None for one over `most` bytes.

    Such a line is read past in pieces. ShardError when the shard is gone.
    """
    with _opened(chunk["path"]) as handle:
        handle.seek(max(chunk["low"] - 1, 0))
        at = chunk["low"] and chunk["low"] - 1 + _next_line(handle, most)[1]
        while at < chunk["high"]:
            line, size = _next_line(handle, most)
            if not size:
                return
            yield at, line
            at += size


def _next_line(handle, most: int) -> tuple[bytes | None, int]:
    """(the next line, None if it is longer than `most` bytes and `most` is not 0; its size)."""
    line = handle.readline(most + 1 if most else -1)
    if not most or len(line) <= most:
        return line, len(line)
    size = len(line)
    while line and not line.endswith(b"\n"):
        line = handle.readline(1 << 20)
        size += len(line)
    return None, size


@contextmanager
def _opened(path: str):
    import fsspec

    system, inner = fsspec.core.url_to_fs(path)
    try:
        with system.open(inner, "rb") as handle:
            yield handle
    except FileNotFoundError as error:
        raise ShardError(
            f"{path} is gone since the job began; restore it and start again: finished "
            "stages are not kept"
        ) from error


def _parsed(line: bytes, path: str, at: int) -> dict:
    import orjson

    try:
        return orjson.loads(line)
    except ValueError as error:
        raise ShardError(
            f"{path}, byte {at}: not JSON ({error}); the shard is incomplete or damaged"
        ) from error


def _read_group(chunk: dict) -> Iterator[tuple[int, int, dict]]:
    import pyarrow.parquet as pq

    with _opened(chunk["path"]) as handle:
        file = pq.ParquetFile(handle)
        first = sum(file.metadata.row_group(i).num_rows for i in range(chunk["low"]))
        for number, row in enumerate(file.read_row_group(chunk["low"]).to_pylist(), first):
            yield number, 0, {key: value for key, value in row.items() if value is not None}


def fetch(path: str, numbers: list[int], sizes: list[int]) -> list[dict]:
    """The rows of one shard with these numbers, in that order; sizes as `read` gave them."""
    import fsspec
    import pyarrow.parquet as pq

    system, inner = fsspec.core.url_to_fs(path)
    if not path.endswith(".parquet"):
        lines = system.cat_ranges(
            [inner] * len(numbers),
            numbers,
            [a + b for a, b in zip(numbers, sizes, strict=True)],
            on_error="raise",
        )
        return [_parsed(line, path, at) for line, at in zip(lines, numbers, strict=True)]
    with system.open(inner) as handle:
        file, edges = pq.ParquetFile(handle), [0]
        for i in range(file.num_row_groups):
            edges.append(edges[-1] + file.metadata.row_group(i).num_rows)
        groups = [bisect_right(edges, number) - 1 for number in numbers]
        held = {}
        for group in sorted(set(groups)):
            wanted = [n for n, g in zip(numbers, groups, strict=True) if g == group]
            some = file.read_row_group(group).take([n - edges[group] for n in wanted]).to_pylist()
            held.update(zip(wanted, some, strict=True))
    return [{key: value for key, value in held[n].items() if value is not None} for n in numbers]


def write(rows: list[dict], path: str) -> int:
    """Write a shard under a temporary name, then move it to `path`; returns the number of rows.

    A second writer of the same rows (a task done again) ends with the same file.
    """
    import os
    import uuid

    import fsspec

    system, inner = fsspec.core.url_to_fs(path)
    temporary = f"{os.path.dirname(inner)}/.{uuid.uuid4().hex}.{os.path.basename(inner)}"
    system.makedirs(os.path.dirname(inner), exist_ok=True)
    try:
        with system.open(temporary, "wb") as handle:
            if path.endswith(".parquet"):
                import pyarrow as pa
                import pyarrow.parquet as pq

                pq.write_table(pa.Table.from_pylist(rows), handle)
            else:
                handle.writelines(
                    json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows
                )
        system.mv(temporary, inner)
    except BaseException:
        if system.exists(temporary):
            system.rm(temporary)
        raise
    return len(rows)
