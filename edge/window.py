"""Which frames enter the clip, and when a window is due: decided by time alone."""

import collections
import dataclasses
import itertools
import statistics

_NUM_INTERVALS_REMEMBERED = 15
_GAP_FACTOR = 4.0
_MIN_GAP_INTERVALS = 10.0

NEW_OBJECT = "a new object begins"
"""The one reason for a reset that nothing is wrong with."""


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """A clip's place in the stream."""

    first_index: int
    """Index of the oldest frame in the clip."""
    last_index: int
    """Index of the newest frame in the clip."""
    span_ms: float
    """Media time from the oldest to the newest frame."""
    max_gap_ms: float
    """Longest media time between two neighbouring frames of the clip."""


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """What becomes of one frame."""

    is_in_clip: bool
    """The frame goes into the ring."""
    reset_reason: str | None = None
    """Why the ring must be emptied before this frame, which then is in the clip; None where it goes on."""
    window: Window | None = None
    """The window that ends at this frame, where one is due."""


class WindowSampler:
    """Samples a stream on the clip's time grid.

    A frame enters the clip when it is the one nearest to the grid's next time, as far as that can be known without
    waiting for the frame after it. A source slower than the grid gives each of its frames once. With a grid of 40 ms:

        frames at 0, 20, 40, 60, 80 ms    in the clip: 0, 40, 80
        frames at 0, 30, 60, 90, 120 ms   in the clip: 0, 30, 90, 120
        frames at 0, 50, 100 ms           in the clip: all

    A pause, a change of size, a new object, or a clock that goes back empties the clip: no window spans it.
    """

    def __init__(self, num_frames: int, frame_interval_ms: float, hop: int) -> None:
        """Start empty.

        Args:
            num_frames: T, the clip's length.
            frame_interval_ms: The clip's time grid.
            hop: Number of new clip frames between two windows, >= 1.
        """
        self._num_frames = num_frames
        self._interval_ms = frame_interval_ms
        self._hop = hop
        self._clip: collections.deque[tuple[int, float]] = collections.deque(maxlen=num_frames)
        self._intervals_ms: collections.deque[float] = collections.deque(maxlen=_NUM_INTERVALS_REMEMBERED)
        self._num_since_reset = 0
        self._next_due_ms = 0.0
        self._last_ms: float | None = None
        self._interruption: str | None = None
        self._size_wh: tuple[int, int] | None = None
        self._object_id: str | None = None

    def add(self, index: int, t_media_ns: int, size_wh: tuple[int, int], object_id: str | None = None) -> Choice:
        """Decide on the next frame of the stream, of the stored object of this id if it belongs to one."""
        now_ms = t_media_ns / 1e6
        reason = self._new_object(object_id) or self._interruption or self._discontinuity(now_ms, size_wh)
        self._interruption = None
        self._remember(now_ms, size_wh)
        if reason is not None:
            self.reset()
        if self._clip and now_ms < self._next_due_ms - self._tolerance_ms():
            return Choice(is_in_clip=False)
        self._take(index, now_ms)
        return Choice(is_in_clip=True, reset_reason=reason, window=self._window_if_due())

    def interrupt(self, reason: str) -> None:
        """Let the next frame start a new clip, for a reason that the frames themselves do not show."""
        self._interruption = reason
        self._last_ms = None

    def reset(self) -> None:
        """Empty the clip; the next frame starts a new grid."""
        self._clip.clear()
        self._num_since_reset = 0

    def _new_object(self, object_id: str | None) -> str | None:
        if object_id == self._object_id:
            return None
        is_first = self._last_ms is None and self._interruption is None
        self._object_id = object_id
        self._intervals_ms.clear()  # it has a rate of its own
        self._last_ms = None
        return None if is_first else NEW_OBJECT

    def _discontinuity(self, now_ms: float, size_wh: tuple[int, int]) -> str | None:
        if self._last_ms is None:
            return None
        if size_wh != self._size_wh:
            (old_width, old_height), (width, height) = self._size_wh or size_wh, size_wh
            return f"the image size changed from {old_width}x{old_height} to {width}x{height}"
        gap_ms = now_ms - self._last_ms
        if gap_ms <= 0:
            return f"the source's clock went back by {abs(gap_ms):.0f} ms"
        if gap_ms > self._max_gap_ms():
            return f"no frame came for {gap_ms:.0f} ms"
        return None

    def _remember(self, now_ms: float, size_wh: tuple[int, int]) -> None:
        # gaps are remembered too: a source that has become slower for good is a gap only until that is its usual rate
        if self._last_ms is not None and now_ms > self._last_ms:
            self._intervals_ms.append(now_ms - self._last_ms)
        self._last_ms, self._size_wh = now_ms, size_wh

    def _tolerance_ms(self) -> float:
        """Return how early a frame may be and still be nearer to the grid's time than the next one is likely to be."""
        return min(statistics.median(self._intervals_ms), self._interval_ms) / 2

    def _max_gap_ms(self) -> float:
        usual_ms = statistics.median(self._intervals_ms) if self._intervals_ms else float("inf")
        return max(_MIN_GAP_INTERVALS * self._interval_ms, _GAP_FACTOR * usual_ms)

    def _take(self, index: int, now_ms: float) -> None:
        is_off_grid = not self._clip or now_ms >= self._next_due_ms + self._interval_ms
        self._next_due_ms = (now_ms if is_off_grid else self._next_due_ms) + self._interval_ms
        self._clip.append((index, now_ms))
        self._num_since_reset += 1

    def _window_if_due(self) -> Window | None:
        num_over = self._num_since_reset - self._num_frames
        if num_over < 0 or num_over % self._hop:
            return None
        times_ms = [time_ms for _, time_ms in self._clip]
        gaps_ms = [later - earlier for earlier, later in itertools.pairwise(times_ms)]
        return Window(
            first_index=self._clip[0][0],
            last_index=self._clip[-1][0],
            span_ms=times_ms[-1] - times_ms[0],
            max_gap_ms=max(gaps_ms, default=0.0),
        )
