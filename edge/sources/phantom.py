"""The phantom as a source: an endless synthetic sweep."""

import threading
import time
from collections.abc import Iterator

from edge.frame import Frame
from edge.phantom import Phantom
from edge.sources.base import SourceInfo

_FRAME_INTERVAL_MS = 1000 / 30


class PhantomSource:
    """Yields the frames of `Phantom(seed)` without end, as fast as they are asked for."""

    def __init__(self, seed: int) -> None:
        self._phantom = Phantom(seed, frame_interval_ms=_FRAME_INTERVAL_MS)
        self._closed = threading.Event()

    @property
    def info(self) -> SourceInfo:
        return SourceInfo(
            name=f"phantom:{self._phantom.seed}",
            frame_interval_ms=_FRAME_INTERVAL_MS,
            is_live=False,
            region=self._phantom.region,
            note="synthetic images from a simulated phantom, not a patient",
        )

    def frames(self) -> Iterator[Frame]:
        """Yield frames until closed; see `Source.frames`."""
        index = 0
        while not self._closed.is_set():
            pixels = self._phantom.frame(index)
            t_media_ns = round(index * _FRAME_INTERVAL_MS * 1e6)
            yield Frame(pixels, index, t_media_ns, time.monotonic_ns(), time.time_ns())
            index += 1

    def close(self) -> None:
        """End a running `frames()` before its next frame."""
        self._closed.set()
