"""The publisher against real ZeroMQ subscribers on ports of their own."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq
from small_publisher import ENGINE, ROI, heatmap

from edge import wire
from edge.client import Subscriber
from edge.errors import BindError, ConfigError
from edge.health.meters import Meters
from edge.keygen import write_keys
from edge.messages import PredictionMessage, StatusMessage
from edge.prediction import Latency, Prediction, State
from edge.publish import Publisher
from edge.window import Window

WAIT_S = 10.0
ANY_PORT = "tcp://127.0.0.1:*"
IDENTITY = wire.StreamIdentity("main", ENGINE.classes, 0.5, ENGINE)

Header = dict[str, Any]
Open = Callable[..., Publisher]
Subscribe = Callable[..., zmq.Socket[bytes]]


@pytest.fixture
def open_publisher() -> Iterator[Open]:
    """Return a function that opens a publisher and starts its thread; all are closed after the test."""
    with contextlib.ExitStack() as stack:

        def open_one(address: str = ANY_PORT, **options: Any) -> Publisher:
            meters = options.pop("meters", Meters())
            publisher = Publisher(address, "main", meters, **options)
            stack.callback(publisher.close, State.NO_SIGNAL, "the test ended")
            publisher.start(
                lambda state, reason: {
                    "v": 1,
                    "stream": "main",
                    "state": str(state),
                    "reason": reason,
                    "counters": dict(meters.counters),
                }
            )
            return publisher

        yield open_one


@pytest.fixture
def subscribe() -> Iterator[Subscribe]:
    """Return a function that connects a raw SUB socket."""
    with zmq.Context() as context, contextlib.ExitStack() as stack:

        def subscribe_to(publisher: Publisher, *topics: str, rcvhwm: int = 100_000) -> zmq.Socket[bytes]:
            socket = stack.enter_context(context.socket(zmq.SUB))
            socket.linger, socket.rcvhwm = 0, rcvhwm
            for topic in topics:
                socket.subscribe(topic)
            socket.connect(publisher.address)
            return socket

        yield subscribe_to


@pytest.fixture
def quick_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a status come every 50 ms, for tests that wait for one."""
    monkeypatch.setattr("edge.publish.STATUS_INTERVAL_S", 0.05)


def _prediction(last_index: int = 15) -> Prediction:
    return Prediction(
        window=Window(last_index - 15, last_index, 500.0, 33.4),
        num_skipped=0,
        probabilities=np.array([0.25, 0.75], np.float32),
        heatmap=heatmap(),
        visible_rect=ROI,
        t_capture_ns=time.monotonic_ns() - 20_000_000,
        t_wall_ns=time.time_ns(),
        latency_ms=Latency(capture=0.5, preprocess=1.0, queue=0.1, infer=12.0),
    )


def _receive(socket: zmq.Socket[bytes]) -> tuple[str, Header]:
    """Return the next message's topic and header."""
    assert socket.poll(WAIT_S * 1e3), "no message came"
    topic, header = socket.recv_multipart()[:2]
    return topic.decode(), msgpack.unpackb(header)


def _receive_until_last(socket: zmq.Socket[bytes]) -> list[tuple[str, Header]]:
    """Return all messages up to the status that a closing publisher ends with."""
    messages = [_receive(socket)]
    while messages[-1][1].get("reason") != "the end":
        messages.append(_receive(socket))
    return messages


def _wait_for_subscribers(publisher: Publisher, number: int) -> None:
    waiting = threading.Thread(target=publisher.wait_for_subscribers, args=(number, lambda: False))
    waiting.start()
    waiting.join(WAIT_S)
    is_there = not waiting.is_alive()
    if not is_there:
        publisher._num_subscribers = number  # let the thread end
        publisher.interrupt_wait()
    assert is_there, f"{number} subscribers did not come"


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
def test_publisher_on_ipv6_loopback_is_read(open_publisher: Open, quick_status: None) -> None:
    publisher = open_publisher("tcp://[::1]:*")

    with Subscriber(publisher.address) as subscriber:
        assert isinstance(subscriber.receive(WAIT_S), StatusMessage)


def test_publisher_closed_patiently_waits_for_a_slow_reader(
    open_publisher: Open, subscribe: Subscribe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.publish._LINGER_MS", 0)  # an impatient end drops what the kernel has no room for
    publisher = open_publisher()
    reader = subscribe(publisher, "", rcvhwm=1)
    _wait_for_subscribers(publisher, 1)
    for index in range(200):
        publisher.publish_frame({"stream": "main", "index": index}, bytes(200_000))
    closing = threading.Thread(target=publisher.close, args=(State.NO_SIGNAL, "the end"), kwargs={"is_patient": True})
    closing.start()
    indices = [header["index"] for topic, header in _receive_until_last(reader) if topic == "frame.main"]
    closing.join()

    assert indices == list(range(200))


def test_publisher_that_gathers_sends_a_prediction_though_nothing_else_is_due(
    open_publisher: Open, subscribe: Subscribe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.publish.STATUS_INTERVAL_S", 1000)
    publisher = open_publisher(gather_s=0.01)
    socket = subscribe(publisher, "prediction.main")
    _wait_for_subscribers(publisher, 1)
    publisher.publish_prediction(_prediction(), IDENTITY)
    assert _receive(socket)[0] == "prediction.main"


def test_publisher_that_gathers_keeps_the_order_and_tells_a_state_at_once(
    open_publisher: Open, subscribe: Subscribe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.publish.STATUS_INTERVAL_S", 1000)
    publisher = open_publisher(gather_s=500)
    socket = subscribe(publisher, "prediction.main", "status.main")
    _wait_for_subscribers(publisher, 1)
    for last_index in (15, 16):
        publisher.publish_prediction(_prediction(last_index), IDENTITY)
    publisher.set_state(State.FROZEN, "the image is frozen")

    messages = [_receive(socket)]
    while messages[-1][1].get("state") != "FROZEN":
        messages.append(_receive(socket))
    assert [topic for topic, _ in messages[-3:]] == ["prediction.main", "prediction.main", "status.main"]


def test_publisher_prediction_arrives_with_its_heatmap_and_total_latency(
    open_publisher: Open, subscribe: Subscribe
) -> None:
    meters = Meters()
    publisher = open_publisher(meters=meters)
    socket = subscribe(publisher, "prediction.main")
    publisher.wait_for_subscribers(1, lambda: False)
    prediction = _prediction()
    publisher.publish_prediction(prediction, IDENTITY)
    assert socket.poll(WAIT_S * 1e3)
    t_received_ns = time.monotonic_ns()
    message = wire.decode(socket.recv_multipart())
    latency_ms = message.header["latency_ms"]
    assert set(latency_ms) == {"capture", "preprocess", "queue", "infer", "total"}
    assert 20 <= latency_ms["total"] <= (t_received_ns - prediction.t_capture_ns) / 1e6
    assert message.header["host"] == wire.boot_id()
    np.testing.assert_array_equal(message.heatmap(), heatmap())
    publisher.close(State.NO_SIGNAL, "the end")
    assert meters.counters["published"] == 1
    percentiles = meters.latency_percentiles_ms()
    assert percentiles is not None
    assert percentiles["max"] == pytest.approx(latency_ms["total"])


def test_publisher_seq_counts_from_0_without_a_gap(open_publisher: Open, subscribe: Subscribe) -> None:
    publisher = open_publisher()
    socket = subscribe(publisher, "prediction.")
    publisher.wait_for_subscribers(1, lambda: False)
    for number in range(500):
        publisher.publish_prediction(_prediction(15 + number), IDENTITY)
    headers = [_receive(socket)[1] for _ in range(500)]
    assert [header["seq"] for header in headers] == list(range(500))
    assert [header["window"]["last_index"] for header in headers] == list(range(15, 515))


def test_publisher_state_is_told_before_the_prediction_that_carries_it(
    open_publisher: Open, subscribe: Subscribe
) -> None:
    publisher = open_publisher()
    socket = subscribe(publisher, "")
    publisher.wait_for_subscribers(1, lambda: False)
    publisher.set_state(State.WARMUP, "waiting for 16 frames")
    publisher.set_state(State.LIVE, "")
    publisher.publish_prediction(_prediction(), IDENTITY)
    publisher.close(State.NO_SIGNAL, "the end")
    messages = _receive_until_last(socket)
    told = [(topic, header["state"]) for topic, header in messages if header.get("reason") != "starting"]
    assert told == [
        ("status.main", "WARMUP"),
        ("status.main", "LIVE"),
        ("prediction.main", "LIVE"),
        ("status.main", "NO_SIGNAL"),
    ]


def test_publisher_state_that_does_not_change_is_told_once(open_publisher: Open, subscribe: Subscribe) -> None:
    publisher = open_publisher()
    socket = subscribe(publisher, "")
    publisher.wait_for_subscribers(1, lambda: False)
    for _ in range(100):
        publisher.set_state(State.LIVE, "")
    publisher.set_state(State.WARMUP, "the image size changed")
    publisher.close(State.NO_SIGNAL, "the end")
    states = [header["state"] for _, header in _receive_until_last(socket)]
    assert states.count("LIVE") <= 2  # the second one, if any, is that of the second's tick
    assert states[-2:] == ["WARMUP", "NO_SIGNAL"]


def test_publisher_status_comes_every_second_by_itself(open_publisher: Open, subscribe: Subscribe) -> None:
    publisher = open_publisher()
    socket = subscribe(publisher, "status.main")
    _receive(socket)
    start_s = time.monotonic()
    _receive(socket)
    assert 0.5 < time.monotonic() - start_s < 3


@pytest.mark.usefixtures("quick_status")
def test_publisher_status_gets_its_turn_under_a_load_that_never_ends(
    open_publisher: Open, subscribe: Subscribe
) -> None:
    publisher = open_publisher()
    socket = subscribe(publisher, "status.main")
    is_over = threading.Event()

    def hand_over_again() -> None:
        if not is_over.is_set():
            publisher._hand_over(hand_over_again)

    hand_over_again()
    try:
        assert [_receive(socket)[0] for _ in range(2)] == ["status.main"] * 2
    finally:
        is_over.set()


def test_publisher_frame_arrives_with_its_jpeg(open_publisher: Open, subscribe: Subscribe) -> None:
    meters = Meters()
    publisher = open_publisher(meters=meters)
    socket = subscribe(publisher, "frame.main", "prediction.main")
    publisher.wait_for_subscribers(1, lambda: False)
    publisher.publish_frame({"v": 1, "stream": "main", "index": 3}, b"\xff\xd8jpeg")
    assert socket.poll(WAIT_S * 1e3)
    topic, header, jpeg = socket.recv_multipart()
    assert (topic, msgpack.unpackb(header)["index"], jpeg) == (b"frame.main", 3, b"\xff\xd8jpeg")
    publisher.close(State.NO_SIGNAL, "the end")
    assert (meters.counters["frames_published"], meters.counters["published"]) == (1, 0)


def test_wait_for_subscribers_counts_each_prefix_of_the_predictions_topic(
    open_publisher: Open, subscribe: Subscribe
) -> None:
    publisher = open_publisher()
    for topic in ("", "pred", "prediction.", "prediction.main"):
        subscribe(publisher, topic)
    _wait_for_subscribers(publisher, 4)


@pytest.mark.usefixtures("quick_status")
def test_wait_for_subscribers_does_not_count_other_topics_and_those_that_left(
    open_publisher: Open, subscribe: Subscribe
) -> None:
    publisher = open_publisher()
    for topic in ("status.main", "frame.main", "prediction.other", "prediction.main2"):
        _wait_until_heard(subscribe(publisher, topic, "status."))
    leaving = subscribe(publisher, "prediction.main")
    _wait_for_subscribers(publisher, 1)
    leaving.unsubscribe("prediction.main")
    leaving.subscribe("status.")
    _wait_until_heard(leaving)
    assert publisher._num_subscribers == 0


def _wait_until_heard(socket: zmq.Socket[bytes]) -> None:
    """Wait for a status: by then the publisher has read all that this socket subscribed to."""
    assert _receive(socket)[0] == "status.main"


def test_wait_for_subscribers_ends_on_interrupt(open_publisher: Open) -> None:
    publisher = open_publisher()
    stop = threading.Event()
    waiting = threading.Thread(target=publisher.wait_for_subscribers, args=(1, stop.is_set))
    waiting.start()
    stop.set()
    publisher.interrupt_wait()
    waiting.join(WAIT_S)
    assert not waiting.is_alive()


def test_publisher_is_not_confused_by_a_peer_that_sends_no_subscriptions(open_publisher: Open) -> None:
    publisher = open_publisher()
    with zmq.Context() as context, context.socket(zmq.XSUB) as peer:
        peer.linger = 0
        peer.connect(publisher.address)
        for garbage in (b"", b"hello", b"prediction.main", b"\x02prediction.main", b"\xff" * 1000):
            peer.send(garbage)
        peer.send_multipart([b"p", b"", b"\x03p"])
        peer.send(b"\x01prediction.main")
        _wait_for_subscribers(publisher, 1)
        publisher.publish_prediction(_prediction(), IDENTITY)
        assert _receive(peer)[0] == "prediction.main"


def test_publisher_stalled_subscriber_slows_nobody_and_holds_bounded_memory(
    open_publisher: Open, subscribe: Subscribe
) -> None:
    publisher = open_publisher(high_water_mark=10)
    header, jpeg = {"v": 1, "stream": "main"}, bytes(1 << 20)
    subscribe(publisher, "frame.", "prediction.", rcvhwm=1)  # never reads
    healthy = subscribe(publisher, "frame.main", "prediction.main")
    publisher.wait_for_subscribers(2, lambda: False)
    before_bytes = _resident_bytes()
    start_s = time.monotonic()
    for _ in range(300):  # in step with the healthy reader: only the stalled one can fall behind
        publisher.publish_frame(header, jpeg)
        _receive(healthy)
    assert time.monotonic() - start_s < WAIT_S
    assert _resident_bytes() - before_bytes < 100e6  # of 300 MB that were sent
    publisher.publish_prediction(_prediction(), IDENTITY)
    assert _receive(healthy)[0] == "prediction.main"
    start_s = time.monotonic()
    publisher.close(State.NO_SIGNAL, "the end")
    assert time.monotonic() - start_s < 5


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


def test_publisher_last_message_is_a_status_after_all_that_was_handed_over(
    open_publisher: Open, subscribe: Subscribe
) -> None:
    publisher = open_publisher()
    socket = subscribe(publisher, "")
    publisher.wait_for_subscribers(1, lambda: False)
    for number in range(200):
        publisher.publish_prediction(_prediction(15 + number), IDENTITY)
    publisher.close(State.FAULT, "the end")
    publisher.publish_prediction(_prediction(), IDENTITY)  # too late: left out
    messages = _receive_until_last(socket)
    assert sum(topic == "prediction.main" for topic, _ in messages) == 200
    topic, header = messages[-1]
    assert (topic, header["state"], header["counters"]["published"]) == ("status.main", "FAULT", 200)
    assert not socket.poll(50)


def test_publisher_close_twice_and_without_start_is_harmless() -> None:
    publisher = Publisher(ANY_PORT, "main", Meters())
    publisher.close(State.NO_SIGNAL, "")
    publisher.close(State.NO_SIGNAL, "")
    publisher.set_state(State.LIVE, "")
    assert publisher.address.startswith("tcp://127.0.0.1:")


def test_publisher_close_frees_the_address(open_publisher: Open) -> None:
    first = open_publisher()
    first.close(State.NO_SIGNAL, "")
    assert open_publisher(first.address).address == first.address


def test_publisher_address_in_use_is_a_bind_error(open_publisher: Open) -> None:
    address = open_publisher().address
    with pytest.raises(BindError, match=r"cannot be bound \(Address already in use\); end the program") as caught:
        Publisher(address, "main", Meters())
    assert caught.value.exit_code == 5


def test_publisher_ipc_path_in_use_is_a_bind_error_and_a_path_left_over_is_not(tmp_path: Path) -> None:
    path = tmp_path / "edge.sock"
    first = Publisher(f"ipc://{path}", "main", Meters())
    with pytest.raises(BindError, match=r"edge\.sock cannot be bound \(Address already in use\)"):
        Publisher(f"ipc://{path}", "main", Meters())
    first.close(State.NO_SIGNAL, "")
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    assert path.exists()
    Publisher(f"ipc://{path}", "main", Meters()).close(State.NO_SIGNAL, "")


def test_publisher_ipc_path_of_a_file_or_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (file := tmp_path / "exam.dcm").write_text("not to be lost")
    for path in (file, tmp_path):
        with pytest.raises(
            BindError, match=r"cannot be bound \(File exists\); remove what is there, which is no socket"
        ):
            Publisher(f"ipc://{path}", "main", Meters())
    assert file.read_text() == "not to be lost"


def test_publisher_ipc_path_that_cannot_be_is_a_bind_error(tmp_path: Path) -> None:
    with pytest.raises(BindError, match=r"cannot be bound .*; make its folder first, or choose another --publish"):
        Publisher(f"ipc://{tmp_path / 'none' / 'edge.sock'}", "main", Meters())
    with pytest.raises(BindError, match="cannot be bound"):
        Publisher(f"ipc://{tmp_path / ('x' * 200)}", "main", Meters())


def test_publisher_address_of_another_host_is_a_bind_error() -> None:
    with pytest.raises(BindError, match=r"cannot be bound .*; it must be an address of this host"):
        Publisher("tcp://192.0.2.1:5555", "main", Meters(), is_insecure=True)


@pytest.mark.parametrize(
    "address",
    ["", "5555", "127.0.0.1:5555", "udp://127.0.0.1:5555", "tcp://127.0.0.1", "tcp://127.0.0.1:99999", "ipc://"],
)
def test_publisher_malformed_address_is_a_config_error(address: str) -> None:
    with pytest.raises(ConfigError, match="allowed are tcp://HOST:PORT and ipc://PATH"):
        Publisher(address, "main", Meters())


def test_publisher_beyond_this_machine_needs_keys_or_the_explicit_word() -> None:
    with pytest.raises(ConfigError, match="--curve DIR"):
        Publisher("tcp://*:*", "main", Meters())
    Publisher("tcp://*:*", "main", Meters(), is_insecure=True).close(State.NO_SIGNAL, "")


@pytest.mark.usefixtures("quick_status")
def test_publisher_on_ipc_reaches_a_subscriber(open_publisher: Open, subscribe: Subscribe, tmp_path: Path) -> None:
    publisher = open_publisher(f"ipc://{tmp_path / 'edge socket'}")
    assert _receive(subscribe(publisher, "status."))[0] == "status.main"


def test_publisher_with_keys_serves_their_owner_and_nobody_else(open_publisher: Open, tmp_path: Path) -> None:
    write_keys(tmp_path / "ours")
    write_keys(tmp_path / "strangers")
    (tmp_path / "strangers" / "server.key").write_bytes((tmp_path / "ours" / "server.key").read_bytes())
    publisher = open_publisher(curve_dir=tmp_path / "ours")
    with (
        Subscriber(publisher.address, curve=tmp_path / "ours") as owner,
        Subscriber(publisher.address, curve=tmp_path / "strangers") as stranger,
        Subscriber(publisher.address) as keyless,
    ):
        _wait_for_subscribers(publisher, 1)
        publisher.publish_prediction(_prediction(), IDENTITY)
        messages = [owner.receive(WAIT_S), owner.receive(WAIT_S)]
        assert any(isinstance(message, PredictionMessage) for message in messages)
        for outsider in (stranger, keyless):
            assert _refusal_of(outsider)
        publisher.set_state(State.LIVE, "")
        while not isinstance(message := owner.receive(WAIT_S), StatusMessage) or message.state != State.LIVE:
            assert message is not None
        assert publisher._num_subscribers == 1


def _refusal_of(outsider: Subscriber) -> str | None:
    """Wait until the daemon has refused the reader, which gets no message meanwhile."""
    deadline_s = time.monotonic() + WAIT_S
    while outsider.refusal is None and time.monotonic() < deadline_s:
        assert outsider.receive(0.1) is None
    return outsider.refusal


def test_publisher_without_its_key_folder_is_refused_and_leaves_nothing_open(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder; make the keys with edge-keygen"):
        Publisher(ANY_PORT, "main", Meters(), curve_dir=tmp_path / "none")
