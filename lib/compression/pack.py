"""Lossless packing with zstd: streamed both ways in bounded memory, checked by SHA-256.

What is off in any way is refused, and nothing of it is left on disk.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path

from lib.files import atomic_write_json, replacing

BLOCK = 1 << 20  # bytes read at a time; with the window it bounds the memory of both directions


class Refused(ValueError):
    """A packed file that is not what its manifest says. Nothing of it is left on disk."""


def parameters(level: int, window_log: int = 0, threads: int = 0):
    """zstd parameters; window_log above 0: long-distance matching over 2**window_log bytes.

    At 0 the window is that of the level, or with threads the one that zstd itself chooses.
    """
    import zstandard

    options = {}
    if window_log or threads:
        options |= {"window_log": window_log, "enable_ldm": bool(window_log)}
    if threads:
        options["threads"] = threads
    return zstandard.ZstdCompressionParameters.from_level(level, **options)


def pack(
    source: str | Path,
    out: str | Path,
    *,
    level: int = 10,
    window_log: int = 0,
    dictionary: bytes = b"",
    threads: int = 0,
) -> dict:
    """Compress `source` to `out` and write `out`.json, the manifest, after it.

    Returns the manifest with "seconds": {"source", "bytes", "sha256" (of the source), "packed",
    "packed_bytes", "packed_sha256", "level", "window_log", "dictionary" (file name or ""),
    "dictionary_sha256" and "dictionary_bytes"}. A dictionary is written beside `out`, since nobody
    can unpack without it, and counts as packed bytes.
    """
    source, out = Path(source), Path(out)
    if not source.is_file():
        raise FileNotFoundError(f"{source} does not exist, so there is nothing to pack")
    began = time.perf_counter()
    settings = parameters(level, window_log, threads)
    before, after, size = _compress(source, out, settings, dictionary)
    beside = ""
    if dictionary:
        beside = f"{out.name}.dict"
        with replacing(out.with_name(beside), "wb") as target:
            target.write(dictionary)
    manifest = {
        "source": source.name,
        "bytes": source.stat().st_size,
        "sha256": before,
        "packed": out.name,
        "packed_bytes": size + len(dictionary),
        "packed_sha256": after,
        "level": level,
        "window_log": window_log,
        "dictionary": beside,
        "dictionary_sha256": hashlib.sha256(dictionary).hexdigest() if dictionary else "",
        "dictionary_bytes": len(dictionary),
    }
    atomic_write_json(out.with_name(f"{out.name}.json"), manifest)
    return manifest | {"seconds": time.perf_counter() - began}


def _compress(source: Path, out: Path, settings, dictionary: bytes) -> tuple[str, str, int]:
    """Stream `source` into `out`: (SHA-256 of the source, SHA-256 of `out`, bytes of `out`)."""
    import zstandard

    options = {"dict_data": zstandard.ZstdCompressionDict(dictionary)} if dictionary else {}
    compressor = zstandard.ZstdCompressor(compression_params=settings, **options)
    before, after = hashlib.sha256(), hashlib.sha256()
    with open(source, "rb") as reader, replacing(out, "wb") as target:
        stream = compressor.compressobj(size=source.stat().st_size)

        def put(piece: bytes) -> None:
            after.update(piece)
            target.write(piece)

        while block := reader.read(BLOCK):
            before.update(block)
            put(stream.compress(block))
        put(stream.flush())
        return before.hexdigest(), after.hexdigest(), target.tell()


def unpack(packed: str | Path, out: str | Path, *, most_bytes: int = 0) -> dict:
    """Decompress `packed` to `out`, which appears only when size and SHA-256 are the manifest's.

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
    decompressor = _decompressor(packed, manifest)
    began = time.perf_counter()
    try:
        with replacing(out, "wb") as target:
            _decompress(decompressor, packed, target, manifest)
    except zstandard.ZstdError as error:
        raise Refused(f"{packed.name} is damaged ({error}); fetch it again") from error
    seconds = time.perf_counter() - began
    return {
        "bytes": manifest["bytes"],
        "sha256": manifest["sha256"],
        "seconds": seconds,
        "megabytes_per_second": manifest["bytes"] / 1e6 / seconds,
    }


def _decompressor(packed: Path, manifest: dict):
    """A zstd decompressor for a packed file whose size, and dictionary, are the manifest's."""
    import zstandard

    stored = packed.stat().st_size
    promised = manifest["packed_bytes"] - manifest["dictionary_bytes"]
    if stored != promised:
        what = "is cut short" if stored < promised else "goes on after its end"
        raise Refused(
            f"{packed.name} {what}: {stored:,} bytes, its manifest says {promised:,}; fetch it"
            " again"
        )
    options = {}
    if manifest["dictionary"]:
        content = packed.with_name(Path(manifest["dictionary"]).name).read_bytes()
        if hashlib.sha256(content).hexdigest() != manifest["dictionary_sha256"]:
            raise Refused(
                f"{manifest['dictionary']} is not the dictionary that {packed.name} was packed with"
            )
        options["dict_data"] = zstandard.ZstdCompressionDict(content)
    window = 1 << max(27, manifest["window_log"])
    return zstandard.ZstdDecompressor(max_window_size=window, **options)


def _decompress(decompressor, packed: Path, target, manifest: dict) -> None:
    """Stream `packed` into `target`; Refused unless it is what the manifest promises."""
    digest, size = hashlib.sha256(), 0
    with (
        open(packed, "rb") as source,
        decompressor.stream_reader(source, read_size=BLOCK, closefd=False) as reader,
    ):
        while block := reader.read(BLOCK):
            size += len(block)
            if size > manifest["bytes"]:
                raise Refused(
                    f"{packed.name} holds more than the {manifest['bytes']:,} bytes of its manifest"
                )
            digest.update(block)
            target.write(block)
    if size < manifest["bytes"]:
        raise Refused(
            f"{packed.name} is cut short: {size:,} of {manifest['bytes']:,} bytes; fetch it again"
        )
    if digest.hexdigest() != manifest["sha256"]:
        raise Refused(
            f"{packed.name}: SHA-256 of its content is not that of the manifest; fetch it again"
        )


def answers_to_damage(packed: Path, scratch: Path) -> list[dict]:
    """What `unpack` says of a packed file once a byte is flipped, half is missing, or more follows.

    packed: a file without a dictionary. It is copied to the folder `scratch`, which is made anew
    and deleted. Rows {"damage", "answer" (the refusal, or "accepted"), "files left"}.
    """
    whole, rows = packed.read_bytes(), []
    half = len(whole) // 2
    copy, out = scratch / packed.name, scratch / "out"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    shutil.copy(packed.with_name(f"{packed.name}.json"), scratch)
    for damage, content in {
        "one byte flipped": whole[:half] + bytes([whole[half] ^ 1]) + whole[half + 1 :],
        "cut in half": whole[:half],
        "four bytes more": whole + b"more",
    }.items():
        copy.write_bytes(content)
        answer = "accepted"
        try:
            unpack(copy, out)
        except Refused as error:
            answer = str(error)
        left = len(list(scratch.glob("*out*")))
        rows.append({"damage": damage, "answer": answer, "files left": left})
    shutil.rmtree(scratch)
    return rows


FIELDS = {  # what `unpack` reads of a manifest
    "bytes": int,
    "sha256": str,
    "packed_bytes": int,
    "dictionary_bytes": int,
    "window_log": int,
    "dictionary": str,
    "dictionary_sha256": str,
}


def _manifest(packed: Path) -> dict:
    """The manifest beside a packed file, with every one of FIELDS."""
    path = packed.with_name(f"{packed.name}.json")
    if not path.exists():
        raise FileNotFoundError(
            f"{path.name} is missing; a packed file is not opened without its manifest"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        wrong = [key for key, kind in FIELDS.items() if not isinstance(manifest.get(key), kind)]
    except (ValueError, AttributeError) as error:
        raise Refused(f"{path.name} is not a manifest ({error})") from error
    if wrong or not 0 <= manifest["window_log"] <= 31:
        raise Refused(
            f"{path.name} is not a manifest: {', '.join(wrong) or 'window_log'} is missing or wrong"
        )
    return manifest


def dictionary(
    source: str | Path, size: int = 112_640, pieces: int = 2000, length: int = 4096, seed: int = 0
) -> bytes:
    """A zstd dictionary trained on `pieces` places of a file, `length` bytes each.

    Raises ValueError for a file that is too small.
    """
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
        samples = [_piece(handle, int(place), length) for place in places]
    try:
        return zstandard.train_dictionary(size, samples).as_bytes()
    except zstandard.ZstdError as error:
        raise ValueError(
            f"{source.name}: no dictionary can be trained on it ({error}); use more or longer"
            " pieces"
        ) from error


def _piece(handle, place: int, length: int) -> bytes:
    handle.seek(place)
    return handle.read(length)
