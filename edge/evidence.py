"""Where a prediction's evidence lies: the keyframe's heatmap and its peak in the source image."""

import dataclasses

import numpy as np
import numpy.typing as npt

from edge.messages import PredictionMessage
from edge.sources.base import Rect


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """One frame of a window: the keyframe, unless another was asked for."""

    map_hw: npt.NDArray[np.float32]
    """(h, w) float32, 0..1: the frame's heatmap over the window's peak."""
    roi_px: Rect
    """The part of the source image that the map covers."""
    num_frames_back: int
    """Clip frames between this one and the newest one."""
    frame_index: int
    """Its index in the stream; the nearest guess where the source is faster than the clip."""
    peak_px: tuple[int, int]
    """x, y of the centre of the strongest cell, in source pixels."""


def find_evidence(prediction: PredictionMessage, index: int | None = None) -> Evidence | None:
    """Return the keyframe's evidence; None where the prediction carries no heatmap or an empty one.

    Args:
        prediction: A window's result.
        index: Another frame of the window, of which there is a picture.
    """
    heatmap, place = prediction.heatmap, prediction.place
    if heatmap is None or place is None or not heatmap.size:
        return None
    peak = float(heatmap[place.keyframe].max())
    if not 0 < peak < np.inf:
        return None
    slot = place.keyframe if index is None else slot_of(prediction, index)
    map_hw = np.nan_to_num(heatmap[slot].astype(np.float32))
    num_frames = len(heatmap)
    num_indices = prediction.last_index - prediction.first_index
    return Evidence(
        map_hw=np.clip(map_hw / peak, 0, 1),
        roi_px=place.roi_px,
        num_frames_back=num_frames - 1 - slot,
        frame_index=prediction.first_index + round(slot * num_indices / max(1, num_frames - 1)),
        peak_px=_peak_px(map_hw, place.roi_px),
    )


def slot_of(prediction: PredictionMessage, index: int) -> int:
    """Return which map of the heatmap belongs to a frame of the window: the nearest where not every frame has one."""
    assert prediction.heatmap is not None
    span = prediction.last_index - prediction.first_index
    return round((index - prediction.first_index) * (len(prediction.heatmap) - 1) / max(1, span))


def _peak_px(map_hw: npt.NDArray[np.float32], roi_px: Rect) -> tuple[int, int]:
    row, column = np.unravel_index(map_hw.argmax(), map_hw.shape)
    (height, width), (x, y, roi_width, roi_height) = map_hw.shape, roi_px
    return round(x + (int(column) + 0.5) * roi_width / width), round(y + (int(row) + 0.5) * roi_height / height)
