"""Plays stored objects one after the other, as one stream."""

import collections
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from edge.errors import EdgeError
from edge.frame import Frame, StoredObject
from edge.sources.base import LiveItem, Pause, RecordedSource, Trouble
from edge.sources.dicom.pixels import DECODE_ERRORS
from edge.sources.object_id import salted_hash

_log = logging.getLogger(__name__)

WAITING = Pause("waiting for an object")
_DONE = Pause(WAITING.reason, is_end=True)
_WAIT_S = 0.5
_MAX_LATE_NS = 10**9
_MAX_PLAY_NS = 15 * 60 * 10**9
"""No cine of an exam is longer; a wrong frame time must not keep the objects behind it waiting for years."""
_MAX_TROUBLES = 1000

Opener = Callable[[Path], RecordedSource]


class ObjectQueue(Protocol):
    """Objects on disk that wait to be played, the oldest first."""

    def take(self, timeout_s: float) -> Path | None:
        """Return the oldest, which stays so until it is settled, rejected or put back; None after the time-out."""
        ...

    def begin(self, path: Path) -> Path | None:
        """Note that it is being played; return where it is from now on, or None if the process died of it too often."""
        ...

    def settle(self) -> None:
        """It was played, and its predictions were told."""
        ...

    def reject(self) -> None:
        """It cannot be played."""
        ...

    def put_back(self) -> None:
        """It was not played to its end, and is to be played again."""
        ...


class ObjectPlayer:
    """Turns objects into one stream of frames, in which each is a part of its own.

    The times within an object are its own, so that it has the predictions that it would have if played alone.
    """

    def __init__(self, queue: ObjectQueue, opener: Opener, *, is_realtime: bool) -> None:
        self._queue = queue
        self._opener = opener
        self._is_realtime = is_realtime
        self._closed = threading.Event()
        self._troubles: collections.deque[Trouble] = collections.deque(maxlen=_MAX_TROUBLES)
        self._index = 0
        self._t_next_ns = 0
        self._broken_off: tuple[Path, int, int] | None = None
        """The object in whose middle `frames` ended last, as it was: if it is called again, whoever took them died."""

    def report(self, trouble: Trouble) -> None:
        """Have something told with the stream. From any thread."""
        self._troubles.append(trouble)

    def close(self) -> None:
        """End `frames` before its next item."""
        self._closed.set()

    def frames(self) -> Iterator[LiveItem]:
        """Yield frames until closed; while there is none to play, `Pause`."""
        while not self._closed.is_set():
            yield from self._told()
            path = self._queue.take(_WAIT_S)
            if path is not None:
                yield from self._play(path)
            elif not self._closed.is_set():
                yield WAITING

    def _told(self) -> Iterator[Trouble]:
        while self._troubles:
            yield self._troubles.popleft()

    def _play(self, path: Path) -> Iterator[LiveItem]:
        if self._broken_off is not None and _state(path) == self._broken_off:
            yield self._rejected("the capture died of an object; it is put away and not tried again")
            return
        begun = self._begin(path)
        if begun is None:
            yield self._rejected("an object ended the process too often; it is not tried again")
            return
        is_open = True
        try:
            yield from self._object(begun)
            yield _DONE  # comes back when its predictions were told
            if not self._closed.is_set():
                self._queue.settle()
                is_open = False
        except (EdgeError, *DECODE_ERRORS) as exc:
            is_open = False
            yield self._rejected(f"an object cannot be played and is skipped: {exc}")
        finally:
            if is_open:
                self._queue.put_back()
                self._broken_off = _state(path)

    def _begin(self, path: Path) -> Path | None:
        try:
            return self._queue.begin(path)
        except OSError:  # someone took it away, or the disk fails
            return None

    def _rejected(self, message: str) -> Trouble:
        self._queue.reject()
        return Trouble("bad_objects", message)

    def _object(self, path: Path) -> Iterator[LiveItem]:
        source = self._opener(path)
        interval_ns = max(1, round(source.info.frame_interval_ms * 1e6))
        anonymous = StoredObject(salted_hash(str(path)), source.info.region)
        t_start_ns, clock = self._t_next_ns, _Clock()
        for frame in source.frames():
            if frame.t_media_ns > _MAX_PLAY_NS:
                yield Trouble("bad_objects", "an object is longer than 15 minutes; the rest of it is left out")
                return
            yield from self._told()  # an object may take minutes
            if self._is_realtime:
                yield from self._wait(clock, frame)
            if self._closed.is_set():
                return
            self._t_next_ns = t_start_ns + frame.t_media_ns + interval_ns
            yield self._stamped(frame, clock, t_start_ns, frame.object or anonymous)

    def _stamped(self, frame: Frame, clock: "_Clock", t_start_ns: int, stored: StoredObject) -> Frame:
        index, self._index = self._index, self._index + 1
        t_capture_ns = clock.due_ns(frame) if self._is_realtime else time.monotonic_ns()
        return frame.replace(
            index=index,
            t_media_ns=t_start_ns + frame.t_media_ns,
            t_capture_ns=t_capture_ns,
            t_wall_ns=time.time_ns(),
            object=stored,
        )

    def _wait(self, clock: "_Clock", frame: Frame) -> Iterator[Pause]:
        """Wait until a frame is due, with a sign of life in long waits."""
        while (wait_s := clock.wait_s(frame)) > 0 and not self._closed.wait(min(wait_s, _WAIT_S)):
            if wait_s > _WAIT_S:
                yield Pause("")


def _state(path: Path) -> tuple[Path, int, int] | None:
    """Return what changes where another file takes the place of this one; None where there is none."""
    try:
        about = path.stat()
    except OSError:
        return None
    return path, about.st_size, about.st_mtime_ns


class _Clock:
    """When the frames of one object are due."""

    def __init__(self) -> None:
        self._offset_ns: int | None = None

    def wait_s(self, frame: Frame) -> float:
        """Return the time until the frame is due; one that is very late begins a new count."""
        now_ns = time.monotonic_ns()
        if self._offset_ns is None or now_ns - frame.t_media_ns - self._offset_ns > _MAX_LATE_NS:
            self._offset_ns = now_ns - frame.t_media_ns
        return (frame.t_media_ns + self._offset_ns - now_ns) / 1e9

    def due_ns(self, frame: Frame) -> int:
        """Return the monotonic time at which the frame was due."""
        return frame.t_media_ns + (self._offset_ns or 0)
