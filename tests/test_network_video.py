"""Network video from real senders, which stall, die, come back, and send nonsense."""

import contextlib
import http.server
import io
import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from edge.errors import ConfigError, SourceError, SourceLost
from edge.frame import Frame
from edge.sources import open_source
from edge.sources.base import LiveItem, Pause, Source, Trouble
from edge.sources.options import SourceOptions
from tests.daemon import running
from tests.rtsp_server import RATE_HZ, SIZE_WH, RtpSender, RtspServer, number_of, numbered

_PORTS = itertools.count(34000 + os.getpid() % 1000 * 20, 2)
PASSWORD = "gehe%23im"


def items_of(source: Source, is_enough: Callable[[list[LiveItem]], bool], deadline_s: float = 30.0) -> list[LiveItem]:
    """Play until it is enough; then close."""
    items: list[LiveItem] = []
    t_end_s = time.monotonic() + deadline_s
    with contextlib.closing(source):
        for item in source.frames():
            items.append(item)
            if is_enough(items):
                return items
            assert time.monotonic() < t_end_s, f"it did not come: {items[-5:]}"
    raise AssertionError("the source ended")


def frames_of(items: list[LiveItem]) -> list[Frame]:
    return [item for item in items if isinstance(item, Frame)]


def has_frames(number: int) -> Callable[[list[LiveItem]], bool]:
    return lambda items: len(frames_of(items)) >= number


def has_pause(items: list[LiveItem]) -> bool:
    return isinstance(items[-1], Pause) and items[-1].reason != ""


@contextlib.contextmanager
def serving(password: str | None = None, port: int = 0) -> Iterator[RtspServer]:
    server = RtspServer(port, password=password)
    try:
        yield server
    finally:
        server.close()


def free_udp_port() -> int:
    """Return an even port of loopback, as RTP wants it, that is free; another one each time."""
    for port in _PORTS:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port
    raise AssertionError


def test_rtsp_frames_come_in_order_and_soon() -> None:
    with serving() as server:
        delays_ms, numbers = [], []

        def look(items: list[LiveItem]) -> bool:
            if isinstance(items[-1], Frame):
                number = number_of(items[-1].pixels)
                numbers.append(number)
                delays_ms.append((items[-1].t_capture_ns - server.sender.t_sent_ns[number]) / 1e6)
            return len(numbers) >= 30

        frames = frames_of(items_of(open_source(server.url), look))
    assert numbers == sorted(set(numbers))
    assert numbers[-1] - numbers[0] <= 35
    assert all(frame.size_wh == SIZE_WH for frame in frames)
    assert np.median(delays_ms) < 3 * 1000 / RATE_HZ  # FFmpeg waits for the next frame's first packet
    assert all(frame.t_media_ns == frame.t_capture_ns for frame in frames)


def test_rtsp_stall_is_told_within_a_second_and_ends() -> None:
    with serving() as server:
        source = open_source(server.url)
        t_stalled_s: list[float] = []
        pauses: list[float] = []

        def drive(items: list[LiveItem]) -> bool:
            num_frames = len(frames_of(items))
            if num_frames == 10 and not t_stalled_s:
                server.is_stalled = True
                t_stalled_s.append(time.monotonic())
            if t_stalled_s and isinstance(items[-1], Pause):
                pauses.append(time.monotonic() - t_stalled_s[0])
                server.is_stalled = False
            return bool(pauses) and isinstance(items[-1], Frame)

        items = items_of(source, drive)
    assert pauses[0] < 1.5
    last = frames_of(items)[-1]
    assert number_of(last.pixels) in server.sender.t_sent_ns


def test_rtsp_killed_server_is_a_loss_and_it_comes_back() -> None:
    with serving() as server:
        source = open_source(server.url)
        playing = source.frames()
        assert any(isinstance(item, Frame) for item in playing)
    with pytest.raises(SourceLost, match=r"rtsp://127.0.0.1:\d+ "):
        list(playing)
    with pytest.raises(SourceLost, match="refused"):
        list(source.frames())
    with serving(port=server.port):
        assert frames_of(items_of(source, has_frames(3)))[0].index == 0


def test_rtsp_wrong_password_is_an_error_without_it() -> None:
    with serving(password="other") as server:
        source = open_source(f"rtsp://user:{PASSWORD}@127.0.0.1:{server.port}/live?token=secret")
        with pytest.raises(SourceError) as caught:
            list(source.frames())
    assert not isinstance(caught.value, SourceLost)
    assert "401" in str(caught.value)
    for secret in ("gehe", "secret", "user"):
        assert secret not in str(caught.value) + str(source.info) + str(caught.value.__cause__)


@pytest.mark.parametrize("scheme", ["rtsp", "http", "tcp"])
def test_server_that_is_not_there_is_an_error(scheme: str) -> None:
    with pytest.raises(SourceError, match="refused"):
        list(open_source(f"{scheme}://127.0.0.1:{free_tcp_port()}/x").frames())


@pytest.mark.slow
def test_rtsp_damaged_packets_are_left_out_and_counted() -> None:
    with serving() as server:
        server.damage_every = 7
        items = items_of(open_source(server.url), has_frames(30))
        assert sum(item.counter == "bad_frames" for item in items if isinstance(item, Trouble)) > 0
        assert {number_of(frame.pixels) for frame in frames_of(items)} <= set(server.sender.t_sent_ns)


def test_rtp_packets_out_of_order_are_put_in_order(tmp_path: Path) -> None:
    port = free_udp_port()
    with _shuffling(port) as sender:
        source = open_source(str(_sdp(tmp_path, port, "H264/90000", "packetization-mode=1")))
        frames = frames_of(items_of(source, has_frames(20)))
        numbers = [number_of(frame.pixels) for frame in frames]
    assert numbers == sorted(numbers)
    assert set(numbers) <= set(sender.t_sent_ns)


@contextlib.contextmanager
def _shuffling(port: int) -> Iterator[RtpSender]:
    """Send RTP to a port, every second packet before the one that it follows."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as relay:
        relay.bind(("127.0.0.1", 0))
        sender = RtpSender(relay.getsockname()[1])

        def forward() -> None:
            while first := relay.recv(65536):
                second = relay.recv(65536)
                for packet in (second, first):
                    if packet:
                        relay.sendto(packet, ("127.0.0.1", port))
                if not second:
                    return

        thread = threading.Thread(target=forward)
        thread.start()
        try:
            yield sender
        finally:
            sender.close()
            relay.sendto(b"", relay.getsockname())
            thread.join()


def _sdp(folder: Path, port: int, rtpmap: str, fmtp: str) -> Path:
    path = folder / "stream.sdp"
    path.write_text(
        "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
        f"m=video {port} RTP/AVP 96\r\na=rtpmap:96 {rtpmap}\r\na=fmtp:96 {fmtp}\r\n"
    )
    return path


def test_sdp_uncompressed_video_is_played_to_the_bit(tmp_path: Path) -> None:
    """SMPTE ST 2110-20 and RFC 4175: the video flow of DICOM real-time video."""
    port = free_udp_port()
    stop = threading.Event()

    def send() -> None:
        with av.open(f"rtp://127.0.0.1:{port}", "w", format="rtp") as container:
            stream = container.add_stream("rawvideo", rate=RATE_HZ)
            stream.width, stream.height = SIZE_WH
            stream.pix_fmt = "uyvy422"
            stream.codec_context.options = {"field_order": "progressive"}  # else half of each frame is zero
            for number in itertools.count():
                frame = av.VideoFrame.from_ndarray(numbered(number), format="gray").reformat(format="uyvy422")
                frame.pts = number
                container.mux(stream.encode(frame))
                if stop.wait(1 / RATE_HZ):
                    return

    fmtp = "sampling=YCbCr-4:2:2; width=320; height=240; exactframerate=30; depth=8; TCS=SDR; colorimetry=BT709"
    source = open_source(str(_sdp(tmp_path, port, "raw/90000", fmtp)))
    thread = threading.Thread(target=send)
    thread.start()
    try:
        frames = frames_of(items_of(source, has_frames(10)))
    finally:
        stop.set()
        thread.join()
    for frame in frames:
        number = number_of(frame.pixels if frame.pixels.ndim == 2 else frame.pixels[..., 0])
        image = frame.pixels if frame.pixels.ndim == 2 else frame.pixels[..., 0]
        assert np.abs(image.astype(int) - numbered(number)).max() <= 2


@pytest.mark.parametrize(
    "text", ["", "nonsense", "v=0\r\nm=audio 5004 RTP/AVP 0\r\n", "v=0\r\nm=video x RTP/AVP y\r\n"]
)
def test_sdp_that_is_nonsense_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.sdp").write_text(text)
    with pytest.raises(SourceError, match=r"x\.sdp"):
        items_of(open_source(str(tmp_path / "x.sdp")), lambda items: False, deadline_s=20)


def test_sdp_file_that_is_not_there_is_an_error() -> None:
    with pytest.raises(SourceError, match="there is no file"):
        open_source("missing.sdp")


def test_udp_waits_for_a_sender_that_comes_late() -> None:
    port = free_udp_port()
    source = open_source(f"udp://127.0.0.1:{port}")
    items = []
    sender = None
    try:
        with contextlib.closing(source):
            for item in source.frames():
                items.append(item)
                if sender is None and has_pause(items):
                    sender = RtpSender(port, "udp://127.0.0.1:{}?pkt_size=1316", "mpegts")
                if len(frames_of(items)) >= 10:
                    break
    finally:
        assert sender is not None
        sender.close()
    assert {number_of(frame.pixels) for frame in frames_of(items)} <= set(sender.t_sent_ns)


class _Web(http.server.BaseHTTPRequestHandler):
    """Sends motion JPEG, or a playlist that points to a file of the reader's own."""

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path.endswith("m3u8"):
            self.send_header("Content-Type", "application/vnd.apple.mpegurl")
            self.end_headers()
            self.wfile.write(b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n")
            return
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=b")
        self.end_headers()
        pause = threading.Event()
        with contextlib.suppress(OSError):
            for number in range(60):
                buffer = io.BytesIO()
                Image.fromarray(numbered(number)).save(buffer, "jpeg", quality=95)
                head = f"--b\r\nContent-Type: image/jpeg\r\nContent-Length: {buffer.tell()}\r\n\r\n"
                self.wfile.write(head.encode() + buffer.getvalue() + b"\r\n")
                pause.wait(1 / RATE_HZ)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving_web(port: int = 0) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), _Web) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def web() -> Iterator[str]:
    with serving_web() as address:
        yield address


def free_tcp_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


def test_http_server_that_is_awaited_comes_later() -> None:
    port = free_tcp_port()
    source = open_source(f"http://127.0.0.1:{port}/video.mjpg", options=SourceOptions(is_awaited=True))
    for _ in range(2):
        with pytest.raises(SourceLost, match="refused"):
            list(source.frames())
    with serving_web(port):
        assert frames_of(items_of(source, has_frames(3)))[0].index == 0


def test_daemon_that_waits_for_its_source_says_why_and_plays_what_comes(trivial_bundle: Path) -> None:
    port = free_tcp_port()
    with running(
        "--source", f"rtsp://127.0.0.1:{port}/live", "--engine", str(trivial_bundle), "--roi", "full",
        "--max-windows", "3", "--wait-source",
    ) as daemon:  # fmt: skip
        while daemon.receive("status").header["state"] != "NO_SIGNAL":
            pass
        reason = daemon.messages[-1].header["reason"]
        with serving(port=port):
            recording = daemon.finish()
    assert "failed (Connection refused): check its sender, address and password" in reason
    assert (recording.exit_code, len(recording.predictions)) == (0, 3)
    assert recording.stderr.count("refused") == 1
    assert "the source is back" in recording.stderr


def test_daemon_that_waits_for_its_source_is_stopped_as_ever(trivial_bundle: Path) -> None:
    source = f"rtsp://127.0.0.1:{free_tcp_port()}/live"
    with running("--source", source, "--engine", str(trivial_bundle), "--wait-source") as daemon:
        while daemon.receive("status").header["state"] != "NO_SIGNAL":
            pass
        daemon.signal(signal.SIGTERM)
        assert daemon.finish().exit_code == 0


def test_http_motion_jpeg_is_played_and_its_end_is_a_loss(web: str) -> None:
    items: list[LiveItem] = []
    with pytest.raises(SourceLost, match=r"http://127.0.0.1:\d+ (ended|failed)"):
        _keep(open_source(f"{web}/video.mjpg"), items)
    numbers = [number_of(frame.pixels) for frame in frames_of(items)]
    assert numbers == sorted(numbers)
    assert len(numbers) > 30


def _keep(source: Source, items: list[LiveItem]) -> None:
    """Put what comes into `items` as it comes: an exception would take it away."""
    for item in source.frames():
        items.append(item)


def test_http_playlist_that_points_to_a_local_file_is_refused(web: str) -> None:
    with pytest.raises(SourceError) as caught:
        list(open_source(f"{web}/list.m3u8").frames())
    assert "hostname" not in str(caught.value)


@pytest.mark.parametrize("uri", ["rtsp://", "rtsp://user:pa[ss@host/x", "http:///x", "rtsp://host:port/x", "udp://"])
def test_url_that_is_wrong_is_refused_without_repeating_it(uri: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_source(uri)
    assert "pa[ss" not in str(caught.value)


@pytest.mark.slow
def test_daemon_whose_server_is_killed_goes_on_with_the_next_and_tells_no_password(
    trivial_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(password=PASSWORD.replace("%23", "#")) as server:
        port = server.port
        with running(
            "--source", f"rtsp://user:{PASSWORD}@127.0.0.1:{port}/live?key=secret", "--engine", str(trivial_bundle),
            "--roi", "full", "--max-windows", "40",
        ) as daemon:  # fmt: skip
            daemon.receive("prediction")
            server.close()
            while daemon.receive("status").header["state"] == "LIVE":
                pass
            t_back_s = time.monotonic()
            with serving(password=PASSWORD.replace("%23", "#"), port=port):
                num_before = len(daemon.messages)
                daemon.receive("prediction")
                recovery_s = time.monotonic() - t_back_s
                recording = daemon.finish()
            assert num_before < len(recording.messages)
    assert recording.exit_code == 0
    assert recording.of("status")[-1].header["counters"]["reconnects"] == 1
    with capsys.disabled():
        print(f"\nRTSP, server back to the first new prediction: {recovery_s:.2f} s", end="")
    assert recovery_s < 10
    said = recording.stderr + str([message.header for message in recording.messages])
    for secret in (PASSWORD, "gehe", "secret"):
        assert secret not in said
