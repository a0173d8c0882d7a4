"""From clip frames to predictions: the queue between the capture and inference threads, and the inference loop."""

import collections
import dataclasses
import functools
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edge.errors import EngineError
from edge.health.heartbeat import Heart
from edge.health.meters import Meters
from edge.health.stream_state import StreamState
from edge.prediction import Latency, Prediction, State
from edge.sources.base import Rect
from edge.window import Window
from engines import MAX_PROBABILITY, Engine, EngineOutput

_LOSSLESS_DEPTH = 8


@dataclasses.dataclass(slots=True, eq=False)
class ClipFrame:
    """A preprocessed frame on its way into the engine's ring."""

    index: int
    """The frame's position in the stream."""
    frame_chw: npt.NDArray[np.float32]
    """(C, H', W') in [0, 1]; of another type where whoever captures asked for it."""
    window: Window | None
    """The window that ends here, where one is due."""
    visible_rect: Rect
    t_capture_ns: int
    t_wall_ns: int
    capture_ms: float
    preprocess_ms: float
    t_ready_ns: int
    """Monotonic time when preprocessing ended."""
    reset_reason: str | None = None
    """Why the ring must be emptied first; None where the stream goes on."""
    epoch: int = 0
    """How often the stream had been interrupted; the first frame of an epoch has a reason for a reset."""
    object_id: str | None = None
    """Of the stored object that it belongs to; None where the source has none."""


class ClipQueue:
    """Carries clip frames from the capture thread to the inference thread.

    Live, `put` never waits: when the inference is slow the oldest frame falls out, and enough stay for the newest
    window to be whole. Lossless, `put` waits for room.
    """

    def __init__(self, num_frames: int, hop: int, *, is_lossless: bool) -> None:
        self._depth = _LOSSLESS_DEPTH if is_lossless else num_frames + hop
        self._num_frames = num_frames
        self._is_lossless = is_lossless
        self._frames: collections.deque[ClipFrame] = collections.deque()
        self._num_lost_windows = 0
        self._is_finished = False
        self._is_drained = False
        self._changed = threading.Condition()

    def put(self, frame: ClipFrame) -> None:
        """Add the newest frame."""
        with self._changed:
            while self._is_lossless and len(self._frames) >= self._depth and not self._is_finished:
                self._changed.wait()
            if self._is_finished:
                return
            if len(self._frames) >= self._depth:
                self._drop_oldest()
            self._frames.append(frame)
            self._changed.notify_all()

    def take(self) -> tuple[list[ClipFrame], int] | None:
        """Wait for frames and take all that are there; None at the end.

        Returns:
            The frames, oldest first, and the number of due windows that fell out since the last call; at the end no
            frames where some fell out, once.
        """
        with self._changed:
            while not self._frames and not self._is_finished:
                self._is_drained = True
                self._changed.notify_all()
                self._changed.wait()
            self._is_drained = False
            if not self._frames and not self._num_lost_windows:
                return None
            frames, num_lost = list(self._frames), self._num_lost_windows
            self._frames.clear()
            self._num_lost_windows = 0
            self._changed.notify_all()
            return frames, num_lost

    @property
    def is_empty(self) -> bool:
        """Whether `take` would have to wait, or return None."""
        return not self._frames

    def drain(self) -> bool:
        """Wait until all that was put is worked off: until `take` waits for more.

        Returns:
            False where the queue was finished first.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_finished or (self._is_drained and not self._frames))
            return not self._is_finished

    def finish(self, *, discard: bool = False) -> None:
        """Let `take` return None once the queue is empty; `discard` empties it now, and live counts what it held."""
        with self._changed:
            self._is_finished = True
            if discard:
                if not self._is_lossless:  # where nothing is skipped, the stop is all that there is to tell
                    self._num_lost_windows += sum(frame.window is not None for frame in self._frames)
                self._frames.clear()
            self._changed.notify_all()

    def _drop_oldest(self) -> None:
        """Make room. The ring no longer joins on to what is left: windows that would need it are given up."""
        dropped = self._frames.popleft()
        self._num_lost_windows += dropped.window is not None
        self._frames[0].reset_reason = self._frames[0].reset_reason or dropped.reset_reason
        for frame in itertools.islice(self._frames, self._num_frames - 1):
            self._num_lost_windows += frame.window is not None
            frame.window = None


class _Submitted(NamedTuple):
    """A window in flight."""

    frame: ClipFrame
    window: Window
    t_start_ns: int
    wait: Callable[[], EngineOutput]


class InferenceLoop:
    """Feeds the engine's ring and turns due windows into predictions. Runs in the inference thread.

    Live, one window is in flight, for then it is done soonest. Lossless, as many as the engine can use: while one
    window's prediction is handed on the cores already work on the next.
    """

    def __init__(
        self,
        engine: Engine,
        queue: ClipQueue,
        meters: Meters,
        *,
        is_lossless: bool,
        on_prediction: Callable[[Prediction], None],
        states: StreamState,
        heart: Heart | None = None,
        first_epoch: int = 0,
    ) -> None:
        self._engine = engine
        self._queue = queue
        self._meters = meters
        self._is_lossless = is_lossless
        self._max_in_flight = engine.max_in_flight if is_lossless else 1
        self._in_flight: collections.deque[_Submitted] = collections.deque()
        self._on_prediction = on_prediction
        self._states = states
        self._heart = heart or Heart("inference")
        self._first_epoch = first_epoch
        self._num_skipped = 0

    def run(self, max_windows: int | None = None) -> int:
        """Run until the queue ends, or until `max_windows` predictions were told; return how many were."""
        num_told = 0
        for epoch, prediction in self._predictions():
            hand_over = functools.partial(self._on_prediction, prediction)
            if not self._states.tell(epoch, State.LIVE, "", hand_over):
                self._skip(1)
                continue
            num_told += 1
            if num_told == max_windows:
                break
        return num_told

    def _predictions(self) -> Iterator[tuple[int, Prediction]]:
        while (taken := self._take()) is not None:
            frames, num_lost = taken
            self._skip(num_lost)
            frames = self._without_old(frames)
            due = [place for place, frame in enumerate(frames) if frame.window is not None]
            for place, frame in enumerate(frames):
                if frame.reset_reason is not None:
                    yield from self._finish(0)
                    self._engine.reset()
                    self._states.tell(frame.epoch, State.WARMUP, frame.reset_reason)
                self._heart.beat()
                t_start_ns = time.monotonic_ns()
                self._engine.push(frame.frame_chw)
                if frame.window is None:
                    continue
                if self._is_lossless or place == due[-1]:
                    self._in_flight.append(_Submitted(frame, frame.window, t_start_ns, self._engine.submit()))
                    yield from self._finish(self._max_in_flight - 1)
                else:
                    self._skip(1)
            if self._queue.is_empty:  # nothing is held back while the next frame is waited for
                yield from self._finish(0)

    def _take(self) -> tuple[list[ClipFrame], int] | None:
        self._heart.rest()
        taken = self._queue.take()
        self._heart.beat()
        return taken

    def _without_old(self, frames: list[ClipFrame]) -> list[ClipFrame]:
        """Leave out frames from before an interruption: nobody would be told their windows."""
        epoch = max(self._states.epoch, self._first_epoch)
        self._skip(sum(frame.window is not None for frame in frames if frame.epoch != epoch))
        return [frame for frame in frames if frame.epoch == epoch]

    def _finish(self, num_left: int) -> Iterator[tuple[int, Prediction]]:
        """Wait for the oldest windows in flight until no more than `num_left` are."""
        while len(self._in_flight) > num_left:
            submitted = self._in_flight.popleft()
            yield submitted.frame.epoch, self._prediction(submitted)

    def _skip(self, number: int) -> None:
        self._num_skipped += number
        self._meters.count("skipped", number)

    def _prediction(self, submitted: _Submitted) -> Prediction:
        frame, window, t_start_ns, wait = submitted
        output = wait()
        infer_ms = (time.monotonic_ns() - t_start_ns) / 1e6
        if (trouble := _nonsense_in(output)) is not None:
            raise EngineError(
                f"engine {self._engine.spec.name} gave {trouble} for frames {window.first_index} to "
                f"{window.last_index}; the model or its precision is at fault: run it with another backend"
            )
        self._meters.count("inferred")
        num_skipped, self._num_skipped = self._num_skipped, 0
        return Prediction(
            window=window,
            num_skipped=num_skipped,
            probabilities=output.probabilities,
            heatmap=output.heatmap,
            visible_rect=frame.visible_rect,
            t_capture_ns=frame.t_capture_ns,
            t_wall_ns=frame.t_wall_ns,
            object_id=frame.object_id,
            latency_ms=Latency(
                capture=frame.capture_ms,
                preprocess=frame.preprocess_ms,
                queue=(t_start_ns - frame.t_ready_ns) / 1e6,
                infer=infer_ms,
            ),
        )


def _nonsense_in(output: EngineOutput) -> str | None:
    """Return what no network's result can hold."""
    if not (np.isfinite(output.probabilities).all() and np.isfinite(output.heatmap).all()):
        return "a number that is not finite"
    if output.probabilities.min() < 0 or output.probabilities.max() > MAX_PROBABILITY:
        return f"probabilities beyond 0 to 1 ({output.probabilities.tolist()})"
    return None
