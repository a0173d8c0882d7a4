"""From a frame to network input. The same function runs in training, so that training and live pixels are alike."""

import threading

import cv2
import numpy as np
import numpy.typing as npt

from edge.area_resize import AreaResizer
from edge.frame import UInt8Image
from edge.sources.base import Rect
from engines import PreprocessSpec

_SCALE = np.float32(1 / 255)


_local = threading.local()
"""Each thread's own resizer, made when it first resizes."""


def preprocess(pixels: UInt8Image, roi: Rect, spec: PreprocessSpec) -> npt.NDArray[np.float32]:
    """Cut the ROI, turn it gray, resize, cut the centre and scale.

    Resized by area, because scanners' images are mostly larger than the network's input: that averages speckle where
    bilinear sampling would alias it.

    Args:
        pixels: (H, W) gray or (H, W, 3) RGB, uint8.
        roi: x, y, width, height inside the image.
        spec: Sizes and channels.

    Returns:
        (C, H', W') float32 in [0, 1], a new array.
    """
    return np.multiply(preprocess_uint8(pixels, roi, spec), _SCALE, dtype=np.float32)


def preprocess_uint8(pixels: UInt8Image, roi: Rect, spec: PreprocessSpec) -> UInt8Image:
    """Do all of `preprocess` but the scaling: (C, H', W') uint8."""
    return centre_crop(resize_roi(pixels, roi, spec), spec)


def resize_roi(pixels: UInt8Image, roi: Rect, spec: PreprocessSpec) -> UInt8Image:
    """Do what comes before the centre crop: (H, W) or (H, W, 3) uint8 of `spec.resize_hw`. What a clip cache stores."""
    x, y, width, height = roi
    image = _to_channels(pixels[y : y + height, x : x + width], spec.channels)
    resize_height, resize_width = spec.resize_hw
    return image if image.shape[:2] == spec.resize_hw else _resize(image, resize_width, resize_height)


def centre_crop(image: UInt8Image, spec: PreprocessSpec) -> UInt8Image:
    """Return the middle of a resized image, (H, W) or (H, W, 3), as a view (C, H', W')."""
    (resize_height, resize_width), (crop_height, crop_width) = spec.resize_hw, spec.crop_hw
    top, left = (resize_height - crop_height) // 2, (resize_width - crop_width) // 2
    image = image[top : top + crop_height, left : left + crop_width]
    return image[np.newaxis] if image.ndim == 2 else image.transpose(2, 0, 1)


def visible_rect(roi: Rect, spec: PreprocessSpec) -> Rect:
    """Return the part of the source image that the network sees: the ROI after the centre crop, rounded to pixels."""
    x, y, width, height = roi
    (resize_height, resize_width), (crop_height, crop_width) = spec.resize_hw, spec.crop_hw
    left = x + width * ((resize_width - crop_width) // 2) / resize_width
    top = y + height * ((resize_height - crop_height) // 2) / resize_height
    return (
        round(left),
        round(top),
        round(width * crop_width / resize_width),
        round(height * crop_height / resize_height),
    )


def _resize(image: UInt8Image, width: int, height: int) -> UInt8Image:
    if not hasattr(_local, "resize"):
        _local.resize = AreaResizer()
    return _local.resize(image, width, height)  # type: ignore[no-any-return]


def _to_channels(image: UInt8Image, channels: int) -> UInt8Image:
    if channels == 1 and image.ndim == 3:
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)
    if channels == 3 and image.ndim == 2:
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2RGB), np.uint8)
    return image
