"""SRT from srt-live-transmit, called and calling, encrypted and not."""

import contextlib
import ctypes.util
import shutil
import subprocess
import time
from collections.abc import Iterator

import pytest

from edge.errors import ConfigError, SourceError, SourceLost
from edge.frame import Frame
from edge.sources import open_source
from edge.sources.network.srt import parse_srt
from tests.rtsp_server import RtpSender, number_of
from tests.test_network_video import frames_of, free_udp_port, has_frames, items_of

pytestmark = pytest.mark.skipif(
    shutil.which("srt-live-transmit") is None or ctypes.util.find_library("srt") is None,
    reason="needs libsrt (apt-get install libsrt1.5-openssl srt-tools)",
)
PASSPHRASE = "correct horse"


@contextlib.contextmanager
def transmitting(srt: str) -> Iterator[RtpSender]:
    """Send numbered frames as MPEG-TS by srt-live-transmit."""
    port = free_udp_port()
    relay = subprocess.Popen(
        ["srt-live-transmit", "-q", f"udp://:{port}", srt], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    sender = RtpSender(port, "udp://127.0.0.1:{}?pkt_size=1316", "mpegts")
    try:
        yield sender
    finally:
        relay.kill()
        relay.wait()
        sender.close()


@pytest.mark.parametrize("passphrase", ["", PASSPHRASE])
def test_srt_caller_plays_a_listening_sender(passphrase: str) -> None:
    port = free_udp_port()
    secret = f"&passphrase={passphrase}" if passphrase else ""
    with transmitting(f"srt://127.0.0.1:{port}?mode=listener{secret}") as sender:
        source = open_source(f"srt://127.0.0.1:{port}?latency=20{secret.replace(' ', '%20')}")
        frames = frames_of(items_of(source, has_frames(15)))
        numbers = [number_of(frame.pixels) for frame in frames]
    assert numbers == sorted(set(numbers))
    assert set(numbers) <= set(sender.t_sent_ns)
    assert "horse" not in str(source.info)


def test_srt_listener_waits_for_a_sender_that_calls() -> None:
    port = free_udp_port()
    source = open_source(f"srt://127.0.0.1:{port}?mode=listener")
    playing = source.frames()
    next(playing)  # it listens
    with transmitting(f"srt://127.0.0.1:{port}?mode=caller"), contextlib.closing(source):
        assert any(isinstance(item, Frame) for item in playing)


def test_srt_sender_that_is_killed_is_a_loss() -> None:
    port = free_udp_port()
    with transmitting(f"srt://127.0.0.1:{port}?mode=listener"):
        source = open_source(f"srt://127.0.0.1:{port}")
        playing = source.frames()
        assert any(isinstance(item, Frame) for item in playing)
    t_killed_s = time.monotonic()
    with pytest.raises(SourceLost):
        list(playing)
    assert time.monotonic() - t_killed_s < 5


def test_srt_wrong_passphrase_is_an_error_without_it() -> None:
    port = free_udp_port()
    with (
        transmitting(f"srt://127.0.0.1:{port}?mode=listener&passphrase={PASSPHRASE}"),
        pytest.raises(SourceError, match="failed") as caught,
    ):
        list(open_source(f"srt://127.0.0.1:{port}?passphrase=wrong%20horse").frames())
    assert "horse" not in str(caught.value)
    assert not isinstance(caught.value, SourceLost)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("srt://127.0.0.1", "is like srt://HOST:PORT"),
        ("srt://:9000", "is like srt://HOST:PORT"),
        ("srt://h:9000?mode=rendezvous", "allowed modes are caller, listener"),
        ("srt://h:9000?colour=red", "unknown key 'colour'"),
        ("srt://h:9000?latency=fast", "whole number of milliseconds"),
        ("srt://h:9000?passphrase=short", "10 to 79"),
    ],
)
def test_srt_url_that_is_wrong_says_how_it_must_be(uri: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        open_source(uri)


def test_srt_address_shows_no_secrets() -> None:
    address = parse_srt("srt://h:9000?passphrase=correct%20horse&streamid=user")
    assert address.passphrase == PASSPHRASE
    assert "horse" not in repr(address)
    assert "user" not in repr(address)
