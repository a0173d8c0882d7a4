"""Counts what live sources leave out, and logs it now and then."""

import logging
import time

from edge.meters import Meters
from edge.sources.base import Trouble

_log = logging.getLogger(__name__)

_INTERVAL_S = 10.0


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
            _log.warning("%s (%s: %d more)", trouble.message, name, self._num_untold.pop(name))
            self._due_s[name] = now_s + _INTERVAL_S
