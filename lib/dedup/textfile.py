"""Texts as bytes of UTF-8, one after the other: a block in memory, all in a temporary file."""

from __future__ import annotations

import errno
import mmap
import tempfile
from array import array
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

BLOCK = 4096  # texts a signing call; results do not depend on it
# texts looked at before their pages may leave memory: a look at one may map a megabyte around it
PART = 512


def encode(text: str, lower: bool = False) -> bytes:
    """UTF-8; half surrogates pass through."""
    return (text.lower() if lower else text).encode("utf-8", "surrogatepass")


def pack(texts: list[bytes]):
    """(buffer, starts, ends) of encoded texts: uint8, and int64 positions.

    One blank more keeps the buffer from being empty and lets a kernel look one byte behind the last
    text.
    """
    import numpy as np

    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)), dtype=np.int64)
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]]) if len(ends) else ends
    return np.frombuffer(b"".join([*texts, b" "]), np.uint8), starts, ends


def read(texts, file, lower: bool, sign, threads: int = 1):
    """Write texts to an open file and sign them on the way: (labels, ends int64, results).

    texts: strings or (label, text) pairs, or a function that returns such an iterable. sign:
    function of (buffer, starts, ends) of a block, its results come in order; more than one thread
    signs while the next blocks are read.
    """
    import numpy as np

    labels, stops, done, waiting = [], array("q"), [], deque()
    numbered = enumerate(texts() if callable(texts) else texts)
    with ThreadPoolExecutor(threads) as pool:
        while block := list(islice(numbered, BLOCK)):
            # of (position, entry), where an entry may be a pair itself
            block = [pair if isinstance(pair[1], str) else pair[1] for pair in block]
            for label, text in block:
                if not isinstance(text, str):
                    raise TypeError(
                        f"row {label}: the text is a {type(text).__name__}; reject the row first"
                    )
            labels += [label for label, _ in block]
            encoded = [encode(text, lower) for _, text in block]
            buffer, starts, ends = pack(encoded)
            stops.extend((ends + (stops[-1] if stops else 0)).tolist())
            _write(file, buffer[:-1], len(stops))
            if threads == 1:
                done.append(sign(buffer, starts, ends))
                continue
            waiting.append(pool.submit(sign, buffer, starts, ends))
            if len(waiting) > threads:
                done.append(waiting.popleft().result())
        done += [future.result() for future in waiting]
    _write(file, b" ", len(stops))  # an empty file cannot be mapped
    return labels, np.array(stops, np.int64), done


def _write(file, data, count: int) -> None:
    try:
        file.write(data)
        file.flush()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(
            errno.ENOSPC,
            f"no space for the text of {count:,} rows and more in the temporary folder "
            f"{tempfile.gettempdir()}; free some, or point TMPDIR to a folder with room for it",
        ) from error


def mapped(file):
    """(the file as a read-only uint8 array, a function that lets go of the pages read so far)."""
    import numpy as np

    held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    held.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(held, np.uint8), lambda: held.madvise(mmap.MADV_DONTNEED)


def parts(rows, forget=None):
    """Stretches of PART of an array; after each, `forget` of `mapped` lets go of its pages."""
    for low in range(0, len(rows), PART):
        yield rows[low : low + PART]
        if forget:
            forget()
