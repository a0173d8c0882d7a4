"""The control socket: a ZeroMQ ROUTER that takes requests, and answers each with one msgpack map.

    request  {"v": 1, "command": NAME, ...}
    reply    {"v": 1, "ok": True, ...} or {"v": 1, "ok": False, "error": TEXT}

Works with REQ and DEALER. See docs/control.md.
"""

import contextlib
import logging
import os
import reprlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgpack
import zmq

from edge.curve import check_address, secure_server
from edge.errors import EdgeError
from edge.publish import bind
from edge.wire import VERSION, Header, unpack

_log = logging.getLogger(__name__)

_MAX_REQUEST_BYTES = 64 << 10
_MAX_ENVELOPE_FRAMES = 3
"""The peer's id, a REQ's number where it is asked to correlate, and the empty frame."""
_HIGH_WATER_MARK = 16
_PAUSE_S = 0.01
"""Between requests: a peer that floods the socket takes its share of a core, and not the network's."""

Command = Callable[[Header], Header]


class ControlServer:
    """Answers requests in a thread of its own. Nothing that a peer sends or leaves undone harms the stream."""

    def __init__(
        self, address: str, commands: Mapping[str, Command], *, curve_dir: Path | None, is_insecure: bool
    ) -> None:
        """Bind, with the same protection as the publisher.

        Args:
            address: Where.
            commands: By name; each takes the request and returns what to add to the reply, or raises an `EdgeError`.
            curve_dir: Key folder: only the owners of its client keys are let in.
            is_insecure: Bind beyond this machine without keys.

        Raises:
            ConfigError: The address is malformed, or not loopback without keys.
            BindError: The address is in use or not of this host.
        """
        check_address(address, has_keys=curve_dir is not None, insecure=is_insecure)
        self._commands = commands
        self._is_closing = threading.Event()
        with contextlib.ExitStack() as stack:
            context = stack.enter_context(zmq.Context())
            self._socket = stack.enter_context(context.socket(zmq.ROUTER))
            if curve_dir is not None:
                stack.callback(secure_server(self._socket, curve_dir).stop)
                stack.callback(self._socket.close)  # before its authenticator stops
            self._socket.maxmsgsize = _MAX_REQUEST_BYTES
            self._socket.rcvhwm = self._socket.sndhwm = _HIGH_WATER_MARK
            self._socket.linger = 0
            bind(self._socket, address, "--control")
            self.address = str(self._socket.get_string(zmq.LAST_ENDPOINT))
            self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            stack.callback(os.close, self._wake_fd)
            self._resources = stack.pop_all()
        self._thread = threading.Thread(target=self._run, name="control")
        self._thread.start()

    def close(self) -> None:
        """Stop answering; idempotent."""
        if not self._is_closing.is_set():
            self._is_closing.set()
            os.eventfd_write(self._wake_fd, 1)
            self._thread.join()
            self._resources.close()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake_fd, zmq.POLLIN)
        while not self._is_closing.is_set():
            if self._socket in dict(poller.poll()):
                self._serve(self._socket.recv_multipart())
                self._is_closing.wait(_PAUSE_S)

    def _serve(self, frames: list[bytes]) -> None:
        *envelope, request = frames
        if not 1 <= len(envelope) <= _MAX_ENVELOPE_FRAMES:
            return  # of no form that could be answered
        reply = msgpack.packb({"v": VERSION, **self._answer(request)}, unicode_errors="replace")
        with contextlib.suppress(zmq.ZMQError):  # the peer is gone, or does not read
            self._socket.send_multipart([*envelope, reply], zmq.NOBLOCK)

    def _answer(self, packed: bytes) -> Header:
        try:
            request = _read(packed)
            return {"ok": True, **self._command(request.get("command"))(request)}
        except EdgeError as exc:
            return {"ok": False, "error": str(exc)}

    def _command(self, name: Any) -> Command:
        command = self._commands.get(name) if isinstance(name, str) else None
        if command is None:
            raise EdgeError(f"command is {reprlib.repr(name)}; allowed are {', '.join(self._commands)}")
        return command


def _read(packed: bytes) -> Header:
    try:
        request = unpack(packed)
    except (ValueError, TypeError, msgpack.UnpackException) as exc:
        raise EdgeError(f"the request is not readable ({type(exc).__name__}); send one msgpack map") from exc
    if not isinstance(request, dict):
        raise EdgeError(f"the request is a {type(request).__name__}; send one msgpack map")
    version = request.get("v")
    if version != VERSION:
        raise EdgeError(f"the request has version {reprlib.repr(version)}; this daemon knows {VERSION}")
    return request
