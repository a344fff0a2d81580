"""A function over batches of a stream in several processes, in order, with bounded memory."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice

BATCH = 32  # rows sent to a process at once; results do not depend on it

_function: Callable | None = None  # what the processes forked next call; it need not be picklable


def batches(items: Iterable, size: int = BATCH) -> Iterator[list]:
    """Lists of `size` items, the last one shorter."""
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch


def map_batches(
    function: Callable[[list], object], items: Iterable, workers: int = 1, size: int = BATCH
) -> Iterator:
    """function(batch) for the batches of `items`, in order, in forked processes; 1 takes none.

    Items and results are pickled; the function and what it holds (indexes, models) are inherited,
    so a string hashes alike everywhere. Four batches a worker are under way. RuntimeError when a
    process is killed.
    """
    global _function

    if workers == 1:
        yield from map(function, batches(items, size))
        return
    _function = function
    waiting: deque = deque()
    try:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
            for batch in batches(items, size):
                waiting.append(pool.submit(_call, batch))
                if len(waiting) >= 4 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process was killed, most likely for want of memory: set workers or"
            " max_row_bytes lower and run again; sources that were finished are kept"
        ) from error


def _call(batch: list):
    return _function(batch)
