"""Readers of a display server that take and confirm all that they get, as browsers do, and draw nothing."""

import asyncio
import contextlib
import signal

import aiohttp

from edge.commandline import Parser, run_command


def main() -> int:
    """Run `python -m tools.bench.display_readers URL NUMBER` until it is terminated."""
    return run_command(_run)


def _run() -> int:
    parser = Parser("display_readers", "Read a display server; what edge-bench starts.", "edge-bench display")
    parser.add_argument("url")
    parser.add_argument("number", type=int)
    options = parser.parse_args()
    asyncio.run(_read_all(options.url, options.number))
    return 0


async def _read_all(url: str, number: int) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with aiohttp.ClientSession() as session, contextlib.AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(session.ws_connect(f"{url}live")) for _ in range(number)]
        readers = [asyncio.create_task(_read(socket)) for socket in sockets]
        print("ready", flush=True)
        await stop.wait()
        for reader in readers:
            reader.cancel()


async def _read(socket: aiohttp.ClientWebSocketResponse) -> None:
    async for _bundle in socket:
        await socket.send_str("drawn")


if __name__ == "__main__":
    raise SystemExit(main())
