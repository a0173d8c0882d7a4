"""The control socket: who may ask, what is answered, and that nothing harms it."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from small_keeper import SmallKeeper, keeping

from edge.commands import commands_of
from edge.control import ControlServer
from edge.control_client import ControlClient
from edge.errors import BindError, ConfigError, EdgeError, SourceError
from edge.keygen import write_keys

DEADLINE_MS = 20_000


@pytest.fixture
def small(tmp_path: Path) -> Iterator[SmallKeeper]:
    with keeping(tmp_path / "state") as keeper:
        yield keeper


@pytest.fixture
def server(small: SmallKeeper) -> Iterator[ControlServer]:
    server = ControlServer("tcp://127.0.0.1:*", commands_of(small.keeper), curve_dir=None, is_insecure=False)
    yield server
    server.close()


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    with zmq.Context() as context:
        context.linger = 0
        yield context


def _exchange(context: zmq.Context[Any], kind: int, address: str, *frames: bytes) -> list[bytes]:
    with context.socket(kind) as socket:
        socket.connect(address)
        socket.send_multipart(frames)
        assert socket.poll(DEADLINE_MS), "no answer came"
        return socket.recv_multipart()


def _request(**values: object) -> bytes:
    return bytes(msgpack.packb({"v": 1, **values}))


def test_control_answers_req_and_dealer_alike(server: ControlServer, context: zmq.Context[Any]) -> None:
    request = _request(command="exam")
    expected = msgpack.packb({"v": 1, "ok": True, "exam": None})
    assert _exchange(context, zmq.REQ, server.address, request) == [expected]
    assert _exchange(context, zmq.DEALER, server.address, request) == [expected]
    assert _exchange(context, zmq.DEALER, server.address, b"", request) == [b"", expected]


def test_control_takes_every_command(server: ControlServer, small: SmallKeeper) -> None:
    with ControlClient(server.address) as client:
        assert client.ask("status")["status"] is None
        assert client.ask("snapshot")["prediction"] is None
        exam = client.ask("exam-start", note="left")["exam"]
        jpeg = small.send_frame(10)
        header = small.send(0.9, 0)
        assert client.ask("exam-note", note="breathed")["exam"]["num_windows"] == 1
        assert client.ask("threshold", threshold=0.95) == {"v": 1, "ok": True, "threshold": 0.95}
        full = client.ask("exam")["exam"]
        assert [note["text"] for note in full["notes"]] == ["left", "breathed"]
        assert (full["positive"], len(full["keyframes"])) == (False, 1)
        assert "keyframes" not in client.ask("exam", keyframes=False)["exam"]
        snapshot = client.ask("snapshot")
        assert (snapshot["prediction"], snapshot["jpeg"]) == (header, jpeg)
        assert len(snapshot["heatmap"]) == 2 * 16 * 7 * 7
        assert client.ask("exam-stop")["exam"]["id"] == exam["id"]
        with pytest.raises(EdgeError, match="no exam is open"):
            client.ask("exam-stop")


BAD = {
    "nothing": b"",
    "noise": bytes(range(256)),
    "no map": msgpack.packb([1, 2]),
    "no command": _request(),
    "unknown command": _request(command="reboot"),
    "command of another type": _request(command={"a": 1}),
    "no version": msgpack.packb({"command": "exam"}),
    "later version": msgpack.packb({"v": 2, "command": "exam"}),
    "deep": b"\x91" * 5000,
    "deep version": b"\x81\xa1v" + b"\x91" * 900 + b"\xc0",
    "deep command": b"\x82\xa1v\x01\xa7command" + b"\x91" * 900 + b"\xc0",
    "huge claim": b"\xdd\xff\xff\xff\xff",
    "not UTF-8": b"\x81\xa1v\xa1\xff",
    "keyframes of another type": _request(command="exam", keyframes="yes"),
    "threshold as text": _request(command="threshold", threshold="a" * 5000),
    "threshold missing": _request(command="threshold"),
    "note of another type": _request(command="exam-start", note=[[]]),
    "map with a list for a key": b"\x81\x90\x01",
}


@pytest.mark.parametrize("request_bytes", BAD.values(), ids=BAD.keys())
def test_control_bad_request_gets_a_short_error(
    server: ControlServer, context: zmq.Context[Any], small: SmallKeeper, request_bytes: bytes
) -> None:
    (reply,) = _exchange(context, zmq.REQ, server.address, request_bytes)
    answer = msgpack.unpackb(reply)
    assert answer["ok"] is False
    assert 0 < len(answer["error"]) < 300
    assert small.terms.exam is None
    assert small.terms.threshold == 0.5


def test_control_hostile_peers_leave_it_answering(server: ControlServer, context: zmq.Context[Any]) -> None:
    hostile = [context.socket(zmq.DEALER) for _ in range(3)]
    for socket in hostile:
        socket.connect(server.address)
    hostile[0].send_multipart([b"x"] * 50)  # of no form that can be answered
    hostile[1].send(os.urandom(1 << 20))  # larger than any request
    for _ in range(200):  # asks on and on, and never reads
        hostile[2].send(_request(command="exam"), zmq.NOBLOCK)
    with ControlClient(server.address, timeout_s=DEADLINE_MS / 1e3) as client:
        assert client.ask("exam")["ok"]
    for socket in hostile:
        socket.close(linger=0)


def test_control_lets_the_owners_of_keys_in_and_nobody_else(tmp_path: Path, small: SmallKeeper) -> None:
    write_keys(tmp_path / "keys")
    write_keys(tmp_path / "others")
    commands = commands_of(small.keeper)
    server = ControlServer("tcp://127.0.0.1:*", commands, curve_dir=tmp_path / "keys", is_insecure=False)
    try:
        with ControlClient(server.address, curve=tmp_path / "keys", timeout_s=20) as client:
            assert client.ask("exam")["ok"]
        for curve in (None, tmp_path / "others"):
            with ControlClient(server.address, curve=curve, timeout_s=0.5) as client, pytest.raises(SourceError):
                client.ask("exam-start")
        assert small.terms.exam is None
    finally:
        server.close()


def test_control_beyond_this_machine_needs_keys(small: SmallKeeper) -> None:
    with pytest.raises(ConfigError, match="--curve DIR"):
        ControlServer("tcp://0.0.0.0:*", commands_of(small.keeper), curve_dir=None, is_insecure=False)


def test_control_address_in_use_is_told(server: ControlServer, small: SmallKeeper) -> None:
    with pytest.raises(BindError, match="another --control"):
        ControlServer(server.address, commands_of(small.keeper), curve_dir=None, is_insecure=False)


def test_client_of_nobody_says_so_in_time() -> None:
    started_s = time.monotonic()
    with (
        ControlClient("ipc:///nowhere/at/all", timeout_s=0.3) as client,
        pytest.raises(SourceError, match="is edge-infer running there, with --control"),
    ):
        client.ask("exam")
    assert time.monotonic() - started_s < 5
