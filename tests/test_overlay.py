"""edge-watch --overlay: each picture of the video carries its own heatmap."""

import contextlib
import itertools
import math
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import zmq
from daemon import run_command
from media import write_video
from small_publisher import DEADLINE_MS, ROI, SmallPublisher

from edge.messages import Arrival, FrameMessage
from edge.prediction import State
from edge.watch.backlog import Backlog
from edge.watch.film import Film

DEADLINE_S = 60.0
STRIP_PX = 84
SIDE_PX = ROI[2] + 40  # of the publisher's pictures
SCALE = 480 / SIDE_PX  # pictures are enlarged to this width
FRAME_NS = 40_000_000


@pytest.fixture
def publisher() -> Iterator[SmallPublisher]:
    with SmallPublisher() as publisher:
        yield publisher


def _film(
    publisher: SmallPublisher, path: Path, play: Callable[[SmallPublisher], None]
) -> subprocess.CompletedProcess[str]:
    """Run edge-watch while a publisher plays something and ends."""
    command = [sys.executable, "-m", "edge.watch.cli", "--connect", publisher.address, "--overlay", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with contextlib.ExitStack() as stack:
        stack.callback(process.communicate)
        stack.callback(process.kill)
        publisher.wait_for_subscriptions(3)
        play(publisher)
        publisher.send_status(State.NO_SIGNAL, "the source ended")
        publisher.close()
        out, err = process.communicate(timeout=DEADLINE_S)
        return subprocess.CompletedProcess(command, process.returncode, out, err)
    raise AssertionError


def _send_frame(publisher: SmallPublisher, index: int) -> None:
    publisher.send_frame(index, t_capture_ns=10**9 + index * FRAME_NS)


def _play(publisher: SmallPublisher) -> None:
    publisher.send_status()
    publisher.send_prediction(0.25)
    for index in range(3, 21):
        _send_frame(publisher, index)
    publisher.seq = 2
    publisher.send_prediction(0.875)  # frames 2 to 17: maps 8 to 12 have a block of evidence, map 10 the peak


def _read(path: Path) -> tuple[list[np.ndarray], list[float]]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [frame.to_ndarray(format="rgb24") for frame in frames], [float(frame.time) for frame in frames]


def _colour(picture: np.ndarray) -> np.ndarray:
    """Return how colourful the image part is: the publisher's pictures are gray."""
    return np.ptp(picture[:-STRIP_PX].astype(int), axis=2)


def test_overlay_keeps_nothing_of_pictures_that_cannot_be_drawn(tmp_path: Path) -> None:
    film = Film(tmp_path / "a.mp4")
    for index in range(300):
        header = {"roi_px": [0, 0, 64, 64], "t_capture_ns": index * FRAME_NS, "t_wall_ns": 10**18}
        film.add(FrameMessage("main", index, b"no JPEG", header, Arrival(0, "", math.inf)), "LIVE")
    assert not film.close()
    assert film._states == {}


@pytest.mark.parametrize("hours", [-100, 40, 5_000_000])
def test_overlay_goes_on_behind_a_pause_that_no_file_holds_and_on_another_hosts_clock(
    tmp_path: Path, hours: int
) -> None:
    jpeg = bytes(cv2.imencode(".jpg", np.zeros((64, 64), np.uint8))[1].data)
    film = Film(tmp_path / "a.mp4")
    for index in range(8):
        t_ns = 10**18 + index * FRAME_NS + (index >= 4) * hours * 3600 * 10**9
        header = {"roi_px": [0, 0, 64, 64], "t_capture_ns": t_ns, "t_wall_ns": 10**18}
        film.add(FrameMessage("main", index, jpeg, header, Arrival(0, "", math.inf)), "LIVE")
    assert film.close()
    pictures, times_s = _read(tmp_path / "a.mp4")
    assert len(pictures) == 8
    assert np.diff(times_s).round(3).tolist() == [0.04, 0.04, 0.04, 0.001, 0.04, 0.04, 0.04]


def test_overlay_each_picture_has_its_own_heatmap_in_its_place(publisher: SmallPublisher, tmp_path: Path) -> None:
    result = _film(publisher, tmp_path / "out.mp4", _play)
    assert (result.returncode, result.stderr) == (0, "")
    pictures, times_s = _read(tmp_path / "out.mp4")
    assert len(pictures) == 18
    assert np.diff(times_s) == pytest.approx([0.04] * 17, abs=0.002)
    assert {picture.shape for picture in pictures} == {(480 + STRIP_PX, 480, 3)}
    # inside the heatmap's place, away from the thin frame around it
    x, y = (round((20 + 8) * SCALE),) * 2
    inside = [_colour(picture)[y:-y, x:-x] for picture in pictures]
    has_heat = [index for index, colour in enumerate(inside, 3) if (colour > 60).mean() > 0.02]
    assert has_heat == [10, 11, 12, 13, 14]  # maps 8 to 12 of the window that begins with frame 2
    is_peak = _colour(pictures[12 - 3]) > 120
    rows, columns = np.nonzero(is_peak)
    # row 2, column 5 of 7, in the part of the picture that the network saw
    expected = [(20 + (cell + 0.5) * ROI[2] / 7) * SCALE for cell in (2, 5)]
    assert (rows.mean(), columns.mean()) == pytest.approx(expected, abs=12)


def test_overlay_keeps_the_picture_below_and_the_text_aside(publisher: SmallPublisher, tmp_path: Path) -> None:
    _film(publisher, tmp_path / "out.mp4", _play)
    picture = _read(tmp_path / "out.mp4")[0][0]
    left, right = (picture[:480, columns].mean() for columns in (slice(0, 20), slice(460, 480)))
    assert (left, right) == pytest.approx((5, 115), abs=12)  # the publisher's ramp
    strip = picture[-STRIP_PX:].max(axis=2)
    assert 0.02 < (strip > 128).mean() < 0.4
    assert (strip[0] < 60).all()  # the text does not run into the picture


def test_overlay_pictures_that_no_prediction_saw_are_written_without_heatmap(
    publisher: SmallPublisher, tmp_path: Path
) -> None:
    def play(publisher: SmallPublisher) -> None:
        for index in range(5):
            _send_frame(publisher, index)

    assert _film(publisher, tmp_path / "out.mp4", play).returncode == 0
    pictures, _ = _read(tmp_path / "out.mp4")
    assert len(pictures) == 5
    assert max(_colour(picture).max() for picture in pictures) < 40


def test_overlay_damaged_picture_is_left_out(publisher: SmallPublisher, tmp_path: Path) -> None:
    from edge import wire

    def play(publisher: SmallPublisher) -> None:
        _send_frame(publisher, 0)
        header = {"v": 1, "stream": "main", "index": 1, "encoding": "jpeg", "t_capture_ns": 1, "t_wall_ns": 1}
        publisher.socket.send_multipart(wire.encode("frame", header, b"\xff\xd8 no picture"))
        publisher.socket.send_multipart(wire.encode("frame", {**header, "index": 2, "t_wall_ns": None}, b""))
        _send_frame(publisher, 3)

    result = _film(publisher, tmp_path / "out.mp4", play)
    assert result.returncode == 0
    assert "Traceback" not in result.stderr
    assert len(_read(tmp_path / "out.mp4")[0]) == 2


def test_overlay_without_pictures_warns_and_writes_nothing(publisher: SmallPublisher, tmp_path: Path) -> None:
    result = _film(publisher, tmp_path / "out.mp4", lambda publisher: publisher.send_prediction())
    assert result.returncode == 0
    assert result.stderr.startswith(f"warning: no picture came: {tmp_path / 'out.mp4'} is not written")
    assert not (tmp_path / "out.mp4").exists()


def test_backlog_that_is_full_keeps_the_newest_in_order_and_counts_pictures() -> None:
    def message(index: int) -> FrameMessage:
        return FrameMessage("main", index, bytes(1000), {}, Arrival(0, "", math.inf))

    backlog = Backlog(max_bytes=3500)
    for index in range(10):
        backlog.put((message(index), f"state {index}"))
    backlog.close()
    assert (backlog.num_left_out, backlog.num_pictures) == (7, 3)
    taken = [(item[0].index, item[1]) for item in iter(backlog.take, None) if isinstance(item[0], FrameMessage)]
    assert taken == [(index, f"state {index}") for index in (7, 8, 9)]


def test_overlay_of_pictures_that_come_too_fast_ends_and_says_how_many_it_lacks(
    publisher: SmallPublisher, tmp_path: Path
) -> None:
    num_pictures, num_padding_bytes = 300, 1 << 20

    def play(publisher: SmallPublisher) -> None:
        publisher.socket.sndtimeo = DEADLINE_MS
        publisher.socket.setsockopt(zmq.XPUB_NODROP, 1)  # what is lost is lost behind the socket
        publisher.send_status(State.FROZEN)
        for index in range(num_pictures):
            publisher.send_frame(index, num_padding_bytes=num_padding_bytes)

    result = _film(publisher, tmp_path / "out.mp4", play)
    assert result.returncode == 0
    told = re.search(r"lacks (\d+) of 300 pictures, which came faster than they were drawn\n$", result.stderr)
    assert told is not None, result.stderr
    num_left_out = int(told[1])
    assert 100 < num_left_out < num_pictures - 50  # 64 MB wait at most
    pictures, _ = _read(tmp_path / "out.mp4")
    assert len(pictures) == num_pictures - num_left_out
    assert "the daemon has ended" in result.stdout.splitlines()[-1]


def test_overlay_signal_leaves_out_what_is_not_drawn_yet(publisher: SmallPublisher, tmp_path: Path) -> None:
    path = str(tmp_path / "a.mp4")
    command = [sys.executable, "-m", "edge.watch.cli", "--connect", publisher.address, "--overlay", path]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    with contextlib.ExitStack() as stack:
        stack.callback(process.communicate)
        stack.callback(process.kill)
        publisher.wait_for_subscriptions(3)
        publisher.socket.setsockopt(zmq.XPUB_NODROP, 1)
        for index in range(1500):
            _send_frame(publisher, index)
        publisher.send_status(State.NO_SIGNAL, "the source ended")
        publisher.close()
        assert process.stderr is not None
        assert re.match(r"drawing \d+ pictures that came before the end", process.stderr.readline())
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    told = re.search(r"lacks (\d+) of 1500 pictures", err)
    assert told is not None, err
    assert len(_read(tmp_path / "a.mp4")[0]) == 1500 - int(told[1])


@pytest.mark.parametrize("name", ["out.txt", "nowhere/out.mp4"])
def test_overlay_into_what_is_no_video_is_refused(tmp_path: Path, name: str) -> None:
    result = run_command("--overlay", str(tmp_path / name), module="edge.watch.cli")
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: --overlay is {tmp_path / name}; it must be a video")


@pytest.mark.slow
def test_overlay_of_a_daemon_that_is_faster_than_it_ends_with_a_picture_for_each_frame(
    tmp_path: Path, trivial_bundle: Path
) -> None:
    address = f"ipc://{tmp_path}/socket"
    video = write_video(tmp_path / "in.mp4", 500)
    command = ["--source", str(video), "--roi", "full", "--frames", "60", "--pace", "max", "--wait-subscribers", "1"]
    command += ["--publish", address, "--engine", str(trivial_bundle)]
    daemon = subprocess.Popen([sys.executable, "-m", "edge.cli", *command], stderr=subprocess.DEVNULL)
    try:
        result = run_command("--connect", address, "--overlay", str(tmp_path / "out.mkv"), module="edge.watch.cli")
    finally:
        daemon.kill()
        daemon.wait()
    assert result.returncode == 0
    assert "lacks" not in result.stderr
    assert "the source ended; the daemon has ended" in result.stdout.splitlines()[-1]
    pictures, _ = _read(tmp_path / "out.mkv")
    assert len(pictures) == 500
    assert sum((_colour(picture) > 60).mean() > 0.02 for picture in pictures[16:-16]) > 450


def test_overlay_of_a_real_daemon_has_a_picture_for_each_frame(tmp_path: Path, trivial_bundle: Path) -> None:
    address = f"ipc://{tmp_path}/socket"
    source = ["--source", str(write_video(tmp_path / "in.mp4", 45)), "--roi", "full", "--frames", "30"]
    daemon = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "edge.cli",
            "--publish",
            address,
            "--wait-subscribers",
            "1",
            *source,
            "--engine",
            str(trivial_bundle),
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        result = run_command("--connect", address, "--overlay", str(tmp_path / "out.mkv"), module="edge.watch.cli")
    finally:
        daemon.kill()
        daemon.wait()
    assert (result.returncode, result.stderr) == (0, "")
    pictures, times_s = _read(tmp_path / "out.mkv")
    assert len(pictures) == 45
    assert all(later > earlier for earlier, later in itertools.pairwise(times_s))
    num_with_heatmap = sum((_colour(picture) > 60).mean() > 0.02 for picture in pictures)
    assert num_with_heatmap >= 5  # at most 30 of 45 have a window; busy cores skip many
