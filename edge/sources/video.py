"""Video files, through PyAV (FFmpeg)."""

import functools
import logging
from collections.abc import Generator, Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, cast

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange, VideoReformatter

from edge.errors import SourceError
from edge.frame import UInt8Image
from edge.sources import fields
from edge.sources.base import MAX_IMAGE_PX, SourceInfo
from edge.sources.stored import DEFAULT_INTERVAL_MS, AnyImage, ColourImage, Damage, Picture, StoredSource

_log = logging.getLogger(__name__)

MIN_RATE_HZ, MAX_RATE_HZ = 0.1, 1000
"""Frame rates outside are a container's time base taken for a rate."""


class VideoFile(StoredSource):
    """A file of any container and codec that FFmpeg reads."""

    def __init__(self, path: Path) -> None:
        # The prefix keeps FFmpeg from taking "12:30.mp4" for a network protocol.
        self._url = f"file:{path.absolute()}"
        with open_video(self._url, path.name) as container:
            stream = video_stream(container, path.name)
            info = SourceInfo(
                name=path.name,
                frame_interval_ms=_nominal_interval_ms(stream),
                is_live=False,
                num_frames=stream.frames or None,
                kind="video file",
            )
        super().__init__(info)

    def pictures(self, damage: Damage) -> Generator[Picture, None, None]:
        """Yield the decoded images; see `StoredSource.pictures`."""
        with open_video(self._url, self.info.name) as container:
            yield from decode_video(container, damage, self.info.name)


def open_video(file: str | BinaryIO, name: str) -> av.container.InputContainer:
    """Open a URL or a file object; the caller closes it after all frames and packets are gone.

    Raises:
        SourceError: It is not a video that FFmpeg reads.
    """
    try:
        return av.open(file, "r", metadata_errors="ignore")
    except av.FFmpegError as exc:
        reason = "it is damaged, was cut off before its index was written, or is no video"
        raise SourceError(f"{name!r} cannot be opened ({exc.strerror}): {reason}; give another file") from exc


def decode_video(container: av.container.InputContainer, damage: Damage, name: str) -> Iterator[Picture]:
    """Yield the pixels and time of each frame that is whole, in the order of display."""
    stream = video_stream(container, name)
    # With more threads, what FFmpeg makes of a damaged frame depends on which of them is ahead; one is fast enough.
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {"max_pixels": str(MAX_IMAGE_PX)}
    to_array = FrameConverter()
    for frame in _decode(container, stream, damage):
        yield to_array(frame), _time_ns(frame.pts, stream)


LUMA_FIRST = frozenset(f"yuv{kind}{sampling}p" for kind in ("", "j") for sampling in (410, 411, 420, 422, 440, 444)) | {
    "nv12",
    "nv21",
}
"""Pixel formats whose first plane is the luma, 8 bits a pixel."""

_BLACK = (16.0, 0.0, 0.0, 0.0)
LIMITED_TO_FULL = np.clip(np.rint((np.arange(256) - 16) * (255 / 219)), 0, 255).astype(np.uint8)
"""Full-range value for each limited-range one (16 is black, 235 white; ITU-R BT.601, section 2.5.1)."""


class FrameConverter:
    """Turns decoded frames into full-range arrays: gray, luma with its colour to be had, or RGB."""

    def __init__(self) -> None:
        # One for the stream, in this thread: FFmpeg's own slicing halves the speed at these sizes.
        self._reformatter = VideoReformatter()
        self._has_told_fields = False

    def __call__(self, frame: av.VideoFrame) -> AnyImage:
        """Return an image of the frame's own size and of one moment, which no later frame overwrites."""
        image = self._as_coded(frame)
        if not frame.interlaced_frame:
            return image
        if not self._has_told_fields:
            self._has_told_fields = True
            _log.info(fields.TOLD)
        return fields.without_comb(image)

    def _as_coded(self, frame: av.VideoFrame) -> AnyImage:
        if _is_other_yuv(frame.format):  # its luma is exacter than RGB's, and comes faster
            frame = self._reformatter.reformat(frame, format=_planar(frame.format), threads=1)
        if frame.format.name in LUMA_FIRST:
            luma, chroma = _luma(frame), functools.partial(_chroma, frame)
            return ColourImage(luma, functools.partial(self.convert, frame), chroma)
        return self.convert(frame)

    def convert(self, frame: av.VideoFrame) -> UInt8Image:
        """Return (H, W, 3) RGB or, where the codec itself is gray, (H, W), uint8."""
        is_gray = _is_gray(frame.format)
        reformatted = self._reformatter.reformat(frame, format="gray" if is_gray else "rgb24", threads=1)
        array = cast(UInt8Image, reformatted.to_ndarray())
        if is_gray and frame.color_range == ColorRange.MPEG:  # which FFmpeg's scaler leaves as it is
            return cv2.LUT(array, LIMITED_TO_FULL)  # type: ignore[return-value]
        # A frame that needed no conversion still is the decoder's own buffer.
        return array.copy() if reformatted is frame else np.ascontiguousarray(array)


def _luma(frame: av.VideoFrame) -> UInt8Image:
    """Return (H, W) uint8 in full range, a copy."""
    plane = frame.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
    coded = rows[: frame.height, : frame.width]
    if frame.format.name.startswith("yuvj") or frame.color_range == ColorRange.JPEG:
        return coded.copy()
    above_black = cv2.subtract(coded, _BLACK)  # type: ignore[call-overload]
    return cast(UInt8Image, cv2.convertScaleAbs(above_black, alpha=255 / 219))


def _chroma(frame: av.VideoFrame) -> tuple[UInt8Image, UInt8Image]:
    """Return Cb and Cr, each (h, w) uint8, as views."""
    is_interleaved = frame.format.name in ("nv12", "nv21")
    planes = []
    for plane in frame.planes[1:]:
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        planes.append(rows[: plane.height, : plane.width * (2 if is_interleaved else 1)])
    return (planes[0][:, 0::2], planes[0][:, 1::2]) if is_interleaved else (planes[0], planes[1])


def _is_other_yuv(pixel_format: av.VideoFormat) -> bool:
    """Whether it has luma, but packed with the chroma or of more than 8 bits."""
    is_coloured = len(pixel_format.components) >= 3 and not pixel_format.is_rgb and not pixel_format.has_palette
    return is_coloured and pixel_format.name not in LUMA_FIRST


def _planar(pixel_format: av.VideoFormat) -> str:
    """Return the format of `LUMA_FIRST` with as much chroma: finer chroma would take FFmpeg ten times as long."""
    step_xy = 8 // pixel_format.chroma_width(8), 8 // pixel_format.chroma_height(8)
    sampling = {(1, 1): 444, (1, 2): 440, (2, 1): 422, (2, 2): 420, (4, 1): 411, (4, 4): 410}.get(step_xy, 444)
    return f"yuv{sampling}p"


def _is_gray(pixel_format: av.VideoFormat) -> bool:
    num_colors = sum(not component.is_alpha for component in pixel_format.components)
    return num_colors == 1 and not pixel_format.has_palette


def _decode(container: av.container.InputContainer, stream: av.VideoStream, damage: Damage) -> Iterator[av.VideoFrame]:
    progress = _Progress()
    for packet in _demux(container, stream, damage):
        progress.count(packet)
        if packet is not None and packet.is_corrupt:
            damage.num_bad_frames += 1
            continue
        try:
            frames = stream.codec_context.decode(packet)
        except av.FFmpegError:
            damage.num_bad_frames += 1
            continue
        for frame in frames:
            if frame.is_corrupt:
                damage.num_bad_frames += 1
            else:
                yield frame
    progress.note_early_end(container, stream, damage)


def _demux(
    container: av.container.InputContainer, stream: av.VideoStream, damage: Damage
) -> Iterator["av.Packet[av.VideoStream] | None"]:
    """Yield the packets, then None, which makes the decoder give what it still holds."""
    try:
        yield from (packet for packet in container.demux(stream) if packet.size or packet.dts is not None)
    except av.FFmpegError as exc:
        damage.notes.append(f"reading stopped: {exc.strerror}")
    yield None


class _Progress:
    """How far a file was read, against what its header promised."""

    def __init__(self) -> None:
        self._num_packets = 0
        self._last_pts = 0

    def count(self, packet: "av.Packet[av.VideoStream] | None") -> None:
        if packet is not None:
            self._num_packets += 1
            self._last_pts = max(self._last_pts, packet.pts or 0)

    def note_early_end(self, container: av.container.InputContainer, stream: av.VideoStream, damage: Damage) -> None:
        # An mp4's edit list may leave out frames that its header counts; the index holds the ones to play.
        num_expected = len(stream.index_entries) if "mp4" in container.format.name else stream.frames
        if self._num_packets < num_expected:
            damage.notes.append(f"it ends after {self._num_packets} of {num_expected} frames")
        elif (duration_s := _matroska_duration_s(stream)) > (end_s := float(self._last_pts * _time_base(stream))) + 1:
            damage.notes.append(f"it ends at {end_s:.1f} of {duration_s:.1f} s")


def _matroska_duration_s(stream: av.VideoStream) -> float:
    """Return the length that mkv and webm state for a stream ("00:00:03.000000000"), or 0."""
    parts = stream.metadata.get("DURATION", "").split(":")
    try:
        hours, minutes, seconds = (float(part) for part in parts)
    except ValueError:
        return 0.0
    return hours * 3600 + minutes * 60 + seconds


def video_stream(container: av.container.InputContainer, name: str) -> av.VideoStream:
    """Return the best video stream.

    Raises:
        SourceError: There is none that can be decoded.
    """
    stream = container.streams.best("video")
    if not isinstance(stream, av.VideoStream):
        raise SourceError(f"{name!r} holds no video stream; give another file")
    if stream.codec_context is None:
        raise SourceError(f"{name!r} holds video of a codec that this FFmpeg does not decode; convert it to H.264")
    return stream


def _nominal_interval_ms(stream: av.VideoStream) -> float:
    for rate in (stream.average_rate, stream.guessed_rate):
        if rate and MIN_RATE_HZ <= rate <= MAX_RATE_HZ:
            return float(1000 / rate)
    return DEFAULT_INTERVAL_MS


def _time_base(stream: av.VideoStream) -> Fraction:
    return stream.time_base or Fraction(1, 90_000)


def _time_ns(pts: int | None, stream: av.VideoStream) -> int | None:
    return None if pts is None else int(pts * _time_base(stream) * 10**9)
