"""The recorder: one thread that writes what capture and publisher hand over, and never holds them up live."""

import collections
import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av

from edge.errors import ConfigError
from edge.frame import Frame, UInt8Image
from edge.image_state import has_flow
from edge.recording.layout import (
    MARKER_NAME,
    NOTICE,
    SCHEMA_VERSION,
    FrameTimes,
    SegmentPaths,
    segments_of,
    write_description,
)
from edge.recording.segment import SegmentWriter
from edge.sources.base import Rect

_log = logging.getLogger(__name__)

_MAX_WAITING_FRAMES = 60
_MAX_WAITING = 2000
"""Frames and messages: half a minute with pictures, 100 MB. A disk that hangs must not take the daemon's memory."""
_SEGMENT_S = 300.0
_SEGMENT_BYTES = 512 << 20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RecordingSettings:
    """What is recorded, and how much of it is kept."""

    folder: Path
    codec: str
    max_bytes: int | None
    """The oldest segments are removed beyond this; None: never."""
    max_age_s: float | None
    """Segments older than this are removed; None: never."""
    is_lossless: bool
    """Wait for the disk instead of leaving frames out: where the source waits for the inference, too."""
    channels: int
    """1: the gray image that the network sees; 3: RGB."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _RoiFrame:
    pixels: UInt8Image
    times: FrameTimes
    size_wh: tuple[int, int]
    roi: Rect
    object_id: str | None


class Recorder:
    """Writes a recording. A disk that fails ends the recording, told once, and never the stream."""

    def __init__(self, settings: RecordingSettings, about: dict[str, Any]) -> None:
        """Make the folder, or go on in one that is a recording already.

        Args:
            settings: What is recorded.
            about: Source, bundle, engine and configuration, as JSON; stands in every segment.

        Raises:
            ConfigError: The folder holds something else, or cannot be written.
        """
        self._settings = settings
        self._about = about
        self._number = _prepare(settings.folder)
        self._segment: SegmentWriter | None = None
        self._place: tuple[Any, ...] | None = None
        self._segment_start_s = 0.0
        self._waiting: collections.deque[_RoiFrame | list[bytes]] = collections.deque()
        self._num_waiting_frames = 0
        self._is_closed = False
        self._changed = threading.Condition()
        self.num_left_out = 0
        """Frames and messages for which the disk was too slow; told when it begins and at the end."""
        self._is_left_out_told = False
        self.trouble: str | None = None
        """Why nothing is recorded any more; None while all is well."""
        self._thread = threading.Thread(target=self._write, name="record")
        self._thread.start()

    def note(self, **facts: Any) -> None:
        """Add to what stands in every segment; before the first frame."""
        self._about.update(facts)

    def add_frame(self, frame: Frame, roi: Rect) -> None:
        """Hand over a captured frame, of which the ROI alone is kept."""
        x, y, width, height = roi
        pixels = frame.pixels if self._settings.channels == 1 else frame.rgb()
        object_id = None if frame.object is None else frame.object.id
        times = FrameTimes(
            frame.index,
            frame.t_media_ns,
            frame.t_capture_ns,
            frame.t_wall_ns,
            is_seam=frame.is_seam,
            has_flow=pixels.ndim == 2 and has_flow(frame, roi),
        )
        item = _RoiFrame(pixels[y : y + height, x : x + width], times, frame.size_wh, roi, object_id)
        with self._changed:
            while self._is_full() and self._settings.is_lossless:
                self._changed.wait()
            if self._is_full():
                self._leave_out()
                return
            if not self._is_closed:
                self._num_waiting_frames += 1
                self._waiting.append(item)
                self._changed.notify_all()

    def add_message(self, parts: Sequence[bytes]) -> None:
        """Hand over a message as it is published."""
        with self._changed:
            if self._is_closed or self.trouble is not None:
                return
            if len(self._waiting) >= _MAX_WAITING:
                self._leave_out()
                return
            self._waiting.append(list(parts))
            self._changed.notify_all()

    def header(self) -> dict[str, Any]:
        """Return the `recording` map of a status."""
        return {"trouble": self.trouble, "num_left_out": self.num_left_out}

    def close(self) -> None:
        """Write what waits, and end; idempotent."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()
        if self.num_left_out and not self._is_left_out_told:
            self._is_left_out_told = True
            _log.warning(
                "%s lacks %d frames and messages: the disk was too slow", self._settings.folder, self.num_left_out
            )

    def _leave_out(self) -> None:
        self.num_left_out += 1
        if self.num_left_out == 1:
            _log.warning("the disk of %s is too slow: the recording lacks frames or messages", self._settings.folder)

    def _is_full(self) -> bool:
        return self._num_waiting_frames >= _MAX_WAITING_FRAMES and not self._is_closed

    def _write(self) -> None:
        try:
            while (item := self._next()) is not None:
                self._add(item)
        except (OSError, av.error.FFmpegError) as exc:
            self._give_up(exc)
        finally:
            self._end()

    def _end(self) -> None:
        with self._changed:  # whatever ended this thread, nobody waits for it
            self._is_closed = True
            self._changed.notify_all()
        if self._segment is not None:
            with contextlib.suppress(OSError, av.error.FFmpegError) if self.trouble else contextlib.nullcontext():
                self._segment.close()

    def _next(self) -> _RoiFrame | list[bytes] | None:
        with self._changed:
            while not self._waiting and not self._is_closed:
                self._changed.wait()
            if not self._waiting:
                return None
            item = self._waiting.popleft()
            self._num_waiting_frames -= isinstance(item, _RoiFrame)
            self._changed.notify_all()
            return item

    def _add(self, item: _RoiFrame | list[bytes]) -> None:
        if isinstance(item, _RoiFrame):
            segment = self._segment_for(item)
            segment.add_frame(item.pixels, item.times)
        elif self._segment is not None:
            self._segment.add_message(item)
        # a message before the first frame tells nothing of the images

    def _segment_for(self, frame: _RoiFrame) -> SegmentWriter:
        place = (frame.size_wh, frame.roi, frame.object_id, frame.pixels.shape)
        if self._segment is None or place != self._place or self._is_segment_full():
            if self._segment is not None:
                self._segment.close()
            self._remove_old()
            about = {
                **self._about,
                "size_wh": frame.size_wh,
                "roi_px": frame.roi,
                "object": frame.object_id,
                "codec": self._settings.codec,
                "started_wall_ns": frame.times.t_wall_ns,
            }
            paths = SegmentPaths(self._settings.folder, self._number)
            self._segment = SegmentWriter(paths, about, self._settings.codec)
            self._number += 1
            self._place, self._segment_start_s = place, time.monotonic()
        return self._segment

    def _is_segment_full(self) -> bool:
        assert self._segment is not None
        if time.monotonic() - self._segment_start_s > _SEGMENT_S:
            return True
        return self._segment.num_frames % 100 == 99 and self._segment.size_bytes() > _SEGMENT_BYTES

    def _remove_old(self) -> None:
        segments = segments_of(self._settings.folder)
        sizes = {segment: segment.size_bytes() for segment in segments}
        oldest_s = time.time() - (self._settings.max_age_s or float("inf"))
        for segment in segments:
            is_too_much = self._settings.max_bytes is not None and sum(sizes.values()) > self._settings.max_bytes
            if not is_too_much and segment.about.stat().st_mtime >= oldest_s:
                return
            segment.remove()
            del sizes[segment]

    def _give_up(self, exc: Exception) -> None:
        with self._changed:
            self.trouble = getattr(exc, "strerror", None) or str(exc)
            self._is_closed = True
            self._waiting.clear()
            self._num_waiting_frames = 0
            self._changed.notify_all()
        _log.error("recording into %s has ended: %s; the stream goes on", self._settings.folder, self.trouble)


def _prepare(folder: Path) -> int:
    """Make the folder a recording; return the number of its next segment."""
    marker = folder / MARKER_NAME
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # pictures of patients, and notes that may name them
        if not marker.exists():
            if any(path.name != f"{MARKER_NAME}.tmp" for path in folder.iterdir()):
                raise ConfigError(f"--record {folder} holds other files; name a new folder or an earlier recording")
            write_description(marker, {"schema_version": SCHEMA_VERSION, "notice": NOTICE})
    except OSError as exc:
        raise ConfigError(f"--record {folder} cannot be written ({exc.strerror}); name another folder") from exc
    segments = segments_of(folder)
    return segments[-1].number + 1 if segments else 1
