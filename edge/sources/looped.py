"""A stored source that starts again when it ends."""

import dataclasses
import threading
from collections.abc import Iterator

from edge.frame import Frame
from edge.sources.base import Source, SourceInfo


class LoopedSource:
    """Plays a stored source again and again; indices and times go on as if the recording had no end."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._closed = threading.Event()

    @property
    def info(self) -> SourceInfo:
        return dataclasses.replace(self._source.info, num_frames=None)

    def frames(self) -> Iterator[Frame]:
        """Yield frames until closed; see `Source.frames`."""
        interval_ns = max(1, round(self.info.frame_interval_ms * 1e6))
        index, t_next_ns = 0, 0
        while not self._closed.is_set():
            t_start_ns = t_next_ns
            for frame in self._source.frames():
                t_media_ns = t_start_ns + frame.t_media_ns
                yield frame.replace(index=index, t_media_ns=t_media_ns)
                index, t_next_ns = index + 1, t_media_ns + interval_ns

    def close(self) -> None:
        """End a running `frames()` before its next frame."""
        self._closed.set()
        self._source.close()
