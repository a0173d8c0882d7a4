"""The browsers: each gets the newest of what it has not seen, at its own pace."""

import asyncio
import collections
import contextlib
import math
import struct
import time

from aiohttp import web

_MAX_UNDERWAY = 2
"""Bundles that a browser has not yet confirmed: more would wait in the network and be old when they come."""


def pack(bundle: list[bytes], ahead_ms: float) -> bytes:
    """Return one message of several, by whose first two numbers the page tells how old it is, however long under way.

    The time now and `ahead_ms`, both in ms as a float64, and for each message its length (4 bytes) and itself. All
    numbers are little-endian.

    Args:
        bundle: The messages.
        ahead_ms: The page's clock less ours when it last confirmed a bundle; NaN before.
    """
    parts = [struct.pack("<dd", _now_ms(), ahead_ms)]
    for message in bundle:
        parts += (len(message).to_bytes(4, "little"), message)
    return b"".join(parts)


def _now_ms() -> float:
    return time.monotonic_ns() / 1e6


class Clients:
    """All browsers that are connected."""

    def __init__(self) -> None:
        self._clients: set[_Client] = set()

    def __len__(self) -> int:
        return len(self._clients)

    def send(self, slot: str, message: bytes, depth: int = 1) -> None:
        """Give a message to every browser; of those that wait in a slot, the newest `depth` are kept."""
        for client in self._clients:
            client.put(slot, message, depth)

    async def serve(self, socket: web.WebSocketResponse, first: bytes, greeting: list[tuple[str, bytes]]) -> None:
        """Serve one browser until it goes; what is to come first comes by itself, in no bundle."""
        client = _Client(socket, first)
        for slot, message in greeting:
            client.put(slot, message, 1)
        self._clients.add(client)
        sender = asyncio.create_task(client.send_all())
        try:
            async for confirmation in socket:
                client.confirm(confirmation.data)
        finally:
            self._clients.discard(client)
            sender.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await sender

    async def close(self) -> None:
        """Tell every browser that the server ends."""
        for client in list(self._clients):
            await client.close()


class _Client:
    """One browser. A slow one loses messages, and delays no other."""

    def __init__(self, socket: web.WebSocketResponse, first: bytes) -> None:
        self._socket, self._first = socket, first
        self._slots: collections.OrderedDict[str, collections.deque[bytes]] = collections.OrderedDict()
        self._num_underway = 0
        self._ahead_ms = math.nan
        self._changed = asyncio.Event()

    def put(self, slot: str, message: bytes, depth: int) -> None:
        """Add a message, over the oldest of its slot."""
        waiting = self._slots.setdefault(slot, collections.deque(maxlen=depth))
        waiting.append(message)
        self._changed.set()

    def confirm(self, page_ms: object) -> None:
        """Note that the browser has drawn what it got, and what its clock said then."""
        with contextlib.suppress(ValueError, TypeError):  # whoever else it is, it gets what is waiting
            self._ahead_ms = float(page_ms) - _now_ms()  # type: ignore[arg-type]
        self._num_underway = max(0, self._num_underway - 1)
        self._changed.set()

    async def send_all(self) -> None:
        """Send what waits whenever the browser is ready for more."""
        await self._socket.send_bytes(self._first)
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._num_underway >= _MAX_UNDERWAY or not self._slots:
                continue
            bundle = [message for waiting in self._slots.values() for message in waiting]
            self._slots.clear()
            self._num_underway += 1
            await self._socket.send_bytes(pack(bundle, self._ahead_ms))

    async def close(self) -> None:
        await self._socket.close(code=1001, message=b"the display server ends")
