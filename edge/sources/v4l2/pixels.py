"""From a V4L2 buffer to an image that no driver owns any more."""

import functools
from collections.abc import Callable
from typing import cast

import cv2
import numpy as np

from edge.frame import UInt8Image
from edge.sources.stored import AnyImage, ColourImage
from edge.sources.v4l2.device import Layout
from edge.sources.video import LIMITED_TO_FULL

Buffer = bytes | memoryview

_TO_GRAY = {"YUYV": cv2.COLOR_YUV2GRAY_YUY2, "UYVY": cv2.COLOR_YUV2GRAY_UYVY}
_TO_RGB = {"YUYV": cv2.COLOR_YUV2RGB_YUY2, "UYVY": cv2.COLOR_YUV2RGB_UYVY, "NV12": cv2.COLOR_YUV2RGB_NV12}
_BYTES_PER_PIXEL = {"YUYV": 2, "UYVY": 2, "NV12": 1, "GREY": 1, "RGB3": 3, "BGR3": 3}


def to_image(data: Buffer, layout: Layout) -> AnyImage | None:
    """Return a copy of a raw buffer as an image; None where it is too short.

    Args:
        data: The driver's bytes, rows of `layout.row_bytes`.
        layout: A pixel format other than a compressed one.
    """
    coded = _rows(data, layout)
    if coded is None:
        return None
    if layout.pixel_format == "GREY":
        return coded[..., 0].copy()
    if layout.pixel_format == "RGB3":
        return coded.copy()
    if layout.pixel_format == "BGR3":
        return cast(UInt8Image, cv2.cvtColor(coded, cv2.COLOR_BGR2RGB))
    coded = coded[..., 0].copy() if layout.pixel_format == "NV12" else coded.copy()
    rgb = functools.partial(_rgb, coded, _TO_RGB[layout.pixel_format])
    return ColourImage(_luma(coded, layout), rgb, functools.partial(_chroma, coded, layout))


def jpeg_colour(jpeg: bytes) -> Callable[[], UInt8Image]:
    """Return what decodes a JPEG file to (H, W, 3) RGB, when it is wanted."""
    return lambda: cast(UInt8Image, cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB))


def _rows(data: Buffer, layout: Layout) -> UInt8Image | None:
    """Return (rows, W, bytes per pixel), a view; NV12 has half as many rows again below, for its colour."""
    width, height = layout.size_wh
    depth = _BYTES_PER_PIXEL[layout.pixel_format]
    row_bytes = max(layout.row_bytes, width * depth)
    num_rows = height * 3 // 2 if layout.pixel_format == "NV12" else height
    flat = np.frombuffer(data, np.uint8)
    if len(flat) < num_rows * row_bytes:
        return None
    rows = flat[: num_rows * row_bytes].reshape(num_rows, row_bytes)
    return rows[:, : width * depth].reshape(num_rows, width, depth)


def _luma(coded: UInt8Image, layout: Layout) -> UInt8Image:
    if layout.pixel_format in _TO_GRAY:
        luma = cv2.cvtColor(coded, _TO_GRAY[layout.pixel_format])
    else:
        luma = coded[: layout.size_wh[1]]
    return cast(UInt8Image, luma if layout.is_full_range else cv2.LUT(luma, LIMITED_TO_FULL))


def _chroma(coded: UInt8Image, layout: Layout) -> tuple[UInt8Image, UInt8Image]:
    """Return Cb and Cr, each (h, w) uint8, as views."""
    if layout.pixel_format == "NV12":
        rows = coded[layout.size_wh[1] :]
    else:
        rows = coded[:, :, 1 if layout.pixel_format == "YUYV" else 0]
    return rows[:, 0::2], rows[:, 1::2]


def _rgb(coded: UInt8Image, conversion: int) -> UInt8Image:
    return cast(UInt8Image, cv2.cvtColor(coded, conversion))
