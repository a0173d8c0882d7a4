"""Which network streams are known, how FFmpeg is to open each with little delay, and what may be said of a URL."""

import dataclasses
from urllib.parse import urlsplit

from edge.errors import ConfigError
from edge.sources.network.srt import SrtAddress, parse_srt

_LOW_DELAY = {"analyzeduration": "300000", "fpsprobesize": "0", "probesize": "1000000"}
_SOCKET = {"buffer_size": "4000000", "fifo_size": "100000", "overrun_nonfatal": "1"}
_REORDER = {"max_delay": "100000"}
"""Packets that come out of order are waited for 0.1 s, not FFmpeg's 0.5 s."""
_CONNECTIONS = "rtp,rtcp,udp,tcp,tls,crypto,srtp"
_WEB = "http,https,tcp,tls,crypto,hls,httpproxy"
"""Without `file`: what a server sends must not make FFmpeg open files of this host."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Transport:
    """How one kind of network stream is opened."""

    options: dict[str, str]
    """FFmpeg's, beside those that make it quick."""
    listens: bool = False
    """It waits for packets and knows no connection: silence is no failure."""
    format: str | None = None


_RTSP = Transport(options={**_REORDER, "rtsp_flags": "prefer_tcp", "protocol_whitelist": f"rtsp,rtsps,{_CONNECTIONS}"})
_HTTP = Transport(options={"protocol_whitelist": _WEB})
TRANSPORTS = {
    "rtsp": _RTSP,
    "rtsps": _RTSP,
    "udp": Transport(options={**_SOCKET, "protocol_whitelist": "udp"}, listens=True),
    "rtp": Transport(options={**_SOCKET, **_REORDER, "protocol_whitelist": _CONNECTIONS}, listens=True),
    "tcp": Transport(options={"protocol_whitelist": "tcp"}),
    "rtmp": Transport(options={"protocol_whitelist": "rtmp,tcp"}),
    "http": _HTTP,
    "https": _HTTP,
}
SDP = Transport(options={**_SOCKET, **_REORDER, "protocol_whitelist": "file,rtp,rtcp,udp"}, listens=True, format="sdp")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NetworkAddress:
    """A stream to be opened. Its `repr` holds no credentials."""

    url: str = dataclasses.field(repr=False)
    name: str
    """Scheme, host and port: all that is said of it. Credentials hide in user names, queries and paths."""
    transport: Transport
    srt: SrtAddress | None = None
    """Where libsrt is to connect in place of FFmpeg."""

    @property
    def options(self) -> dict[str, str]:
        """FFmpeg's options."""
        return {**_LOW_DELAY, **self.transport.options}


def is_mistyped(uri: str) -> bool:
    """Return whether it begins like a URL of a network stream, but not with `://`: what follows may be a password."""
    scheme, _, rest = uri.partition(":")
    return scheme.lower() in (*TRANSPORTS, "srt") and bool(rest) and not rest.startswith("//")


def is_network(uri: str) -> bool:
    """Return whether it is a URL of a network stream, or a file that describes one."""
    return uri.partition("://")[0].lower() in (*TRANSPORTS, "srt") or uri.lower().endswith(".sdp")


def parse_network(uri: str) -> NetworkAddress:
    """Read a URL, or take the path of an SDP file.

    Raises:
        ConfigError: The URL has no host, or a port that is none.
    """
    scheme = uri.partition("://")[0].lower()
    if scheme == "srt":
        srt = parse_srt(uri)
        transport = Transport(options={}, format="mpegts", listens=srt.is_listener)
        return NetworkAddress(url=uri, name=f"srt://{srt.host}:{srt.port}", transport=transport, srt=srt)
    if scheme not in TRANSPORTS:
        return NetworkAddress(url=uri, name=uri.rpartition("/")[2], transport=SDP)
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        # the reason may quote a piece of the URL, and so of a password with a special sign
        raise ConfigError(f"the {scheme}:// URL is not understood; write special signs in passwords as %XX") from exc
    transport = TRANSPORTS[scheme]
    if host is None and not (transport.listens and port):
        raise ConfigError(f"the {scheme}:// URL has no host; it must be like {scheme}://HOST:PORT/PATH")
    name = f"{scheme}://{host or ''}{'' if port is None else f':{port}'}"
    return NetworkAddress(url=uri, name=name, transport=transport)
