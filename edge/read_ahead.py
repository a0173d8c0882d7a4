"""Decodes a recording in a thread of its own, a few frames ahead: for playing as fast as it goes."""

import collections
import itertools
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from edge.sources.base import LiveItem

_NUM_BATCHES, _NUM_TOGETHER = 2, 4
"""A thread that is woken for several frames at once takes less from the engine."""


class _Batch(NamedTuple):
    items: list[LiveItem]
    error: Exception | None
    """What came in place of the next one."""


def read_ahead(frames: Iterator[LiveItem]) -> Generator[LiveItem, None, None]:
    """Yield the frames in order; what `frames` raises is raised in its place.

    FFmpeg's own frame threads would do the same, but give other pixels from run to run where a file is damaged.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="decode") as pool:
        coming = collections.deque(pool.submit(_decode, frames) for _ in range(_NUM_BATCHES))
        try:
            while (batch := coming.popleft().result()).items or batch.error:
                coming.append(pool.submit(_decode, frames))
                yield from batch.items
                if batch.error is not None:
                    raise batch.error
        finally:
            for future in coming:
                future.cancel()
            if isinstance(frames, Generator):
                pool.submit(frames.close).result()  # by the thread that ran it


def _decode(frames: Iterator[LiveItem]) -> _Batch:
    items: list[LiveItem] = []
    try:
        for item in itertools.islice(frames, _NUM_TOGETHER):
            items.append(item)  # one by one: those before an error count
    except Exception as exc:
        return _Batch(items, exc)
    return _Batch(items, None)
