"""Which state the stream is in: told by several threads, in an order that the bedside can trust."""

import threading
from collections.abc import Callable

from edge.prediction import State

Tell = Callable[[State, str], None]


class StreamState:
    """Keeps a prediction from being told after what ended its window.

    An interruption (the image froze, the source was lost) begins a new epoch. Whoever tells something of the stream
    says of which epoch it is; what is of an older one is not told any more.
    """

    def __init__(self, tell: Tell) -> None:
        """Start in epoch 0.

        Args:
            tell: Is given each state and its reason; must not wait.
        """
        self._tell = tell
        self._lock = threading.Lock()
        self._told: tuple[State, str] | None = None
        self._epoch = 0

    @property
    def epoch(self) -> int:
        """How often the stream was interrupted."""
        return self._epoch

    def interrupt(self, state: State, reason: str) -> int:
        """Tell a state that ends all windows so far; return the new epoch."""
        with self._lock:
            self._epoch += 1
            self._say(state, reason)
            return self._epoch

    def tell(self, epoch: int, state: State, reason: str, then: Callable[[], None] | None = None) -> bool:
        """Tell a state, and then hand over what carries it, unless the stream was interrupted since this epoch.

        Returns:
            Whether it was told.
        """
        with self._lock:
            if epoch != self._epoch:
                return False
            self._say(state, reason)
            if then is not None:
                then()
            return True

    def _say(self, state: State, reason: str) -> None:
        if (state, reason) != self._told:
            self._told = state, reason
            self._tell(state, reason)
