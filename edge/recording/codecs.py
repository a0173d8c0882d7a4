"""How a recording's video is coded: gray or RGB, without loss or nearly so."""

import dataclasses
from collections.abc import Mapping
from typing import cast

import av
import cv2
import numpy as np
from av.video.stream import VideoStream

from edge.frame import UInt8Image
from edge.recording.layout import CODEC_NAMES


@dataclasses.dataclass(frozen=True, slots=True)
class Coding:
    """An encoder and its settings."""

    gray: str
    """Encoder of (H, W) images."""
    rgb: str
    """Encoder of (H, W, 3) images."""
    rgb_format: str
    options: Mapping[str, str]


# x264 without loss takes a third of FFV1's time and three quarters of its room on ultrasound (docs/log.md)
CODINGS = {
    CODEC_NAMES[0]: Coding("libx264", "libx264rgb", "rgb24", {"preset": "ultrafast", "qp": "0"}),
    CODEC_NAMES[1]: Coding("ffv1", "ffv1", "bgra", {"level": "3", "slicecrc": "1", "g": "1"}),
    CODEC_NAMES[2]: Coding("libx264", "libx264rgb", "rgb24", {"preset": "ultrafast", "crf": "14"}),
}
GRAY_FORMATS = ("gray", "yuv420p")
"""What gray images come back as: FFmpeg's H.264 decoder adds chroma planes that say nothing."""

TIME_BASE_HZ = 1000
"""What Matroska keeps; the exact times stand beside the video."""
_GOP = 30


def add_video(container: av.container.OutputContainer, coding: Coding, shape: tuple[int, ...]) -> VideoStream:
    """Add a stream for images of this shape that holds no frame back."""
    is_gray = len(shape) == 2
    options = {**({} if coding.gray == "ffv1" else {"tune": "zerolatency", "g": str(_GOP)}), **coding.options}
    stream = cast(
        VideoStream, container.add_stream(coding.gray if is_gray else coding.rgb, rate=TIME_BASE_HZ, options=options)
    )
    stream.height, stream.width = shape[:2]
    stream.pix_fmt = "gray" if is_gray else coding.rgb_format
    stream.codec_context.thread_count = 1  # the cores are the engine's
    return stream


def to_video_frame(pixels: UInt8Image, pix_fmt: str) -> av.VideoFrame:
    """Wrap an image for the encoder."""
    image = np.ascontiguousarray(pixels)
    if image.ndim == 2:
        return av.VideoFrame.from_ndarray(image, format="gray")
    if pix_fmt == "rgb24":
        return av.VideoFrame.from_ndarray(image, format="rgb24")
    bgra = cv2.cvtColor(image, cv2.COLOR_RGB2BGRA).astype(np.uint8, copy=False)
    return av.VideoFrame.from_ndarray(bgra, format="bgra")


def to_pixels(frame: av.VideoFrame, *, is_gray: bool) -> UInt8Image:
    """Return a decoded image (H, W) or (H, W, 3) RGB, without any change of values where the coding has none."""
    if is_gray:
        # the plane as it stands: a conversion would stretch "limited range"
        plane = frame.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        return rows[: frame.height, : frame.width].copy()
    return frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
