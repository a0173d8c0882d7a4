"""A small RTSP server (RFC 2326) with faults on demand; frames carry their number in black and white blocks.

The H.264 stream and its RTP packets are FFmpeg's own; this part only answers RTSP and hands packets on.
"""

import base64
import contextlib
import itertools
import socket
import struct
import threading
import time
from collections.abc import Iterator

import av
import numpy as np

SIZE_WH = (320, 240)
_BLOCK, _NUM_BITS = 16, 16
RATE_HZ = 30


def numbered(number: int) -> np.ndarray:
    """Return (240, 320) uint8 with the number in its first row of blocks, below it something that moves."""
    image = np.full((SIZE_WH[1], SIZE_WH[0]), 90, np.uint8)
    for bit in range(_NUM_BITS):
        image[:_BLOCK, bit * _BLOCK : (bit + 1) * _BLOCK] = 235 if number >> bit & 1 else 20
    left = number * 5 % 280
    image[100:140, left : left + 40] = 200
    return image


def number_of(image: np.ndarray) -> int:
    """Read the number back from (240, 320) uint8."""
    middles = image[_BLOCK // 2, _BLOCK // 2 : _NUM_BITS * _BLOCK : _BLOCK]
    return sum(1 << bit for bit, value in enumerate(middles) if value > 128)


class RtpSender:
    """Encodes numbered frames in real time and sends them as RTP or MPEG-TS over UDP to a port of loopback."""

    def __init__(self, port: int, url: str = "rtp://127.0.0.1:{}", container_format: str = "rtp") -> None:
        self.t_sent_ns: dict[int, int] = {}
        """When each number was made, monotonic."""
        self._stop = threading.Event()
        self._url = url.format(port)
        self._format = container_format
        self._thread = threading.Thread(target=self._run, name="sender")
        self._thread.start()

    def _run(self) -> None:
        with av.open(self._url, "w", format=self._format) as container:
            stream = container.add_stream("libx264", rate=RATE_HZ)
            stream.width, stream.height = SIZE_WH
            stream.pix_fmt = "yuv420p"
            stream.options = {
                "preset": "ultrafast",
                "tune": "zerolatency",
                "x264-params": "keyint=15:repeat-headers=1:slices=1",
            }
            t_start_s = time.monotonic()
            for number in itertools.count():
                if self._stop.wait(max(0.0, t_start_s + number / RATE_HZ - time.monotonic())):
                    return
                self.t_sent_ns[number] = time.monotonic_ns()
                frame = av.VideoFrame.from_ndarray(numbered(number), format="gray").reformat(format="yuv420p")
                frame.pts = number
                container.mux(stream.encode(frame))

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


class RtspServer:
    """Serves one live stream at `url` to any number of players, interleaved over TCP."""

    def __init__(self, port: int = 0, *, password: str | None = None) -> None:
        self._password = password
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self._rtp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._rtp.bind(("127.0.0.1", 0))
        self.sender = RtpSender(self._rtp.getsockname()[1])
        self._is_closed = False
        self.is_stalled = False
        self.damage_every = 0
        """Noise in place of every n-th packet, but for its headers; 0: none."""
        self.is_shuffled = False
        """Every second packet changes places with the one before it."""
        self._players: list[socket.socket] = []
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=target) for target in (self._accept, self._forward)]
        for thread in self._threads:
            thread.start()

    @property
    def url(self) -> str:
        who = f"user:{self._password}@" if self._password else ""
        return f"rtsp://{who}127.0.0.1:{self.port}/live"

    def close(self) -> None:
        """Die: no connection is ended in order. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.sender.close()
        self._rtp.sendto(b"", self._rtp.getsockname())  # wakes it
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        for thread in self._threads:
            thread.join()
        self._rtp.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                thread = threading.Thread(target=self._serve, args=(connection,))
                self._threads.append(thread)
                thread.start()

    def _forward(self) -> None:
        held: bytes | None = None
        for number in itertools.count(1):
            packet = self._rtp.recv(65536)
            if not packet:
                return
            if self.damage_every and number % self.damage_every == 0:
                packet = packet[:18] + np.random.default_rng(number).bytes(max(0, len(packet) - 18))
            if self.is_shuffled and held is None:
                held = packet
                continue
            for part in (packet, held):
                if part is not None and not self.is_stalled:
                    self._send(part)
            held = None

    def _send(self, packet: bytes) -> None:
        for player in list(self._players):
            try:
                player.sendall(struct.pack(">cBH", b"$", 0, len(packet)) + packet)
            except OSError:
                self._players.remove(player)

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            for method, sequence, is_known in self._requests(connection):
                if self._password is not None and not is_known:
                    answer = 'RTSP/1.0 401 Unauthorized\r\nWWW-Authenticate: Basic realm="x"\r\n'
                else:
                    answer = "RTSP/1.0 200 OK\r\n" + self._headers(method)
                head, _, body = answer.partition("\r\n\r\n")
                connection.sendall(f"{head.rstrip()}\r\nCSeq: {sequence}\r\n\r\n{body}".encode())
                if method == "PLAY":
                    self._players.append(connection)

    def _requests(self, connection: socket.socket) -> Iterator[tuple[str, str, bool]]:
        data = b""
        token = base64.b64encode(f"user:{self._password}".encode()).decode()
        while part := connection.recv(4096):
            data += part
            while b"\r\n\r\n" in data:
                text, _, data = data.partition(b"\r\n\r\n")
                start = text.find(b"RTSP/1.0")
                line_start = max(text.rfind(b"\n", 0, start), 0)
                request = text[line_start:].decode("latin-1").lstrip()
                if "CSeq:" in request:  # else the player's own RTCP, in between
                    sequence = request.partition("CSeq:")[2].split("\r\n")[0].strip()
                    yield request.split(" ")[0], sequence, token in request

    def _headers(self, method: str) -> str:
        if method == "OPTIONS":
            return "Public: DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
        if method == "DESCRIBE":
            sdp = (
                "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n"
                "a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\na=control:track1\r\n"
            )
            return f"Content-Type: application/sdp\r\nContent-Length: {len(sdp)}\r\n\r\n{sdp}"
        if method == "SETUP":
            return "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n"
        return "Session: 1\r\n"
