"""An exam's summary, from a recording: the probability over all of it, and the pictures of its strongest windows."""

import dataclasses
import logging
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.errors import SourceError, WireError
from edge.evidence import Evidence, find_evidence
from edge.exams.statistics import LogitMean
from edge.frame import UInt8Image
from edge.messages import Arrival, PredictionMessage, read_message
from edge.prediction import State
from edge.recording.layout import FrameTimes
from edge.recording.reader import Recording, Segment
from edge.sources.base import Rect

_log = logging.getLogger(__name__)

NUM_KEYFRAMES = 4
_MIN_DISTANCE_NS = 1_000_000_000
_MAX_SPAN_NS = 60_000_000_000
"""From a window's keyframe to its newest frame: longer than any clip."""


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
    notes: tuple[str, ...] = ()
    exam_id: str | None = None
    """None where the recording is of no exam."""
    """What people wrote down during the exam."""

    @property
    def positive(self) -> bool:
        """Whether the probability is at or above the threshold."""
        return self.probability >= self.threshold


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Window:
    prediction: PredictionMessage
    segment_place: int


def summarise(recording: Recording, exam_id: str | None = None, num_keyframes: int = NUM_KEYFRAMES) -> ExamSummary:
    """Read a recording through once for its predictions and once for its pictures.

    Args:
        recording: What was recorded.
        exam_id: Take the windows of this exam alone; None takes the one that there is, and all where there is none.
        num_keyframes: How many pictures at most.

    Raises:
        SourceError: It holds no prediction, or none of this exam, or several exams and none is named.
    """
    windows = _windows(recording, exam_id)
    predictions = [window.prediction for window in windows]
    first, last = predictions[0], predictions[-1]
    about = recording.segments[windows[0].segment_place].about
    bundle = about.get("bundle")
    mean = LogitMean()
    for prediction in predictions:
        mean.add(prediction.probability, first_index=prediction.first_index, last_index=prediction.last_index)
    return ExamSummary(
        stream=first.stream,
        source=str(about.get("source")),
        started_wall_ns=first.t_wall_ns,
        ended_wall_ns=last.t_wall_ns,
        finding=first.classes[-1],
        threshold=last.threshold,
        probability=mean.probability,
        interval=mean.interval(),
        num_windows=mean.num_windows,
        history=tuple(((p.t_wall_ns - first.t_wall_ns) / 1e9, p.probability) for p in predictions),
        keyframes=_keyframes(recording, windows, num_keyframes),
        bundle=bundle if isinstance(bundle, dict) else {},
        engine=dict(first.header.get("engine") or {}),
        version=str(about.get("version")),
        exam_id=_exam_of(first),
    )


def _predictions(segment: Segment) -> list[PredictionMessage]:
    arrival = Arrival(t_received_ns=0, host="", stale_after_ms=math.inf)
    predictions, num_damaged = [], 0
    for sent in segment.messages():
        try:
            message = read_message(sent, arrival)
        except WireError:
            num_damaged += 1
            continue
        if isinstance(message, PredictionMessage) and message.sent_state is State.LIVE:
            predictions.append(message)
    if num_damaged:
        _log.warning(
            "%s holds %d messages that lack something; they are passed over", segment.paths.messages, num_damaged
        )
    return predictions


def _windows(recording: Recording, exam_id: str | None) -> list[_Window]:
    windows: list[_Window] = []
    exams: set[str | None] = set()
    for place, segment in enumerate(recording.segments):
        for prediction in _predictions(segment):
            exams.add(_exam_of(prediction))
            if exam_id in (None, _exam_of(prediction)):  # a day's recording does not fit into memory
                windows.append(_Window(prediction, place))
    folder = str(recording.folder)
    if exams and not windows:
        names = ", ".join(sorted(name for name in exams if name)) or "none with a name"
        raise SourceError(f"{folder!r} holds no prediction of exam {exam_id!r}; it holds {names}")
    named = sorted(name for name in exams if name)
    if exam_id is None and len(named) > 1:  # of several patients
        raise SourceError(f"{folder!r} holds {len(named)} exams; name one with --exam: {', '.join(named)}")
    if exam_id is None and named:  # what was seen before it began, or after it ended, may be another patient
        windows = [window for window in windows if _exam_of(window.prediction)]
    if not windows:
        raise SourceError(f"{folder!r} holds no prediction: nothing to report; record a longer exam")
    return windows


def _exam_of(prediction: PredictionMessage) -> str | None:
    exam = prediction.header.get("exam")
    return str(exam["id"]) if isinstance(exam, dict) and "id" in exam else None


def _keyframes(recording: Recording, windows: list[_Window], number: int) -> tuple[ExamKeyframe, ...]:
    chosen = _strongest(windows, number)
    wanted: dict[int, set[int]] = {}
    for window in chosen:
        for place in (window.segment_place, window.segment_place - 1):  # a window may begin in the segment before
            wanted.setdefault(place, set()).add(_keyframe_index(window.prediction))
    pictures = {
        (place, times.index): (segment, times, image)
        for place, segment in enumerate(recording.segments)
        if place in wanted
        for times, image in segment.images()
        if times.index in wanted[place]
    }
    keyframes = [keyframe for window in chosen if (keyframe := _keyframe(window, pictures)) is not None]
    if num_missing := len(chosen) - len(keyframes):
        _log.warning(
            "%s holds no picture of %d of the %d strongest windows: its video is cut, damaged or lacks these frames",
            recording.folder,
            num_missing,
            len(chosen),
        )
    return tuple(keyframes)


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


def _keyframe(
    window: _Window, pictures: dict[tuple[int, int], tuple[Segment, FrameTimes, UInt8Image]]
) -> ExamKeyframe | None:
    index = _keyframe_index(window.prediction)
    places = ((window.segment_place, index), (window.segment_place - 1, index))
    found = next((pictures[place] for place in places if place in pictures), None)
    if found is None or not 0 <= window.prediction.t_capture_ns - found[1].t_capture_ns <= _MAX_SPAN_NS:
        return None  # the recorder left this frame out; a daemon before may have had another of this index
    segment, _, image = found
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
