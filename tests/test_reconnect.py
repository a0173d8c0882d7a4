"""Losses, pauses and troubles of live sources: what is told, what is counted, and that no window spans them.

The sources are scripts; the pipeline, its threads and the publisher are the real ones.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.config import Config
from edge.errors import SourceError, SourceLost
from edge.frame import Frame
from edge.health.meters import Meters
from edge.health.stream_state import StreamState
from edge.pipeline import Pipeline
from edge.prediction import Prediction, State
from edge.publish import Publisher
from edge.reconnect import play_through_losses
from edge.sources.base import LiveItem, Pause, SourceInfo, Trouble
from engines import load_bundle

INTERVAL_NS = 40_000_000
Step = int | Pause | Trouble | SourceError
"""So many frames, or what else a source meets."""


class ScriptedSource:
    """A live source that does as each connection's script says."""

    info = SourceInfo("rtsp://name:secret@host/path", 40.0, is_live=True, kind="network video")

    def __init__(self, *connections: Sequence[Step]) -> None:
        self._connections = iter(connections)
        self._t_ns = time.monotonic_ns()

    def frames(self) -> Iterator[LiveItem]:
        index = 0
        for step in next(self._connections, ()):
            if isinstance(step, SourceError):
                raise step
            if not isinstance(step, int):
                yield step
                continue
            for _ in range(step):
                self._t_ns += INTERVAL_NS
                pixels = np.random.default_rng(self._t_ns).integers(0, 255, (64, 64), np.uint8)
                yield Frame(pixels, index, self._t_ns, self._t_ns, 0)
                index += 1

    def close(self) -> None: ...


class Heard:
    """What a pipeline over a scripted source told, in order."""

    def __init__(self, bundle: Path, *connections: Sequence[Step], monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[tuple[State, str] | tuple[int, int]] = []
        self.meters = Meters()
        publisher = Publisher("tcp://127.0.0.1:*", "main", self.meters)
        change_state, send = publisher._change_state, publisher._send_prediction

        def told_state(state: State, reason: str) -> None:
            self.told.append((state, reason))
            change_state(state, reason)

        def told_prediction(prediction: Prediction, *rest: Any) -> None:
            self.told.append((prediction.window.first_index, prediction.window.last_index))
            send(prediction, *rest)

        monkeypatch.setattr(publisher, "_change_state", told_state)
        monkeypatch.setattr(publisher, "_send_prediction", told_prediction)
        config = Config(source="demo", engine=str(bundle), roi="full")
        source = ScriptedSource(*connections)
        self.pipeline = Pipeline(config, load_bundle(bundle), source, publisher, self.meters)

    @property
    def states(self) -> list[tuple[State, str]]:
        return [entry for entry in self.told if isinstance(entry[0], State)]  # type: ignore[misc]

    @property
    def windows(self) -> list[tuple[int, int]]:
        return [entry for entry in self.told if not isinstance(entry[0], State)]  # type: ignore[misc]


def test_source_that_is_lost_is_opened_again_and_indices_go_on(
    trivial_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = SourceLost("the cable is out")
    heard = Heard(trivial_bundle, [20, lost], [lost], [20], monkeypatch=monkeypatch)
    heard.pipeline.run()

    assert (State.NO_SIGNAL, "the cable is out") in heard.states
    place = heard.told.index((State.NO_SIGNAL, "the cable is out"))
    assert heard.told[place + 1] == (State.WARMUP, "it begins anew after: the cable is out")
    assert all(last < 20 or first >= 20 for first, last in heard.windows)
    assert heard.windows[-1] == (24, 39)
    counters = heard.meters.counters
    assert (counters["losses"], counters["reconnects"], counters["captured"]) == (2, 1, 40)


def test_source_with_a_fault_is_told_as_such(trivial_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard(
        trivial_bundle,
        [SourceLost("rtsp://name:secret@host/path is broken", is_fault=True)],
        [1],
        monkeypatch=monkeypatch,
    )
    heard.pipeline.run()
    assert (State.FAULT, "network video is broken") in heard.states


def test_source_lost_for_good_ends_the_stream(trivial_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard(trivial_bundle, [3, SourceLost("out")], [SourceError("gone; buy another")], monkeypatch=monkeypatch)
    with pytest.raises(SourceError, match="buy another"):
        heard.pipeline.run()


def test_pause_is_told_once_and_spanned_by_no_window(trivial_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = [Pause("no signal")] * 3
    heard = Heard(trivial_bundle, [20, Pause(""), *waits, 20], monkeypatch=monkeypatch)
    heard.pipeline.run()

    assert heard.states.count((State.NO_SIGNAL, "no signal")) == 1
    assert all(last < 20 or first >= 20 for first, last in heard.windows)
    assert heard.windows[-1] == (24, 39)
    assert heard.meters.counters["reconnects"] == 0


def test_short_pause_without_a_reason_changes_nothing(trivial_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard(trivial_bundle, [10, Pause(""), 10], monkeypatch=monkeypatch)
    heard.pipeline.run()
    assert heard.windows[-1] == (4, 19)


def test_pause_after_something_complete_lets_its_predictions_out_first(
    trivial_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard(trivial_bundle, [16, Pause("the next one, please", is_end=True)] * 3, monkeypatch=monkeypatch)
    heard.pipeline.run()
    assert heard.windows == [(0, 15), (16, 31), (32, 47)]
    told = [entry for entry in heard.told if entry[0] is not State.WARMUP]
    end = State.NO_SIGNAL, "the next one, please"
    live = State.LIVE, ""
    assert told == [live, (0, 15), end, live, (16, 31), end, live, (32, 47), end]


def test_troubles_are_counted_and_told_once_in_ten_seconds(
    trivial_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    heard = Heard(trivial_bundle, [Trouble("bad_frames", "a frame is damaged"), 1] * 50, monkeypatch=monkeypatch)
    heard.pipeline.run()
    assert heard.meters.counters["bad_frames"] == 50
    assert caplog.text.count("a frame is damaged") == 1


def test_stream_state_tells_nothing_of_an_older_epoch() -> None:
    told: list[object] = []
    states = StreamState(lambda state, reason: told.append((state, reason)))
    assert states.tell(0, State.LIVE, "", lambda: told.append("prediction"))
    epoch = states.interrupt(State.FROZEN, "still")
    assert not states.tell(0, State.LIVE, "", lambda: told.append("too late"))
    assert states.tell(epoch, State.WARMUP, "it moves")
    assert told == [(State.LIVE, ""), "prediction", (State.FROZEN, "still"), (State.WARMUP, "it moves")]


def test_retry_waits_longer_each_time_and_starts_short_after_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0.0)
            return False

    num_frames = iter([0, 0, 0, 0, 0, 0, 0, 5, 5, 5])
    outcomes = iter([True] * 7 + [False])

    def play() -> None:
        if next(outcomes):
            raise SourceLost("out")

    play_through_losses(play, lambda _: None, Stop(), lambda: next(num_frames))
    assert waits == [0.05, 0.1, 0.2, 0.3, 0.3, 0.3, 0.05]


def test_log_is_told_a_loss_again_only_for_another_reason_or_after_frames(caplog: pytest.LogCaptureFixture) -> None:
    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            return False

    losses = iter(["out", "out", "refused", "refused", "refused"])
    num_frames = iter([0, 0, 0, 0, 0, 7])  # before all, and at each loss: frames came before the last one

    def play() -> None:
        if (reason := next(losses, None)) is not None:
            raise SourceLost(reason)

    play_through_losses(play, lambda _: None, Stop(), lambda: next(num_frames, 7))
    assert caplog.messages == [f"{reason}; trying again" for reason in ("out", "refused", "refused")]


def _used() -> tuple[int, int, int]:
    """Return the numbers of threads, descriptors and resident bytes of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return threading.active_count(), len(list(Path("/proc/self/fd").iterdir())), pages * 4096


@pytest.mark.slow
def test_thousand_losses_leave_no_memory_threads_or_descriptors(
    trivial_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("edge.reconnect.MIN_WAIT_S", 0.0)
    caplog.set_level("CRITICAL")  # the records that pytest keeps would grow
    used: list[tuple[int, int, int]] = []

    def scripts() -> Iterator[Sequence[Step]]:
        for number in range(1000):  # made one by one: a loss that is kept keeps its frames
            yield [3, Pause("no signal"), 18, SourceLost("out", is_fault=number % 2 == 0)]
        yield [20]

    class Faulty(ScriptedSource):
        def __init__(self) -> None:
            super().__init__()
            self._connections = scripts()

        def frames(self) -> Iterator[LiveItem]:
            used.append(_used())
            del heard.told[:-100]  # the test's own notes are not to be measured
            yield from super().frames()

    monkeypatch.setattr("test_reconnect.ScriptedSource", Faulty)
    heard = Heard(trivial_bundle, monkeypatch=monkeypatch)
    heard.pipeline.run()

    counters = heard.meters.counters
    assert (counters["losses"], counters["reconnects"], counters["captured"]) == (1000, 1000, 21_020)
    assert heard.windows[-1] == (21_004, 21_019)
    threads, descriptors, memory = zip(*used, strict=True)
    assert set(threads[100:]) == {threads[100]}
    assert set(descriptors[100:]) == {descriptors[100]}
    assert memory[-1] - memory[200] < 4 * 2**20
