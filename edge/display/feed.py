"""One daemon's messages, from a thread that owns the subscriber, handed over to the server's event loop."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path

from edge.client import KINDS, Subscriber
from edge.errors import WireError
from edge.messages import AnyMessage

_log = logging.getLogger(__name__)

_TICK_S = 0.25
_NEWER_PAUSE_S = 1.0
"""After a message of a newer daemon: this server must be updated, or an older daemon comes back to the address."""

OnMessage = Callable[[str, AnyMessage], None]
OnConnection = Callable[[str, bool, str], None]


class Feed:
    """Reads one daemon until closed; a daemon that goes and comes back is read on."""

    def __init__(self, address: str, on_message: OnMessage, on_connection: OnConnection, curve: Path | None) -> None:
        """Connect, or keep trying to in the background.

        Args:
            address: Where the daemon publishes.
            on_message: Called in the event loop with the address and each message.
            on_connection: Called in the event loop when the daemon comes or goes: address, is up, why not.
            curve: Key folder for a daemon that asks for keys.

        Raises:
            ConfigError: The address or the keys cannot be used.
        """
        self.address = address
        self._subscriber = Subscriber(address, kinds=KINDS, curve=curve)
        self._on_message, self._on_connection = on_message, on_connection
        self._loop = asyncio.get_running_loop()
        self._stop = threading.Event()
        self._told: tuple[bool, str] | None = None
        self._thread = threading.Thread(target=self._read, name=f"feed {address}")
        self._thread.start()

    def close(self) -> None:
        """End the thread; idempotent."""
        self._stop.set()
        self._thread.join()

    def _read(self) -> None:
        is_newer = False
        with self._subscriber as subscriber:
            while not self._stop.is_set():
                try:
                    message = subscriber.receive(_TICK_S)
                except WireError as exc:
                    self._tell(is_up=False, reason=str(exc))
                    is_newer = True
                    self._stop.wait(_NEWER_PAUSE_S)
                    continue
                is_newer = is_newer and message is None and subscriber.is_connected
                if is_newer:
                    continue
                self._tell(is_up=subscriber.is_connected, reason=subscriber.refusal or "")
                if message is not None:
                    self._call(self._on_message, self.address, message)

    def _tell(self, *, is_up: bool, reason: str) -> None:
        if (is_up, reason) == self._told:
            return
        self._told = is_up, reason
        _log.info("%s %s%s", self.address, "is connected" if is_up else "is not connected", reason and f": {reason}")
        self._call(self._on_connection, self.address, is_up, reason)

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server ends
            self._loop.call_soon_threadsafe(function, *arguments)
