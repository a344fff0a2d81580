"""Raw rows of local files: JSONL, JSON, CSV and TSV, each optionally .gz, one row at a time.

Every reader yields `(line, row, reason)`: a dict and None, or None and the reason why that line is
no row. `line` is 1-based: the physical line of JSONL and CSV, the element of a JSON array. A reader
holds one row at a time and at most `max_bytes` of it; only a JSON file that is one single object is
read whole (64 MB).
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
MAX_BYTES = 1_000_000  # a row beyond this is a dump, not an example
Raw = tuple[int, dict | None, str | None]


def read_file(path: str | Path, max_bytes: int = MAX_BYTES) -> Iterator[Raw]:
    """Rows of a JSONL, JSON, CSV or TSV file, .gz or not; a broken one ends with a reason."""
    path = Path(path)
    name = path.name.removesuffix(".gz")
    last = 0
    try:
        with (gzip.open if path.name.endswith(".gz") else open)(path, "rb") as handle:
            if name.endswith((".csv", ".tsv")):
                rows = _read_csv(handle, max_bytes, "\t" if name.endswith(".tsv") else ",")
            else:
                rows = (_read_json if name.endswith(".json") else _read_jsonl)(handle, max_bytes)
            for last, row, reason in rows:
                yield last, row, reason
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        yield (
            last + 1,
            None,
            f"{path.name} is a broken gzip file ({error}); the rows after this are lost",
        )


def _lines(handle, max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """(number, line); None for a line beyond the limit, which is read past in pieces."""
    number = 0
    while line := handle.readline(max_bytes + 1):
        number += 1
        if len(line) > max_bytes:
            while line and not line.endswith(b"\n"):
                line = handle.readline(1 << 20)
            yield number, None
        else:
            yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


def too_long(max_bytes: int) -> str:
    return f"row larger than {max_bytes:,} bytes"


def parse(text: bytes) -> tuple[dict | None, str | None]:
    """(row, None) or (None, reason) of the bytes of one JSON value."""
    try:
        row = json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        return None, f"invalid UTF-8 at byte {error.start}"
    except RecursionError:
        return None, "JSON nested too deeply"
    except ValueError as error:
        return None, f"not JSON: {error}"
    if not isinstance(row, dict):
        return None, f"a JSON {type(row).__name__}, not an object"
    if b"\\ud" in text.lower() and not _is_unicode(json.dumps(row, ensure_ascii=False)):
        return None, "half a surrogate pair"  # legal JSON, but no text that can be written again
    return row, None


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _read_jsonl(handle, max_bytes: int) -> Iterator[Raw]:
    for number, line in _lines(handle, max_bytes):
        if line is None:
            yield number, None, too_long(max_bytes)
        elif line.strip():
            yield number, *parse(line)


def _read_csv(handle, max_bytes: int, delimiter: str) -> Iterator[Raw]:
    skipped: list[int] = []

    def text() -> Iterator[str]:
        for number, line in _lines(handle, max_bytes):
            if line is None:
                skipped.append(number)
            else:
                yield line.decode("utf-8", "surrogateescape")

    csv.field_size_limit(max_bytes)
    reader = csv.reader(text(), delimiter=delimiter)
    header: list[str] = []
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            yield reader.line_num, None, f"bad CSV: {error}"
            continue
        if skipped:  # the skipped line may have been part of this row, so neither can be trusted
            yield skipped.pop(), None, too_long(max_bytes)
            skipped.clear()
        elif not cells:
            continue
        elif sum(map(len, cells)) > max_bytes:
            yield reader.line_num, None, too_long(max_bytes)
        elif not _is_unicode("".join(cells)):
            yield reader.line_num, None, "invalid UTF-8"
        elif not header:
            header = cells
        elif len(cells) != len(header):
            yield reader.line_num, None, f"{len(cells)} cells under {len(header)} columns"
        else:
            yield reader.line_num, dict(zip(header, cells, strict=True)), None
    if skipped:
        yield skipped.pop(), None, too_long(max_bytes)


_TOKEN = re.compile(rb'["\\\[\]{}]')
_CONTAINERS = ("data", "rows", "examples", "items", "questions", "train")
_CONTAINER_BYTES = 64_000_000  # one JSON object that wraps all rows has to be read whole


def _read_json(handle, max_bytes: int) -> Iterator[Raw]:
    """Elements of a JSON array, values one after the other, or the rows inside one object."""
    held, count = None, 0
    for count, piece in enumerate(_pieces(handle, max_bytes), 1):
        if count == 1:
            # whether a first large object is one row or all rows shows only at the next piece
            held = piece
            continue
        if count == 2:
            yield _element(1, held, max_bytes)
        yield _element(count, piece, max_bytes)
    if count == 0:
        yield 1, None, "no JSON array or object in this file"
    if count != 1:
        return
    whole, reason = (None, too_long(_CONTAINER_BYTES)) if held is None else parse(held)
    rows = [whole] if whole is None else _unwrap(whole)
    for number, row in enumerate(rows, 1):
        if isinstance(row, dict) and len(json.dumps(row)) > max_bytes:
            yield number, None, too_long(max_bytes)
        elif isinstance(row, dict):
            yield number, row, None
        else:
            yield number, None, reason or f"a JSON {type(row).__name__}, not an object"


def _unwrap(whole: dict) -> list:
    """Rows of a file that is one object: a list under a usual name, objects by id, or itself."""
    for name in _CONTAINERS:
        if isinstance(whole.get(name), list):
            return whole[name]
    keyed = len(whole) > 1 and all(isinstance(value, dict) for value in whole.values())
    return list(whole.values()) if keyed else [whole]


def _element(number: int, piece: bytes | None, max_bytes: int) -> Raw:
    if piece is None or len(piece) > max_bytes:
        return number, None, too_long(max_bytes)
    return number, *parse(piece)


def _pieces(handle, max_bytes: int) -> Iterator[bytes | None]:
    """Bytes of each top-level value, or element of a top-level array; None beyond the limit.

    Splits on brackets outside strings, so one broken element does not spoil its neighbours; numbers
    and other bare words between elements are passed over.
    """
    depth = base = 0
    in_string, skip_at, first, limit = False, -1, True, _CONTAINER_BYTES
    piece, over = bytearray(), False
    while block := handle.read(1 << 16):
        start = 0
        for match in _TOKEN.finditer(block):
            position, token = match.start(), match.group()
            if position == skip_at:  # the character after a backslash
                continue
            if in_string:
                if token == b"\\":
                    skip_at = position + 1
                elif token == b'"':
                    in_string = False
                continue
            if token == b'"':
                in_string = True
            elif token in b"[{":
                if first and token == b"[":
                    base = 1
                elif depth == base:
                    start, piece, over = position, bytearray(), False
                depth += 1
            elif token in b"]}":
                depth = max(depth - 1, 0)
                if depth == 0 and base == 1:
                    base = 0  # the array is closed; what follows are values of their own
                elif depth == base and (piece or position > start or over):
                    piece += block[start : position + 1]
                    yield None if over or len(piece) > limit else bytes(piece)
                    piece, over, limit = bytearray(), False, max_bytes
            first = False
        skip_at = skip_at - len(block) if skip_at >= len(block) else -1
        if depth > base and not over:
            piece += block[start:]
            if len(piece) > limit:
                piece, over = bytearray(), True
    if depth > base:
        yield None if over else bytes(piece)  # the file ends inside a value: parsing it says so
