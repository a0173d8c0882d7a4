"""Whether a socket's peer is there: a view of ZeroMQ's own events."""

import math
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

_FAILED = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "it does not know this client key",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "one side uses CURVE keys and the other does not, or the keys do not match",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "one side uses CURVE keys and the other does not, or the keys do not match",
}
_EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | sum(_FAILED)


class Connection:
    """Follows the one connection of a socket, in the socket's own thread."""

    def __init__(self, socket: zmq.Socket[Any]) -> None:
        """Watch a socket that is not yet connected."""
        self.is_up = False
        self.refusal: str | None = None
        """Why the last handshake failed; None where none did."""
        self._socket = socket
        self._monitor = socket.get_monitor_socket(_EVENTS)
        self._poller = zmq.Poller()
        self._poller.register(socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)

    def wait_for_message(self, timeout_ms: float) -> bool:
        """Wait for a message or a change of the connection; return whether a message is there."""
        ready = dict(self._poller.poll(math.ceil(timeout_ms)))
        if self._monitor in ready:
            self.update()
        return self._socket in ready

    def update(self) -> None:
        """Take in what happened to the connection."""
        while not self._socket.closed and self._monitor.poll(0):
            event = zmq.Event(parse_monitor_message(self._monitor.recv_multipart())["event"])
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.is_up, self.refusal = True, None
            elif event == zmq.EVENT_DISCONNECTED:
                self.is_up = False
            else:
                self.refusal = _FAILED[event]

    def close(self) -> None:
        """Stop watching; idempotent."""
        if not self._socket.closed:
            self._socket.disable_monitor()
            self._monitor.close(linger=0)
