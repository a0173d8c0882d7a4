"""Whether the stream has paused for so long that the next image is another patient's."""

import time

from edge.prediction import State

_PAUSES = (State.FROZEN, State.NO_SIGNAL)


class PauseWatch:
    """Follows the stream's states. Warming up is neither a pause nor its end."""

    def __init__(self, limit_s: float) -> None:
        """Start without a pause; one that lasts `limit_s` is long."""
        self._limit_s = limit_s
        self._start: tuple[float, int] | None = None
        """Monotonic s and wall ns."""

    def see(self, state: State) -> None:
        """Take in the state now."""
        if state is State.LIVE:
            self._start = None
        elif state in _PAUSES and self._start is None:
            self._start = time.monotonic(), time.time_ns()

    @property
    def long_since_wall_ns(self) -> int | None:
        """When the pause began that is long by now; None where there is none."""
        if self._start is None or time.monotonic() - self._start[0] < self._limit_s:
            return None
        return self._start[1]
