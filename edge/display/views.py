"""Pairs each picture with the part of a heatmap that belongs to it."""

import collections
import dataclasses
import time
from collections.abc import Iterable

import cv2
import numpy as np
import numpy.typing as npt

from edge.evidence import slot_of
from edge.messages import FrameMessage, PredictionMessage
from edge.sources.base import Rect

_NUM_FRAMES_KEPT, _MAX_KEPT_BYTES = 128, 64 << 20
_PATIENCE_NS, _MAX_PATIENCE_NS = 250_000_000, 1_500_000_000
_PEAK_MEMORY_NS = 60_000_000_000
_UPSCALING = 8
_FAINTEST = 3
"""Of 255: cubic curves swing by less than this where there is no evidence."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Heat:
    """One frame's evidence."""

    map_hw: npt.NDArray[np.uint8]
    """(h, w) uint8: 255 is the strongest evidence of the last minute."""
    roi_px: Rect
    """The part of the source image that the map covers."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class View:
    """A picture and the heatmap of that very frame."""

    frame: FrameMessage
    heat: Heat | None
    """None where no prediction looked at this frame in time."""


class Pairing:
    """Holds pictures back until the prediction that looked at them is there, and no longer than a quarter second.

    Where the engine is slower than that, twice the time between two predictions, and no longer than 1.5 s.

    The heatmap `(T, h, w)` has a map for each frame of its window, so a picture is drawn with its own map and never
    with that of another moment.
    """

    def __init__(self, *, is_patient: bool = False) -> None:
        """Hold nothing yet.

        Args:
            is_patient: Wait as long as there is room, for nobody watches: a video is drawn more slowly than live.
        """
        self._is_patient = is_patient
        self.frames: collections.deque[FrameMessage] = collections.deque(maxlen=_NUM_FRAMES_KEPT)
        """The last pictures, oldest first."""
        self._waiting: collections.deque[FrameMessage] = collections.deque(maxlen=_NUM_FRAMES_KEPT)
        self._peaks: collections.deque[tuple[int, float]] = collections.deque()
        self._t_prediction_ns = -_MAX_PATIENCE_NS
        self._patience_ns = _PATIENCE_NS

    def add_frame(self, frame: FrameMessage) -> list[View]:
        """Take a picture in; return the views that can be shown now."""
        views: list[View] = []
        if self.frames and frame.index <= self.frames[-1].index:  # the daemon started again
            self.frames.clear()
            views = self.rest() if self._is_patient else []
            self._waiting.clear()
        self.frames.append(frame)
        self._waiting.append(frame)
        while len(self.frames) > 1 and _num_bytes(self.frames) > _MAX_KEPT_BYTES:
            self.frames.popleft()
        return views + self._crowded_out() + self.overdue()

    def overdue(self) -> list[View]:
        """Return the pictures that no prediction came for in time."""
        if self._is_patient:
            return []
        now_ns = time.monotonic_ns()
        if now_ns - self._t_prediction_ns < self._patience_ns:
            return []
        return self.rest()

    def _crowded_out(self) -> list[View]:
        """Return the pictures that there is no room for to wait."""
        views = []
        while len(self._waiting) == _NUM_FRAMES_KEPT or _num_bytes(self._waiting) > _MAX_KEPT_BYTES:
            views.append(View(self._waiting.popleft(), None))
        return views

    def rest(self) -> list[View]:
        """Return all pictures that still wait: nothing comes any more."""
        views = [View(frame, None) for frame in self._waiting]
        self._waiting.clear()
        return views

    def add_prediction(self, prediction: PredictionMessage) -> list[View]:
        """Take a prediction in; return views of the pictures that it looked at and that still wait."""
        now_ns = prediction.arrival.t_received_ns
        self._patience_ns = min(max(_PATIENCE_NS, 2 * (now_ns - self._t_prediction_ns)), _MAX_PATIENCE_NS)
        self._t_prediction_ns = now_ns
        scale = self._scale(prediction)
        views = []
        while self._waiting and self._waiting[0].index <= prediction.last_index:
            frame = self._waiting.popleft()
            views.append(View(frame, heat_of(prediction, frame.index, scale)))
        return views

    def scale(self) -> float:
        """Return the strongest evidence of the last minute."""
        return max((peak for _, peak in self._peaks), default=0.0)

    def _scale(self, prediction: PredictionMessage) -> float:
        now_ns = prediction.arrival.t_received_ns
        peak = prediction.place.peak if prediction.place else 0.0
        while self._peaks and self._peaks[-1][1] <= peak:
            self._peaks.pop()
        self._peaks.append((now_ns, peak))
        while self._peaks[0][0] < now_ns - _PEAK_MEMORY_NS:
            self._peaks.popleft()
        return self._peaks[0][1]


def _num_bytes(frames: Iterable[FrameMessage]) -> int:
    return sum(len(frame.jpeg) for frame in frames)


def heat_of(prediction: PredictionMessage, index: int, scale: float) -> Heat | None:
    """Return the heatmap of the frame with this index; None where the window does not hold it or has no evidence."""
    heatmap, place = prediction.heatmap, prediction.place
    span = prediction.last_index - prediction.first_index
    if heatmap is None or place is None or not 0 <= index - prediction.first_index <= span or not 0 < scale < np.inf:
        return None
    map_hw = np.nan_to_num(heatmap[slot_of(prediction, index)].astype(np.float32)) * (255 / scale)
    # browsers stretch in straight lines, which makes diamonds of a few cells
    smooth = cv2.resize(map_hw, None, fx=_UPSCALING, fy=_UPSCALING, interpolation=cv2.INTER_CUBIC)
    smooth[smooth < _FAINTEST] = 0
    return Heat(np.clip(smooth, 0, 255).astype(np.uint8), place.roi_px)
