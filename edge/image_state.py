"""What the image itself says: frozen, blank, or changed so much that no window may span it.

Looked at on a coarse grid of cells, whose means hold little of a grabber's noise. Live speckle flickers even under a
still probe; a frozen image does not, but for that noise. Times are the source's own, so that a recording is judged
alike at every pace.
"""

import collections
import dataclasses
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt

from edge.area_resize import AreaResizer
from edge.frame import Frame, StoredObject, UInt8Image
from edge.prediction import State
from edge.sources.base import Rect

FloatImage = npt.NDArray[np.float32]

_MAX_CELLS, _MIN_CELL_PX = 80, 4
_MIN_BRIGHTNESS, _MIN_TEXTURE = 16, 3
"""From what gray value, and what change between neighbours on, a cell may show tissue."""
_MIN_TISSUE_SHARE = 0.05
"""An image with less is a card or a menu; there, any cell that changes is a sign of life."""
_MIN_UNEVEN_SHARE = 0.5
"""Of the bright cells of an ultrasound image; screens of text and bars are flatter."""
_SURELY_MOVING_SHARE = 0.2
"""Of all cells: where so many change, nobody needs to know which of them show tissue."""
_FLAT_LEVEL = 12
"""Gray levels by which a cell of a flat image must change to be a sign of life."""
_SQUARE_3, _SQUARE_5 = np.ones((3, 3), np.uint8), np.ones((5, 5), np.uint8)
_COARSE = (32, 32)
_NUM_REMEMBERED, _MIN_REMEMBERED, _JUMP_FACTOR = 15, 5, 5.0
"""A change must be so many times as large as the largest of the last ones: a probe that moves changes the image too."""
_COLOUR_INTERVAL_NS, _COLOUR_PAUSE_NS = 400_000_000, 2_000_000_000
"""How often colour is looked for; flow that stops for less is still the same examination."""
_MIN_CHROMA, _MIN_COLOUR_SHARE = 24, 0.01
"""How far Cb or Cr is from gray, and in what share of the ROI, where there is colour flow."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImageThresholds:
    """From when on an image counts as frozen or changed."""

    freeze_ms: float = 350.0
    """How long it must stand still; 0: nothing is looked at."""
    still_level: float = 4.0
    """Gray levels by which a cell may differ in a still image."""
    still_share: float = 0.03
    """Share of the tissue that may differ by more: a caliper, a cursor."""
    change_level: float = 0.03
    """One less the correlation of two neighbouring frames, from which the image counts as another one; 0: never."""


@dataclasses.dataclass(frozen=True, slots=True)
class Look:
    """What one frame shows."""

    stands: tuple[State, str] | None = None
    """FROZEN or NO_SIGNAL and its reason, as long as it lasts."""
    change: str | None = None
    """Why no window may hold both this frame and the one before."""


class ImageWatch:
    """Looks at the frames of one stream in turn."""

    def __init__(self, thresholds: ImageThresholds) -> None:
        self._thresholds = thresholds
        self._resize = AreaResizer()
        self._change = _ChangeFinder(thresholds.change_level)
        self._key: tuple[Rect, StoredObject | None] | None = None
        self._anchor: UInt8Image
        self._has_tissue: npt.NDArray[np.bool_] | None = None
        self._is_tissue_known = False
        self._t_anchor_ns = 0
        self._t_still_ns = 0
        self._stands: tuple[State, str] | None = None
        self._has_stirred = False

    def look(self, frame: Frame, roi: Rect) -> Look:
        """Judge the next frame, by its luma; what lies outside the ROI is not looked at."""
        if self._thresholds.freeze_ms <= 0:
            return Look()
        cells = _to_cells(frame.pixels, roi, self._resize)
        key = roi, frame.object
        if key != self._key or frame.t_media_ns < self._t_still_ns:
            self._begin(key, cells, frame.t_media_ns)
            self._change.begin(cells)
            return Look()
        stands = self._stillness(cells, frame.t_media_ns)
        change = self._change.find(cells, frame, roi)
        if change is not None and (
            stands is not None or self._tissue() is None
        ):  # what a menu or a card does breaks no window
            change = None
        return Look(stands, change)

    def _begin(self, key: tuple[Rect, StoredObject | None], cells: UInt8Image, t_ns: int) -> None:
        self._key = key
        self._stands, self._has_stirred = None, False
        self._set_anchor(cells, t_ns)

    def _set_anchor(self, cells: UInt8Image, t_ns: int) -> None:
        """Compare the following frames with this one: slow drift adds up, where neighbours hardly differ."""
        self._anchor, self._is_tissue_known = cells, False
        self._t_anchor_ns = self._t_still_ns = t_ns

    def _stillness(self, cells: UInt8Image, t_ns: int) -> tuple[State, str] | None:
        if self._is_still(cells):
            self._t_still_ns = t_ns
            if (t_ns - self._t_anchor_ns) / 1e6 >= self._thresholds.freeze_ms:
                self._has_stirred = False
                self._stands = self._stands or self._judge(cells)
            return self._stands
        # A single change may be a codec's key frame: a frozen image is live again from the second one on.
        if self._has_stirred:
            self._stands = None
        self._has_stirred = True
        self._set_anchor(cells, t_ns)
        return self._stands

    def _tissue(self) -> npt.NDArray[np.bool_] | None:
        """Return where the anchor shows tissue; found out when it is asked for, for mostly it is not."""
        if not self._is_tissue_known:
            self._has_tissue, self._is_tissue_known = _tissue(self._anchor), True
        return self._has_tissue

    def _is_still(self, cells: UInt8Image) -> bool:
        difference = cv2.absdiff(cells, self._anchor)
        changed = difference >= self._thresholds.still_level
        if _share(changed) >= max(_SURELY_MOVING_SHARE, self._thresholds.still_share):
            return False
        tissue = self._tissue()
        if tissue is None:
            return int(difference.max()) < _FLAT_LEVEL
        return _share(changed[tissue]) < self._thresholds.still_share

    def _judge(self, cells: UInt8Image) -> tuple[State, str]:
        if int(cells.max()) - int(cells.min()) < _FLAT_LEVEL:
            return State.NO_SIGNAL, "the image is blank"
        if _share(_textured(_uneven(cells))) < _MIN_TISSUE_SHARE:
            return State.NO_SIGNAL, "the image is a still card without an ultrasound image"
        return State.FROZEN, "the image is frozen"


class _ChangeFinder:
    """Finds frames that are unlike the one before: another depth, zoom, layout or probe, or Doppler switched on."""

    def __init__(self, level: float) -> None:
        self._level = level
        self._last: FloatImage
        self._distances: collections.deque[float] = collections.deque(maxlen=_NUM_REMEMBERED)
        self._t_looked_ns = 0
        self._t_colour_ns: int | None = None

    def begin(self, cells: UInt8Image) -> None:
        self._last = _coarse(cells)
        self._distances.clear()
        self._t_looked_ns, self._t_colour_ns = 0, None

    def find(self, cells: UInt8Image, frame: Frame, roi: Rect) -> str | None:
        if self._level <= 0:
            return None
        coarse = _coarse(cells)
        distance = _distance(self._last, coarse)
        self._last = coarse
        usual = max(self._distances, default=0.0)
        is_known = len(self._distances) >= _MIN_REMEMBERED
        if frame.is_seam:
            return None
        self._distances.append(distance)
        if is_known and distance >= max(self._level, _JUMP_FACTOR * usual):
            return "the image changed at once: depth, zoom, layout or probe"
        return self._colour_came(frame, roi)

    def _colour_came(self, frame: Frame, roi: Rect) -> str | None:
        """Tell colour flow that was not there before; looked for now and then, for it costs."""
        t_ns = frame.t_media_ns
        if self._t_looked_ns and t_ns - self._t_looked_ns < _COLOUR_INTERVAL_NS:
            return None
        is_first, self._t_looked_ns = self._t_looked_ns == 0, t_ns
        if not has_flow(frame, roi):
            return None
        t_before_ns, self._t_colour_ns = self._t_colour_ns, t_ns
        is_new = t_before_ns is None or t_ns - t_before_ns > _COLOUR_PAUSE_NS
        return "colour Doppler came on" if is_new and not is_first else None


def _to_cells(luma: UInt8Image, roi: Rect, resize: AreaResizer) -> UInt8Image:
    """Return the mean gray value of each cell of the ROI, (h, w) uint8; a rest less than a cell is left out."""
    x, y, width, height = roi
    cell_px = max(_MIN_CELL_PX, round(max(width, height) / _MAX_CELLS))
    num_columns, num_rows = max(1, width // cell_px), max(1, height // cell_px)
    return resize(luma[y : y + num_rows * cell_px, x : x + num_columns * cell_px], num_columns, num_rows)


def _tissue(cells: UInt8Image) -> npt.NDArray[np.bool_] | None:
    """Return which cells show tissue; None where this is no ultrasound image."""
    uneven = _uneven(cells)
    textured = _textured(uneven)
    is_flat = np.count_nonzero(uneven) < _MIN_UNEVEN_SHARE * np.count_nonzero(cells >= _MIN_BRIGHTNESS)
    return None if is_flat or _share(textured) < _MIN_TISSUE_SHARE else textured


def _uneven(cells: UInt8Image) -> npt.NDArray[np.bool_]:
    """Return which cells are bright and unlike their neighbours."""
    change = cast(UInt8Image, cv2.morphologyEx(cells, cv2.MORPH_GRADIENT, _SQUARE_3))
    return np.asarray((change >= _MIN_TEXTURE) & (cells >= _MIN_BRIGHTNESS), np.bool_)


def _textured(uneven: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return where the image is uneven over more than a line's width."""
    closed = cv2.morphologyEx(uneven.view(np.uint8), cv2.MORPH_CLOSE, _SQUARE_3)
    return cv2.morphologyEx(closed, cv2.MORPH_OPEN, _SQUARE_5).view(np.bool_)


def _share(marked: npt.NDArray[np.bool_]) -> float:
    """Return the share that is True: their mean, five times as fast."""
    return np.count_nonzero(marked) / marked.size


def _coarse(cells: UInt8Image) -> FloatImage:
    """Return the image without its speckle: (32, 32) float32 of mean 0."""
    small = cv2.resize(cells, _COARSE, interpolation=cv2.INTER_AREA).astype(np.float32)
    blurred = cv2.GaussianBlur(small, (3, 3), 0)
    return cast(FloatImage, blurred - cv2.mean(blurred)[0])


def _distance(one: FloatImage, other: FloatImage) -> float:
    """Return one less the correlation: 0 for the same image, whatever its gain; about 1 for any other."""
    norm = cv2.norm(one) * cv2.norm(other)
    return 1 - float(np.vdot(one, other)) / norm if norm > 1e-3 else 0.0


def has_flow(frame: Frame, roi: Rect) -> bool:
    """Return whether enough of the ROI is coloured to be flow; judged on a thinned-out image, or as it was recorded."""
    if frame.had_flow:
        return True
    if frame.chroma is not None:
        parts = (frame.part_of(plane[::4, ::4], roi).astype(np.int16) for plane in frame.chroma())
        strength = np.maximum(*(np.abs(part - 128) for part in parts))
        return float((strength >= _MIN_CHROMA).mean()) >= _MIN_COLOUR_SHARE
    if (image := frame.rgb()).ndim == 2:
        return False
    part = frame.part_of(image[::8, ::8], roi)
    saturation = part.max(axis=2) - part.min(axis=2)
    return float((saturation >= 2 * _MIN_CHROMA).mean()) >= _MIN_COLOUR_SHARE
