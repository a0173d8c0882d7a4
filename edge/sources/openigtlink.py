"""OpenIGTLink: images that PLUS, 3D Slicer and other research software send.

pyigtl's own client never notices that its server has gone, believes any length that a header states, and prints
tracebacks: here pyigtl reads the messages alone, and the connection is our own.
"""

import dataclasses
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from edge.errors import ConfigError, SourceError, SourceLost
from edge.frame import Frame, UInt8Image
from edge.sources.base import LiveItem, Pause, SourceInfo, Trouble
from edge.sources.options import SourceOptions

DEFAULT_PORT = 18944
MAX_BODY_BYTES = 2**26
_CONNECT_S = 1.0
_WAIT_S = 0.25
_STALL_S, _GIVE_UP_S = 0.75, 3.0
_CHUNK_BYTES = 2**18
_UNPACK_ERRORS = (ValueError, TypeError, KeyError, IndexError, NotImplementedError, struct.error)
"""What pyigtl raises on a damaged message; UnicodeDecodeError is a ValueError."""
_DEFAULT_INTERVAL_MS = 40.0


@dataclasses.dataclass(frozen=True, slots=True)
class IgtlAddress:
    """Where to connect, and which device's images to take."""

    host: str
    port: int
    device: str
    """Empty: the first one that sends an image that can be shown."""

    @property
    def name(self) -> str:
        """For log and messages."""
        return f"igtl://{self.host}:{self.port}"


def parse_igtl(uri: str) -> IgtlAddress:
    """Read `igtl://HOST:PORT/DEVICE`.

    Raises:
        ConfigError: It is not of this form.
    """
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port
        (host or "").encode("idna")  # as it is looked up
    except ValueError as exc:
        raise ConfigError(
            f"{uri!r} is not understood ({exc}); it must be like igtl://HOST:{DEFAULT_PORT}/DEVICE"
        ) from exc
    if not host or parts.query or parts.username is not None:
        raise ConfigError(f"the igtl:// address must be like igtl://HOST:{DEFAULT_PORT}/DEVICE and no more")
    return IgtlAddress(host, port or DEFAULT_PORT, unquote(parts.path.strip("/")))


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Received:
    """What came in one go."""

    image: UInt8Image | None
    """The newest one."""
    t_ns: int
    """Monotonic time at which its last byte was read."""
    num_late: int
    """Images before the newest."""
    bad: tuple[str, ...]
    """Why each other message was left out."""


class IgtlConnection:
    """One connection to a server."""

    def __init__(self, address: IgtlAddress) -> None:
        """Connect.

        Raises:
            OSError: There is no server.
        """
        self._address = address
        self._device = address.device
        self._buffer = bytearray()
        self._socket = socket.create_connection((address.host, address.port), _CONNECT_S)

    def receive(self, timeout_s: float) -> Received | None:
        """Wait for bytes, and return what they make up; None where nothing came.

        Raises:
            SourceLost: The server has closed the connection, or sends what is no OpenIGTLink.
        """
        try:
            self._socket.settimeout(timeout_s)
            data = self._socket.recv(_CHUNK_BYTES)
        except TimeoutError:
            return None
        except OSError as exc:
            raise SourceLost(f"{self._address.name} is gone ({exc.strerror}): start its server again") from exc
        if not data:
            raise SourceLost(f"{self._address.name} closed the connection: start its server again")
        self._buffer += data
        return self._newest(time.monotonic_ns())

    def _newest(self, t_ns: int) -> Received:
        image, num_images, bad = None, 0, []
        while (message := self._next()) is not None:
            header, body = message
            if header["message_type"] != "IMAGE" or self._device not in ("", header["device_name"]):
                continue
            try:
                image = _pixels(header, body)
                self._device = header["device_name"]
                num_images += 1
            except _UNPACK_ERRORS as exc:
                bad.append(str(exc))
        return Received(image, t_ns, max(0, num_images - 1), tuple(bad))

    def _next(self) -> tuple[dict[str, Any], bytes] | None:
        """Take the next whole message from the buffer, if it is all there."""
        from pyigtl.messages import MessageBase  # type: ignore[import-untyped]

        size = MessageBase.IGTL_HEADER_SIZE
        if len(self._buffer) < size:
            return None
        try:
            header = MessageBase.parse_header(bytes(self._buffer[:size]))
        except (*_UNPACK_ERRORS, OverflowError) as exc:
            raise self._nonsense() from exc
        num_bytes = header["body_size"]
        if header["header_version"] not in (1, 2) or num_bytes > MAX_BODY_BYTES:
            raise self._nonsense()
        if len(self._buffer) < size + num_bytes:
            return None
        body = bytes(memoryview(self._buffer)[size : size + num_bytes])
        del self._buffer[: size + num_bytes]
        return header, body

    def _nonsense(self) -> SourceLost:
        return SourceLost(
            f"{self._address.name} sends what is no OpenIGTLink message, or one of more than "
            f"{MAX_BODY_BYTES // 2**20} MiB: check what runs there",
            is_fault=True,
        )

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


def _pixels(header: dict[str, Any], body: bytes) -> UInt8Image:
    """Return (H, W) or (H, W, 3) uint8 of an image message.

    Raises:
        ValueError: It is not a single 8-bit image; and what pyigtl raises.
    """
    from pyigtl.messages import ImageMessage

    message = ImageMessage()
    message.unpack(header, body)
    image = message.image
    if image is None or image.dtype != np.uint8 or image.shape[0] != 1 or image.size == 0:
        shape = None if image is None else f"{image.shape} {image.dtype}"
        raise ValueError(f"an image of {shape}; it must be one slice of 8 bits")
    if image.ndim == 3:
        return image[0]  # type: ignore[no-any-return]
    if image.shape[3] not in (3, 4):
        raise ValueError(f"an image of {image.shape[3]} components; it must have 1, 3 or 4")
    return np.ascontiguousarray(image[0, :, :, :3])


class OpenIgtLink:
    """A source whose images another program sends."""

    def __init__(self, address: IgtlAddress, options: SourceOptions) -> None:
        self._address = address
        self._closed = threading.Event()
        self._is_expected = options.is_awaited  # then, and once it has worked, what goes wrong is a loss
        note = f"(images of {address.device})" if address.device else "(images of the first device that sends one)"
        self._info = SourceInfo(address.name, _DEFAULT_INTERVAL_MS, is_live=True, note=note)

    @property
    def info(self) -> SourceInfo:
        return self._info

    def frames(self) -> Iterator[LiveItem]:
        """Connect, and yield the newest image each time; see `Source.frames`."""
        try:
            connection = IgtlConnection(self._address)
        except OSError as exc:
            reason = f"{self._address.name} cannot be reached ({exc.strerror or exc}): is its server running?"
            raise (SourceLost if self._is_expected else SourceError)(reason) from exc
        self._is_expected = True
        try:
            yield from self._play(connection)
        finally:
            connection.close()

    def close(self) -> None:
        """End a running `frames()` soon."""
        self._closed.set()

    def _play(self, connection: IgtlConnection) -> Iterator[LiveItem]:
        index, t_image_s = 0, time.monotonic()
        t_data_s = t_image_s
        while not self._closed.is_set():
            received = connection.receive(_WAIT_S)
            now_s = time.monotonic()
            if received is not None:
                t_data_s = now_s
                yield from self._troubles(received)
            if received is not None and received.image is not None:
                t_image_s = now_s
                yield Frame(received.image, index, received.t_ns, received.t_ns, time.time_ns())
                index += 1
            elif now_s - t_image_s >= _STALL_S:
                yield self._silence(index > 0, now_s - t_data_s)

    def _silence(self, has_images: bool, silent_s: float) -> Pause:
        name = self._address.name
        if silent_s < _STALL_S:
            return Pause(f"{name} sends messages, but no image of {self._address.device or 'any device'}")
        if has_images and silent_s >= _GIVE_UP_S:  # a server that was killed may leave the connection open
            raise SourceLost(f"{name} sends nothing: check its server")
        return Pause(f"{name} sends nothing: check its server")

    def _troubles(self, received: Received) -> Iterator[Trouble]:
        name = self._address.name
        yield from (Trouble("bad_frames", f"{name} sent a message that is left out: {why}") for why in received.bad)
        yield from [Trouble("late_frames", "older frames were left out, for newer ones waited")] * received.num_late
