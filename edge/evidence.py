"""Where a prediction's evidence lies: the keyframe's heatmap and its peak in the source image."""

import dataclasses

import numpy as np
import numpy.typing as npt

from edge.messages import PredictionMessage
from edge.sources.base import Rect


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """The strongest frame of a window."""

    map_hw: npt.NDArray[np.float32]
    """(h, w) float32, 0..1: the keyframe's heatmap over the window's peak."""
    roi_px: Rect
    """The part of the source image that the map covers."""
    num_frames_back: int
    """Clip frames between the keyframe and the newest one."""
    frame_index: int
    """The keyframe's index in the stream; the nearest guess where the source is faster than the clip."""
    peak_px: tuple[int, int]
    """x, y of the centre of the strongest cell, in source pixels."""


def find_evidence(prediction: PredictionMessage) -> Evidence | None:
    """Return the evidence; None where the prediction carries no heatmap or an empty one."""
    heatmap, place = prediction.heatmap, prediction.place
    if heatmap is None or place is None or not heatmap.size:
        return None
    map_hw = heatmap[place.keyframe].astype(np.float32)
    peak = float(map_hw.max())
    if not 0 < peak < np.inf:
        return None
    num_frames = len(heatmap)
    num_indices = prediction.last_index - prediction.first_index
    return Evidence(
        map_hw=map_hw / peak,
        roi_px=place.roi_px,
        num_frames_back=num_frames - 1 - place.keyframe,
        frame_index=prediction.first_index + round(place.keyframe * num_indices / max(1, num_frames - 1)),
        peak_px=_peak_px(map_hw, place.roi_px),
    )


def _peak_px(map_hw: npt.NDArray[np.float32], roi_px: Rect) -> tuple[int, int]:
    row, column = np.unravel_index(map_hw.argmax(), map_hw.shape)
    (height, width), (x, y, roi_width, roi_height) = map_hw.shape, roi_px
    return round(x + (int(column) + 0.5) * roi_width / width), round(y + (int(row) + 0.5) * roi_height / height)
