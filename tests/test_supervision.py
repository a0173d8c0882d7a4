"""Stages that die or are stuck, what systemd is told, and the unit that makes it listen."""

import configparser
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edge.config import Config
from edge.errors import EngineError, SourceError
from edge.frame import Frame
from edge.health.heartbeat import Heart, RestartBudget, stuck_heart
from edge.health.meters import Meters
from edge.health.systemd import Notifier
from edge.pipeline import Pipeline
from edge.prediction import State
from edge.publish import Publisher
from edge.sources.base import LiveItem, Pause, SourceInfo
from engines import Engine, EngineOutput, load_bundle, load_engine

DEADLINE_S = 60.0
INTERVAL_S = 0.01
UNIT = Path(__file__).parent.parent / "deploy" / "edge-infer.service"


class Camera:
    """A live source of endless moving images, 40 ms apart on its own clock; `meet(index)` may do what it likes."""

    info = SourceInfo("camera", 40.0, is_live=True)

    def __init__(self, meet: Callable[[int], None] = lambda _: None) -> None:
        self._meet = meet
        self._closed = threading.Event()
        self._index = 0

    def frames(self) -> Iterator[LiveItem]:
        while not self._closed.wait(INTERVAL_S):
            self._meet(self._index)
            self._index += 1
            pixels = np.random.default_rng(self._index).integers(0, 255, (64, 64), np.uint8)
            yield Frame(pixels, 0, self._index * 40_000_000, time.monotonic_ns(), 0)
        yield Pause("")

    def close(self) -> None:
        self._closed.set()


class DyingEngine(Engine):
    """A real engine that dies in its first so many inferences."""

    num_left = 0

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.spec = engine.spec

    def infer(self) -> EngineOutput:
        if DyingEngine.num_left > 0:
            DyingEngine.num_left -= 1
            raise RuntimeError("the device is lost")
        return self._engine.infer()

    def push(self, frame_chw: np.ndarray) -> None:
        self._engine.push(frame_chw)

    def reset(self) -> None:
        self._engine.reset()

    def close(self) -> None:
        self._engine.close()


def _pipeline(bundle: Path, source: Camera, **options: object) -> tuple[Pipeline, Publisher, Meters]:
    config = Config(source="camera", engine=str(bundle), roi="full", **options)  # type: ignore[arg-type]
    meters = Meters()
    publisher = Publisher("tcp://127.0.0.1:*", "main", meters)
    return Pipeline(config, load_bundle(bundle), source, publisher, meters), publisher, meters


def _dying_at(*indices: int) -> Callable[[int], None]:
    left = list(indices)

    def meet(index: int) -> None:
        if left and index >= left[0]:
            left.pop(0)
            raise ValueError("a bug in a driver's binding")

    return meet


def test_capture_that_dies_starts_again(trivial_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipeline, _, meters = _pipeline(trivial_bundle, Camera(_dying_at(5, 10)), max_windows=3)
    pipeline.run()
    assert (meters.counters["restarts"], meters.counters["reconnects"]) == (2, 2)
    assert "the capture died of ValueError (a bug in a driver's binding) and starts again" in caplog.text


def test_capture_that_dies_again_and_again_ends_with_the_sources_code(trivial_bundle: Path) -> None:
    pipeline, publisher, meters = _pipeline(trivial_bundle, Camera(_dying_at(*range(100))))
    with pytest.raises(SourceError, match="again and again") as caught:
        pipeline.run()
    assert (caught.value.exit_code, meters.counters["restarts"]) == (3, 3)
    assert publisher.last_word[0] is State.FAULT


@pytest.mark.parametrize(("num_deaths", "is_lost"), [(1, False), (3, False), (4, True)])
def test_engine_that_dies_is_loaded_again_three_times(
    num_deaths: int, is_lost: bool, trivial_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.pipeline.load_engine", lambda *args, **named: DyingEngine(load_engine(*args, **named)))
    monkeypatch.setattr(DyingEngine, "num_left", num_deaths)
    pipeline, publisher, meters = _pipeline(trivial_bundle, Camera(), max_windows=5)
    states: list[tuple[State, str]] = []
    monkeypatch.setattr(publisher, "_change_state", lambda *state: states.append(state))
    if is_lost:
        with pytest.raises(EngineError, match="the inference died of RuntimeError again and again") as caught:
            pipeline.run()
        assert caught.value.exit_code == 4
    else:
        pipeline.run()
        assert (State.FAULT, "the inference died of RuntimeError") in states
        assert meters.counters["published"] == 5
    assert meters.counters["restarts"] == min(num_deaths, 3)


def test_capture_that_is_stuck_ends_the_stream_though_its_thread_lives(
    trivial_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.pipeline._CAPTURE_LIMIT_S", 0.5)
    release = threading.Event()

    def hang(index: int) -> None:
        if index == 20:
            release.wait(DEADLINE_S)

    pipeline, publisher, _ = _pipeline(trivial_bundle, Camera(hang))
    try:
        with pytest.raises(SourceError, match=r"the capture has not moved for 0\.5 s"):
            pipeline.run()
    finally:
        release.set()
    assert publisher.last_word[0] is State.FAULT


def test_heart_that_rests_is_never_stuck() -> None:
    heart = Heart("capture", limit_s=0.0)
    assert not heart.is_stuck
    heart.beat()
    deadline_s = time.monotonic() + 1
    while not heart.is_stuck:
        assert time.monotonic() < deadline_s
    assert stuck_heart([Heart("other", 0.0), heart]) is heart
    heart.rest()
    assert stuck_heart([heart]) is None


def test_restart_budget_comes_back_with_time() -> None:
    assert [RestartBudget(2, span_s=3600).take() for _ in range(1)] == [True]
    budget = RestartBudget(2, span_s=3600)
    assert [budget.take() for _ in range(4)] == [True, True, False, False]
    budget = RestartBudget(2, span_s=0.0)
    assert [budget.take() for _ in range(4)] == [True] * 4


@pytest.fixture
def notify_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Listen where systemd would."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(DEADLINE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listener


def _messages(listener: socket.socket) -> list[str]:
    """Return all that has come."""
    listener.setblocking(False)
    found = []
    try:
        while True:
            found.append(listener.recv(4096).decode())
    except BlockingIOError:
        return found


def test_systemd_is_told_start_life_state_and_end(notify_socket: socket.socket, trivial_bundle: Path) -> None:
    environment = {**os.environ, "WATCHDOG_USEC": "300000"}
    command = [sys.executable, "-m", "edge.cli", "--source", "demo", "--engine", str(trivial_bundle)]
    address = f"ipc://{notify_socket.getsockname()}.zmq"
    with subprocess.Popen([*command, "--publish", address], env=environment, stderr=subprocess.DEVNULL) as process:
        told: list[str] = []
        while sum("WATCHDOG=1" in message for message in told) < 5 or not any("STATUS=LIVE" in one for one in told):
            told.append(notify_socket.recv(4096).decode())
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0
    assert told.index("READY=1") < next(place for place, message in enumerate(told) if "STATUS=LIVE" in message)
    assert _messages(notify_socket)[-1] == "STOPPING=1"


def test_watchdog_is_silent_once_a_stage_is_stuck(
    notify_socket: socket.socket, trivial_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000")
    monkeypatch.setattr("edge.pipeline._CAPTURE_LIMIT_S", 0.3)
    release = threading.Event()
    hung_s: list[float] = []

    def hang(index: int) -> None:
        if index == 20:
            hung_s.append(time.monotonic())
            release.wait(DEADLINE_S)

    told: list[tuple[float, str]] = []

    def listen() -> None:
        while not told or told[-1][1] != "STOPPING=1":
            told.append((time.monotonic(), notify_socket.recv(4096).decode()))

    listener = threading.Thread(target=listen)
    listener.start()
    pipeline, _, _ = _pipeline(trivial_bundle, Camera(hang))
    try:
        with pytest.raises(SourceError):
            pipeline.run()
    finally:
        release.set()
        listener.join(DEADLINE_S)
    alive_s = [t_s for t_s, message in told if "WATCHDOG=1" in message]
    assert len(alive_s) > 5
    assert max(alive_s) < hung_s[0] + 0.3 + 0.5
    assert told[-1][1] == "STOPPING=1"


def test_notifier_without_systemd_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC"):
        monkeypatch.delenv(name, raising=False)
    notifier = Notifier()
    notifier.ready()
    notifier.alive("LIVE")
    assert notifier.interval_s is None


def test_notifier_whose_systemd_is_gone_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    Notifier().ready()


def test_notifier_knows_abstract_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"edge-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        Notifier().ready()
        assert listener.recv(100) == b"READY=1"


def test_watchdog_of_another_process_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert Notifier().interval_s is None


def test_unit_asks_for_what_the_daemon_tells() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(UNIT)
    service = unit["Service"]
    assert (service["Type"], service["Restart"], service["RestartPreventExitStatus"]) == ("notify", "always", "2")
    assert float(service["WatchdogSec"].removesuffix("s")) > 10  # longer than a stage may work without a sign of life
