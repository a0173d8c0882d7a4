"""An exam's summary, from a recording: the probability over all of it, and the pictures of its strongest windows."""

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.errors import SourceError
from edge.evidence import Evidence, find_evidence
from edge.frame import UInt8Image
from edge.messages import Arrival, PredictionMessage, read_message
from edge.prediction import State
from edge.recording.reader import Recording, Segment
from edge.sources.base import Rect

NUM_KEYFRAMES = 4
_MIN_DISTANCE_NS = 1_000_000_000
_NUM_RESAMPLES = 2000
_MIN_BLOCKS = 5
_MAX_LOGIT = 16.0
"""Of a probability that is 0 or 1 to the last digit."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ExamKeyframe:
    """A strong window's keyframe."""

    probability: float
    index: int
    """Of the frame in the stream."""
    t_wall_ns: int
    image: UInt8Image
    """(H, W) or (H, W, 3) uint8: the ROI."""
    map_hw: npt.NDArray[np.float32] | None
    """(h, w) in 0..1: the heatmap over its window's peak; None where there is no evidence."""
    map_rect: Rect
    """Where the map lies, in the image's pixels."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ExamSummary:
    """What an exam gave."""

    stream: str
    source: str
    started_wall_ns: int
    ended_wall_ns: int
    finding: str
    """Name of the positive class."""
    threshold: float
    probability: float
    """The mean of the windows' logits, as a probability."""
    interval: tuple[float, float] | None
    """95 %, by resampling stretches of one clip's length; None where there are fewer than five."""
    num_windows: int
    history: tuple[tuple[float, float], ...]
    """(s since the first window, probability) of every window."""
    keyframes: tuple[ExamKeyframe, ...]
    """The strongest first."""
    bundle: dict[str, Any]
    engine: dict[str, Any]
    version: str

    @property
    def positive(self) -> bool:
        """Whether the probability is at or above the threshold."""
        return self.probability >= self.threshold


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Window:
    prediction: PredictionMessage
    segment_place: int


def summarise(recording: Recording, num_keyframes: int = NUM_KEYFRAMES) -> ExamSummary:
    """Read a recording through once for its predictions and once for its pictures.

    Raises:
        SourceError: It holds no prediction.
    """
    windows = [_Window(p, place) for place, segment in enumerate(recording.segments) for p in _predictions(segment)]
    if not windows:
        raise SourceError(f"{str(recording.folder)!r} holds no prediction: nothing to report; record a longer exam")
    predictions = [window.prediction for window in windows]
    first, last = predictions[0], predictions[-1]
    about = recording.segments[0].about
    logits = np.array([_logit(prediction.probability) for prediction in predictions])
    return ExamSummary(
        stream=first.stream,
        source=str(about.get("source")),
        started_wall_ns=first.t_wall_ns,
        ended_wall_ns=last.t_wall_ns,
        finding=first.classes[-1],
        threshold=first.threshold,
        probability=_sigmoid(float(logits.mean())),
        interval=_interval(logits, _blocks(predictions)),
        num_windows=len(predictions),
        history=tuple(((p.t_wall_ns - first.t_wall_ns) / 1e9, p.probability) for p in predictions),
        keyframes=_keyframes(recording, windows, num_keyframes),
        bundle=dict(about.get("bundle") or {}),
        engine=dict(first.header["engine"]),
        version=str(about.get("version")),
    )


def _predictions(segment: Segment) -> list[PredictionMessage]:
    arrival = Arrival(t_received_ns=0, host="", stale_after_ms=math.inf)
    messages = (read_message(message, arrival) for message in segment.messages())
    return [m for m in messages if isinstance(m, PredictionMessage) and m.sent_state is State.LIVE]


def _logit(probability: float) -> float:
    with np.errstate(divide="ignore"):
        return float(np.clip(np.log(probability) - np.log1p(-probability), -_MAX_LOGIT, _MAX_LOGIT))


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def _blocks(predictions: list[PredictionMessage]) -> npt.NDArray[np.int64]:
    """Return for each window which stretch of one clip's length it ends in: windows of other stretches share little."""
    length = max(1, predictions[0].last_index - predictions[0].first_index + 1)
    return np.array([prediction.last_index // length for prediction in predictions])


def _interval(logits: npt.NDArray[np.float64], blocks: npt.NDArray[np.int64]) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean logit, as probabilities, by the block bootstrap.

    Source: Künsch 1989, "The jackknife and the bootstrap for general stationary observations".
    """
    names, inverse, counts = np.unique(blocks, return_inverse=True, return_counts=True)
    if len(names) < _MIN_BLOCKS:
        return None
    sums = np.bincount(inverse, weights=logits)
    chosen = np.random.default_rng(0).integers(0, len(names), (_NUM_RESAMPLES, len(names)))
    means = sums[chosen].sum(axis=1) / counts[chosen].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return _sigmoid(float(low)), _sigmoid(float(high))


def _keyframes(recording: Recording, windows: list[_Window], number: int) -> tuple[ExamKeyframe, ...]:
    chosen = _strongest(windows, number)
    wanted: dict[int, set[int]] = {}
    for window in chosen:
        for place in (window.segment_place, window.segment_place - 1):  # a window may begin in the segment before
            wanted.setdefault(place, set()).add(_keyframe_index(window.prediction))
    pictures = {
        (place, times.index): (segment, image)
        for place, segment in enumerate(recording.segments)
        if place in wanted
        for times, image in segment.images()
        if times.index in wanted[place]
    }
    keyframes = (_keyframe(window, pictures) for window in chosen)
    return tuple(keyframe for keyframe in keyframes if keyframe is not None)


def _strongest(windows: list[_Window], number: int) -> list[_Window]:
    """Return the strongest windows, no two within a second: neighbours share nearly all of their frames."""
    chosen: list[_Window] = []
    for window in sorted(windows, key=lambda window: -window.prediction.probability):
        t_ns = window.prediction.t_capture_ns
        if all(abs(t_ns - other.prediction.t_capture_ns) >= _MIN_DISTANCE_NS for other in chosen):
            chosen.append(window)
        if len(chosen) == number:
            break
    return chosen


def _keyframe_index(prediction: PredictionMessage) -> int:
    evidence = find_evidence(prediction)
    return evidence.frame_index if evidence else prediction.last_index


def _keyframe(window: _Window, pictures: dict[tuple[int, int], tuple[Segment, UInt8Image]]) -> ExamKeyframe | None:
    index = _keyframe_index(window.prediction)
    places = ((window.segment_place, index), (window.segment_place - 1, index))
    found = next((pictures[place] for place in places if place in pictures), None)
    if found is None:
        return None  # the recorder left this frame out
    segment, image = found
    evidence = find_evidence(window.prediction)
    return ExamKeyframe(
        probability=window.prediction.probability,
        index=index,
        t_wall_ns=window.prediction.t_wall_ns,
        image=image,
        map_hw=None if evidence is None else evidence.map_hw,
        map_rect=_rect_in(segment.roi, evidence),
    )


def _rect_in(roi: Rect, evidence: Evidence | None) -> Rect:
    if evidence is None:
        return (0, 0, roi[2], roi[3])
    x, y, width, height = evidence.roi_px
    return (x - roi[0], y - roi[1], width, height)
