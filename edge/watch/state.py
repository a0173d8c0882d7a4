"""What edge-watch knows: the newest of each message, and a short history of the probability."""

import collections
import dataclasses
import time
from collections.abc import Iterable
from typing import Any

from edge.client import Subscriber
from edge.evidence import Evidence, find_evidence
from edge.messages import AnyMessage, PredictionMessage, StatusMessage
from edge.prediction import State

_HISTORY_S = 120.0
_SILENT_AFTER_S = 3.0


@dataclasses.dataclass(slots=True, eq=False)
class WatchState:
    """The newest messages of one daemon."""

    subscriber: Subscriber
    prediction: PredictionMessage | None = None
    status: StatusMessage | None = None
    evidence: Evidence | None = None
    history: collections.deque[tuple[float, float]] = dataclasses.field(default_factory=collections.deque)
    """(monotonic s of receipt, probability), oldest first."""

    def add(self, messages: Iterable[AnyMessage]) -> None:
        """Take in messages, oldest first."""
        newest = self.prediction
        for message in messages:
            if isinstance(message, PredictionMessage):
                newest = message
                self.history.append((message.arrival.t_received_ns / 1e9, message.probability))
            elif isinstance(message, StatusMessage):
                self.status = message
        if newest is not self.prediction and newest is not None:
            self.prediction, self.evidence = newest, find_evidence(newest)
        while self.history and self.history[0][0] < time.monotonic() - _HISTORY_S:
            self.history.popleft()

    def judge(self) -> tuple[State | None, str]:
        """Return the state now and why; None where there is no daemon to have one."""
        status, prediction = self.status, self.prediction
        if not self.subscriber.is_connected:
            return self._judge_unconnected()
        if (silent_s := self._silent_s()) > _SILENT_AFTER_S:
            return State.STALE, f"no message for {silent_s:.0f} s"
        if status is not None and status.state is not State.LIVE:
            return status.state, "; ".join(filter(None, (status.reason, lost_of(status))))
        if prediction is None:
            return State.WARMUP, "no prediction yet"
        if prediction.state is State.STALE:
            return State.STALE, f"the newest prediction is {prediction.age_ms / 1e3:.1f} s old"
        return prediction.state, lost_of(status)

    def _judge_unconnected(self) -> tuple[State | None, str]:
        if self.subscriber.has_ended and self.status is not None:
            return self.status.state, f"{self.status.reason}; the daemon has ended"
        if self.subscriber.refusal is not None:
            return None, f"shut out: {self.subscriber.refusal}"
        lost = "the daemon is gone" if self.status or self.prediction else "nobody publishes"
        return None, f"{lost} at {self.subscriber.address}; waiting"

    def _silent_s(self) -> float:
        messages = [message for message in (self.prediction, self.status) if message is not None]
        if not messages:
            return 0.0
        return (time.monotonic_ns() - max(message.arrival.t_received_ns for message in messages)) / 1e9


def lost_of(status: StatusMessage | None) -> str:
    """Say what is lost of a recording and an exam that were asked for; nothing where all is well."""
    if status is None:
        return ""
    trouble = status.header.get("exam_trouble")
    unsaved = f"the exam is not saved: {trouble}" if trouble else ""
    return "; ".join(filter(None, (_unrecorded(status.header.get("recording")), unsaved)))


def _unrecorded(recording: Any) -> str:
    if not isinstance(recording, dict):
        return ""
    if recording.get("trouble"):
        return f"nothing is recorded any more: {recording['trouble']}"
    return "the recording has gaps: the disk is too slow" if recording.get("num_left_out") else ""


def printable(text: str) -> str:
    """Replace what a terminal would obey instead of show: names on the wire are somebody else's."""
    return "".join(character if character.isprintable() else "?" for character in text)


def describe_probability(prediction: PredictionMessage) -> str:
    """Say the probability and what it means, in words."""
    side = "positive: at or above" if prediction.positive else "negative: below"
    verdict = f"{side} the threshold {prediction.threshold:.1%}"
    return f"{printable(prediction.classes[-1])} {prediction.probability:.1%} ({verdict})"


def describe_evidence(evidence: Evidence) -> str:
    """Say where the evidence lies."""
    when = f"keyframe -{evidence.num_frames_back} frames" if evidence.num_frames_back else "keyframe: the newest frame"
    return f"{when}, x {evidence.peak_px[0]} y {evidence.peak_px[1]} px"


def describe(state: WatchState) -> str:
    """Return all that matters as one plain line."""
    name, reason = state.judge()
    parts = [f"{name or 'NO DAEMON'}{': ' if reason else ''}{printable(reason)}"]
    if state.prediction is not None:
        parts.append(describe_probability(state.prediction))
    if state.evidence is not None:
        parts.append(describe_evidence(state.evidence))
    if state.status is not None:
        latency_ms = state.status.latency_ms
        parts += [f"latency p50 {latency_ms['p50']:.1f} ms"] if "p50" in latency_ms else []
        counters = state.status.counters
        parts += [f"{name} {counters[name]}" for name in ("published", "skipped") if name in counters]
    return " | ".join(parts)
