"""Decodes a recording in a thread of its own, a few frames ahead: for playing as fast as it goes."""

import collections
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

from edge.sources.base import LiveItem

_DEPTH = 4


def read_ahead(frames: Iterator[LiveItem]) -> Generator[LiveItem, None, None]:
    """Yield the frames in order; what `frames` raises is raised in its place.

    FFmpeg's own frame threads would do the same, but give other pixels from run to run where a file is damaged.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="decode") as pool:
        coming = collections.deque(pool.submit(next, frames, None) for _ in range(_DEPTH))
        try:
            while (frame := coming.popleft().result()) is not None:
                coming.append(pool.submit(next, frames, None))
                yield frame
        finally:
            for future in coming:
                future.cancel()
            if isinstance(frames, Generator):
                pool.submit(frames.close).result()  # by the thread that ran it
