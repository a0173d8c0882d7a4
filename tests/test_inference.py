"""The clip queue and the inference loop: which windows are inferred, which are skipped, and that each is whole.

Only the engine is a fake: it records which frames stand in its ring, and can be held in the middle of an inference.
"""

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from edge.errors import EngineError
from edge.health.meters import Meters
from edge.health.stream_state import StreamState
from edge.inference import ClipFrame, ClipQueue, InferenceLoop
from edge.prediction import Prediction, State
from edge.window import WindowSampler
from engines import Engine, EngineOutput, EngineSpec

WAIT_S = 10.0
NUM_FRAMES = 4
GRID_MS = 40.0
SIZE = (8, 8)


class RecordingEngine(Engine):
    """An engine that knows frames by their number, and waits for `go` in every inference when it is told to."""

    def __init__(self, num_frames: int = NUM_FRAMES, *, is_held: bool = False) -> None:
        self.spec = EngineSpec("recording", "00" * 32, "none", "fp32", "none", (num_frames, 1, 1, 1), ("no", "yes"))
        self.inferred: list[list[int]] = []
        self.is_inferring = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self._is_held = is_held
        self._ring: list[int] = []

    def push(self, frame_chw: np.ndarray) -> None:
        self._ring = [*self._ring, int(frame_chw[0, 0, 0])][-self.spec.clip_tchw[0] :]

    def infer(self) -> EngineOutput:
        if len(self._ring) < self.spec.clip_tchw[0]:
            raise EngineError("the ring is not full")
        self.inferred.append(self._ring)
        if self._is_held:
            self.is_inferring.release()
            assert self.go.acquire(timeout=WAIT_S)
        return EngineOutput(np.array([0.25, 0.75], np.float32), np.ones((len(self._ring), 2, 2), np.float32))

    def reset(self) -> None:
        self._ring = []

    def close(self) -> None: ...


class DeferringEngine(RecordingEngine):
    """An engine that is not done with a window before its output is asked for."""

    def __init__(self, max_in_flight: int) -> None:
        super().__init__()
        self.max_in_flight = max_in_flight
        self.num_in_flight = 0
        self.most_in_flight = 0

    def submit(self) -> Callable[[], EngineOutput]:
        self.num_in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.num_in_flight)
        number = len(self.inferred)
        output = self.infer()

        def wait() -> EngineOutput:
            assert len(self.inferred) - self.num_in_flight == number  # in the order of the submissions
            self.num_in_flight -= 1
            return output

        return wait

    def reset(self) -> None:
        assert self.num_in_flight == 0
        super().reset()


class Feed:
    """Puts frames into a queue as the capture thread does, numbered from 0."""

    def __init__(self, queue: ClipQueue, hop: int = 1, num_frames: int = NUM_FRAMES) -> None:
        self._queue = queue
        self._sampler = WindowSampler(num_frames, GRID_MS, hop)
        self._t_media_ns = 0
        self.num_put = 0
        self.num_due = 0
        self.last_due: int | None = None

    def put(self, number: int = 1, *, gap_ms: float = 0.0) -> None:
        """Put frames on the clip's grid, the first one after a gap."""
        self._t_media_ns += round(gap_ms * 1e6)
        for _ in range(number):
            choice = self._sampler.add(self.num_put, self._t_media_ns, SIZE)
            assert choice.is_in_clip
            if choice.window is not None:
                self.num_due += 1
                self.last_due = self.num_put
            self._queue.put(
                ClipFrame(
                    index=self.num_put,
                    frame_chw=np.full((1, 1, 1), self.num_put, np.float32),
                    window=choice.window,
                    visible_rect=(1, 2, 3, 4),
                    t_capture_ns=1000 + self.num_put,
                    t_wall_ns=2000 + self.num_put,
                    capture_ms=0.5,
                    preprocess_ms=0.25,
                    t_ready_ns=time.monotonic_ns(),
                    reset_reason=choice.reset_reason,
                )
            )
            self.num_put += 1
            self._t_media_ns += round(GRID_MS * 1e6)


@dataclasses.dataclass
class Running:
    """An inference loop in a thread of its own, and what it gave."""

    engine: RecordingEngine
    queue: ClipQueue
    meters: Meters
    feed: Feed
    predictions: list[Prediction]
    states: list[tuple[State, str]]
    errors: list[Exception]
    thread: threading.Thread

    def end(self, *, discard: bool = False) -> None:
        """Let the held engine go on, and wait for the end."""
        self.queue.finish(discard=discard)
        self.engine.go.release(10_000)
        self.join()

    def join(self) -> None:
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive()

    def wait_for_inference(self) -> None:
        assert self.engine.is_inferring.acquire(timeout=WAIT_S)

    def assert_windows_are_whole(self) -> None:
        """Each inference saw exactly its window's frames, in order."""
        assert len(self.engine.inferred) == len(self.predictions)
        for frames, prediction in zip(self.engine.inferred, self.predictions, strict=True):
            window = prediction.window
            assert frames == list(range(window.first_index, window.last_index + 1))

    def assert_all_due_are_counted(self) -> None:
        counters = self.meters.counters
        assert counters["inferred"] == len(self.predictions)
        assert counters["inferred"] + counters["skipped"] == self.feed.num_due


Start = Callable[..., Running]


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts an inference loop; it is ended after the test."""
    started: list[Running] = []

    def start_loop(
        *,
        is_held: bool = False,
        is_lossless: bool = False,
        hop: int = 1,
        num_frames: int = NUM_FRAMES,
        max_windows: int | None = None,
        engine: RecordingEngine | None = None,
    ) -> Running:
        engine, meters = engine or RecordingEngine(num_frames, is_held=is_held), Meters()
        queue = ClipQueue(num_frames, hop, is_lossless=is_lossless)
        predictions: list[Prediction] = []
        states: list[tuple[State, str]] = []
        errors: list[Exception] = []
        loop = InferenceLoop(
            engine,
            queue,
            meters,
            is_lossless=is_lossless,
            on_prediction=predictions.append,
            states=StreamState(lambda state, reason: states.append((state, reason))),
        )

        def run() -> None:
            try:
                loop.run(max_windows)
            except EngineError as exc:
                errors.append(exc)

        thread = threading.Thread(target=run, name="inference under test")
        feed = Feed(queue, hop, num_frames)
        running = Running(engine, queue, meters, feed, predictions, states, errors, thread)
        started.append(running)
        thread.start()
        return running

    yield start_loop
    for running in started:
        running.end(discard=True)


def test_loop_prediction_carries_the_newest_frames_times_and_the_engines_output(start: Start) -> None:
    running = start(is_lossless=True)
    t_start_ns = time.monotonic_ns()
    running.feed.put(NUM_FRAMES)
    running.end()
    elapsed_ms = (time.monotonic_ns() - t_start_ns) / 1e6
    (prediction,) = running.predictions
    assert (prediction.window.first_index, prediction.window.last_index) == (0, NUM_FRAMES - 1)
    assert (prediction.t_capture_ns, prediction.t_wall_ns) == (1000 + NUM_FRAMES - 1, 2000 + NUM_FRAMES - 1)
    assert prediction.visible_rect == (1, 2, 3, 4)
    assert prediction.probabilities.tolist() == [0.25, 0.75]
    assert prediction.heatmap.shape == (NUM_FRAMES, 2, 2)
    assert (prediction.latency_ms.capture, prediction.latency_ms.preprocess) == (0.5, 0.25)
    assert min(prediction.latency_ms.queue, prediction.latency_ms.infer) >= 0
    assert prediction.latency_ms.queue + prediction.latency_ms.infer <= elapsed_ms
    assert (prediction.state, prediction.num_skipped) == (State.LIVE, 0)


def test_loop_with_fewer_frames_than_a_clip_gives_nothing(start: Start) -> None:
    running = start()
    running.feed.put(NUM_FRAMES - 1)
    running.end()
    assert (running.predictions, running.states) == ([], [])
    assert running.meters.counters["skipped"] == 0


@pytest.mark.parametrize("hop", [1, 3, 7])
def test_lossless_infers_every_due_window_in_order(start: Start, hop: int) -> None:
    running = start(is_lossless=True, hop=hop)
    running.feed.put(200)
    running.feed.put(100, gap_ms=5000)
    running.end()
    assert len(running.predictions) == running.feed.num_due
    assert running.meters.counters["skipped"] == 0
    running.assert_windows_are_whole()
    assert [prediction.window.last_index for prediction in running.predictions] == [
        *range(NUM_FRAMES - 1, 200, hop),
        *range(200 + NUM_FRAMES - 1, 300, hop),
    ]


@pytest.mark.parametrize("max_in_flight", [1, 2, 5])
def test_lossless_has_as_many_windows_in_flight_as_the_engine_can(start: Start, max_in_flight: int) -> None:
    engine = DeferringEngine(max_in_flight)
    running = start(is_lossless=True, engine=engine)
    running.feed.put(200)
    running.feed.put(100, gap_ms=5000)
    running.end()
    assert engine.most_in_flight == max_in_flight
    assert engine.num_in_flight == 0
    running.assert_windows_are_whole()
    assert len(running.predictions) == running.feed.num_due
    assert running.states[-2:] == [(State.WARMUP, "no frame came for 5040 ms"), (State.LIVE, "")]


def test_lossless_hands_on_what_is_in_flight_when_no_frame_follows(start: Start) -> None:
    engine = DeferringEngine(max_in_flight=5)
    running = start(is_lossless=True, engine=engine, max_windows=1)
    running.feed.put(NUM_FRAMES)  # one window, and no end of the stream
    running.join()
    assert len(running.predictions) == 1


def test_live_has_one_window_in_flight_whatever_the_engine_can(start: Start) -> None:
    engine = DeferringEngine(max_in_flight=5)
    running = start(engine=engine)
    running.feed.put(100)
    running.end()
    assert engine.most_in_flight == 1


def test_lossless_put_waits_for_room_and_goes_on_when_there_is_some(start: Start) -> None:
    running = start(is_lossless=True, is_held=True)
    putter = threading.Thread(target=running.feed.put, args=(100,))
    putter.start()
    running.wait_for_inference()  # held in its first window: nothing more is taken
    assert running.feed.num_put <= 3 * 8  # what the loop took, what the queue holds, and what waits to be put
    running.engine.go.release(1000)
    putter.join(WAIT_S)
    running.end()
    assert len(running.predictions) == 100 - NUM_FRAMES + 1
    running.assert_windows_are_whole()


@pytest.mark.parametrize("hop", [1, 2, 5])
@pytest.mark.parametrize("num_new", [1, 3, 4, 5, 9, 40, 1000])
def test_live_newest_window_wins_and_all_others_are_counted(start: Start, hop: int, num_new: int) -> None:
    running = start(is_held=True, hop=hop)
    running.feed.put(NUM_FRAMES)
    running.wait_for_inference()
    for _ in range(3):
        num_due = running.feed.num_due
        running.feed.put(num_new)  # never waits, however slow the engine is
        running.engine.go.release()
        if running.feed.num_due > num_due:
            running.wait_for_inference()
            assert running.engine.inferred[-1][-1] == running.feed.last_due
        else:
            running.feed.put(hop)
            running.wait_for_inference()
    running.end()
    running.assert_windows_are_whole()
    running.assert_all_due_are_counted()


@pytest.mark.parametrize("num_new", [1, 3, 40])
def test_live_stop_while_the_engine_is_busy_counts_what_was_never_looked_at(start: Start, num_new: int) -> None:
    running = start(is_held=True)
    running.feed.put(NUM_FRAMES)
    running.wait_for_inference()
    running.feed.put(num_new)
    running.end(discard=True)
    assert len(running.predictions) == 1
    assert running.meters.counters["skipped"] == num_new
    running.assert_all_due_are_counted()


def test_lossless_stop_skips_nothing(start: Start) -> None:
    running = start(is_held=True, is_lossless=True)
    running.feed.put(NUM_FRAMES)
    running.wait_for_inference()
    running.feed.put(3)
    running.end(discard=True)
    assert running.meters.counters["skipped"] == 0


def test_live_prediction_tells_the_windows_skipped_just_before_it(start: Start) -> None:
    running = start(is_held=True)
    running.feed.put(NUM_FRAMES)
    running.wait_for_inference()
    running.feed.put(50)
    running.engine.go.release()
    running.wait_for_inference()
    running.feed.put(1)
    running.engine.go.release()
    running.wait_for_inference()
    running.end()
    assert [prediction.num_skipped for prediction in running.predictions] == [0, 49, 0]


@pytest.mark.parametrize("num_after", [0, 1, NUM_FRAMES - 1, NUM_FRAMES, NUM_FRAMES + 1, 30])
@pytest.mark.parametrize("num_before", [0, 1, 5, 30])
def test_live_reset_in_the_middle_of_an_overflow_is_never_spanned(
    start: Start, num_before: int, num_after: int
) -> None:
    running = start(is_held=True)
    running.feed.put(NUM_FRAMES)
    running.wait_for_inference()
    running.feed.put(num_before)
    first_new = running.feed.num_put
    running.feed.put(1 + num_after, gap_ms=5000)
    running.end()
    running.assert_windows_are_whole()
    running.assert_all_due_are_counted()
    for frames in running.engine.inferred:
        assert frames[-1] < first_new or frames[0] >= first_new
    assert (State.WARMUP, "no frame came for 5040 ms") in running.states


@pytest.mark.parametrize("seed", range(20))
def test_live_random_loads_keep_windows_whole_and_counts_exact(start: Start, seed: int) -> None:
    rng = np.random.default_rng(seed)
    hop, num_frames = int(rng.integers(1, 6)), int(rng.integers(1, 8))
    running = start(is_held=True, hop=hop, num_frames=num_frames)
    for _ in range(100):
        running.feed.put(int(rng.integers(1, 12)), gap_ms=float(rng.choice([0, 5000], p=[0.9, 0.1])))
        if rng.random() < 0.7:
            running.engine.go.release()
    running.end()
    assert running.engine.inferred[-1][-1] == running.feed.last_due
    running.assert_windows_are_whole()
    running.assert_all_due_are_counted()


def test_loop_tells_live_before_the_prediction_and_warmup_after_a_reset(start: Start) -> None:
    running = start(is_lossless=True)
    running.feed.put(NUM_FRAMES)
    running.feed.put(NUM_FRAMES - 1, gap_ms=5000)
    running.end()
    assert running.states == [(State.LIVE, ""), (State.WARMUP, "no frame came for 5040 ms")]


@pytest.mark.parametrize("is_lossless", [False, True])
@pytest.mark.parametrize("max_windows", [1, 2, 17])
def test_loop_ends_after_exactly_max_windows(start: Start, max_windows: int, is_lossless: bool) -> None:
    running = start(is_lossless=is_lossless, is_held=True, max_windows=max_windows)
    running.feed.put(NUM_FRAMES - 1)
    for _ in range(max_windows):
        running.feed.put(1)
        running.wait_for_inference()
        running.engine.go.release()
    running.join()
    assert len(running.predictions) == len(running.engine.inferred) == max_windows
    assert running.meters.counters["inferred"] == max_windows


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        *((name, value, "not finite") for name in ("probabilities", "heatmap") for value in (np.nan, np.inf, -np.inf)),
        ("probabilities", -0.25, "probabilities beyond 0 to 1 ([0.25, -0.25])"),
        ("probabilities", 1.25, "probabilities beyond 0 to 1 ([0.25, 1.25])"),
    ],
)
def test_loop_engine_output_that_is_nonsense_is_an_engine_error(
    start: Start, monkeypatch: pytest.MonkeyPatch, name: str, value: float, said: str
) -> None:
    running = start(is_lossless=True)
    infer = running.engine.infer

    def infer_wrongly() -> EngineOutput:
        output = infer()
        getattr(output, name).flat[-1] = value
        return output

    monkeypatch.setattr(running.engine, "infer", infer_wrongly)
    running.feed.put(NUM_FRAMES)
    running.join()
    (error,) = running.errors
    assert f"{said} for frames 0 to 3" in str(error)
    assert running.predictions == []


def test_queue_take_returns_all_that_is_there_and_none_at_the_end() -> None:
    queue = ClipQueue(NUM_FRAMES, 1, is_lossless=False)
    Feed(queue).put(3)
    queue.finish()
    taken = queue.take()
    assert taken is not None
    assert ([frame.t_capture_ns for frame in taken[0]], taken[1]) == ([1000, 1001, 1002], 0)
    assert queue.take() is None
    assert queue.take() is None


def test_queue_finish_with_discard_drops_what_waits() -> None:
    queue = ClipQueue(NUM_FRAMES, 1, is_lossless=False)
    Feed(queue).put(3)
    queue.finish(discard=True)
    assert queue.take() is None


def test_queue_finish_wakes_a_waiting_take() -> None:
    queue = ClipQueue(NUM_FRAMES, 1, is_lossless=False)
    taken: list[object] = ["nothing yet"]
    taker = threading.Thread(target=lambda: taken.append(queue.take()))
    taker.start()
    queue.finish()
    taker.join(WAIT_S)
    assert taken[1:] == [None]


@pytest.mark.parametrize("discard", [False, True])
def test_queue_finish_wakes_a_waiting_put(discard: bool) -> None:
    queue = ClipQueue(NUM_FRAMES, 1, is_lossless=True)
    feed = Feed(queue)
    feed.put(8)  # it is full now, and nobody takes
    putter = threading.Thread(target=feed.put, args=(1000,))
    putter.start()
    queue.finish(discard=discard)
    putter.join(WAIT_S)
    assert not putter.is_alive()


def test_queue_live_holds_no_more_than_a_window_and_a_hop() -> None:
    queue = ClipQueue(NUM_FRAMES, 3, is_lossless=False)
    feed = Feed(queue, hop=3)
    feed.put(100)
    queue.finish()
    taken = queue.take()
    assert taken is not None
    frames, num_lost = taken
    assert len(frames) == NUM_FRAMES + 3
    num_left = sum(frame.window is not None for frame in frames)
    assert num_left >= 1
    assert num_lost + num_left == feed.num_due
