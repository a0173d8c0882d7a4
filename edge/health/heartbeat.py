"""Whether the stages of the pipeline still live, and how often one may be started again."""

import collections
import time
from collections.abc import Iterable

_NEVER_S = float("inf")


class Heart:
    """One stage's sign of life: it beats while it works, and rests while it waits for others.

    Written by the stage's own thread, read by the supervisor.
    """

    def __init__(self, stage: str, limit_s: float = _NEVER_S) -> None:
        """Start at rest.

        Args:
            stage: What it is called when it is told.
            limit_s: How long it may work without a beat.
        """
        self.stage = stage
        self.limit_s = limit_s
        self._t_s: float | None = None

    def beat(self) -> None:
        """Say that the stage lives, and works on."""
        self._t_s = time.monotonic()

    def rest(self) -> None:
        """Say that the stage waits for something that may take as long as it likes."""
        self._t_s = None

    @property
    def is_stuck(self) -> bool:
        """Whether the stage should have beaten again by now."""
        t_s = self._t_s
        return t_s is not None and time.monotonic() - t_s > self.limit_s


def stuck_heart(hearts: Iterable[Heart]) -> Heart | None:
    """Return a heart that beats no more, if there is one."""
    return next((heart for heart in hearts if heart.is_stuck), None)


class RestartBudget:
    """How often something that dies may be started again: a few times in a while, then it is broken."""

    def __init__(self, max_restarts: int, span_s: float) -> None:
        self._span_s = span_s
        self._times_s: collections.deque[float] = collections.deque(maxlen=max_restarts)

    def take(self) -> bool:
        """Return whether one more restart is allowed, and count it if so."""
        now_s = time.monotonic()
        is_full = len(self._times_s) == self._times_s.maxlen
        if is_full and now_s - self._times_s[0] < self._span_s:
            return False
        self._times_s.append(now_s)
        return True
