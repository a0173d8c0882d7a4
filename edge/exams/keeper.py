"""Keeps the stream's exam: begins and ends it, sums up what is published in it, and saves it every second."""

import collections
import dataclasses
import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Any

from edge.errors import ConfigError, WireError
from edge.exams.archive import ExamArchive
from edge.exams.keyframes import pack_keyframe
from edge.exams.pause import PauseWatch
from edge.exams.running import RunningExam, new_exam
from edge.exams.store import ExamStore
from edge.messages import Arrival, FrameMessage, PredictionMessage, StatusMessage, read_message
from edge.prediction import State
from edge.terms import Terms
from edge.wire import Header, Parts, decode

_log = logging.getLogger(__name__)

_TICK_S, _SAVE_INTERVAL_S = 0.2, 1.0
_NUM_FRAMES_KEPT = 256
_MAX_WAITING = 10_000
"""Predictions and status: some minutes' worth, 25 MB."""
_MAX_SILENCE_S = 900.0
"""For how long an exam outlives its daemon: whoever comes an hour later is another patient."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KeeperSettings:
    """What an exam is of, and when it begins and ends by itself."""

    stream: str
    bundle_sha256: str
    finding: str
    auto_pause_s: float | None = None
    """A pause of this length ends the exam, and the next live window begins another; None: people do."""
    is_whole_run: bool = False
    """Every run of the daemon is an exam of its own."""


class ExamKeeper:
    """A tap on the publisher, with a thread of its own; commands come from the control socket's thread."""

    def __init__(
        self,
        settings: KeeperSettings,
        terms: Terms,
        store: ExamStore,
        archive: ExamArchive | None,
        *,
        num_captured: Callable[[], int],
        tell_status: Callable[[], None],
    ) -> None:
        """Take up the exam that the last daemon left, if it still lasts.

        Args:
            settings: What an exam is.
            terms: Is told which exam is open.
            store: Where the exam is kept.
            archive: Where it is described beside the recording; None: nothing is recorded.
            num_captured: How many frames the stream has had.
            tell_status: Makes the publisher say what has changed.
        """
        self._settings, self._terms, self._store, self._archive = settings, terms, store, archive
        self._num_captured, self._tell_status = num_captured, tell_status
        self._lock = threading.Lock()
        """Held by whoever looks at the exam or changes it."""
        self._exam: RunningExam | None = None
        self._waiting: collections.deque[Parts] = collections.deque()
        self._waiting_frames: collections.deque[Parts] = collections.deque(maxlen=_NUM_FRAMES_KEPT)
        self._frames: collections.deque[FrameMessage] = collections.deque(maxlen=_NUM_FRAMES_KEPT)
        self._prediction: PredictionMessage | None = None
        self._status: StatusMessage | None = None
        self._pause = PauseWatch(settings.auto_pause_s or math.inf)
        self._is_saved = self._are_keyframes_saved = True
        self.on_end: Callable[[], None] = lambda: None
        """Is called when an exam has ended and is on disk; must not wait."""
        self.num_left_out = 0
        """Messages that came faster than they could be taken in."""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="exam")
        self._take_up()
        if settings.is_whole_run:
            self._end_if_open()
            self._begin(self._new())

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def tap(self, parts: Parts) -> None:
        """Take a message as it is published; never waits."""
        if parts[0].startswith(b"frame."):
            self._waiting_frames.append(parts)
        elif len(self._waiting) < _MAX_WAITING:
            self._waiting.append(parts)
        else:
            self.num_left_out += 1

    def begin(self, note: Any = None) -> Header:
        """Begin an exam; one that is open ends, for a new exam is another patient's.

        Raises:
            ConfigError: The note cannot be kept.
        """
        with self._lock:
            self._drain()
            exam = self._new()
            if note is not None:
                exam.add_note(note)
            self._end_if_open()
            return self._begin(exam)

    def end(self) -> Header:
        """End the exam.

        Raises:
            ConfigError: None is open.
        """
        with self._lock:
            self._drain()
            exam = self._open_exam()
            self._end_if_open()
            return exam.summary(self._terms.threshold)

    def note(self, text: Any) -> Header:
        """Add a note to the exam.

        Raises:
            ConfigError: No exam is open, or the note cannot be kept.
        """
        with self._lock:
            self._drain()
            exam = self._open_exam()
            exam.add_note(text)
            self._save(is_change=True)
            return exam.summary(self._terms.threshold)

    def set_threshold(self, threshold: Any) -> None:
        """Let another operating threshold hold for what is published from now on.

        Raises:
            ConfigError: It is no number from 0 to 1.
        """
        is_number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
        if not is_number or not 0 <= threshold <= 1:
            raise ConfigError(f"threshold is {threshold!r:.40}; it must be a number from 0 to 1")
        with self._lock:
            self._terms.threshold = float(threshold)
            self._save(is_change=True)
        _log.info("the operating threshold is now %g", threshold)
        self._tell_status()

    def summary(self, *, with_keyframes: bool) -> Header | None:
        """Return the exam so far, or the last one as it ended; None where there was none."""
        with self._lock:
            self._drain()
            if self._exam is None:
                return None
            summary = self._exam.summary(self._terms.threshold)
            if with_keyframes:
                summary["keyframes"] = [pack_keyframe(keyframe) for keyframe in self._exam.keyframes.kept]
            return summary

    def snapshot(self) -> Header:
        """Return the newest prediction with its heatmap, and the picture nearest to it; None where there is none."""
        with self._lock:
            self._drain()
            prediction = self._prediction
            if prediction is None:
                return {"prediction": None, "heatmap": None, "frame": None, "jpeg": None}
            last = prediction.last_index
            frame = min(self._frames, key=lambda frame: abs(frame.index - last), default=None)
            return {
                "prediction": prediction.header,
                "heatmap": None if prediction.heatmap is None else prediction.heatmap.tobytes(),
                "frame": None if frame is None else frame.header,
                "jpeg": None if frame is None else frame.jpeg,
            }

    def last_status(self) -> Header | None:
        """Return the header of the newest status message."""
        with self._lock:
            self._drain()
            return None if self._status is None else self._status.header

    def close(self, *, ends_exam: bool) -> None:
        """Save the exam and end the thread; idempotent.

        Args:
            ends_exam: The stream is over, and the exam with it.
        """
        if not self._closing.is_set():
            with self._lock:
                self._drain()
                if ends_exam:
                    self._end_if_open()
                self._save()
            self._closing.set()
            if self._thread.is_alive():
                self._thread.join()

    def _run(self) -> None:
        next_save_s = 0.0
        while not self._closing.wait(_TICK_S):
            with self._lock:
                self._drain()
                if time.monotonic() >= next_save_s:
                    self._save()
                    next_save_s = time.monotonic() + _SAVE_INTERVAL_S

    def _drain(self) -> None:
        """Take in what was published since; frames first, for a prediction looks back at its own.

        Predictions are counted before the frames: one that comes meanwhile may have its frame behind it in the queue.
        """
        arrival = Arrival(t_received_ns=0, host="", stale_after_ms=math.inf)
        counted = [(queue, len(queue)) for queue in (self._waiting, self._waiting_frames)]
        for queue, number in reversed(counted):
            for _ in range(number):
                try:
                    message = read_message(decode(queue.popleft()), arrival)
                except WireError as exc:  # as what a reader gets of it: the exam goes on without it
                    _log.warning("an exam lacks a message of this daemon: %s", exc)
                    continue
                if isinstance(message, FrameMessage):
                    self._frames.append(message)
                elif isinstance(message, PredictionMessage):
                    self._predicted(message)
                else:
                    self._status = message
                    self._pause.see(message.state)
        since_wall_ns = self._pause.long_since_wall_ns
        if since_wall_ns is not None:
            self._end_if_open(since_wall_ns)

    def _predicted(self, prediction: PredictionMessage) -> None:
        self._prediction = prediction
        if prediction.sent_state is State.LIVE:
            self._pause.see(State.LIVE)
            if self._settings.auto_pause_s is not None and self._terms.exam is None:
                self._begin(self._new())
        mark = prediction.header.get("exam")
        if self._exam is not None and mark is not None and mark["id"] == self._exam.mark.id:
            self._are_keyframes_saved &= not self._exam.add(prediction, self._frames)
            self._is_saved = False

    def _take_up(self) -> None:
        kept = self._store.load()
        if kept is None:
            return
        self._exam, threshold, silent_s = kept
        if self._exam.ended_wall_ns is not None:
            return
        is_same = self._exam.bundle_sha256 == self._settings.bundle_sha256
        limit_s = min(_MAX_SILENCE_S, self._settings.auto_pause_s or math.inf)
        if is_same and silent_s <= limit_s:
            self._terms.threshold, self._terms.exam = threshold, self._exam.mark
            _log.info("exam %s goes on", self._exam.mark.id)
            return
        why = f"nobody kept it for {silent_s:.0f} s" if is_same else "the bundle is another one"
        _log.warning("exam %s has ended: %s", self._exam.mark.id, why)
        self._exam.ended_wall_ns, self._exam.ended_threshold = time.time_ns() - int(silent_s * 1e9), threshold
        self._save(is_change=True)

    def _new(self) -> RunningExam:
        return new_exam(self._num_captured(), self._settings.bundle_sha256, self._settings.finding)

    def _begin(self, exam: RunningExam) -> Header:
        self._exam, self._terms.exam = exam, exam.mark
        self._are_keyframes_saved = False
        self._save(is_change=True)
        _log.info("exam %s begins", exam.mark.id)
        self._tell_status()
        return exam.summary(self._terms.threshold)

    def _end_if_open(self, ended_wall_ns: int | None = None) -> None:
        if self._exam is None or self._exam.ended_wall_ns is not None:
            return
        self._exam.ended_wall_ns, self._exam.ended_threshold = ended_wall_ns or time.time_ns(), self._terms.threshold
        self._terms.exam = None
        self._save(is_change=True)
        _log.info("exam %s has ended", self._exam.mark.id)
        self._tell_status()
        self.on_end()

    def _open_exam(self) -> RunningExam:
        if self._exam is None or self._exam.ended_wall_ns is not None:
            raise ConfigError("no exam is open; send exam-start first")
        return self._exam

    def _save(self, *, is_change: bool = False) -> None:
        """Write what is not on disk yet; an open exam is written anyway, to say until when it was kept."""
        exam = self._exam
        if exam is None or (self._is_saved and not is_change and exam.ended_wall_ns is not None):
            return
        self._store.save(exam, self._terms.threshold)
        if not self._are_keyframes_saved:
            self._store.save_keyframes(exam)
        trouble = self._store.trouble
        if self._archive is not None:
            if is_change or exam.ended_wall_ns is not None or self._archive.trouble:
                self._archive.write(exam, self._settings.stream)
            trouble = trouble or self._archive.trouble
        self._is_saved = self._are_keyframes_saved = trouble is None  # else it is tried again in a second
        self._terms.exam_trouble = trouble
