"""The strongest windows since the exam began, each with the picture of its keyframe."""

import dataclasses
import itertools
import time
from collections.abc import Sequence

from edge.display.views import View, heat_of
from edge.evidence import find_evidence
from edge.messages import FrameMessage, PredictionMessage
from edge.prediction import State

NUM_KEPT = 8
_MIN_DISTANCE_NS = 1_000_000_000
"""Neighbouring windows share nearly all of their frames: of those within a second the strongest stands for all."""

_ids = itertools.count(time.time_ns() // 1_000_000)
"""A browser keeps pictures by id, also when the server starts again: no id is given twice."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Keyframe:
    """One strong window."""

    id: int
    probability: float
    positive: bool
    t_capture_ns: int
    t_wall_ns: int
    view: View


class Keyframes:
    """Keeps the strongest windows of one stream."""

    def __init__(self) -> None:
        self.kept: list[Keyframe] = []
        """The strongest first."""

    def add(self, prediction: PredictionMessage, frames: Sequence[FrameMessage], scale: float) -> bool:
        """Look at a prediction and the last pictures; return whether the list changed."""
        if prediction.sent_state is not State.LIVE or not self._is_wanted(prediction):
            return False
        evidence = find_evidence(prediction)
        index = evidence.frame_index if evidence else prediction.last_index
        in_window = [frame for frame in frames if prediction.first_index <= frame.index <= prediction.last_index]
        if not in_window:
            return False
        frame = min(in_window, key=lambda frame: abs(frame.index - index))
        keyframe = Keyframe(
            id=next(_ids),
            probability=prediction.probability,
            positive=prediction.positive,
            t_capture_ns=prediction.t_capture_ns,
            t_wall_ns=prediction.t_wall_ns,
            view=View(frame, heat_of(prediction, frame.index, scale)),
        )
        others = [kept for kept in self.kept if not _is_near(kept, prediction)]
        self.kept = sorted([*others, keyframe], key=lambda kept: -kept.probability)[:NUM_KEPT]
        return True

    def restore(self, keyframes: Sequence[Keyframe]) -> None:
        """Take up keyframes that were kept elsewhere, the strongest first; each gets an id of this process."""
        self.kept = [dataclasses.replace(keyframe, id=next(_ids)) for keyframe in keyframes]

    def clear(self) -> None:
        """Forget all, for a new exam."""
        self.kept = []

    def _is_wanted(self, prediction: PredictionMessage) -> bool:
        near = [kept.probability for kept in self.kept if _is_near(kept, prediction)]
        if near:
            return prediction.probability > max(near)
        return len(self.kept) < NUM_KEPT or prediction.probability > self.kept[-1].probability


def _is_near(kept: Keyframe, prediction: PredictionMessage) -> bool:
    return abs(kept.t_capture_ns - prediction.t_capture_ns) < _MIN_DISTANCE_NS
