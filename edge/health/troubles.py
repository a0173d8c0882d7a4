"""Keeps the log short: counts what live sources leave out, and tells that, and what repeats itself, now and then."""

import logging
import threading
import time

from edge.health.meters import Meters
from edge.sources.base import Trouble

_log = logging.getLogger(__name__)

_INTERVAL_S = 10.0
_MAX_REPEATS, _MAX_LINES = 3, 100


class TroubleLog:
    """Logs a trouble at once when it is new, and then at most every ten seconds with the number since."""

    def __init__(self, meters: Meters) -> None:
        self._meters = meters
        self._due_s: dict[str, float] = {}
        self._num_untold: dict[str, int] = {}

    def add(self, trouble: Trouble) -> None:
        """Count a trouble under its counter."""
        name = trouble.counter
        self._meters.count_trouble(name)
        self._num_untold[name] = self._num_untold.get(name, 0) + 1
        now_s = time.monotonic()
        if now_s >= self._due_s.get(name, now_s):
            number = self._num_untold.pop(name)
            since = f", {number} since the last such line" if number > 1 else ""
            _log.warning("%s (%s%s)", trouble.message, name, since)
            self._due_s[name] = now_s + _INTERVAL_S


class RepeatFilter(logging.Filter):
    """Lets the same line through three times in ten seconds: a source that comes and goes must not fill the disk."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[float, int]] = {}
        """By line: since when it is counted, and how often it came since."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is logged; the next one that is says how many were not."""
        text, now_s = record.getMessage(), time.monotonic()
        with self._lock:
            since_s, number = self._seen.get(text, (now_s, 0))
            if now_s - since_s < _INTERVAL_S:
                self._seen[text] = since_s, number + 1
                self._forget(now_s)
                return number < _MAX_REPEATS
            self._seen[text] = now_s, 1
        if number > _MAX_REPEATS:
            record.msg, record.args = f"{text} ({number - _MAX_REPEATS} more since the last such line)", ()
        return True

    def _forget(self, now_s: float) -> None:
        if len(self._seen) > _MAX_LINES:
            self._seen = {text: seen for text, seen in self._seen.items() if now_s - seen[0] < _INTERVAL_S}
