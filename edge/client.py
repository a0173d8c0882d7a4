"""The subscriber library: read a daemon's predictions in Python.

    from edge.client import Subscriber

    with Subscriber("tcp://127.0.0.1:5555") as subscriber:
        for prediction in subscriber:
            print(prediction.state, prediction.probabilities, prediction.heatmap)

Start it before or after the daemon. Nothing that a reader does or leaves undone slows the daemon: messages that a
reader is too slow for are lost to it alone, and counted in `num_lost`.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgpack
import zmq

from edge.commandline import print_line
from edge.connection import Connection
from edge.curve import check_form, is_ipv6, secure_client
from edge.errors import ConfigError, SourceError, WireError
from edge.messages import AnyMessage, Arrival, FrameMessage, PredictionMessage, StatusMessage, read_message
from edge.prediction import State
from edge.wire import MAX_PART_BYTES, VERSION, boot_id, decode, unpack_header

DEFAULT_ADDRESS = "tcp://127.0.0.1:5555"
KINDS = ("prediction", "status", "frame")

_LAST_STATES = (State.NO_SIGNAL, State.FAULT)
_MAX_WAITING = 10_000  # messages: several minutes of predictions; what comes beyond them is lost and counted
_MAX_WAITING_FRAMES = 1000  # of some 50 KB; where so many wait as the daemon leaves, ZeroMQ drops what lies behind them

_MAX_DRAINED_BYTES = 64 << 20
_MAX_STREAMS = 64
"""Of one daemon, which has one: of more than that no gaps are counted."""


class Subscriber:
    """Reads one daemon's messages. Used from one thread."""

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        stream: str | None = None,
        kinds: Sequence[str] = ("prediction", "status"),
        newest_only: bool = False,
        timeout_s: float | None = 10.0,
        stale_after_ms: float = 500.0,
        curve: Path | str | None = None,
    ) -> None:
        """Connect, or keep trying to in the background.

        Args:
            address: Where `edge-infer --publish` binds.
            stream: Read this stream alone; None reads all.
            kinds: What to receive, of "prediction", "status" and "frame".
            newest_only: Iteration leaves out predictions that a newer one has overtaken.
            timeout_s: How long iteration bears silence; a daemon sends a status every second. None waits for ever.
            stale_after_ms: Age from which a prediction's `state` is STALE.
            curve: Key folder with `server.key` and `client.key_secret`.

        Raises:
            ConfigError: The address or the keys cannot be used.
        """
        check_form(address)
        self.address = address
        self.status: StatusMessage | None = None
        """The latest status."""
        self.num_lost = 0
        """Predictions that were published but never came, from the gaps in `seq`."""
        self.num_malformed = 0
        """Messages that were not readable and left out."""
        self._stream, self._newest_only, self._timeout_s = stream, newest_only, timeout_s
        self._host, self._stale_after_ms = boot_id(), stale_after_ms
        self._next_seq: dict[str, int] = {}
        self._is_last_word = self._is_end_told = False
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._connection = Connection(self._socket)
        try:
            self._connect(kinds, Path(curve) if curve is not None else None)
        except BaseException:
            self.close()
            raise

    @property
    def is_connected(self) -> bool:
        """Whether a daemon is there."""
        self._connection.update()
        return self._connection.is_up

    @property
    def refusal(self) -> str | None:
        """Why the daemon shuts this reader out, where it does."""
        self._connection.update()
        return self._connection.refusal

    @property
    def has_ended(self) -> bool:
        """Whether the daemon said its last word, a status, and left; False again when one comes back."""
        self._connection.update()
        if not self._is_last_word or self._connection.is_up or self._socket.closed:
            return False
        return not self._socket.poll(0)

    def __iter__(self) -> Iterator[PredictionMessage]:
        """Yield predictions until the daemon ends.

        Raises:
            SourceError: No message of any kind came for `timeout_s`.
            WireError: The daemon speaks a newer version of the wire.
        """
        while not self._socket.closed:
            message = self._next_or_end()
            if message is None:
                return
            if isinstance(message, PredictionMessage):
                yield self._newest_after(message) if self._newest_only else message

    def receive(self, timeout_s: float) -> AnyMessage | None:
        """Return the next message of any kind; None where none came in time.

        Returns early once when the daemon ends (`has_ended`).

        Raises:
            WireError: The daemon speaks a newer version of the wire.
        """
        deadline_s = time.monotonic() + timeout_s
        while not self._socket.closed:
            left_ms = max(0.0, (deadline_s - time.monotonic()) * 1e3)
            if self._connection.wait_for_message(left_ms):
                message = self._read(self._socket.recv_multipart())
                if message is not None:
                    return message
            elif self.has_ended and not self._is_end_told:
                self._is_end_told = True
                return None
            elif left_ms == 0:
                return None
        return None

    def drain(self) -> list[AnyMessage]:
        """Return all messages that wait now, oldest first; of many or large ones those that are handled at a time."""
        messages: list[AnyMessage] = []
        num_bytes = 0
        while (
            len(messages) < _MAX_WAITING and num_bytes < _MAX_DRAINED_BYTES and (message := self.receive(0)) is not None
        ):
            messages.append(message)
            num_bytes += len(message.jpeg) if isinstance(message, FrameMessage) else 0
        return messages

    def describe_silence(self, silent_s: float) -> str:
        """Say why nothing comes, for people."""
        if self.refusal is not None:
            return f"{self.address} shuts this reader out: {self.refusal}"
        if not self.is_connected:
            return f"nobody publishes at {self.address} (waited {silent_s:g} s); is edge-infer running there?"
        stream = f" of stream {self._stream!r}" if self._stream else ""
        return f"a publisher is at {self.address}, but no message{stream} came for {silent_s:g} s"

    def close(self) -> None:
        """Disconnect; idempotent."""
        self._connection.close()
        self._socket.close(linger=0)
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _connect(self, kinds: Sequence[str], curve: Path | None) -> None:
        if curve is not None:
            secure_client(self._socket, curve)
        self._socket.maxmsgsize = MAX_PART_BYTES
        self._socket.rcvhwm = _MAX_WAITING_FRAMES if "frame" in kinds else _MAX_WAITING
        # a daemon that vanished with its machine leaves a connection that looks open: ask it every two seconds
        self._socket.heartbeat_ivl, self._socket.heartbeat_timeout = 2000, 6000
        for kind in kinds:
            if kind not in KINDS:
                raise ValueError(f"kind {kind!r}; allowed are {', '.join(KINDS)}")
            self._socket.subscribe(f"{kind}.{self._stream or ''}")
        self._socket.ipv6 = is_ipv6(self.address)
        try:
            self._socket.connect(self.address)
        except zmq.ZMQError as exc:
            raise ConfigError(
                f"{self.address!r} cannot be connected to ({exc.strerror}); name a host and a port"
            ) from exc

    def _next_or_end(self) -> AnyMessage | None:
        last_s = time.monotonic()
        while (message := self.receive(0.5)) is None:
            if self.has_ended or self._socket.closed:
                return None
            if self._timeout_s is not None and time.monotonic() - last_s >= self._timeout_s:
                raise SourceError(self.describe_silence(self._timeout_s))
        return message

    def _newest_after(self, prediction: PredictionMessage) -> PredictionMessage:
        newer = [message for message in self.drain() if isinstance(message, PredictionMessage)]
        return newer[-1] if newer else prediction

    def _read(self, parts: list[bytes]) -> AnyMessage | None:
        arrival = Arrival(time.monotonic_ns(), self._host, self._stale_after_ms)
        try:
            message = read_message(decode(parts), arrival)
        except WireError as exc:
            if _is_of_newer_version(parts):
                raise
            self._skip(exc)
            return None
        if self._stream is not None and message.stream != self._stream:
            return None  # ZeroMQ filters by prefix
        self._account(message)
        return message

    def _account(self, message: AnyMessage) -> None:
        if isinstance(message, StatusMessage):
            self.status = message
        elif isinstance(message, PredictionMessage):
            # a lower number than expected is a daemon that started again
            self.num_lost += max(0, message.seq - self._next_seq.get(message.stream, message.seq))
            if len(self._next_seq) >= _MAX_STREAMS:
                self._next_seq.clear()
            self._next_seq[message.stream] = message.seq + 1
        self._is_end_told = False
        self._is_last_word = isinstance(message, StatusMessage) and message.state in _LAST_STATES

    def _skip(self, exc: WireError) -> None:
        self.num_malformed += 1
        if self.num_malformed == 1:
            print_line("warning", f"{self.address}: {exc}; left out, and so will be others like it")


def _is_of_newer_version(parts: Sequence[bytes]) -> bool:
    try:
        version: Any = unpack_header(parts[1])["v"]
    except (LookupError, TypeError, ValueError, msgpack.UnpackException):
        return False
    return isinstance(version, int) and version > VERSION
