"""The log of a daemon that runs for days: what repeats itself is told now and then."""

import logging
from collections.abc import Iterator

import pytest

from edge.daemon import _set_up_logging
from edge.health.meters import Meters
from edge.health.troubles import TroubleLog
from edge.sources.base import Trouble


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("edge.health.troubles.time.monotonic", clock)
    return clock


@pytest.fixture(params=["text", "json"])
def log(request: pytest.FixtureRequest) -> Iterator[logging.Logger]:
    root = logging.getLogger("edge")
    before = root.handlers, root.level, root.propagate
    _set_up_logging(request.param)
    yield logging.getLogger("edge.test")
    root.handlers, root.level, root.propagate = before


def test_line_that_repeats_itself_is_logged_three_times_in_ten_seconds(
    log: logging.Logger, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(1000):
        clock.now_s = number / 100
        log.warning("%s is lost", "the source")
        log.info("%d frames", number)
    clock.now_s = 10.0
    log.warning("%s is lost", "the source")
    lines = capsys.readouterr().err.splitlines()
    assert sum("the source is lost" in line for line in lines) == 4
    assert "the source is lost (997 more since the last such line)" in lines[-1]
    assert sum("frames" in line for line in lines) == 1000


def test_line_that_comes_seldom_is_logged_each_time(
    log: logging.Logger, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(20):
        clock.now_s = 5.0 * number
        log.warning("the source is lost")
    assert capsys.readouterr().err.count("the source is lost") == 20


def test_troubles_are_told_with_their_number_since_the_last_line(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    troubles = TroubleLog(Meters())
    for now_s in (0.0, 1.0, 2.0, 10.0):
        clock.now_s = now_s
        troubles.add(Trouble("bad_frames", "a frame is damaged"))
    assert [record.message for record in caplog.records] == [
        "a frame is damaged (bad_frames)",
        "a frame is damaged (bad_frames, 3 since the last such line)",
    ]
