"""What waits between a thread that receives and one that is slower: where it grows too large, the oldest goes."""

import collections
import threading

from edge.messages import FrameMessage, PredictionMessage

Item = tuple[FrameMessage | PredictionMessage, str]
"""A message, and the state that was told when it came."""

_PREDICTION_BYTES = 4096
"""A header and a heatmap, roughly."""


class Backlog:
    """Pictures and predictions in the order in which they came; `put` never waits.

    Beyond `max_bytes` the oldest are left out, a picture with the predictions before and after it, and pictures are
    counted. The state travels with each message, so none is lost with what is left out.
    """

    def __init__(self, max_bytes: int) -> None:
        """Hold nothing yet."""
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._items: collections.deque[Item] = collections.deque()
        self._is_closed = False
        self._changed = threading.Condition()
        self.num_left_out = 0
        """Pictures."""

    @property
    def num_pictures(self) -> int:
        """Return how many pictures wait."""
        with self._changed:
            return sum(isinstance(message, FrameMessage) for message, _ in self._items)

    def put(self, item: Item) -> None:
        """Add a message."""
        with self._changed:
            self._items.append(item)
            self._num_bytes += _size_bytes(item)
            self._leave_out_beyond(self._max_bytes)
            self._changed.notify_all()

    def take(self) -> Item | None:
        """Wait for the oldest message and return it; None where it is closed and nothing waits."""
        with self._changed:
            while not self._items and not self._is_closed:
                self._changed.wait()
            return self._pop() if self._items else None

    def leave_out_all(self) -> None:
        """Let nobody wait for what waits."""
        with self._changed:
            self._leave_out_beyond(0)

    def close(self) -> None:
        """Say that nothing comes any more; idempotent."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _leave_out_beyond(self, max_bytes: int) -> None:
        while self._num_bytes > max_bytes:
            message, _ = self._pop()
            self.num_left_out += isinstance(message, FrameMessage)

    def _pop(self) -> Item:
        item = self._items.popleft()
        self._num_bytes -= _size_bytes(item)
        return item


def _size_bytes(item: Item) -> int:
    message, _ = item
    return len(message.jpeg) if isinstance(message, FrameMessage) else _PREDICTION_BYTES
