"""Lossless packing with zstd: streamed both ways in bounded memory, checked by SHA-256, refused
when anything is off."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from pathlib import Path

from lib.files import atomic_write_json, replacing

BLOCK = 1 << 20  # bytes read at a time; with the window it bounds the memory of both directions


class Refused(ValueError):
    """A packed file that is not what its manifest says. Nothing of it is left on disk."""


def parameters(level: int, window_log: int = 0):
    """zstd parameters; window_log 0 leaves zstd's own, else long-distance matching over
    2**window_log bytes."""
    import zstandard

    if not window_log:
        return zstandard.ZstdCompressionParameters.from_level(level)
    return zstandard.ZstdCompressionParameters.from_level(
        level, window_log=window_log, enable_ldm=True
    )


def pack(
    source: str | Path,
    out: str | Path,
    *,
    level: int = 10,
    window_log: int = 0,
    dictionary: bytes = b"",
    threads: int = 0,
) -> dict:
    """Compress `source` to `out` and write `out`.json, the manifest, after it. Returns the manifest
    with "seconds".

    Manifest: {"source", "bytes", "sha256" (of the source), "packed", "packed_bytes",
    "packed_sha256", "level", "window_log", "dictionary" (file name or "") and "dictionary_sha256"};
    a dictionary is written beside `out`, since nobody can unpack without it, and counts as packed
    bytes.
    """
    import zstandard

    source, out = Path(source), Path(out)
    if not source.is_file():
        raise FileNotFoundError(f"{source} does not exist, so there is nothing to pack")
    settings = parameters(level, window_log)
    if threads:
        settings = zstandard.ZstdCompressionParameters.from_level(
            level, threads=threads, window_log=window_log or 0, enable_ldm=bool(window_log)
        )
    words = {"dict_data": zstandard.ZstdCompressionDict(dictionary)} if dictionary else {}
    began, before, after = time.perf_counter(), hashlib.sha256(), hashlib.sha256()
    size = 0
    with open(source, "rb") as reader, replacing(out, "wb") as target:
        squeeze = zstandard.ZstdCompressor(compression_params=settings, **words).compressobj(
            size=source.stat().st_size
        )
        while block := reader.read(BLOCK):
            before.update(block)
            piece = squeeze.compress(block)
            after.update(piece)
            target.write(piece)
        piece = squeeze.flush()
        after.update(piece)
        target.write(piece)
        size = target.tell()
    beside = ""
    if dictionary:
        beside = f"{out.name}.dict"
        with replacing(out.with_name(beside), "wb") as target:
            target.write(dictionary)
    manifest = {
        "source": source.name,
        "bytes": source.stat().st_size,
        "sha256": before.hexdigest(),
        "packed": out.name,
        "packed_bytes": size + len(dictionary),
        "packed_sha256": after.hexdigest(),
        "level": level,
        "window_log": window_log,
        "dictionary": beside,
        "dictionary_sha256": hashlib.sha256(dictionary).hexdigest() if dictionary else "",
        "dictionary_bytes": len(dictionary),
    }
    atomic_write_json(out.with_name(f"{out.name}.json"), manifest)
    return manifest | {"seconds": time.perf_counter() - began}


def unpack(packed: str | Path, out: str | Path, *, most_bytes: int = 0) -> dict:
    """Decompress `packed` to `out`, which appears only when size and SHA-256 are those of the
    manifest beside `packed`.

    most_bytes: refuse a manifest that promises more than this; 0 allows what it promises.
    Decompression itself stops at the promised size, so a file that would unfold to terabytes is
    refused after that many bytes. Returns {"bytes", "sha256", "seconds", "megabytes_per_second"}.
    Raises Refused, or FileNotFoundError without a manifest.
    """
    import zstandard

    packed, out = Path(packed), Path(out)
    manifest = _manifest(packed)
    if most_bytes and manifest["bytes"] > most_bytes:
        raise Refused(
            f"{packed.name} unpacks to {manifest['bytes']:,} bytes, {most_bytes:,} are allowed;"
            " raise the limit"
        )
    words, stored, promised = (
        {},
        packed.stat().st_size,
        manifest["packed_bytes"] - manifest["dictionary_bytes"],
    )
    if stored != promised:
        what = "is cut short" if stored < promised else "goes on after its end"
        raise Refused(
            f"{packed.name} {what}: {stored:,} bytes, its manifest says {promised:,}; fetch it"
            " again"
        )
    if manifest["dictionary"]:
        content = packed.with_name(Path(manifest["dictionary"]).name).read_bytes()
        if hashlib.sha256(content).hexdigest() != manifest["dictionary_sha256"]:
            raise Refused(
                f"{manifest['dictionary']} is not the dictionary that {packed.name} was packed with"
            )
        words["dict_data"] = zstandard.ZstdCompressionDict(content)
    began, seen, size = time.perf_counter(), hashlib.sha256(), 0
    out.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
    try:
        window = 1 << max(27, manifest["window_log"])
        opener = zstandard.ZstdDecompressor(max_window_size=window, **words)
        with open(packed, "rb") as source, os.fdopen(descriptor, "wb") as target:
            with opener.stream_reader(source, read_size=BLOCK, closefd=False) as reader:
                while block := reader.read(BLOCK):
                    size += len(block)
                    if size > manifest["bytes"]:
                        raise Refused(
                            f"{packed.name} holds more than the {manifest['bytes']:,} bytes of its"
                            " manifest"
                        )
                    seen.update(block)
                    target.write(block)
            target.flush()
            os.fsync(target.fileno())
        if size < manifest["bytes"]:
            raise Refused(
                f"{packed.name} is cut short: {size:,} of {manifest['bytes']:,} bytes; fetch it"
                " again"
            )
        if seen.hexdigest() != manifest["sha256"]:
            raise Refused(
                f"{packed.name}: SHA-256 of its content is not that of the manifest; fetch it again"
            )
        os.chmod(temporary, 0o644)
        os.replace(temporary, out)
    except zstandard.ZstdError as error:
        raise Refused(f"{packed.name} is damaged ({error}); fetch it again") from error
    finally:
        Path(temporary).unlink(missing_ok=True)
    seconds = time.perf_counter() - began
    return {
        "bytes": size,
        "sha256": seen.hexdigest(),
        "seconds": seconds,
        "megabytes_per_second": size / 1e6 / seconds,
    }


FIELDS = {
    "bytes": int,
    "sha256": str,
    "packed_bytes": int,
    "dictionary_bytes": int,
    "window_log": int,
    "dictionary": str,
    "dictionary_sha256": str,
}


def _manifest(packed: Path) -> dict:
    path = packed.with_name(f"{packed.name}.json")
    if not path.exists():
        raise FileNotFoundError(
            f"{path.name} is missing; a packed file is not opened without its manifest"
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        wrong = [key for key, kind in FIELDS.items() if not isinstance(found.get(key), kind)]
    except (ValueError, AttributeError) as error:
        raise Refused(f"{path.name} is not a manifest ({error})") from error
    if wrong or not 0 <= found["window_log"] <= 31:
        raise Refused(
            f"{path.name} is not a manifest: {', '.join(wrong) or 'window_log'} is missing or wrong"
        )
    return found


def dictionary(
    source: str | Path, size: int = 112_640, pieces: int = 2000, length: int = 4096, seed: int = 0
) -> bytes:
    """A zstd dictionary trained on `pieces` places of a file, `length` bytes each. ValueError for a
    file too small."""
    import numpy as np
    import zstandard

    source = Path(source)
    total = source.stat().st_size
    if total < 20 * length:
        raise ValueError(
            f"{source.name}: {total} bytes are too few to train a dictionary on, {20 * length} are"
            " needed"
        )
    places = np.sort(np.random.default_rng(seed).integers(0, total - length, pieces))
    with open(source, "rb") as handle:
        samples = [(handle.seek(int(place)), handle.read(length))[1] for place in places]
    try:
        return zstandard.train_dictionary(size, samples).as_bytes()
    except zstandard.ZstdError as error:
        raise ValueError(
            f"{source.name}: no dictionary can be trained on it ({error}); use more or longer"
            " pieces"
        ) from error
