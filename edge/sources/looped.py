"""A stored source that starts again when it ends."""

import dataclasses
import threading
import time
from collections.abc import Iterator

from edge.frame import Frame
from edge.sources.base import RecordedSource, SourceInfo

MAX_KEPT_BYTES = 64 * 2**20
"""A recording whose frames fit into this is decoded once."""
_COLOUR_FACTOR = 4  # luma, and RGB or the decoder's own planes


class LoopedSource:
    """Plays a stored source again and again; indices and times go on as if the recording had no end.

    The first frame of a round is one frame interval after the last of the round before: a window may span that seam.
    """

    def __init__(self, source: RecordedSource) -> None:
        self._source = source
        self._closed = threading.Event()
        self._kept: list[Frame] | None = None
        self._is_long = False

    @property
    def info(self) -> SourceInfo:
        return dataclasses.replace(self._source.info, num_frames=None)

    def frames(self) -> Iterator[Frame]:
        """Yield frames until closed; see `Source.frames`."""
        interval_ns = max(1, round(self.info.frame_interval_ms * 1e6))
        index, t_next_ns = 0, 0
        while not self._closed.is_set():
            t_start_ns = t_next_ns
            for frame in self._round():
                t_media_ns = t_start_ns + frame.t_media_ns
                is_seam = frame.t_media_ns == 0 and index > 0
                yield frame.replace(index=index, t_media_ns=t_media_ns, is_seam=is_seam)
                index, t_next_ns = index + 1, t_media_ns + interval_ns

    def _round(self) -> Iterator[Frame]:
        if self._kept is not None:
            yield from self._replay(self._kept)
            return
        kept: list[Frame] = []
        num_bytes = 0
        for frame in self._source.frames():
            frame = frame.with_luma()  # once, not in every round
            num_bytes += frame.pixels.nbytes * (1 if frame.colour is None else _COLOUR_FACTOR)
            stated_bytes = num_bytes * (self._source.info.num_frames or 1) if not kept else num_bytes
            self._is_long = self._is_long or stated_bytes > MAX_KEPT_BYTES
            if self._is_long:
                kept.clear()
            else:
                kept.append(frame)
            yield frame
        if not self._closed.is_set() and not self._is_long:
            self._kept = kept

    def _replay(self, frames: list[Frame]) -> Iterator[Frame]:
        for frame in frames:
            if self._closed.is_set():
                return
            yield frame.replace(t_capture_ns=time.monotonic_ns(), t_wall_ns=time.time_ns())

    def close(self) -> None:
        """End a running `frames()` before its next frame."""
        self._closed.set()
        self._source.close()
