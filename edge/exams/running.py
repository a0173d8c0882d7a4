"""An exam while it runs: its windows summed up, its strongest ones as pictures, and what people noted."""

import dataclasses
import datetime
import secrets
import time
from collections.abc import Sequence
from typing import Any

from edge.display.keyframes import Keyframes
from edge.errors import ConfigError
from edge.exams.statistics import LogitMean
from edge.messages import FrameMessage, PredictionMessage
from edge.prediction import State
from edge.terms import ExamMark
from edge.wire import Header

MAX_NOTE_LENGTH, MAX_NOTES = 500, 200


@dataclasses.dataclass(frozen=True, slots=True)
class Note:
    """What someone wrote during the exam. Never published: it may name a patient."""

    t_wall_ns: int
    text: str


@dataclasses.dataclass(slots=True, eq=False)
class RunningExam:
    """One exam. It lives in one thread at a time."""

    mark: ExamMark
    bundle_sha256: str
    """Of the manifest: windows of different networks are not summed up together."""
    finding: str
    ended_wall_ns: int | None = None
    ended_threshold: float | None = None
    """The operating threshold that held at its end: a later one is not this exam's."""
    notes: list[Note] = dataclasses.field(default_factory=list)
    mean: LogitMean = dataclasses.field(default_factory=LogitMean)
    keyframes: Keyframes = dataclasses.field(default_factory=Keyframes)

    def add(self, prediction: PredictionMessage, frames: Sequence[FrameMessage]) -> bool:
        """Take in a prediction of this exam and the last pictures; return whether the keyframes changed."""
        if prediction.sent_state is not State.LIVE:
            return False
        self.mean.add(prediction.probability, first_index=prediction.first_index, last_index=prediction.last_index)
        # as in the report: each keyframe's heatmap over its own peak
        return self.keyframes.add(prediction, frames, prediction.place.peak if prediction.place else 0.0)

    def add_note(self, text: Any) -> None:
        """Add a note.

        Raises:
            ConfigError: It is no text, too long, or one too many.
        """
        if not isinstance(text, str) or not 0 < len(text.strip()) <= MAX_NOTE_LENGTH:
            raise ConfigError(f"a note is text of 1 to {MAX_NOTE_LENGTH} characters")
        if len(self.notes) >= MAX_NOTES:
            raise ConfigError(f"this exam has {MAX_NOTES} notes already; start a new exam")
        self.notes.append(Note(time.time_ns(), text.strip()))

    def describe(self) -> Header:
        """Return what the exam is, without its results: as JSON, for the records."""
        return {
            **self.mark.header(),
            "ended_wall_ns": self.ended_wall_ns,
            "notes": [dataclasses.asdict(note) for note in self.notes],
            "num_windows": self.mean.num_windows,
        }

    def summary(self, threshold: float) -> Header:
        """Return the exam so far, under the threshold of now or, once it has ended, of then.

        `probability` and `interval` are None until there are windows for them.
        """
        threshold = threshold if self.ended_threshold is None else self.ended_threshold
        probability = self.mean.probability if self.mean.num_windows else None
        interval = self.mean.interval()
        return {
            **self.describe(),
            "finding": self.finding,
            "probability": probability,
            "interval": None if interval is None else list(interval),
            "threshold": threshold,
            "positive": None if probability is None else probability >= threshold,
        }


def new_exam(first_index: int, bundle_sha256: str, finding: str) -> RunningExam:
    """Return an exam that begins now, with the stream's frame of this index."""
    now_ns = time.time_ns()
    started = datetime.datetime.fromtimestamp(now_ns / 1e9)
    exam_id = f"{started:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    return RunningExam(ExamMark(exam_id, now_ns, first_index), bundle_sha256, finding)


def pack_exam(exam: RunningExam, threshold: float) -> Header:
    """Return what must outlive the daemon, but the keyframes, as JSON."""
    return {
        "exam": exam.describe(),
        "bundle_sha256": exam.bundle_sha256,
        "finding": exam.finding,
        "mean": dataclasses.asdict(exam.mean),
        "threshold": threshold if exam.ended_threshold is None else exam.ended_threshold,
        "saved_wall_ns": time.time_ns(),
    }


def unpack_exam(packed: Any) -> RunningExam:
    """Return the exam that `pack_exam` packed; its stream counts its frames anew.

    Raises:
        LookupError: A key is missing.
        TypeError: A value is of another type.
        ValueError: A value is of another kind.
        OverflowError: A number is too large.
    """
    about, mean = packed["exam"], packed["mean"]
    if len(mean["sums"]) != len(mean["counts"]):
        raise ValueError(f"mean has {len(mean['sums'])} sums and {len(mean['counts'])} counts")
    return RunningExam(
        mark=ExamMark(str(about["id"]), int(about["started_wall_ns"]), 0),
        bundle_sha256=str(packed["bundle_sha256"]),
        finding=str(packed["finding"]),
        ended_wall_ns=None if about["ended_wall_ns"] is None else int(about["ended_wall_ns"]),
        ended_threshold=None if about["ended_wall_ns"] is None else float(packed["threshold"]),
        notes=[Note(int(note["t_wall_ns"]), str(note["text"])) for note in about["notes"]],
        mean=LogitMean(
            block_length=int(mean["block_length"]),
            sums=[float(value) for value in mean["sums"]],
            counts=[int(value) for value in mean["counts"]],
            last_block=-1,
        ),
    )
