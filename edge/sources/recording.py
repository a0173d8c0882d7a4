"""Recordings of `edge-infer --record`: the same images at the same times, so that the same predictions come out."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edge.errors import SourceError
from edge.frame import Frame, StoredObject, UInt8Image
from edge.recording.reader import Recording, Segment
from edge.sources.base import Rect, SourceInfo
from edge.sources.stored import DEFAULT_INTERVAL_MS, MediaClock

_MAX_INTERVAL_MS = 60_000


class RecordingSource:
    """Plays a recording. What lay outside the ROI was never recorded and is black."""

    def __init__(self, folder: Path) -> None:
        self._recording = Recording(folder)
        first = self._recording.segments[0]
        self._closed = threading.Event()
        self._info = SourceInfo(
            name=folder.name,
            frame_interval_ms=_interval_ms(first.about.get("frame_interval_ms")),
            is_live=False,
            region=first.roi,
            kind="recording",
            note=f"recorded from {first.about.get('source')}",
        )

    @property
    def info(self) -> SourceInfo:
        return self._info

    def frames(self) -> Iterator[Frame]:
        """Yield the frames; see `Source.frames`."""
        clock = MediaClock(self._info.frame_interval_ms)
        num_frames = 0
        for segment in self._recording.segments:
            stored_object = segment.about.get("object")
            origin = None if stored_object is None else StoredObject(str(stored_object), segment.roi)
            for times, pixels in segment.images():
                if self._closed.is_set():
                    return
                yield Frame(
                    _placed(pixels, segment),
                    num_frames,
                    clock.tick(times.t_media_ns),
                    time.monotonic_ns(),
                    time.time_ns(),
                    object=origin,
                    is_seam=times.is_seam,
                    region=segment.roi,
                    had_flow=times.has_flow,
                )
                num_frames += 1
        if num_frames == 0 and not self._closed.is_set():
            raise SourceError(f"{self._info.name!r} is a recording without a whole image; record again")

    def close(self) -> None:
        """End a running `frames()` before its next frame."""
        self._closed.set()


def _interval_ms(told: Any) -> float:
    """Return what a description says; the usual where it says nothing that could be."""
    is_sound = isinstance(told, int | float) and 0 < told < _MAX_INTERVAL_MS
    return float(told) if is_sound else DEFAULT_INTERVAL_MS


def _placed(pixels: UInt8Image, segment: Segment) -> UInt8Image:
    """Return the image of the source's size that holds the ROI in its place."""
    width, height = segment.size_wh
    roi: Rect = segment.roi
    image = np.zeros((height, width, *pixels.shape[2:]), np.uint8)
    image[roi[1] : roi[1] + roi[3], roi[0] : roi[0] + roi[2]] = pixels
    return image
