"""Asks a daemon's control socket."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgpack
import zmq

from edge.connection import Connection
from edge.curve import check_form, is_ipv6, secure_client
from edge.errors import ConfigError, EdgeError, SourceError
from edge.wire import VERSION, Header, unpack

_MAX_REPLY_BYTES = 2**27
"""An exam with its keyframes' pictures."""


class ControlClient:
    """One daemon's control socket. Used from one thread at a time."""

    def __init__(self, address: str, *, timeout_s: float = 5.0, curve: Path | None = None) -> None:
        """Connect, or keep trying to in the background.

        Args:
            address: Where `edge-infer --control` binds.
            timeout_s: How long to wait for an answer.
            curve: Key folder with `server.key` and `client.key_secret`.

        Raises:
            ConfigError: The address or the keys cannot be used.
        """
        check_form(address)
        self.address = address
        self._timeout_s = timeout_s
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.REQ)
        self._connection = Connection(self._socket)
        try:
            if curve is not None:
                secure_client(self._socket, curve)
            # an answer that came too late is left out, and a request that nobody took is given up
            self._socket.maxmsgsize = _MAX_REPLY_BYTES
            self._socket.req_relaxed = self._socket.req_correlate = True
            self._socket.ipv6 = is_ipv6(address)
            self._socket.connect(address)
        except zmq.ZMQError as exc:
            self.close()
            raise ConfigError(f"{address} cannot be connected to ({zmq.strerror(exc.errno or 0)})") from exc
        except BaseException:
            self.close()
            raise

    def ask(self, command: str, **arguments: Any) -> Header:
        """Send a request and return the reply's map.

        Raises:
            SourceError: No answer came in time.
            EdgeError: The daemon refuses.
        """
        self._connection.update()
        self._socket.send(msgpack.packb({"v": VERSION, "command": command, **arguments}))
        if not self._socket.poll(round(self._timeout_s * 1e3)):
            self._connection.update()
            why = self._connection.refusal or "is edge-infer running there, with --control?"
            raise SourceError(f"{self.address} does not answer within {self._timeout_s:g} s; {why}")
        try:
            reply = unpack(self._socket.recv(), _MAX_REPLY_BYTES)
            is_ok = reply["ok"]
        except (ValueError, TypeError, KeyError, msgpack.UnpackException) as exc:
            raise EdgeError(f"{self.address} gave an answer that is not readable; is it a control socket?") from exc
        if not is_ok:
            raise EdgeError(str(reply.get("error")))
        return dict(reply)

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
