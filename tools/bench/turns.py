"""The daemon and the bare engine by turns, so that a machine whose speed varies within minutes hits both alike."""

import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from tools.bench.engine import measure_rate
from tools.children import Child

_TURN_S, _TURNS_A_RUN = 4.0, 8
_MIN_RATE = 4.0
"""Windows a second: a slower engine's last windows would make a stop longer than the 6 s after which the subscriber
takes the daemon for dead, and then messages are lost."""

Entry = dict[str, Any]


class Span(NamedTuple):
    """When the daemon ran, on the monotonic clock."""

    start_ns: int
    end_ns: int

    @property
    def seconds(self) -> float:
        """Its length."""
        return (self.end_ns - self.start_ns) / 1e9


def can_take_turns(windows_per_s: float) -> bool:
    """Whether an engine is fast enough for turns of a few seconds."""
    return windows_per_s >= _MIN_RATE


class Turns:
    """Stops the daemon now and then, and lets the bare engine run in its place."""

    def __init__(self, daemon: subprocess.Popen[str], bare: Child, seconds: float) -> None:
        """Plan.

        Args:
            daemon: What is stopped and goes on; it plays a recording at full speed, so that it misses nothing.
            bare: `tools.bench.engine`, loaded.
            seconds: How long the daemon plays in all.
        """
        self._daemon, self._bare = daemon, bare
        self._turn_s = min(_TURN_S, seconds / _TURNS_A_RUN)
        self._start_ns: int | None = None
        self.spans: list[Span] = []
        """When the daemon ran between two turns of the engine."""
        self.stops: list[Span] = []
        """When it did not."""
        self.engine_rates: list[float] = []
        """Windows a second of each of the bare engine's turns."""

    def begin(self) -> None:
        """Begin the daemon's first turn: it is under way."""
        self._start_ns = time.monotonic_ns()

    def take_if_due(self) -> None:
        """Let the bare engine have its turn, if the daemon had its own."""
        if self._start_ns is None or len(self.spans) == _TURNS_A_RUN:
            return
        if time.monotonic_ns() - self._start_ns < self._turn_s * 1e9:
            return
        with self._stopped_daemon():
            self.engine_rates.append(measure_rate(self._bare, self._turn_s))
        self.spans.append(Span(self._start_ns, self.stops[-1].start_ns))
        self._start_ns = self.stops[-1].end_ns

    @contextmanager
    def _stopped_daemon(self) -> Iterator[None]:
        start_ns = time.monotonic_ns()
        try:
            self._daemon.send_signal(signal.SIGSTOP)
            yield
        finally:
            self.stops.append(Span(start_ns, time.monotonic_ns()))
            self._daemon.send_signal(signal.SIGCONT)


def rate_within(spans: Sequence[Span], entries: Sequence[Entry]) -> float:
    """Return how many windows a second were completed while the daemon ran."""
    completed = sum(any(span.start_ns <= _t_completed_ns(entry) < span.end_ns for span in spans) for entry in entries)
    return completed / sum(span.seconds for span in spans)


def rate_outside(stops: Sequence[Span], entries: Sequence[Entry]) -> float:
    """Return how many windows a second were received, less the time for which the daemon was stopped."""
    start_ns, end_ns = entries[0]["t_received_ns"], entries[-1]["t_received_ns"]
    stopped_ns = sum(max(0, min(stop.end_ns, end_ns) - max(stop.start_ns, start_ns)) for stop in stops)
    return (len(entries) - 1) / ((end_ns - start_ns - stopped_ns) / 1e9)


def undisturbed(stops: Sequence[Span], entries: Sequence[Entry]) -> list[Entry]:
    """Return the windows in whose lives the daemon was not stopped."""
    return [
        entry
        for entry in entries
        if not any(entry["t_capture_ns"] < stop.end_ns and stop.start_ns < entry["t_received_ns"] for stop in stops)
    ]


def _t_completed_ns(entry: Entry) -> float:
    """Return when the engine was done; when it was sent and received says less, for several leave together."""
    stages_ms = (entry["latency_ms"][stage] for stage in ("capture", "preprocess", "queue", "infer"))
    return float(entry["t_capture_ns"] + sum(stages_ms) * 1e6)
