"""A recording as it is read: whole, or up to where it was cut."""

import dataclasses
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av

from edge.errors import SourceError, WireError
from edge.frame import UInt8Image
from edge.recording.codecs import GRAY_FORMATS, to_pixels
from edge.recording.layout import (
    MARKER_NAME,
    SCHEMA_VERSION,
    FrameTimes,
    SegmentPaths,
    read_frame_times,
    read_messages,
    segments_of,
)
from edge.sources.base import MAX_IMAGE_PX, Rect
from edge.wire import Message, decode

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """One segment of a recording."""

    paths: SegmentPaths
    about: dict[str, Any]

    @property
    def size_wh(self) -> tuple[int, int]:
        """Of the source's images."""
        width, height = self.about["size_wh"]
        return int(width), int(height)

    @property
    def roi(self) -> Rect:
        """Where the video lies in the source's images."""
        x, y, width, height = self.about["roi_px"]
        return int(x), int(y), int(width), int(height)

    def images(self) -> Iterator[tuple[FrameTimes, UInt8Image]]:
        """Yield each image of the ROI with its times."""
        if not self.paths.video.is_file() or not self.paths.frames.is_file():
            return  # a kill came before they were there, or while an old segment was removed
        times = read_frame_times(self.paths.frames)
        try:
            with av.open(str(self.paths.video)) as container:
                stream = container.streams.video[0]
                stream.codec_context.options = {"max_pixels": str(MAX_IMAGE_PX)}
                is_gray = stream.codec_context.pix_fmt in GRAY_FORMATS
                for frame_times, frame in zip(times, container.decode(stream), strict=False):
                    if (frame.width, frame.height) != self.roi[2:]:
                        _log.warning("%s is not of the ROI's size; it is passed over", self.paths.video)
                        return
                    yield frame_times, to_pixels(frame, is_gray=is_gray)
        except (av.error.FFmpegError, IndexError):
            return  # cut before its end: what was read stands

    def messages(self) -> Iterator[Message]:
        """Yield each message as it was published; those that cannot be read are passed over, with a warning."""
        if not self.paths.messages.is_file():
            return
        num_damaged = 0
        for parts in read_messages(self.paths.messages):
            try:
                message = decode(parts)
            except WireError:
                num_damaged += 1
                continue
            yield message
        if num_damaged:
            _log.warning("%s holds %d damaged messages; they are passed over", self.paths.messages, num_damaged)


class Recording:
    """A folder that `edge-infer --record` wrote."""

    def __init__(self, folder: Path) -> None:
        """Read what the folder holds.

        Raises:
            SourceError: It is no recording, of a later version, or holds no segment.
        """
        self.folder = folder
        try:
            if (folder / MARKER_NAME).exists() and not (folder / MARKER_NAME).is_file():
                raise ValueError(f"its {MARKER_NAME} is no file")  # a device has no end
            marker = json.loads((folder / MARKER_NAME).read_text(encoding="utf-8"))
            self.segments = [_segment(paths) for paths in segments_of(folder) if paths.about.stat().st_size]
        except (OSError, ValueError, RecursionError) as exc:
            is_other = isinstance(exc, FileNotFoundError) and folder.is_dir()
            reason = f"it has no {MARKER_NAME}" if is_other else getattr(exc, "strerror", None) or exc
            raise SourceError(f"{str(folder)!r} is not a readable recording ({reason}); name another folder") from exc
        version = marker.get("schema_version") if isinstance(marker, dict) else None
        if version != SCHEMA_VERSION:
            raise SourceError(f"{str(folder)!r} has schema_version {version!r}; this version reads {SCHEMA_VERSION}")
        if not self.segments:
            raise SourceError(f"{str(folder)!r} is a recording without a frame; record again")

    def messages(self) -> Iterator[Message]:
        """Yield every message, oldest first."""
        for segment in self.segments:
            yield from segment.messages()


def _segment(paths: SegmentPaths) -> Segment:
    """Read a segment's description.

    Raises:
        ValueError: It does not say where the ROI lies.
    """
    segment = Segment(paths, json.loads(paths.about.read_text(encoding="utf-8")))
    try:
        (width, height), (x, y, roi_width, roi_height) = segment.size_wh, segment.roi
    except (LookupError, TypeError, ValueError, OverflowError) as exc:
        raise ValueError(f"{paths.about.name} lacks size_wh or roi_px") from exc
    if width * height > MAX_IMAGE_PX:
        raise ValueError(f"{paths.about.name} is of an image of {width} x {height} pixels")
    if min(x, y) < 0 or min(roi_width, roi_height) < 1 or x + roi_width > width or y + roi_height > height:
        raise ValueError(f"{paths.about.name} has an ROI outside the image")
    return segment
