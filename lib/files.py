"""Files that survive a kill: atomic writes, JSON lines, content hashes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

# relative paths in parameters start here, in Jupyter and papermill alike
ROOT = Path(__file__).resolve().parent.parent


def from_root(text: str | Path, root: Path = ROOT) -> Path:
    """The path that a parameter means: relative to the repository; `~` is the home folder."""
    return root / os.path.expanduser(text)  # which leaves the ~ of an unknown user alone


def shown(path: str | Path, root: Path = ROOT) -> str:
    """A path relative to the repository where possible: messages and records name no machine."""
    path = Path(path)
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def content_hash(*parts: str) -> str:
    """16 hex digits of SHA-256 over the parts, white space folded and lower-cased, joined by 0x1F.

    Two rows that differ only in case or spacing are the same content, so they can never land in two
    splits.
    """
    folded = "\x1f".join(" ".join((part or "").lower().split()) for part in parts)
    return hashlib.sha256(folded.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def whole(text: str) -> str:
    """The text with surrogate pairs joined; half of one, which UTF-8 cannot hold, is U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def as_json(value, *, allow_nan: bool = False, indent: int | None = None) -> str:
    """JSON that UTF-8 can hold: where a half surrogate is in it, all of it as escapes."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=allow_nan, indent=indent)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=allow_nan, indent=indent)
    return text


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file in hex, read in 1 MiB pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def replacing(path: str | Path, mode: str = "w") -> Iterator:
    """Open a temporary file beside `path`; renamed over it on success, deleted on any error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        encoding = None if "b" in mode else "utf-8"
        with os.fdopen(descriptor, mode, encoding=encoding) as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A path beside `folder` to write a whole folder to; renamed over it unless an error occurs."""
    scratch = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(scratch, ignore_errors=True)
    yield scratch
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write text so that a reader sees the old file or the new one, never half of it."""
    with replacing(path) as handle:
        handle.write(text)


def atomic_write_json(path: str | Path, value) -> None:
    """Write JSON atomically. NaN and infinity are refused: what was not measured is absent."""
    atomic_write_text(path, as_json(value, indent=1) + "\n")


def write_jsonl(path: str | Path, rows: Iterable[dict]) -> int:
    """Write rows as JSON lines atomically, streaming. Returns the number of rows."""
    count = 0
    with replacing(path) as handle:
        for row in rows:
            handle.write(as_json(row) + "\n")
            count += 1
    return count


def read_jsonl(path: str | Path) -> Iterator[dict]:
    """Rows of a JSON-lines file that this project wrote. Raises ValueError naming file and line."""
    with open(path, encoding="utf-8") as handle:
        for number, line in enumerate(handle, 1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except ValueError as error:
                message = (
                    f"{path}, line {number}: not JSON ({error}); delete the file to have it rebuilt"
                )
                raise ValueError(message) from error
