"""Finds the part of a scanner's screen that holds the ultrasound image, and checks the part that a user names."""

import math
from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from edge.errors import ConfigError
from edge.frame import Frame, UInt8Image
from edge.sources.base import Rect

Mask = npt.NDArray[np.uint8]
"""(h, w) uint8 on the grid of cells, 1 where something holds."""

MAX_CELLS = 240
"""Longer side of the grid in which motion is looked for: cheap, and coarse enough to average noise away."""

MIN_ACTIVITY, MAX_ACTIVITY = 4, 6
"""Change of gray value over time from which a cell counts as moving; what codecs do to still parts stays below."""

MIN_SHARE_OF_FRAME, MIN_SHARE_OF_LARGEST = 0.01, 0.125
"""A clock and an ECG trace move too, but are small."""

MIN_TEXTURE, MIN_BRIGHTNESS = 3, 10
"""From what change between neighbours, and what gray value on, a still cell may be tissue."""

MIN_SHARE_FILLED, MAX_DARK = 0.7, 16
"""From what share of the frame on an image nearly fills it; up to which gray value a cell holds no text."""

MAX_GROWTH = 3
"""How many times as large as its moving part an image may be; more is a leak into the screen around it."""


class RoiFinder:
    """Looks at the first frames of a stream and finds the area that moves.

    Text, scales and logos stay still. Still tissue belongs to the image where it touches what moves; anything that lies
    apart from it stays outside, because it may be the patient's name.
    """

    def __init__(self, num_frames: int = 16) -> None:
        self.is_found = False
        """Whether a moving image was found; False where the area is the full frame because nothing moves."""
        self.reason = ""
        """One line that says what was chosen and why; empty until then."""
        self._num_frames = num_frames
        self._num_seen = 0
        self._size_wh = (0, 0)
        self._low: UInt8Image
        self._high: UInt8Image

    def add(self, frame: Frame) -> Rect | None:
        """Look at the next frame; return the area after `num_frames` of them, None before. All have the same size."""
        cells = _to_cells(frame.pixels)
        if self._num_seen == 0:
            self._size_wh = frame.size_wh
            self._low, self._high = cells, cells.copy()
        cv2.min(self._low, cells, dst=self._low)
        cv2.max(self._high, cells, dst=self._high)
        self._num_seen += 1
        return self.finish() if self._num_seen >= self._num_frames else None

    def finish(self) -> Rect:
        """Return the area as far as the frames seen show it; at least one must have been added."""
        assert self._num_seen > 0
        full = (0, 0, *self._size_wh)
        mask = _image_mask(self._low, self._high)
        rect = full if mask is None else _to_pixels(_with_dark_rest(cv2.boundingRect(mask), self._high), self._size_wh)
        self.is_found = mask is not None
        if mask is None:
            self.reason = "nothing moves: full frame"
        elif rect == full:
            self.reason = "the moving image fills the frame: full frame"
        else:
            self.reason = f"moving image area {rect[2]}x{rect[3]} at {rect[0]},{rect[1]}"
        return rect


def parse_roi(text: str) -> Rect | Literal["auto", "full"]:
    """Read the value of `--roi`.

    Raises:
        ConfigError: It is neither "auto" nor "full" nor a rectangle of positive size.
    """
    if text == "auto":
        return "auto"
    if text == "full":
        return "full"
    rect = _parse_rect(text)
    if rect is None:
        raise ConfigError(
            f"got the ROI {text!r}; allowed are auto, full, or X,Y,W,H in pixels, for example 80,40,640,480"
        )
    return rect


def parse_masks(text: str | None) -> tuple[Rect, ...]:
    """Read the value of `--mask`.

    Raises:
        ConfigError: It is not one rectangle of positive size or more of them.
    """
    masks = []
    for part in text.split(";") if text else ():
        rect = _parse_rect(part)
        if rect is None:
            raise ConfigError(
                f"got the mask {part!r}; allowed is X,Y,W,H in pixels, for example 0,0,640,40, "
                "and several of them with ';' between"
            )
        masks.append(rect)
    return tuple(masks)


def _parse_rect(text: str) -> Rect | None:
    try:
        x, y, width, height = (int(part) for part in text.split(","))
    except ValueError:
        return None
    return (x, y, width, height) if min(x, y) >= 0 and min(width, height) >= 1 else None


def check_inside(rect: Rect, size_wh: tuple[int, int]) -> None:
    """Check a user's ROI against the image.

    Raises:
        ConfigError: A part of it lies outside.
    """
    x, y, width, height = rect
    if clip_to(rect, size_wh) != rect:
        raise ConfigError(
            f"the ROI {x},{y},{width},{height} reaches outside the image of {size_wh[0]}x{size_wh[1]} pixels; "
            "give one inside it, or none"
        )


def clip_to(rect: Rect, size_wh: tuple[int, int]) -> Rect | None:
    """Return the part of a rectangle that lies inside the image, or None where none does."""
    left, top = max(rect[0], 0), max(rect[1], 0)
    right, bottom = min(rect[0] + rect[2], size_wh[0]), min(rect[1] + rect[3], size_wh[1])
    return (left, top, right - left, bottom - top) if right > left and bottom > top else None


def _cell_px(size_wh: tuple[int, int]) -> int:
    return max(1, round(max(size_wh) / MAX_CELLS))


def _to_cells(pixels: UInt8Image) -> UInt8Image:
    """Return the mean gray value of each cell: (h, w) uint8."""
    gray = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    height, width = gray.shape
    cell_px = _cell_px((width, height))
    size = (math.ceil(width / cell_px), math.ceil(height / cell_px))
    return np.asarray(cv2.resize(gray, size, interpolation=cv2.INTER_AREA), np.uint8)


def _to_pixels(cells: Sequence[int], size_wh: tuple[int, int]) -> Rect:
    """Return a rectangle of cells in pixels; the last cells of a row and a column may be smaller than others."""
    cell_px = _cell_px(size_wh)
    x, y, width, height = (number * cell_px for number in cells)
    rect = clip_to((x, y, width, height), size_wh)
    assert rect is not None
    return rect


def _with_dark_rest(cells: Sequence[int], high: UInt8Image) -> Rect:
    """Return the rectangle, or all cells where it nearly fills them and the rest is dark.

    Such a rest holds nothing to be cut off, and is more likely to be faint tissue than a border.
    """
    x, y, width, height = cells
    rest = high.copy()
    rest[y : y + height, x : x + width] = 0
    if width * height >= MIN_SHARE_FILLED * high.size and rest.max() < MAX_DARK:
        return 0, 0, high.shape[1], high.shape[0]
    return x, y, width, height


def _image_mask(low: UInt8Image, high: UInt8Image) -> Mask | None:
    """Return which cells belong to the image, from each cell's lowest and highest value; None where nothing moves."""
    moving = _moving_mask(high - low)
    seed = _large_parts(moving)
    if seed is None:
        return None
    grown = _touching(seed, seed | _still_tissue(high))
    return grown if grown.sum() <= MAX_GROWTH * seed.sum() else seed


def _moving_mask(activity: npt.NDArray[np.uint8]) -> Mask:
    # The least active tenth of a screen shows what the codec or the grabber does to still parts.
    threshold = np.clip(3 * np.percentile(activity, 10), MIN_ACTIVITY, MAX_ACTIVITY)
    closed = _close((activity >= threshold).astype(np.uint8), 5)
    # An ECG trace is thin and goes; the thin tips of a sector go too and are taken back.
    near_thick_parts = cv2.dilate(_open(closed, 5), _disk(7))
    return _close(np.asarray(cv2.bitwise_and(near_thick_parts, closed), np.uint8), 7)


def _large_parts(mask: Mask) -> Mask | None:
    num_labels, labels, statistics, _ = cv2.connectedComponentsWithStats(mask)
    areas = statistics[:, cv2.CC_STAT_AREA]
    smallest = max(MIN_SHARE_OF_LARGEST * areas[1:].max(initial=0), MIN_SHARE_OF_FRAME * mask.size)
    chosen = [label for label in range(1, num_labels) if areas[label] >= smallest]
    return np.isin(labels, chosen).astype(np.uint8) if chosen else None


def _still_tissue(high: UInt8Image) -> Mask:
    """Return where the screen is bright and uneven over more than a letter's size."""
    texture = cv2.morphologyEx(high, cv2.MORPH_GRADIENT, _disk(3))
    uneven = (high >= MIN_BRIGHTNESS) & (texture >= MIN_TEXTURE)
    return _open(_close(uneven.astype(np.uint8), 3), 7)


def _touching(seed: Mask, mask: Mask) -> Mask:
    """Return the parts of a mask that touch the seed."""
    _, labels = cv2.connectedComponents(mask)
    return np.isin(labels, np.unique(labels[seed > 0])).astype(np.uint8)


def _close(mask: Mask, size: int) -> Mask:
    return np.asarray(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, _disk(size)), np.uint8)


def _open(mask: Mask, size: int) -> Mask:
    return np.asarray(cv2.morphologyEx(mask, cv2.MORPH_OPEN, _disk(size)), np.uint8)


def _disk(size: int) -> Mask:
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size)), np.uint8)
