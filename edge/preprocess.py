"""From a frame to network input. The same function runs in training, so that training and live pixels are alike."""

import cv2
import numpy as np
import numpy.typing as npt

from edge.frame import UInt8Image
from edge.sources.base import Rect
from engines import PreprocessSpec

_SCALE = np.float32(1 / 255)


def preprocess(pixels: UInt8Image, roi: Rect, spec: PreprocessSpec) -> npt.NDArray[np.float32]:
    """Cut the ROI, turn it gray, resize, cut the centre and scale.

    Area interpolation is used because scanners' images are mostly larger than the network's input: it averages
    speckle where bilinear sampling would alias it. An image of twice the size or more is halved first, also by area,
    as long as its sides are even: the same to within a gray level, and up to five times as fast.

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
    while _can_be_halved(image, spec.resize_hw):
        image = _resized(image, image.shape[1] // 2, image.shape[0] // 2)
    if image.shape[:2] != spec.resize_hw:
        image = _resized(image, resize_width, resize_height)
    return image


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


def _can_be_halved(image: UInt8Image, target_hw: tuple[int, int]) -> bool:
    """Whether an exact half, in blocks of 2 x 2, is still large enough."""
    return all(size % 2 == 0 and size >= 2 * target for size, target in zip(image.shape, target_hw, strict=False))


def _resized(image: UInt8Image, width: int, height: int) -> UInt8Image:
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _to_channels(image: UInt8Image, channels: int) -> UInt8Image:
    if channels == 1 and image.ndim == 3:
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)
    if channels == 3 and image.ndim == 2:
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2RGB), np.uint8)
    return image
