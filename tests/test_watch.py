"""edge-watch as a process, against a real publisher."""

import contextlib
import io
import json
import math
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from small_publisher import DEADLINE_MS, ENGINE, ROI, SmallPublisher, heatmap

from edge.client import Subscriber
from edge.commandline import NOTICE
from edge.evidence import Evidence
from edge.picture import _place, overlay
from edge.prediction import State
from edge.watch.state import WatchState
from edge.watch.view import render
from edge.wire import encode

DEADLINE_S = DEADLINE_MS / 1e3
WATCH = [sys.executable, "-m", "edge.watch.cli"]


@pytest.fixture
def publisher() -> Iterator[SmallPublisher]:
    with SmallPublisher() as publisher:
        yield publisher


@contextlib.contextmanager
def _watching(
    publisher: SmallPublisher, *arguments: str, num_topics: int = 2, **options: object
) -> Iterator[subprocess.Popen[str]]:
    """Start edge-watch and wait until it listens; end it whatever happens."""
    process = subprocess.Popen(
        [*WATCH, "--connect", publisher.address, *arguments],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options},
    )
    try:
        publisher.wait_for_subscriptions(num_topics)
        yield process
    finally:
        process.kill()
        process.communicate()


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*WATCH, *arguments], capture_output=True, text=True, timeout=DEADLINE_S, check=False)


def _strict(line: str) -> object:
    def refuse(constant: str) -> object:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(line, parse_constant=refuse)


def test_json_prints_the_wires_keys_unchanged_in_order_and_ends_with_the_daemon(publisher: SmallPublisher) -> None:
    with _watching(publisher, "--json") as process:
        headers = [publisher.send_status(State.WARMUP, "waiting"), publisher.send_prediction(later={"key": [1, None]})]
        headers += [publisher.send_prediction(value / 300) for value in range(300)]
        headers += [publisher.send_status(State.NO_SIGNAL, "the source ended")]
        publisher.close()
        out, err = process.communicate(timeout=DEADLINE_S)
    assert [_strict(line) for line in out.splitlines()] == headers
    assert (process.returncode, err) == (0, "")


def test_json_with_heatmap_adds_nested_lists(publisher: SmallPublisher) -> None:
    with _watching(publisher, "--json", "--heatmap", "--count", "1") as process:
        header = publisher.send_prediction()
        out, _ = process.communicate(timeout=DEADLINE_S)
    printed = json.loads(out)
    np.testing.assert_array_equal(printed["heatmap"].pop("values"), heatmap())
    assert printed == header


def test_json_number_that_is_not_finite_becomes_null(publisher: SmallPublisher) -> None:
    with _watching(publisher, "--json", "--count", "1") as process:
        publisher.send_prediction(later=[math.nan, math.inf, None, True, b"\x01\xff", "text"])
        out, _ = process.communicate(timeout=DEADLINE_S)
    printed = _strict(out)
    assert isinstance(printed, dict)
    assert printed["later"] == [None, None, None, True, "01ff", "text"]


def test_json_line_comes_out_at_once(publisher: SmallPublisher) -> None:
    with _watching(publisher, "--json") as process:
        assert process.stdout is not None
        for _ in range(2):
            header = publisher.send_prediction()
            assert json.loads(process.stdout.readline()) == header


def test_json_count_ends_after_that_many_predictions(publisher: SmallPublisher) -> None:
    with _watching(publisher, "--json", "--count", "3") as process:
        for _ in range(5):
            publisher.send_status()
            publisher.send_prediction()
        out, _ = process.communicate(timeout=DEADLINE_S)
    printed = [json.loads(line) for line in out.splitlines()]
    assert [header.get("seq", "status") for header in printed] == ["status", 0, "status", 1, "status", 2]
    assert process.returncode == 0


def test_json_on_a_full_disk_ends_with_one_line(publisher: SmallPublisher) -> None:
    with Path("/dev/full").open("w") as full_disk, _watching(publisher, "--json", stdout=full_disk) as process:
        publisher.send_prediction()
        _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1
    assert err == "error: the output cannot be written (No space left on device); make room on its disk\n"


def _without(closed: str) -> list[str]:
    return ["sh", "-c", f'exec "$0" "$@" {closed}', *WATCH]


def test_json_with_its_output_closed_ends_without_a_traceback(publisher: SmallPublisher) -> None:
    command = [*_without(">&-"), "--json", "--count", "1", "--connect", publisher.address]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        publisher.wait_for_subscriptions(2)
        publisher.send_prediction()
        _, stderr = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, stderr) == (0, "")


def test_json_with_stderr_closed_prints_no_error_among_its_lines() -> None:
    command = [*_without("2>&-"), "--json", "--count", "0"]
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=DEADLINE_S, check=False)
    assert (done.returncode, done.stdout) == (2, b"")


def test_count_that_is_no_number_is_one_line() -> None:
    done = _run("--count", "many")
    assert done.returncode == 2
    assert done.stderr == "error: argument --count: 'many' is no whole number; see edge-watch --help\n"


def test_json_count_not_reached_when_the_daemon_ends_is_an_error(publisher: SmallPublisher) -> None:
    with _watching(publisher, "--json", "--count", "3") as process:
        publisher.send_prediction()
        publisher.send_status(State.NO_SIGNAL, "the source ended")
        publisher.close()
        _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 3
    assert err == "error: the daemon ended (the source ended) after 1 of the 3 predictions asked for\n"


def test_json_daemon_lost_without_a_last_word_keeps_waiting_for_the_next(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/edge"
    first = SmallPublisher(address)
    with _watching(first, "--json") as process:
        assert process.stdout is not None
        first.send_prediction()
        assert json.loads(process.stdout.readline())["seq"] == 0
        first.close()
        with SmallPublisher(address, "second") as second:
            second.wait_for_subscriptions(2)
            second.send_prediction()
            assert json.loads(process.stdout.readline())["stream"] == "second"


def test_json_reader_of_the_pipe_that_leaves_ends_it_quietly(publisher: SmallPublisher) -> None:
    with _watching(publisher, "--json") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        deadline_s = time.monotonic() + DEADLINE_S
        while process.poll() is None and time.monotonic() < deadline_s:
            publisher.send_prediction()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
        assert process.returncode == 0
        assert process.stderr.read() == ""
        process.stdout = None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_json_signal_ends_it_with_whole_lines(publisher: SmallPublisher, number: signal.Signals) -> None:
    with _watching(publisher, "--json") as process:
        assert process.stdout is not None
        publisher.send_prediction()
        assert json.loads(process.stdout.readline())["seq"] == 0
        process.send_signal(number)
        out, err = process.communicate(timeout=DEADLINE_S)
    assert all(json.loads(line) for line in out.splitlines())
    assert (process.returncode, err) == (0, "")


def test_timeout_where_nobody_publishes_is_exit_code_3() -> None:
    result = _run("--connect", "tcp://127.0.0.1:9", "--json", "--timeout", "0.2")
    assert (result.returncode, result.stdout) == (3, "")
    assert re.fullmatch(r"error: nobody publishes at tcp://127\.0\.0\.1:9 \(waited 0\.2 s\).*\n", result.stderr)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--count", "0"], "--count is 0; it must be 1 or more"),
        (["--timeout", "-1"], "--timeout is -1.0; it must be above 0"),
        (["--connect", "localhost"], "'localhost' is not an address"),
        (["--snapshot", "/nowhere/a.png"], "--snapshot is /nowhere/a.png"),
        (["--heatmap"], "--heatmap goes with --json"),
        (["--curve", "/nowhere"], "key folder /nowhere: no such folder"),
        (["--steram", "x"], "unrecognized arguments"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments: list[str], said: str) -> None:
    result = _run(*arguments)
    assert result.returncode == 2
    assert re.fullmatch(f"error: .*{re.escape(said)}.*\n", result.stderr)


def test_pipe_prints_plain_lines_without_control_codes(publisher: SmallPublisher) -> None:
    with _watching(publisher) as process:
        publisher.send_status(State.WARMUP, "waiting for 16 frames \x1b[31m")
        publisher.send_prediction(0.875)
        publisher.send_status(State.LIVE)
        publisher.send_status(State.NO_SIGNAL, "the source ended")
        publisher.close()
        out, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, err) == (0, "")
    assert NOTICE in out.splitlines()[0]
    assert "metastasis 87.5% (positive: at or above the threshold 50.0%) | keyframe -5 frames, x 216 y 100 px" in out
    assert out.splitlines()[-1].startswith("last: NO_SIGNAL: the source ended; the daemon has ended")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", out)


def _in_terminal(publisher: SmallPublisher, columns: int, rows: int) -> tuple[subprocess.Popen[str], int]:
    main_fd, process_fd = pty.openpty()
    import fcntl
    import termios

    fcntl.ioctl(process_fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    for name in ("COLUMNS", "LINES", "NO_COLOR"):
        environment.pop(name, None)
    process = subprocess.Popen(
        [*WATCH, "--connect", publisher.address],
        stdout=process_fd,
        stdin=process_fd,
        stderr=process_fd,
        env=environment,
    )
    os.close(process_fd)
    return process, main_fd


def _read_until(fd: int, wanted: str) -> str:
    text = ""
    while wanted not in text:
        try:
            text += os.read(fd, 65536).decode(errors="replace")
        except OSError:  # the terminal's other end is closed
            break
    return text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_terminal_view_ends_with_the_terminal_restored(publisher: SmallPublisher, number: signal.Signals) -> None:
    process, fd = _in_terminal(publisher, 80, 24)
    try:
        publisher.wait_for_subscriptions(2)
        publisher.send_prediction(0.875)
        shown = _read_until(fd, "POSITIVE")
        assert shown.startswith("\x1b[?1049h") or "\x1b[?1049h" in shown
        process.send_signal(number)
        rest = _read_until(fd, "nothing")
        assert process.wait(DEADLINE_S) == 0
        assert rest.index("\x1b[?1049l") < rest.index(NOTICE + "\r\n")
        assert rest.rindex("\x1b[?25h") > rest.rfind("\x1b[?25l")
    finally:
        process.kill()
        process.wait()
        os.close(fd)


def _screen(state: WatchState, columns: int = 80, rows: int = 24) -> str:
    console = Console(width=columns, height=rows, file=io.StringIO(), record=True)
    console.print(render(state, columns, rows))
    return console.export_text()


@pytest.fixture
def state(publisher: SmallPublisher) -> Iterator[WatchState]:
    with Subscriber(publisher.address) as subscriber:
        publisher.wait_for_subscriptions(2)
        yield WatchState(subscriber)


def _take(state: WatchState, number: int) -> None:
    for _ in range(number):
        message = state.subscriber.receive(DEADLINE_S)
        assert message is not None
        state.add([message])


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (120, 40), (60, 20), (300, 100)])
def test_view_fits_the_screen_and_always_has_the_notice(
    publisher: SmallPublisher, state: WatchState, columns: int, rows: int
) -> None:
    publisher.send_status(source="a source with a long name " * 20)
    publisher.send_prediction(0.875)
    _take(state, 2)
    lines = _screen(state, columns, rows).splitlines()
    assert [len(line) for line in lines] == [columns] * rows
    assert NOTICE in lines[-1]


def test_view_live_shows_all_that_matters(publisher: SmallPublisher, state: WatchState) -> None:
    publisher.send_status()
    publisher.send_prediction(0.875, age_ms=0)
    _take(state, 2)
    screen = _screen(state)
    for wanted in ("● LIVE", "POSITIVE", "metastasis", "threshold 50.0%", "keyframe -5 frames", "x 216 y 100 px",
                   "p99      16.5", "captured        40", "skipped", ENGINE.name, "demo", "25.0 frames/s"):  # fmt: skip
        assert wanted in screen
    # the heatmap's row 2 has its peak in column 5, and weaker evidence on both sides
    assert "· · · · ░░██░░" in screen


def test_view_old_prediction_is_stale_and_not_to_be_relied_on(publisher: SmallPublisher, state: WatchState) -> None:
    publisher.send_status()
    publisher.send_prediction(0.875, age_ms=900)
    _take(state, 2)
    screen = _screen(state)
    assert "STALE  the newest prediction is 0.9 s old" in screen
    assert "do not rely on it" in screen
    assert "LIVE" not in screen


def test_view_says_that_a_recording_has_ended(publisher: SmallPublisher, state: WatchState) -> None:
    publisher.send_status(recording={"trouble": "No space left on device", "num_left_out": 0})
    publisher.send_prediction(age_ms=0)
    _take(state, 2)
    assert "LIVE  nothing is recorded any more: No space left" in _screen(state)


def test_view_frozen_status_overrules_the_prediction(publisher: SmallPublisher, state: WatchState) -> None:
    publisher.send_prediction()
    publisher.send_status(State.FROZEN, "the image stands still")
    _take(state, 2)
    assert "FROZEN  the image stands still" in _screen(state)


def test_view_where_nobody_publishes_says_so() -> None:
    with Subscriber("tcp://127.0.0.1:9") as subscriber:
        assert "NO DAEMON  nobody publishes at tcp://127.0.0.1:9; waiting" in _screen(WatchState(subscriber))


def test_view_after_the_daemon_ended_says_so(publisher: SmallPublisher, state: WatchState) -> None:
    publisher.send_prediction()
    publisher.send_status(State.NO_SIGNAL, "the source ended")
    _take(state, 2)
    publisher.close()
    assert state.subscriber.receive(DEADLINE_S) is None
    assert "NO_SIGNAL  the source ended; the daemon has ended" in _screen(state)


def test_snapshot_lays_the_heatmap_of_the_strongest_prediction_on_its_frame(
    publisher: SmallPublisher, tmp_path: Path
) -> None:
    path = tmp_path / "picture.png"
    with _watching(publisher, "--snapshot", str(path), num_topics=3) as process:
        for index in range(30):
            publisher.send_frame(index)
        for probability in (0.3, 0.9, 0.6):
            publisher.send_prediction(probability)
        publisher.send_status(State.NO_SIGNAL, "the source ended")
        publisher.close()
        _, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, err) == (0, "")
    with Image.open(path) as image:
        picture = np.asarray(image).astype(int)
    is_coloured = np.ptp(picture, axis=2) > 60
    # the frame is 264 pixels high and drawn 640 high, in the middle of the canvas and below the title
    scale, left = 640 / 264, (picture.shape[1] - 640) // 2
    rows, columns = np.nonzero(is_coloured[: picture.shape[0] - 220])
    top = _top_of_image(picture)
    center_x = (columns.mean() - left) / scale + ROI[0] - 20
    center_y = (rows.mean() - top) / scale + ROI[1] - 20
    assert (center_x, center_y) == pytest.approx((216, 100), abs=16)


def _top_of_image(picture: np.ndarray) -> int:
    """Return the first row of the gray ramp: bright at the frame's right edge."""
    right = (picture.shape[1] + 640) // 2 - 4
    return int(np.nonzero((picture[:, right] > 80).all(axis=1))[0][0])


@pytest.mark.parametrize(("index", "has_heat"), [(10, True), (3, False)])
def test_snapshot_draws_no_frame_with_the_heat_of_another(
    publisher: SmallPublisher, tmp_path: Path, index: int, has_heat: bool
) -> None:
    path = tmp_path / "picture.png"
    with _watching(publisher, "--snapshot", str(path), "--count", "1", num_topics=3) as process:
        publisher.send_frame(index)
        publisher.send_prediction(0.9)
        process.communicate(timeout=DEADLINE_S)
    with Image.open(path) as image:
        picture = np.asarray(image).astype(int)
    assert bool((np.ptp(picture[: picture.shape[0] - 220], axis=2) > 60).any()) is has_heat


def test_snapshot_of_a_frame_without_evidence_names_no_peak() -> None:
    place = _place(Evidence(np.zeros((7, 7), np.float32), (0, 0, 70, 70), 12, 3, (5, 5)))
    assert "frame 3, 12 before the newest" in place
    assert "no evidence in it" in place
    assert "peak" not in place
    assert "peak at x 5, y 5" in _place(Evidence(np.ones((7, 7), np.float32), (0, 0, 70, 70), 12, 3, (5, 5)))


def test_snapshot_without_frames_draws_the_heatmap_alone(publisher: SmallPublisher, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    with _watching(publisher, "--snapshot", str(path), "--count", "1", num_topics=3) as process:
        publisher.send_prediction(0.9)
        _, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, err) == (0, "")
    with Image.open(path) as picture:
        assert picture.width >= 640


def test_snapshot_without_a_prediction_warns(publisher: SmallPublisher, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    with _watching(publisher, "--snapshot", str(path), num_topics=3) as process:
        publisher.send_status(State.NO_SIGNAL, "the source ended")
        publisher.close()
        _, err = process.communicate(timeout=DEADLINE_S)
    assert err == f"warning: no prediction came: {path} is not written\n"
    assert not path.exists()


@pytest.mark.parametrize("rect", [(10, 20, 40, 30), (-20, -10, 60, 60), (80, 70, 50, 50), (200, 200, 9, 9)], ids=str)
def test_overlay_changes_the_rectangle_alone(rect: tuple[int, int, int, int]) -> None:
    image = np.full((100, 120, 3), 90, np.uint8)
    result = overlay(image, np.ones((7, 7), np.float32), rect)
    x, y, width, height = rect
    inside = np.zeros((100, 120), bool)
    inside[max(0, y) : max(0, y + height), max(0, x) : max(0, x + width)] = True
    assert ((result != image).any(axis=2) == inside).all()
    assert (image == 90).all()


def test_json_leaves_out_a_damaged_message_and_goes_on(publisher: SmallPublisher) -> None:
    with _watching(publisher, "--json", "--count", "1") as process:
        publisher.socket.send_multipart([b"prediction.main", b"\xc1"])
        publisher.socket.send_multipart(encode("prediction", {"v": 1, "stream": "main"}))
        publisher.send_prediction()
        out, err = process.communicate(timeout=DEADLINE_S)
    assert json.loads(out)["seq"] == 0
    assert err.startswith("warning: ")
    assert len(err.splitlines()) == 1


def test_json_newer_wire_version_is_refused(publisher: SmallPublisher) -> None:
    with _watching(publisher, "--json") as process:
        publisher.send_prediction(v=2)
        _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1
    assert err == "error: the message has wire version 2; this reader knows up to 1; update it\n"
