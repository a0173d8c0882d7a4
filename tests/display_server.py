"""Runs the real `edge-display` as a process, and reads it as a browser does."""

import contextlib
import json
import math
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp

DEADLINE_S = 30.0
ROOT = Path(__file__).parent.parent

Bundle = list[tuple[dict[str, Any], list[bytes]]]
"""Facts and blobs of each message that came together."""


class DisplayServer:
    """A running edge-display and where it serves."""

    def __init__(self, *arguments: str, http: str = "127.0.0.1:0", tree: Path = ROOT) -> None:
        command = [sys.executable, "-m", "edge.display.cli", "--http", http, *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tree)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().rpartition(" ")[2].strip()
        assert self.url.startswith("http"), self.process.communicate(timeout=DEADLINE_S)[1]

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return self.url.partition("://")[2].strip("/")

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def serving(*arguments: str, http: str = "127.0.0.1:0", tree: Path = ROOT) -> Iterator[DisplayServer]:
    """Start the edge-display of a source tree; end it whatever happens."""
    server = DisplayServer(*arguments, http=http, tree=tree)
    try:
        yield server
    finally:
        server.kill()


class Browser:
    """One WebSocket that reads bundles, and confirms them when it is told to."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, settings: dict[str, Any]) -> None:
        self.socket = socket
        self.settings = settings
        self.sent_ms = self.ahead_ms = math.nan
        """Of the last bundle: when it was sent, and what the server last heard of this side's clock."""

    async def bundle(self) -> Bundle:
        """Return the next bundle; it is not confirmed."""
        packed = await self.socket.receive_bytes(timeout=DEADLINE_S)
        self.sent_ms, self.ahead_ms = struct.unpack_from("<dd", packed)
        messages: Bundle = []
        offset = 16
        while offset < len(packed):
            start = offset + 4
            offset = start + int.from_bytes(packed[offset:start], "little")
            messages.append(decode(packed[start:offset]))
        return messages

    async def confirm(self, page_ms: str = "0") -> None:
        await self.socket.send_str(page_ms)

    async def until(self, is_wanted: Callable[[dict[str, Any]], bool]) -> tuple[dict[str, Any], list[bytes]]:
        """Read and confirm until a message of this kind comes, and return it."""
        while True:
            bundle = await self.bundle()
            await self.confirm()
            for facts, blobs in bundle:
                if is_wanted(facts):
                    return facts, blobs


@contextlib.asynccontextmanager
async def browsing(server: DisplayServer, **headers: str) -> AsyncIterator[Browser]:
    """Open the page's WebSocket."""
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{server.url}live", headers=headers) as socket:
        settings, _ = decode(await socket.receive_bytes(timeout=DEADLINE_S))
        yield Browser(socket, settings)


def decode(data: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """Read one message of the display's WebSocket."""
    end = 4 + int.from_bytes(data[:4], "little")
    facts = json.loads(data[4:end])
    blobs = []
    for size in facts["blobs"]:
        blobs.append(data[end : end + size])
        end += size
    assert end == len(data)
    return facts, blobs
