"""Counts and times of one run of the daemon."""

import collections
import threading
import time

import numpy as np

_CAPACITY = 1 << 15
_LATENCY_SPAN_NS = 60 * 10**9
_FPS_SPAN_NS = 5 * 10**9

COUNTERS = (
    "captured",
    "in_clip",
    "inferred",
    "published",
    "skipped",
    "resets",
    "losses",
    "reconnects",
    "restarts",
    "frames_published",
)


class Meters:
    """Counters and the latencies of the last minute.

    Each counter is written by one thread alone; anyone may read.
    """

    def __init__(self) -> None:
        self.counters = dict.fromkeys(COUNTERS, 0)
        self._lock = threading.Lock()
        self._times_ns = np.zeros(_CAPACITY, np.int64)
        self._latencies_ms = np.zeros(_CAPACITY, np.float64)
        self._num_latencies = 0
        self._captures_ns: collections.deque[int] = collections.deque(maxlen=_CAPACITY)
        self._start_ns = time.monotonic_ns()

    @property
    def uptime_s(self) -> float:
        """Seconds since the daemon started."""
        return (time.monotonic_ns() - self._start_ns) / 1e9

    def count(self, name: str, number: int = 1) -> None:
        """Add to one of `COUNTERS`.

        Raises:
            KeyError: There is no such counter.
        """
        self.counters[name] += number

    def count_trouble(self, name: str) -> None:
        """Add one to a counter that a source named for what it leaves out; it begins with its first."""
        self.counters[name] = self.counters.get(name, 0) + 1

    def captured(self, t_ns: int) -> None:
        """Count a frame that came at this monotonic time."""
        self.counters["captured"] += 1
        with self._lock:
            self._captures_ns.append(t_ns)

    def published(self, t_ns: int, latency_ms: float) -> None:
        """Count a prediction that left at this monotonic time, and its total latency."""
        self.counters["published"] += 1
        with self._lock:
            place = self._num_latencies % _CAPACITY
            self._times_ns[place], self._latencies_ms[place] = t_ns, latency_ms
            self._num_latencies += 1

    def fps(self) -> float:
        """Return frames captured a second, over the last five seconds; 0 until there are two."""
        now_ns = time.monotonic_ns()
        with self._lock:
            while self._captures_ns and self._captures_ns[0] < now_ns - _FPS_SPAN_NS:
                self._captures_ns.popleft()
            num_intervals = len(self._captures_ns) - 1
            # up to now, not to the last frame: so that it falls when frames stop coming
            return num_intervals * 1e9 / (now_ns - self._captures_ns[0]) if num_intervals > 0 else 0.0

    def latency_percentiles_ms(self) -> dict[str, float] | None:
        """Return p50, p95, p99 and max of the last minute's total latencies; None where there were none."""
        with self._lock:
            held = slice(0, min(self._num_latencies, _CAPACITY))
            recent = self._times_ns[held] > time.monotonic_ns() - _LATENCY_SPAN_NS
            latencies_ms = self._latencies_ms[held][recent]
        if not latencies_ms.size:
            return None
        p50, p95, p99, largest = np.percentile(latencies_ms, (50, 95, 99, 100)).tolist()
        return {"p50": p50, "p95": p95, "p99": p99, "max": largest}
