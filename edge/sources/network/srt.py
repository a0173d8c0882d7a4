"""SRT (Secure Reliable Transport) through the system's libsrt: FFmpeg as it comes with PyAV does not know it."""

import ctypes
import ctypes.util
import dataclasses
import functools
import re
import socket
import struct
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from edge.errors import ConfigError, SourceError

# srt.h of libsrt 1.5, enum SRT_SOCKOPT
_RCVTIMEO, _LATENCY, _PASSPHRASE, _CONNTIMEO, _STREAMID = 14, 23, 26, 36, 46
_ERROR = -1
_TIMEOUTS = (6002, 6003)
"""SRT_EASYNCRCV and SRT_ETIMEOUT."""
_MAX_MESSAGE_BYTES = 1456
_MODES = ("caller", "listener")
_KEYS = ("mode", "latency", "passphrase", "streamid")
_DEFAULT_LATENCY_MS = 60
"""How long lost packets are asked for again. libsrt's own 120 ms are for the open internet."""
_CONNECT_MS = 3000
_LISTENERS = ("srt-gnutls", "srt-openssl")
INSTALL = "apt-get install libsrt1.5-openssl"


class SrtTimeoutError(OSError):
    """Nothing came in time."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SrtAddress:
    """What a `srt://` URL says. Its `repr` holds no credentials."""

    host: str
    port: int
    is_listener: bool
    latency_ms: int
    passphrase: str = dataclasses.field(repr=False)
    stream_id: str = dataclasses.field(repr=False)


def parse_srt(url: str) -> SrtAddress:
    """Read `srt://HOST:PORT?mode=caller|listener&latency=MS&passphrase=WORD&streamid=ID`.

    Raises:
        ConfigError: It is not of this form.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
    except ValueError as exc:
        raise ConfigError("the srt:// URL is not understood; write special signs as %XX") from exc
    mode = query.get("mode", "caller")
    if port is None or mode not in _MODES or not (host or mode == "listener"):
        raise ConfigError(f"a srt:// URL is like srt://HOST:PORT?mode=caller; allowed modes are {', '.join(_MODES)}")
    if unknown := sorted(set(query) - set(_KEYS)):
        raise ConfigError(f"srt://: unknown key {unknown[0]!r} after the '?'; allowed are {', '.join(_KEYS)}")
    latency = query.get("latency", str(_DEFAULT_LATENCY_MS))
    if not re.fullmatch(r"[0-9]{1,5}", latency):
        raise ConfigError(f"srt://: latency is {latency!r}; it must be a whole number of milliseconds")
    passphrase = query.get("passphrase", "")
    if passphrase and not 10 <= len(passphrase) <= 79:
        raise ConfigError("srt://: the passphrase must have 10 to 79 characters")
    return SrtAddress(
        host=host or "0.0.0.0",
        port=port,
        is_listener=mode == "listener",
        latency_ms=int(latency),
        passphrase=passphrase,
        stream_id=query.get("streamid", ""),
    )


def probe() -> str | None:
    """Return why libsrt cannot be used here; None: it can."""
    try:
        _library()
    except (SourceError, OSError) as exc:
        return str(exc)
    return None


@functools.cache
def _library() -> Any:
    """Load and start libsrt.

    Raises:
        SourceError: It is not installed.
    """
    name = next(filter(None, map(ctypes.util.find_library, ("srt", *_LISTENERS))), None)
    if name is None:
        raise SourceError(f"srt:// needs libsrt, which is not installed: `{INSTALL}`")
    library = ctypes.CDLL(name)
    library.srt_getlasterror_str.restype = ctypes.c_char_p
    library.srt_accept_bond.argtypes = (ctypes.POINTER(ctypes.c_int), ctypes.c_int, ctypes.c_int64)
    library.srt_setloglevel(0)  # it would write to stderr
    library.srt_startup()
    return library


class SrtStream:
    """The bytes that a SRT peer sends, to be read by FFmpeg. Belongs to one thread."""

    def __init__(self, address: SrtAddress, *, open_ms: int, read_ms: int) -> None:
        """Connect, or wait for a caller.

        Raises:
            SourceError: libsrt is not installed.
            SrtTimeoutError: Nobody called in time.
            OSError: There is no peer, or it refuses.
        """
        self._library = _library()
        self._buffer = ctypes.create_string_buffer(_MAX_MESSAGE_BYTES)
        self._left = b""
        self._socket = self._create(address, read_ms)
        try:
            if address.is_listener:
                self._socket = self._accept(address, open_ms)
            else:
                name = _socket_address(address)
                self._check(self._library.srt_connect(self._socket, name, len(name)))
        except OSError:
            self.close()
            raise

    def _create(self, address: SrtAddress, read_ms: int) -> int:
        created: int = self._library.srt_create_socket()
        numbers = {_RCVTIMEO: read_ms, _LATENCY: address.latency_ms, _CONNTIMEO: _CONNECT_MS}
        for option, number in numbers.items():
            value = ctypes.c_int(number)
            self._check(self._library.srt_setsockflag(created, option, ctypes.byref(value), ctypes.sizeof(value)))
        for option, text in {_PASSPHRASE: address.passphrase, _STREAMID: address.stream_id}.items():
            data = text.encode()
            if data:
                self._check(self._library.srt_setsockflag(created, option, data, len(data)))
        return created

    def _accept(self, address: SrtAddress, open_ms: int) -> int:
        listener, name = self._socket, _socket_address(address)
        self._check(self._library.srt_bind(listener, name, len(name)))
        self._check(self._library.srt_listen(listener, 1))
        try:
            accepted = self._library.srt_accept_bond(ctypes.byref(ctypes.c_int(listener)), 1, open_ms)
            if accepted == _ERROR:
                raise SrtTimeoutError("nobody called")
            return int(accepted)
        finally:
            self._library.srt_close(listener)

    def read(self, num_bytes: int) -> bytes:
        """Return some bytes, at most so many; none when the peer has ended.

        Raises:
            SrtTimeoutError: None came in time.
        """
        if not self._left:
            num_got: int = self._library.srt_recvmsg(self._socket, self._buffer, len(self._buffer))
            if num_got == _ERROR and self._library.srt_getlasterror(None) in _TIMEOUTS:
                raise SrtTimeoutError("nothing came")
            self._left = self._buffer.raw[: max(0, num_got)]
        data, self._left = self._left[:num_bytes], self._left[num_bytes:]
        return data

    def _check(self, result: int) -> None:
        if result == _ERROR:
            reason = (self._library.srt_getlasterror_str() or b"").decode("ascii", "replace")
            raise OSError(0, reason)

    def close(self) -> None:
        """Hang up. Idempotent."""
        self._library.srt_close(self._socket)


def _socket_address(address: SrtAddress) -> bytes:
    """Return C's `struct sockaddr` of the host's first address."""
    family, *_, where = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_DGRAM)[0]
    head = struct.pack("=H", family) + struct.pack(">H", address.port)
    packed = socket.inet_pton(family, str(where[0]))
    if family == socket.AF_INET:
        return head + packed + bytes(8)
    scope_id = where[3] if len(where) == 4 else 0
    return head + bytes(4) + packed + struct.pack("=I", scope_id)
