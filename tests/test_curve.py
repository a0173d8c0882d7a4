"""CURVE keys and addresses, over real sockets."""

import re
import stat
import sys
from pathlib import Path

import pytest
import zmq

from edge import keygen
from edge.curve import check_address, is_loopback, secure_client, secure_server
from edge.errors import ConfigError
from edge.keygen import write_keys


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    write_keys(tmp_path / "keys")
    return tmp_path / "keys"


@pytest.mark.parametrize(
    "address",
    ["tcp://127.0.0.1:5555", "tcp://127.0.0.1:*", "tcp://127.8.9.1:1", "tcp://localhost:5555", "tcp://[::1]:5555",
     "ipc:///tmp/edge", "tcp://lo:5555"],
)  # fmt: skip
def test_check_address_of_this_machine_needs_no_keys(address: str) -> None:
    assert is_loopback(address)
    check_address(address, has_keys=False, insecure=False)


@pytest.mark.parametrize(
    "address",
    ["tcp://*:5555", "tcp://0.0.0.0:5555", "tcp://192.168.1.4:5555", "tcp://eth0:5555", "tcp://scanner.example:5555",
     "tcp://[::]:5555", "tcp://localhost.example:5555", "tcp://128.0.0.1:5555"],
)  # fmt: skip
def test_check_address_beyond_this_machine_needs_keys_or_insecure(address: str) -> None:
    with pytest.raises(ConfigError, match=r"--curve DIR.*--insecure"):
        check_address(address, has_keys=False, insecure=False)
    check_address(address, has_keys=True, insecure=False)
    check_address(address, has_keys=False, insecure=True)


@pytest.mark.parametrize(
    "address", ["127.0.0.1:5555", "tcp://127.0.0.1", "tcp://:5", "tcp://a:70000", "udp://a:1", "ipc://", "tcp:/a:1", ""]
)
def test_check_address_malformed_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="is not an address; allowed are"):
        check_address(address, has_keys=True, insecure=True)


def test_keygen_writes_secrets_that_only_the_owner_reads(keys: Path) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in keys.iterdir()}
    assert modes == {"server.key": 0o644, "server.key_secret": 0o600, "client.key": 0o644, "client.key_secret": 0o600}


def test_keygen_where_one_key_exists_changes_nothing(
    keys: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("server.key", "server.key_secret", "client.key"):
        (keys / name).unlink()
    before = (keys / "client.key_secret").read_bytes()
    monkeypatch.setattr(sys, "argv", ["edge-keygen", str(keys)])
    assert keygen.main() == 2
    assert re.fullmatch(r"error: .*client\.key_secret exists; .*\n", capsys.readouterr().err)
    assert [path.name for path in keys.iterdir()] == ["client.key_secret"]
    assert (keys / "client.key_secret").read_bytes() == before


def test_keygen_below_a_file_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write keys"):
        write_keys(tmp_path / "file" / "keys")


def _first_handshake(server_keys: Path, client_keys: Path | None) -> tuple[int, bytes | None]:
    """Return the server's first handshake event, and the message if one came through."""
    with zmq.Context() as server_context, zmq.Context() as client_context:
        publisher, subscriber = server_context.socket(zmq.PUB), client_context.socket(zmq.SUB)
        authenticator = secure_server(publisher, server_keys)
        events = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        monitor = publisher.get_monitor_socket(events | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
        try:
            port = publisher.bind_to_random_port("tcp://127.0.0.1")
            if client_keys is not None:
                secure_client(subscriber, client_keys)
            subscriber.subscribe(b"")
            subscriber.connect(f"tcp://127.0.0.1:{port}")
            assert monitor.poll(5000)
            event = int.from_bytes(monitor.recv_multipart()[0][:2], "little")
            received = None
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                while not subscriber.poll(10):
                    publisher.send(b"hello")
                received = subscriber.recv()
            else:
                publisher.send(b"hello")
                assert not subscriber.poll(50)
            return event, received
        finally:
            publisher.disable_monitor()
            monitor.close(0)
            subscriber.close(0)
            publisher.close(0)
            authenticator.stop()


def test_secure_server_known_client_is_let_in(keys: Path) -> None:
    assert _first_handshake(keys, keys) == (zmq.EVENT_HANDSHAKE_SUCCEEDED, b"hello")


def test_secure_server_second_client_key_in_the_folder_is_let_in(keys: Path, tmp_path: Path) -> None:
    write_keys(tmp_path / "other")
    (keys / "ward-2.key").write_bytes((tmp_path / "other" / "client.key").read_bytes())
    (tmp_path / "other" / "server.key").write_bytes((keys / "server.key").read_bytes())
    assert _first_handshake(keys, tmp_path / "other") == (zmq.EVENT_HANDSHAKE_SUCCEEDED, b"hello")


def test_secure_server_unknown_client_key_is_shut_out(keys: Path, tmp_path: Path) -> None:
    write_keys(tmp_path / "other")
    (tmp_path / "other" / "server.key").write_bytes((keys / "server.key").read_bytes())
    event, received = _first_handshake(keys, tmp_path / "other")
    assert event != zmq.EVENT_HANDSHAKE_SUCCEEDED
    assert received is None


def test_secure_server_client_without_keys_is_shut_out(keys: Path) -> None:
    event, received = _first_handshake(keys, None)
    assert event != zmq.EVENT_HANDSHAKE_SUCCEEDED
    assert received is None


@pytest.mark.parametrize("name", ["server.key_secret", "client.key"])
def test_secure_server_missing_file_is_named(keys: Path, name: str) -> None:
    (keys / name).unlink()
    with zmq.Context() as context, context.socket(zmq.PUB) as socket, pytest.raises(ConfigError, match=f"no {name};"):
        secure_server(socket, keys)


@pytest.mark.parametrize("name", ["server.key", "client.key_secret"])
def test_secure_client_missing_file_is_named(keys: Path, name: str) -> None:
    (keys / name).unlink()
    with zmq.Context() as context, context.socket(zmq.SUB) as socket, pytest.raises(ConfigError, match=f"no {name};"):
        secure_client(socket, keys)


def test_secure_client_missing_folder_is_named(tmp_path: Path) -> None:
    with (
        zmq.Context() as context,
        context.socket(zmq.SUB) as socket,
        pytest.raises(ConfigError, match="no such folder"),
    ):
        secure_client(socket, tmp_path / "nowhere")


@pytest.mark.parametrize(
    "text", ["", "junk", 'public-key = "short"', 'public-key = "{}"\nsecret-key = "{}"'.format("~" * 40, "~" * 40)]
)
def test_secure_client_damaged_key_is_named(keys: Path, text: str) -> None:
    (keys / "client.key_secret").write_text(text)
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        with pytest.raises(ConfigError, match=r"client\.key_secret is damaged") as caught:
            secure_client(socket, keys)
        assert "\n" not in str(caught.value)
