"""A publisher that is broken or means harm: readers leave its nonsense out, and draw nothing of absurd size."""

import asyncio
import contextlib
import copy
import io
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import msgpack
import numpy as np
import pytest
from display_server import browsing, serving
from PIL import Image
from rich.console import Console
from small_publisher import DEADLINE_MS, SmallPublisher

from edge.client import KINDS, Subscriber
from edge.display.views import Pairing
from edge.errors import WireError
from edge.health.meters import Meters
from edge.health.status import StatusReport
from edge.messages import Arrival, FrameMessage, PredictionMessage, StatusMessage, read_message
from edge.prediction import State
from edge.terms import Terms
from edge.watch.snapshot import Snapshot
from edge.watch.state import WatchState
from edge.watch.view import render
from edge.wire import MAX_PART_BYTES, decode, encode

DEADLINE_S = DEADLINE_MS / 1e3
MAX_MB = 700
"""Of a reader that draws: a sound one of the largest image takes 600."""
WATCH_AND_TELL = """
import sys
from edge.watch.cli import main
from tools.children import peak_rss_mb
code = main()
print(peak_rss_mb(), file=sys.stderr)
raise SystemExit(code)
"""

PREDICTIONS: list[dict[str, Any]] = [
    {"probabilities": [math.nan, math.nan]},
    {"probabilities": [0.0, 7e300]},
    {"probabilities": [1.5, -0.5]},
    {"probabilities": [0.5, "0.5"]},
    {"probabilities": [False, True]},
    {"threshold": math.inf},
    {"t_wall_ns": -1},
    {"classes": ["benign", "x" * 10_000]},
    {"classes": ["benign", b"raw"]},
    {"latency_ms": {"infer": math.nan}},
    {"engine": "no map"},
    {"exam": [1]},
    {"stream": "main" + "x" * 5000},
]
HEATMAPS: list[dict[str, Any]] = [
    {"roi_px": [0, 0, 10**9, 10**9]},
    {"roi_px": [2**31, 0, 10, 10]},
    {"roi_px": [0, 0, 1, 70_000]},
    {"keyframe": True},
    {"keyframe": False},
    {"peak": math.nan},
    {"peak": "4"},
    {"shape": [1, 1, 784]},
    {"shape": ["x", 10**12, 1]},
]
STATUS: list[dict[str, Any]] = [
    {"reason": b"raw"},
    {"reason": ["a", "list"]},
    {"source": {"a": 1}},
    {"fps": "25"},
    {"fps": math.nan},
    {"engine": ["name"]},
    {"recording": "on"},
    {"exam_trouble": 5},
    {"counters": {b"published": 1}},
    {"latency_ms": {"p50": math.inf}},
    {"fps": True},
    {"engine": {"name": {"toString": 1}}},
    {"recording": {"trouble": {"toString": 1}}},
    {"counters": {"published": True}},
    {"later": [[0] * 4096] * 300},
]
FRAMES: list[dict[str, Any]] = [
    {"roi_px": [0, 0, 65_000, 65_000]},
    {"t_wall_ns": "now"},
    {"t_capture_ns": None},
]


@pytest.fixture
def publisher() -> Iterator[SmallPublisher]:
    with SmallPublisher() as publisher:
        yield publisher


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def send_deep_status(publisher: SmallPublisher, depth: int) -> None:
    """Send a status that is nested deeper than msgpack packs, but not than it unpacks."""
    topic, packed = encode("status", {**publisher.send_status(), "later": "here"})
    publisher.socket.send_multipart([topic, packed.replace(b"\xa4here", b"\x91" * depth + b"\xc0")])


def send_nonsense(publisher: SmallPublisher) -> int:
    """Send one message of each kind of nonsense; return how many."""
    for changes in PREDICTIONS:
        publisher.send_prediction(**changes)
    about = publisher.prediction_header()["heatmap"]
    for changes in HEATMAPS:
        publisher.send_prediction(heatmap={**about, **changes})
    for changes in STATUS:
        publisher.send_status(**changes)
    for changes in FRAMES:
        publisher.send_frame(0, **changes)
    send_deep_status(publisher, 900)
    publisher.send_status(later="x" * 2**17)
    publisher.send_status(later=[0] * 2**13)
    return len(PREDICTIONS) + len(HEATMAPS) + len(STATUS) + len(FRAMES) + 3


def send_heatmap(publisher: SmallPublisher, heatmap: np.ndarray, **changes: Any) -> None:
    header = publisher.prediction_header(**changes)
    header["heatmap"]["shape"] = list(heatmap.shape)
    publisher.socket.send_multipart(encode("prediction", header, heatmap.astype("<f2").tobytes()))


def jpeg_of(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (8, 8)).save(stream, "JPEG")
    jpeg = bytearray(stream.getvalue())
    place = jpeg.index(b"\xff\xc0") + 5
    jpeg[place : place + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(jpeg)


def send_picture(publisher: SmallPublisher, index: int, jpeg: bytes, roi_px: list[int]) -> None:
    header = {"v": 1, "stream": "main", "index": index, "t_capture_ns": index * 10**7, "t_wall_ns": 10**18}
    header |= {"width": roi_px[2], "height": roi_px[3], "encoding": "jpeg", "roi_px": roi_px}
    publisher.socket.send_multipart(encode("frame", header, jpeg))


def test_subscriber_leaves_out_each_message_that_no_daemon_sends(publisher: SmallPublisher) -> None:
    with Subscriber(publisher.address, kinds=KINDS) as subscriber:
        publisher.wait_for_subscriptions(3)
        number = send_nonsense(publisher)
        publisher.send_prediction(seq=999)
        while not isinstance(message := subscriber.receive(DEADLINE_S), PredictionMessage):
            assert message is not None
        assert message.seq == 999
        assert subscriber.num_malformed == number


def test_subscriber_takes_what_is_just_within_the_limits(publisher: SmallPublisher) -> None:
    with Subscriber(publisher.address, kinds=KINDS) as subscriber:
        publisher.wait_for_subscriptions(3)
        about = publisher.prediction_header()["heatmap"]
        publisher.send_prediction(
            heatmap={**about, "roi_px": [0, 0, 8192, 8192]}, probabilities=[0, 1.0005], threshold=1
        )
        publisher.send_status(reason="x" * 4096, later=nested(10), fps=None, source=None, engine=None, recording=None)
        publisher.send_frame(0, num_padding_bytes=MAX_PART_BYTES - 100_000)
        for _ in range(3):
            assert subscriber.receive(DEADLINE_S) is not None
        assert subscriber.num_malformed == 0


@pytest.mark.parametrize(
    ("shape", "is_taken"),
    [
        ([16, 0, 7], False),
        ([16, 7, 0], False),
        ([1, 513, 1], False),
        ([1, 1, 513], False),
        ([1, 512, 512], True),
        ([1024, 1, 1], True),  # a bundle's longest clip
    ],
)
def test_heatmap_has_cells_and_as_many_frames_as_any_clip(
    publisher: SmallPublisher, shape: list[int], is_taken: bool
) -> None:
    header = publisher.prediction_header()
    header["heatmap"] |= {"shape": shape, "keyframe": 0}
    message = decode(encode("prediction", header, bytes(2 * math.prod(shape))))
    arrival = Arrival(t_received_ns=0, host="", stale_after_ms=math.inf)
    with contextlib.nullcontext() if is_taken else pytest.raises(WireError, match="prediction message is damaged"):
        read_message(message, arrival)


def test_last_word_of_a_daemon_reaches_its_readers_however_long_the_error_is() -> None:
    report = StatusReport("main", "demo", Meters(), Terms(0.5), path=None)
    message = decode(encode("status", report.header(State.FAULT, "no engine runs here; " * 1000)))
    status = read_message(message, Arrival(t_received_ns=0, host="", stale_after_ms=math.inf))
    assert isinstance(status, StatusMessage)
    assert status.state is State.FAULT
    assert status.reason.startswith("no engine runs here; no")


def test_heatmap_without_cells_is_left_out(publisher: SmallPublisher) -> None:
    with Subscriber(publisher.address) as subscriber:
        publisher.wait_for_subscriptions(2)
        send_heatmap(publisher, np.zeros((16, 0, 7)))
        publisher.send_prediction(seq=999)
        message = subscriber.receive(DEADLINE_S)
        assert isinstance(message, PredictionMessage)
        assert message.seq == 999


def test_image_captured_in_the_future_grows_old_all_the_same(publisher: SmallPublisher) -> None:
    with Subscriber(publisher.address, stale_after_ms=50) as subscriber:
        publisher.wait_for_subscriptions(2)
        publisher.send_prediction(t_capture_ns=2**63)
        message = subscriber.receive(DEADLINE_S)
        assert isinstance(message, PredictionMessage)
        while message.age_ms < 60:
            assert not publisher.socket.poll(20)
        assert message.state is State.STALE


def test_header_of_a_newer_version_is_unpacked_within_limits(publisher: SmallPublisher) -> None:
    with Subscriber(publisher.address) as subscriber:
        publisher.wait_for_subscriptions(2)
        topic, _ = encode("status", publisher.send_status())
        publisher.socket.send_multipart([topic, msgpack.packb({"v": 2, "x": [[]] * 2**21})])
        publisher.send_status(State.FROZEN)
        states = [
            message.state for _ in range(2) if isinstance(message := subscriber.receive(DEADLINE_S), StatusMessage)
        ]
        assert states == [State.LIVE, State.FROZEN]


def test_streams_without_end_are_not_all_remembered(publisher: SmallPublisher) -> None:
    with Subscriber(publisher.address) as subscriber:
        publisher.wait_for_subscriptions(2)
        for number in range(200):
            publisher.send_prediction(stream=f"s{number}")
            assert subscriber.receive(DEADLINE_S) is not None
        assert len(subscriber._next_seq) <= 64


def test_pictures_are_kept_up_to_a_size_and_not_only_to_a_number(publisher: SmallPublisher) -> None:
    with Subscriber(publisher.address, kinds=KINDS) as subscriber:
        publisher.wait_for_subscriptions(3)
        snapshot, pairing, patient = Snapshot(), Pairing(), Pairing(is_patient=True)
        num_shown = 0
        for index in range(12):
            publisher.send_frame(index, num_padding_bytes=16 << 20)
            message = subscriber.receive(DEADLINE_S)
            assert isinstance(message, FrameMessage)
            snapshot.add([message])
            pairing.add_frame(message)
            num_shown += len(patient.add_frame(message))
        assert len(snapshot._frames) == 7
        assert len(pairing.frames) == 3
        assert num_shown == 9


def test_large_messages_are_handed_over_a_few_at_a_time(publisher: SmallPublisher) -> None:
    with Subscriber(publisher.address, kinds=KINDS) as subscriber:
        publisher.wait_for_subscriptions(3)
        for index in range(12):
            publisher.send_frame(index, num_padding_bytes=16 << 20)
        taken: list[int] = []
        while sum(taken) < 12:
            assert subscriber.has_ended is False
            taken.append(len(subscriber.drain()))
            assert not publisher.socket.poll(100)  # more may come meanwhile, and nobody leaves
        assert max(taken) <= 4


def test_message_of_absurd_size_never_reaches_a_readers_memory(publisher: SmallPublisher) -> None:
    with Subscriber(publisher.address, kinds=KINDS, timeout_s=None) as subscriber:
        publisher.wait_for_subscriptions(3)
        assert subscriber.is_connected
        publisher.send_frame(0, num_padding_bytes=MAX_PART_BYTES)
        publisher.wait_for_leaving()
        assert subscriber.receive(0) is None
        assert not subscriber.is_connected


def test_terminal_view_draws_on_after_nonsense(publisher: SmallPublisher) -> None:
    with Subscriber(publisher.address, kinds=KINDS) as subscriber:
        publisher.wait_for_subscriptions(3)
        state = WatchState(subscriber)
        send_nonsense(publisher)
        publisher.send_status(latency_ms=dict.fromkeys(("p50", "p95", "p99", "max"), 1e300), fps=1e300)
        publisher.send_prediction(1.0, age_ms=-1e9, seq=999, t_wall_ns=2**64 - 1, latency_ms={"infer": -1e300})
        send_heatmap(publisher, np.where(np.arange(16 * 7 * 7) == 500, 4, -50).reshape(16, 7, 7), seq=1000)
        while state.prediction is None or state.prediction.seq < 1000:
            message = subscriber.receive(DEADLINE_S)
            assert message is not None
            state.add([message])
            Console(file=io.StringIO(), width=80, height=24, force_terminal=True).print(render(state, 80, 24))
        assert render(state, 80, 24) is not None


def watch(publisher: SmallPublisher, send: Callable[[], None], *arguments: str) -> None:
    """Run edge-watch on what is sent, to a good end and within limits of memory."""
    command = [sys.executable, "-c", WATCH_AND_TELL, "--connect", publisher.address, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        publisher.wait_for_subscriptions(3)
        send()
        publisher.send_status(State.NO_SIGNAL, "the source ended")
        publisher.close()
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert "Traceback" not in err
    assert process.returncode == 0, err
    assert float(err.splitlines()[-1]) < MAX_MB


PICTURES = [
    (65_500, 65_500, [0, 0, 300, 300]),  # a bomb
    (65_500, 1, [0, 0, 300, 300]),
    (1, 65_500, [0, 0, 300, 300]),
    (300, 300, [0, 0, 1, 1]),  # its heatmap would be stretched to 300 times its place
    (300, 300, [0, 0, 8192, 8192]),
]


@pytest.mark.parametrize(("width", "height", "roi_px"), PICTURES, ids=str)
def test_snapshot_and_video_of_absurd_pictures_take_no_absurd_memory(
    publisher: SmallPublisher, tmp_path: Path, width: int, height: int, roi_px: list[int]
) -> None:
    def send() -> None:
        about = publisher.prediction_header()["heatmap"]
        for index in range(15, 18):
            send_picture(publisher, index, jpeg_of(width, height), roi_px)
        publisher.send_prediction(heatmap={**about, "roi_px": [0, 0, 8192, 8192]})

    png, mp4 = tmp_path / "strongest.png", tmp_path / "all.mp4"
    watch(publisher, send, "--snapshot", str(png), "--overlay", str(mp4))
    with Image.open(png) as picture:
        assert max(picture.size) < 2000


def test_video_of_pictures_of_absurd_times_is_written(publisher: SmallPublisher, tmp_path: Path) -> None:
    def send() -> None:
        for index, t_capture_ns in enumerate((0, 10**9, 2**63, 2**64 - 1, 5)):
            publisher.send_frame(index, t_capture_ns=t_capture_ns)

    mp4 = tmp_path / "all.mp4"
    watch(publisher, send, "--overlay", str(mp4))
    with av.open(str(mp4)) as container:
        assert len(list(container.decode(video=0))) == 5


def test_snapshot_without_pictures_of_the_largest_roi(publisher: SmallPublisher, tmp_path: Path) -> None:
    def send() -> None:
        about = publisher.prediction_header()["heatmap"]
        publisher.send_prediction(heatmap={**about, "roi_px": [0, 0, 65_535, 1024]})

    png = tmp_path / "strongest.png"
    watch(publisher, send, "--snapshot", str(png), "--overlay", str(tmp_path / "none.mp4"))
    with Image.open(png) as picture:
        assert max(picture.size) < 2000


def test_json_stays_json_whatever_comes(publisher: SmallPublisher) -> None:
    command = [sys.executable, "-m", "edge.watch.cli", "--connect", publisher.address, "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        publisher.wait_for_subscriptions(2)
        send_nonsense(publisher)
        publisher.send_status(State.NO_SIGNAL, later={"a": [math.nan, b"\x00", msgpack.Timestamp(1)]})
        publisher.close()
        out, err = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
        process.communicate()
    assert len(err.splitlines()) == 1, err
    *_, line = out.splitlines()
    assert json.loads(line)["later"]["a"][:2] == [None, "00"]


def test_display_goes_on_after_nonsense_and_shows_no_endless_list_of_streams(publisher: SmallPublisher) -> None:
    async def watch(server: Any) -> list[Any]:
        async with browsing(server) as browser:
            send_nonsense(publisher)
            publisher.send_status(later=[math.nan, b"raw"], recording={"trouble": b"\xff", "n": math.inf})
            header = publisher.send_status()
            for number in range(200):
                publisher.socket.send_multipart(encode("status", {**copy.copy(header), "stream": f"s{number}"}))
            publisher.send_prediction(0.5, seq=999)
            await browser.until(lambda facts: facts["kind"] == "prediction" and facts["seq"] == 999)
            tick, _ = await browser.until(lambda facts: facts["kind"] == "tick" and len(facts["streams"]) >= 16)
            return list(tick["streams"])

    with serving("--connect", publisher.address) as server:
        publisher.wait_for_subscriptions(3)
        streams = asyncio.run(watch(server))
        assert server.process.poll() is None
    assert len(streams) == 16
    assert streams[0]["name"] == "main"


def test_display_tells_of_a_newer_daemon_and_reads_on_when_an_older_one_is_back(publisher: SmallPublisher) -> None:
    async def watch(server: Any) -> str:
        async with browsing(server) as browser:
            publisher.send_status(v=2)
            tick, _ = await browser.until(lambda facts: facts["kind"] == "tick" and facts["streams"][0]["refusal"])
            publisher.send_prediction(0.5, seq=999)
            await browser.until(lambda facts: facts["kind"] == "prediction" and facts["seq"] == 999)
            await browser.until(lambda facts: facts["kind"] == "tick" and facts["streams"][0]["is_connected"])
            return str(tick["streams"][0]["refusal"])

    with serving("--connect", publisher.address) as server:
        publisher.wait_for_subscriptions(3)
        assert "wire version 2" in asyncio.run(asyncio.wait_for(watch(server), DEADLINE_S))


def test_heatmap_far_larger_than_its_picture_leaves_it_as_it_is() -> None:
    from edge.picture import overlay

    image = np.zeros((10, 10, 3), np.uint8)
    assert (overlay(image, np.ones((7, 7), np.float32), (0, 0, 10**6, 10**6)) == image).all()
    assert (overlay(image, np.ones((7, 7), np.float32), (0, 0, 10, 10)) != image).any()
