"""The publisher: one thread that owns the ZeroMQ socket and sends what the other threads hand over."""

import collections
import contextlib
import errno
import logging
import math
import os
import socket as unix
import threading
import time
from collections.abc import Callable
from pathlib import Path

import zmq

from edge import wire
from edge.curve import check_address, is_ipv6, secure_server
from edge.errors import BindError, ConfigError
from edge.health.meters import Meters
from edge.prediction import Prediction, State

_log = logging.getLogger(__name__)

STATUS_INTERVAL_S = 1.0
_LINGER_MS, _LINGER_PATIENT_MS = 500, 5000
"""How long the end waits for readers to fetch what is theirs; for those that are there and read, it is no wait."""
_JOIN_S = 2.0
_SUBSCRIPTIONS = {b"\x01": 1, b"\x00": -1}
"""First byte of what a subscriber sends (ZMTP 3.1, section "Subscriptions"); anything else is no subscription."""

StatusHeader = Callable[[State, str], wire.Header]


def _run_bare(body: Callable[[], None]) -> None:
    body()


class Publisher:
    """Sends predictions, frames and status in the order in which they were handed over.

    The socket is an XPUB, so that subscriptions are seen. A subscriber that reads too slowly loses messages once
    `high_water_mark` of them wait for it; it never slows the daemon.
    """

    def __init__(
        self,
        address: str,
        stream: str,
        meters: Meters,
        *,
        high_water_mark: int = 1000,
        gather_s: float = 0.0,
        curve_dir: Path | None = None,
        is_insecure: bool = False,
    ) -> None:
        """Bind; `taps` may be added until `start`: each is given every message, in the publisher's thread.

        Args:
            address: Where to bind.
            stream: The stream's name.
            meters: Count what is published.
            high_water_mark: How many messages may wait for a subscriber.
            gather_s: How long predictions and frames may wait for others that leave with them: where nobody waits for
                each, threads and readers that are woken for several at once leave the engine more of the processor.
            curve_dir: Key folder with `server.key_secret` and the clients' public keys.
            is_insecure: Bind to other addresses than loopback without keys.

        Raises:
            ConfigError: The address is malformed, or not loopback without keys.
            BindError: The address is in use or not of this host.
        """
        check_address(address, has_keys=curve_dir is not None, insecure=is_insecure)
        self._meters = meters
        self._gather_s = gather_s
        self._topic = f"prediction.{stream}".encode()
        self._host = wire.boot_id()
        self._seq = 0
        self._num_subscribers = 0
        self._subscribed = threading.Condition()
        self._outbox: collections.deque[Callable[[], None]] = collections.deque()
        self._state, self._reason = State.WARMUP, "starting"
        self.last_word = self._state, self._reason
        """State and reason of the last message; what `close` is given."""
        self._status_header: StatusHeader | None = None
        self.taps: list[Callable[[wire.Parts], None]] = []
        self._is_closing = threading.Event()
        self._thread: threading.Thread | None = None
        with contextlib.ExitStack() as stack:
            self._context = stack.enter_context(zmq.Context())
            self._socket = stack.enter_context(self._context.socket(zmq.XPUB))
            if curve_dir is not None:
                stack.callback(secure_server(self._socket, curve_dir).stop)
                stack.callback(self._socket.close)  # before its authenticator stops
            self._socket.setsockopt(zmq.XPUB_VERBOSER, 1)
            self._socket.setsockopt(zmq.SNDHWM, high_water_mark)
            self._socket.setsockopt(zmq.LINGER, 0)
            bind(self._socket, address)
            self.address = str(self._socket.get_string(zmq.LAST_ENDPOINT))
            self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK)
            stack.callback(os.close, self._wake_fd)
            self._resources = stack.pop_all()

    def start(self, status_header: StatusHeader, guard: Callable[[Callable[[], None]], None] = _run_bare) -> None:
        """Start the thread.

        Args:
            status_header: `status_header(state, reason)` is asked for every status message.
            guard: Runs the thread's body; the supervisor's own keeps what ends it.
        """
        self._status_header = status_header
        self._thread = threading.Thread(target=guard, args=(self._run,), name="publish")
        self._thread.start()

    def publish_prediction(self, prediction: Prediction, identity: wire.StreamIdentity) -> None:
        """Hand over a prediction."""
        self._hand_over(lambda: self._send_prediction(prediction, identity), may_wait=self._gather_s > 0)

    def publish_frame(self, header: wire.Header, jpeg: bytes) -> None:
        """Hand over a frame's header and its JPEG."""
        self._hand_over(lambda: self._send_frame(header, jpeg), may_wait=self._gather_s > 0)

    def set_state(self, state: State, reason: str) -> None:
        """Hand over a state; a change is told at once by a status message."""
        self._hand_over(lambda: self._change_state(state, reason))

    def tell_status(self) -> None:
        """Hand over a status: what it says has changed."""
        self._hand_over(self._send_status)

    def wait_for_subscribers(self, number: int, stop: Callable[[], bool]) -> None:
        """Wait until this many subscribers of predictions are there, or `stop()` is true after `interrupt_wait`.

        ZeroMQ tells topics, not peers: a reader that subscribes to two prefixes of the topic counts twice.
        """
        with self._subscribed:
            self._subscribed.wait_for(lambda: self._num_subscribers >= number or stop())

    def interrupt_wait(self) -> None:
        """Make `wait_for_subscribers` look at `stop` again."""
        with self._subscribed:
            self._subscribed.notify_all()

    def close(self, state: State, reason: str, *, is_patient: bool = False) -> None:
        """Send what is left and, as the last message of all, a status; close the socket. Idempotent.

        Args:
            state: The last state.
            reason: Why it is the last.
            is_patient: Wait for slow readers; a signal ends the wait.
        """
        if self._is_closing.is_set():
            return
        self.last_word = state, reason
        self._is_closing.set()
        if self._thread is not None:
            os.eventfd_write(self._wake_fd, 1)
            self._thread.join(_JOIN_S)
            if self._thread.is_alive():
                _log.warning("thread %s did not end within %g s", self._thread.name, _JOIN_S)
        self._socket.setsockopt(zmq.LINGER, _LINGER_PATIENT_MS if is_patient else _LINGER_MS)
        self._resources.close()

    def _hand_over(self, send: Callable[[], None], *, may_wait: bool = False) -> None:
        if not self._is_closing.is_set():
            self._outbox.append(send)
            if not may_wait:
                os.eventfd_write(self._wake_fd, 1)

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake_fd, zmq.POLLIN)
        next_status_s = time.monotonic()
        while not self._is_closing.is_set():
            rest_s = max(0.0, next_status_s - time.monotonic())
            rest_s = min(rest_s, self._gather_s) if self._gather_s else rest_s
            ready = dict(poller.poll(math.ceil(rest_s * 1e3)))
            if self._socket in ready:
                self._read_subscriptions()
            if self._wake_fd in ready:
                os.eventfd_read(self._wake_fd)
            self._send_outbox()
            if time.monotonic() >= next_status_s:
                self._send_status()
                next_status_s = time.monotonic() + STATUS_INTERVAL_S
        self._send_outbox()
        self._state, self._reason = self.last_word
        self._send_status()

    def _send_outbox(self) -> None:
        # no more than waits now: under a steady load the status must still get its turn
        for _ in range(len(self._outbox)):
            self._outbox.popleft()()

    def _read_subscriptions(self) -> None:
        with contextlib.suppress(zmq.Again):
            while True:
                message = self._socket.recv(zmq.NOBLOCK)
                change = _SUBSCRIPTIONS.get(message[:1], 0)
                if self._topic.startswith(message[1:]):
                    with self._subscribed:
                        self._num_subscribers += change
                        self._subscribed.notify_all()

    def _send_prediction(self, prediction: Prediction, identity: wire.StreamIdentity) -> None:
        header = wire.prediction_header(prediction, identity, self._seq, self._host)
        buffer = wire.heatmap_buffer(prediction.heatmap)
        now_ns = time.monotonic_ns()
        header["latency_ms"]["total"] = total_ms = (now_ns - prediction.t_capture_ns) / 1e6
        self._send(wire.encode("prediction", header, buffer))
        self._seq += 1
        self._meters.published(now_ns, total_ms)

    def _send_frame(self, header: wire.Header, jpeg: bytes) -> None:
        self._send(wire.encode("frame", header, jpeg))
        self._meters.count("frames_published")

    def _change_state(self, state: State, reason: str) -> None:
        if (state, reason) != (self._state, self._reason):
            self._state, self._reason = state, reason
            self._send_status()

    def _send_status(self) -> None:
        assert self._status_header is not None
        self._send(wire.encode("status", self._status_header(self._state, self._reason)))

    def _send(self, parts: wire.Parts) -> None:
        # an XPUB drops for a full subscriber instead of waiting, unless asked otherwise
        self._socket.send_multipart(parts, zmq.NOBLOCK, copy=True)
        for tap in self.taps:
            tap(parts)


def bind(socket: zmq.Socket[bytes], address: str, option: str = "--publish") -> None:
    """Bind a socket to an address that was given by an option.

    Raises:
        ConfigError: It is no address.
        BindError: It is in use, a file's or not of this host.
    """
    try:
        if _is_served(address):
            raise zmq.ZMQError(errno.EADDRINUSE)
        if _is_file(address):
            raise zmq.ZMQError(errno.EEXIST)
        socket.ipv6 = is_ipv6(address)
        socket.bind(address)
    except zmq.ZMQError as exc:
        if exc.errno in (errno.EINVAL, zmq.EPROTONOSUPPORT, zmq.ENOCOMPATPROTO):
            raise ConfigError(f"{option} {address!r} is no address; write tcp://HOST:PORT or ipc://PATH") from exc
        raise BindError(
            f"{address} cannot be bound ({zmq.strerror(exc.errno or 0)}); {_mend(address, exc.errno)}, "
            f"or choose another {option}"
        ) from exc


def _mend(address: str, number: int | None) -> str:
    if number == errno.EADDRINUSE:
        return "end the program that holds it"
    if number == errno.EACCES:
        return "ask for write access to its folder" if address.startswith("ipc://") else "ports below 1024 are root's"
    if number == errno.ENOENT and address.startswith("ipc://"):
        return "make its folder first"
    if number == errno.EEXIST:
        return "remove what is there, which is no socket"
    return "it must be an address of this host"


def _is_served(address: str) -> bool:
    """Whether a program listens on an ipc path, which ZeroMQ would take from it without a word."""
    if not address.startswith("ipc://"):
        return False
    with contextlib.suppress(OSError), unix.socket(unix.AF_UNIX) as probe:  # an OSError: the path is too long
        return probe.connect_ex(address.removeprefix("ipc://")) == 0
    return False


def _is_file(address: str) -> bool:
    """Whether an ipc path is a file or folder of somebody's, which ZeroMQ would remove without a word."""
    if not address.startswith("ipc://"):
        return False
    path = Path(address.removeprefix("ipc://"))
    with contextlib.suppress(OSError):  # the path is too long, or its folder closed to us
        return path.exists() and not path.is_socket()
    return False
