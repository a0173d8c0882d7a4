"""The Python reader against a real publisher."""

import contextlib
import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgpack
import numpy as np
import pytest
import zmq
from small_publisher import ROI, SmallPublisher, heatmap

from edge.client import Subscriber
from edge.curve import secure_server
from edge.errors import ConfigError, SourceError, WireError
from edge.keygen import write_keys
from edge.messages import FrameMessage, PredictionMessage, StatusMessage
from edge.prediction import State
from edge.wire import encode

WAIT_S = 10.0


@pytest.fixture
def publisher() -> Iterator[SmallPublisher]:
    with SmallPublisher() as publisher:
        yield publisher


@pytest.fixture
def subscriber(publisher: SmallPublisher) -> Iterator[Subscriber]:
    with Subscriber(publisher.address, kinds=("prediction", "status", "frame")) as subscriber:
        publisher.wait_for_subscriptions(3)
        yield subscriber


def _receive_prediction(subscriber: Subscriber) -> PredictionMessage:
    message = subscriber.receive(WAIT_S)
    assert isinstance(message, PredictionMessage)
    return message


def test_subscriber_prediction_has_what_was_sent(publisher: SmallPublisher, subscriber: Subscriber) -> None:
    header = publisher.send_prediction(probability=0.75)
    prediction = _receive_prediction(subscriber)
    assert prediction.header == header
    assert prediction.state is State.LIVE
    assert prediction.probabilities == pytest.approx((0.25, 0.75))
    assert (prediction.probability, prediction.positive, prediction.seq) == (pytest.approx(0.75), True, 0)
    assert (prediction.first_index, prediction.last_index) == (0, 15)
    assert prediction.heatmap is not None
    assert prediction.place is not None
    np.testing.assert_array_equal(prediction.heatmap, heatmap())
    assert not prediction.heatmap.flags.writeable
    assert (prediction.place.roi_px, prediction.place.keyframe, prediction.place.peak) == (ROI, 10, 4.0)


def test_subscriber_without_heatmap_gives_none(publisher: SmallPublisher, subscriber: Subscriber) -> None:
    publisher.socket.send_multipart(encode("prediction", publisher.prediction_header(heatmap=None)))
    prediction = _receive_prediction(subscriber)
    assert prediction.heatmap is None
    assert prediction.place is None


def test_subscriber_status_and_frame_come_in_order(publisher: SmallPublisher, subscriber: Subscriber) -> None:
    publisher.send_status(State.FROZEN, "the image stands still", later_key=1)
    publisher.send_frame(7)
    status, frame = subscriber.receive(WAIT_S), subscriber.receive(WAIT_S)
    assert isinstance(status, StatusMessage)
    assert (status.state, status.reason, status.latency_ms["p99"]) == (State.FROZEN, "the image stands still", 16.5)
    assert status.header["later_key"] == 1
    assert subscriber.status is status
    assert isinstance(frame, FrameMessage)
    assert (frame.index, frame.roi_px) == (7, (20, 0, 264, 264))
    assert frame.jpeg[:2] == b"\xff\xd8"


def test_subscriber_old_prediction_is_stale(publisher: SmallPublisher, subscriber: Subscriber) -> None:
    publisher.send_prediction(age_ms=700)
    prediction = _receive_prediction(subscriber)
    assert prediction.state is State.STALE
    assert prediction.sent_state is State.LIVE
    assert 700 <= prediction.age_ms < 700 + WAIT_S * 1e3


def test_subscriber_of_another_host_counts_age_from_receipt(publisher: SmallPublisher, subscriber: Subscriber) -> None:
    publisher.send_prediction(host="another boot id", t_capture_ns=1)
    prediction = _receive_prediction(subscriber)
    assert prediction.age_ms < 500
    assert prediction.state is State.LIVE


def test_subscriber_seq_gap_is_counted_and_a_restart_is_not(publisher: SmallPublisher, subscriber: Subscriber) -> None:
    for seq in (5, 6, 9, 10, 0, 1, 3):
        publisher.send_prediction(seq=seq)
    assert [_receive_prediction(subscriber).seq for _ in range(7)] == [5, 6, 9, 10, 0, 1, 3]
    assert subscriber.num_lost == 2 + 1


def test_subscriber_gap_in_one_of_two_streams_is_counted_for_it_alone(
    publisher: SmallPublisher, subscriber: Subscriber
) -> None:
    for stream, seq in (("main", 0), ("other", 7), ("main", 1), ("other", 9)):
        publisher.socket.send_multipart(
            encode("prediction", publisher.prediction_header(stream=stream, seq=seq, heatmap=None))
        )
    for _ in range(4):
        _receive_prediction(subscriber)
    assert subscriber.num_lost == 1


@pytest.mark.parametrize(
    "parts",
    [
        [b"prediction.main"],
        [b"prediction.main", b"\xc1"],
        [b"prediction.main", msgpack.packb([1, 2])],
        [b"prediction.main", msgpack.packb({"v": "1"})],
        [b"prediction.main", msgpack.packb({"v": 1, "stream": "main"})],
        [b"frame.main", msgpack.packb({"v": 1, "stream": "main", "index": 1, "encoding": "jpeg"})],
        [b"status.main", msgpack.packb({"v": 1, "stream": "main", "state": "ASLEEP", "counters": {}})],
    ],
    ids=["no header", "no msgpack", "no map", "version as text", "no keys", "no buffer", "unknown state"],
)
def test_subscriber_malformed_message_is_left_out_and_told_once(
    publisher: SmallPublisher, subscriber: Subscriber, parts: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    publisher.socket.send_multipart(parts)
    publisher.socket.send_multipart(parts)
    publisher.send_prediction()
    assert _receive_prediction(subscriber).seq == 0
    assert subscriber.num_malformed == 2
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 1
    assert warnings[0].startswith("warning: tcp://127.0.0.1:")


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [16, 7, 8]},
        {"shape": [784]},
        {"dtype": "float32"},
        {"keyframe": 16},
        {"roi_px": [0, 0, 0, 10]},
        {"roi_px": [1, 2, 3]},
    ],
    ids=str,
)
def test_subscriber_heatmap_that_does_not_fit_is_left_out(
    publisher: SmallPublisher, subscriber: Subscriber, changes: dict[str, object]
) -> None:
    about = publisher.prediction_header()["heatmap"]
    publisher.send_prediction(heatmap={**about, **changes})
    publisher.send_prediction(seq=9)
    assert _receive_prediction(subscriber).seq == 9
    assert subscriber.num_malformed == 1


def test_subscriber_newer_wire_version_is_refused(publisher: SmallPublisher, subscriber: Subscriber) -> None:
    publisher.send_prediction(v=2)
    with pytest.raises(WireError, match=r"wire version 2; this reader knows up to 1; update it"):
        subscriber.receive(WAIT_S)


def test_subscriber_of_a_stream_leaves_out_streams_that_only_begin_so(publisher: SmallPublisher) -> None:
    with Subscriber(publisher.address, stream="left") as subscriber:
        publisher.wait_for_subscriptions(2)
        for stream in ("main", "left-2", "left"):
            publisher.socket.send_multipart(encode("status", {**publisher.send_status(), "stream": stream}))
        message = subscriber.receive(WAIT_S)
        assert message is not None
        assert message.stream == "left"
        assert subscriber.receive(0) is None


def test_subscriber_iteration_ends_when_the_daemon_ends(publisher: SmallPublisher) -> None:
    with Subscriber(publisher.address) as subscriber:
        publisher.wait_for_subscriptions(2)
        publisher.send_prediction()
        publisher.send_status()
        publisher.send_prediction()
        publisher.send_status(State.NO_SIGNAL, "the source ended")
        publisher.close()
        assert [prediction.seq for prediction in subscriber] == [0, 1]
        assert subscriber.has_ended
        assert subscriber.status is not None
        assert subscriber.status.reason == "the source ended"


def test_subscriber_iteration_newest_only_leaves_out_what_is_overtaken(publisher: SmallPublisher) -> None:
    with Subscriber(publisher.address, newest_only=True) as subscriber:
        publisher.wait_for_subscriptions(2)
        predictions = iter(subscriber)
        publisher.send_prediction()
        assert next(predictions).seq == 0
        for _ in range(20):
            publisher.send_prediction()
        publisher.send_status(State.NO_SIGNAL)
        publisher.close()
        # how many are there at once is ZeroMQ's affair: the order and the last one are ours
        rest = [prediction.seq for prediction in predictions]
        assert rest == sorted(set(rest))
        assert rest[-1] == 20
        assert subscriber.num_lost == 0


def test_subscriber_drain_takes_all_that_waits(publisher: SmallPublisher, subscriber: Subscriber) -> None:
    publisher.send_prediction()
    first = subscriber.receive(WAIT_S)
    for _ in range(5):
        publisher.send_prediction()
    publisher.send_status(State.NO_SIGNAL)
    publisher.close()
    taken = [first]
    while not subscriber.has_ended:
        taken += subscriber.drain()
    assert [getattr(message, "seq", "status") for message in taken] == [0, 1, 2, 3, 4, 5, "status"]
    assert subscriber.drain() == []


def test_subscriber_started_before_the_daemon_gets_the_first_message(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/edge"
    with Subscriber(address) as subscriber:
        assert not subscriber.is_connected
        with SmallPublisher(address) as publisher:
            publisher.wait_for_subscriptions(2)
            publisher.send_prediction()
            assert _receive_prediction(subscriber).seq == 0
            assert subscriber.is_connected


def test_subscriber_goes_on_after_the_daemon_came_back(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/edge"
    with Subscriber(address) as subscriber:
        for _ in range(2):
            with SmallPublisher(address) as publisher:
                publisher.wait_for_subscriptions(2)
                publisher.send_prediction()
                publisher.send_status(State.NO_SIGNAL)
            assert [prediction.seq for prediction in itertools.islice(subscriber, 1)] == [0]
            assert list(subscriber) == []
        assert subscriber.num_lost == 0


def test_subscriber_where_nobody_publishes_says_so() -> None:
    with Subscriber("tcp://127.0.0.1:9", timeout_s=0.1) as subscriber, pytest.raises(SourceError, match="nobody pub"):
        list(subscriber)


def test_subscriber_where_the_publisher_is_silent_says_so(publisher: SmallPublisher) -> None:
    with Subscriber(publisher.address, stream="left", timeout_s=0.1) as subscriber:
        publisher.wait_for_subscriptions(2)
        with pytest.raises(SourceError, match=r"a publisher is at tcp://.* no message of stream 'left' came for"):
            list(subscriber)


def test_subscriber_receive_times_out_with_none(subscriber: Subscriber) -> None:
    assert subscriber.receive(0.01) is None


def test_subscriber_close_twice_is_harmless(publisher: SmallPublisher) -> None:
    subscriber = Subscriber(publisher.address)
    subscriber.close()
    subscriber.close()
    assert subscriber.receive(WAIT_S) is None
    assert list(subscriber) == []
    assert not subscriber.has_ended


@pytest.mark.parametrize("address", ["127.0.0.1:5555", "tcp://127.0.0.1:*"])
def test_subscriber_address_that_cannot_be_connected_to_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be connected to|is not an address"):
        Subscriber(address)


def test_subscriber_with_keys_reads_and_with_others_is_told_why(tmp_path: Path) -> None:
    for name in ("keys", "other"):
        write_keys(tmp_path / name)
    (tmp_path / "other" / "server.key").write_bytes((tmp_path / "keys" / "server.key").read_bytes())
    with zmq.Context() as context, context.socket(zmq.XPUB) as socket:
        authenticator, stack = secure_server(socket, tmp_path / "keys"), contextlib.ExitStack()
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        address = f"tcp://127.0.0.1:{port}"
        try:
            with Subscriber(address, curve=tmp_path / "keys") as known:
                assert socket.poll(10_000)
                socket.send_multipart(encode("status", {"v": 1, "stream": "main", "state": "LIVE", "counters": {}}))
                assert isinstance(known.receive(WAIT_S), StatusMessage)
            stranger = stack.enter_context(Subscriber(address, curve=tmp_path / "other", timeout_s=0.5))
            with pytest.raises(SourceError, match="shuts this reader out: it does not know this client key"):
                list(stranger)
            bare = stack.enter_context(Subscriber(address, timeout_s=0.5))
            with pytest.raises(SourceError, match="CURVE keys"):
                list(bare)
        finally:
            stack.close()
            authenticator.stop()


def test_subscriber_interrupted_by_a_signal_leaves_at_once(publisher: SmallPublisher) -> None:
    code = (
        "import sys\nfrom edge.client import Subscriber\n"
        "try:\n  with Subscriber(sys.argv[1], timeout_s=None) as s:\n    list(s)\n"
        "except KeyboardInterrupt:\n  sys.exit(7)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, publisher.address])
    try:
        publisher.wait_for_subscriptions(2)
        process.send_signal(2)
        assert process.wait(10) == 7
    finally:
        process.kill()
        process.wait()


def test_subscriber_leaves_no_thread(publisher: SmallPublisher) -> None:
    before = set(threading.enumerate())
    with Subscriber(publisher.address):
        pass
    assert set(threading.enumerate()) == before
