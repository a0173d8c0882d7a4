"""Plays a recording at its own speed."""

import threading
import time
from collections.abc import Iterator

from edge.frame import Frame
from edge.sources.base import LiveItem

_MAX_LATE_NS = 10**9
_DECODE_MARGIN_NS, _DECAY = 2_000_000, 0.95


class Pacer:
    """Lets a recording's frames through when they are due, as a camera would give them.

    A frame that was decoded in time counts as captured when it was due; one that was decoded late, when it came.
    Decoding starts as late as it can, so that it does not take the cores from the inference of the frame before: a
    camera would not either.
    """

    def __init__(self, stop: threading.Event, frame_interval_ms: float) -> None:
        self._stop = stop
        self._interval_ns = round(frame_interval_ms * 1e6)
        self._offset_ns: int | None = None
        self._last_due_ns = 0
        self._decode_ns = 0.0

    def play(self, frames: Iterator[LiveItem]) -> Iterator[LiveItem]:
        """Yield each frame when it is due, and all else at once."""
        while True:
            self._rest()
            t_start_ns = time.monotonic_ns()
            frame = next(frames, None)
            if frame is None:
                return
            self._decode_ns = max(time.monotonic_ns() - t_start_ns, _DECAY * self._decode_ns)
            yield self.pace(frame) if isinstance(frame, Frame) else frame

    def _rest(self) -> None:
        """Wait until the next frame must be decoded, judged by the slowest of the last ones."""
        rest_ns = self._last_due_ns + self._interval_ns - self._decode_ns - _DECODE_MARGIN_NS
        rest_ns -= time.monotonic_ns()
        if rest_ns > 0:
            self._stop.wait(rest_ns / 1e9)

    def pace(self, frame: Frame) -> Frame:
        """Wait until the frame is due and return it with that capture time."""
        now_ns = time.monotonic_ns()
        if self._offset_ns is None or now_ns - frame.t_media_ns - self._offset_ns > _MAX_LATE_NS:
            self._offset_ns = now_ns - frame.t_media_ns
        due_ns = self._last_due_ns = frame.t_media_ns + self._offset_ns
        if due_ns <= now_ns:
            return frame
        self._stop.wait((due_ns - now_ns) / 1e9)
        return frame.replace(t_capture_ns=due_ns, t_wall_ns=time.time_ns())
