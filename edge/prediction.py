"""What one window gave."""

import dataclasses
import enum

import numpy as np
import numpy.typing as npt

from edge.sources.base import Rect
from edge.window import Window


class State(enum.StrEnum):
    """What the bedside may believe."""

    WARMUP = "WARMUP"
    """Not enough frames yet."""
    LIVE = "LIVE"
    """Predictions are of the image that is on the scanner now."""
    FROZEN = "FROZEN"
    """The image stands still."""
    NO_SIGNAL = "NO_SIGNAL"
    """No image comes: the source ended, was stopped, or shows nothing."""
    FAULT = "FAULT"
    """Something is broken; the reason says what."""
    STALE = "STALE"
    """Set by the subscriber alone, from a prediction's age; never on the wire."""


@dataclasses.dataclass(frozen=True, slots=True)
class Latency:
    """Where the time went, in ms, for the newest frame of the window."""

    capture: float
    """Capture time to the frame in the daemon's hands."""
    preprocess: float
    queue: float
    """From preprocessed to the start of its inference."""
    infer: float
    """In the engine, the copy into its ring included, and other windows that are in flight at the pace "max"."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What one window gave."""

    window: Window
    num_skipped: int
    """Windows skipped since the prediction before, because a newer one was due."""
    probabilities: npt.NDArray[np.float32]
    """(K,), the positive class last."""
    heatmap: npt.NDArray[np.float32]
    """(T, h, w) float32 >= 0: Grad-CAM of the positive class."""
    visible_rect: Rect
    """The part of the source image that the network saw, in source pixels."""
    t_capture_ns: int
    """Monotonic capture time of the newest frame."""
    t_wall_ns: int
    latency_ms: Latency
    state: State = State.LIVE
    object_id: str | None = None
    """Of the stored object that the window lies in: a salted hash; None where the source has none."""

    @property
    def keyframe(self) -> int:
        """Offset in the window of the frame that holds the heatmap's peak."""
        return int(self.heatmap.reshape(len(self.heatmap), -1).max(axis=1).argmax())

    @property
    def peak(self) -> float:
        """The heatmap's maximum, unscaled."""
        return float(self.heatmap.max())
