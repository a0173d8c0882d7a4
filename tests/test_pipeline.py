"""The supervisor: what ends a run, and what is said of it."""

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.config import Config
from edge.errors import SourceError
from edge.frame import Frame
from edge.health.meters import Meters
from edge.pipeline import Pipeline
from edge.prediction import State
from edge.publish import Publisher
from edge.sources import open_source
from edge.sources.base import SourceInfo
from engines import load_bundle

STREAM = "main"


class LostSource:
    """A source that is lost after its first frames."""

    info = SourceInfo("DOE_JANE.mp4", 33.3, is_live=False, kind="video file")

    def __init__(self, num_frames: int = 0) -> None:
        self._num_frames = num_frames

    def frames(self) -> Iterator[Frame]:
        for index in range(self._num_frames):
            pixels = np.random.default_rng(index).integers(0, 255, (64, 64), np.uint8)
            yield Frame(pixels, index, index * 33_000_000, t_capture_ns=time.monotonic_ns(), t_wall_ns=time.time_ns())
        raise SourceError("DOE_JANE.mp4: the cable is out; plug it in")

    def close(self) -> None:
        pass


def _pipeline(bundle: Path, source: object = None, **options: object) -> tuple[Pipeline, Publisher]:
    config = Config(source="demo", engine=str(bundle), pace="max", **options)  # type: ignore[arg-type]
    meters = Meters()
    publisher = Publisher("tcp://127.0.0.1:*", STREAM, meters)
    return Pipeline(config, load_bundle(bundle), source or open_source("demo"), publisher, meters), publisher


def test_pipeline_whose_source_is_lost_says_so_in_its_last_state(trivial_bundle: Path) -> None:
    pipeline, publisher = _pipeline(trivial_bundle, LostSource())

    with pytest.raises(SourceError, match="plug it in"):
        pipeline.run()
    assert publisher.last_word == (State.FAULT, "video file: the cable is out; plug it in")


def test_pipeline_whose_source_is_lost_publishes_what_came_before(
    trivial_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, publisher = _pipeline(trivial_bundle, LostSource(num_frames=40))
    published: list[int] = []
    monkeypatch.setattr(
        publisher, "publish_prediction", lambda prediction, **_: published.append(prediction.window.last_index)
    )

    with pytest.raises(SourceError, match="plug it in"):
        pipeline.run()
    assert published == list(range(15, 40))


def test_pipeline_whose_publisher_dies_ends_with_what_killed_it(
    trivial_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, publisher = _pipeline(trivial_bundle)
    monkeypatch.setattr(publisher, "_send_prediction", lambda *_: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        pipeline.run()


def test_pipeline_stopped_before_it_runs_ends_at_once(trivial_bundle: Path) -> None:
    pipeline, publisher = _pipeline(trivial_bundle)
    pipeline.stop("stopped by a test")

    pipeline.run()
    assert publisher.last_word == (State.NO_SIGNAL, "stopped by a test")


def test_pipeline_stopped_after_its_end_does_nothing(trivial_bundle: Path) -> None:
    pipeline, publisher = _pipeline(trivial_bundle, max_windows=3)
    pipeline.run()

    pipeline.stop("too late")
    assert publisher.last_word == (State.NO_SIGNAL, "--max-windows 3 is reached")


def test_pipeline_signal_that_another_thread_takes_ends_the_wait(
    trivial_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.pipeline.STATUS_INTERVAL_S", 3600.0)  # what the wait would last otherwise
    pipeline, publisher = _pipeline(trivial_bundle)
    publish = publisher.publish_prediction
    waiting = threading.Event()

    def send_signal() -> None:
        waiting.wait()
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    def publish_and_tell(*arguments: Any, **named: Any) -> None:
        publish(*arguments, **named)
        waiting.set()

    monkeypatch.setattr(publisher, "publish_prediction", publish_and_tell)
    before = signal.signal(signal.SIGUSR1, lambda *_: pipeline.stop("stopped by a signal"))
    thread = threading.Thread(target=send_signal)
    thread.start()
    try:
        pipeline.run()
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)

    assert publisher.last_word == (State.NO_SIGNAL, "stopped by a signal")
    assert signal.set_wakeup_fd(-1) == -1


def test_pipeline_status_file_that_cannot_be_written_is_told_once(
    trivial_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline, _ = _pipeline(trivial_bundle, max_windows=3, status_file=str(tmp_path / "missing" / "status.json"))
    pipeline.run()

    assert caplog.text.count("cannot be written") == 1
