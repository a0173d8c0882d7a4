"""The display's web server: the page, one WebSocket a browser, and the keyframes' pictures."""

import asyncio
import contextlib
import errno
import hashlib
import importlib.resources
import json
import os
import socket
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from aiohttp import web

from edge import __version__
from edge.display.clients import Clients
from edge.display.exams import ExamDesk
from edge.display.feed import Feed
from edge.display.hub import Hub, encode, view_facts
from edge.display.security import guard
from edge.errors import BindError, EdgeError

PAGE = Path(str(importlib.resources.files("edge.display"))) / "page"

_TICK_S = 0.25
_MAX_TEXT_BYTES = 4096
_HEARTBEAT_S = 5.0

DESK = web.AppKey("desk", ExamDesk)
HUB, CLIENTS, SETTINGS = web.AppKey("hub", Hub), web.AppKey("clients", Clients), web.AppKey("settings", bytes)


def make_app(
    addresses: Sequence[str],
    *,
    curve: Path | None,
    token: str | None,
    hosts: Sequence[str],
    stale_ms: float,
    vanish_ms: float,
    controls: Mapping[str, str] | None = None,
) -> web.Application:
    """Return the application; it connects to the daemons when it starts.

    Args:
        addresses: Where the daemons publish.
        curve: Key folder for daemons that ask for keys.
        token: What a browser must show; None: loopback alone.
        hosts: Names under which a reverse proxy serves the page.
        stale_ms: Age from which a result is marked as stale.
        vanish_ms: Age from which its number is no longer shown.
        controls: Control addresses of daemons that have one, by the addresses where they publish.
    """
    app = web.Application(middlewares=guard(token, hosts), client_max_size=_MAX_TEXT_BYTES)
    app[CLIENTS] = Clients()
    app[HUB] = Hub(app[CLIENTS])
    app[DESK] = ExamDesk(app[HUB], controls or {}, curve)
    app[SETTINGS] = encode({"kind": "settings", "page": _page_digest(), "stale_ms": stale_ms, "vanish_ms": vanish_ms})
    app.add_routes(
        [
            web.get("/", _index),
            web.get("/live", _live),
            web.get("/healthz", _health),
            web.post("/exam", _act),
            web.get("/keyframes/{id:[0-9]{1,18}}", _keyframe),
            web.static("/page", PAGE),
        ]
    )

    async def read_daemons(_app: web.Application) -> AsyncIterator[None]:
        async with _feeds(app[HUB], addresses, curve), _ticks(app[HUB]), app[DESK].running():
            yield

    app.cleanup_ctx.append(read_daemons)
    app.on_shutdown.append(_end)
    return app


async def serve(app: web.Application, host: str, port: int, tls: ssl.SSLContext | None, stop: asyncio.Event) -> None:
    """Serve until `stop` is set.

    Raises:
        BindError: The address is in use or not this machine's.
        ConfigError: A daemon's address or the keys cannot be used.
    """
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, ssl_context=tls).start()
        # the port may have been left to the system
        bound_host, bound_port = runner.addresses[0][:2]
        print(f"edge-display {__version__}: open http{'s' if tls else ''}://{bound_host}:{bound_port}/", flush=True)
        await stop.wait()
    except (OSError, UnicodeError) as exc:
        told = f"--http {host}:{port} cannot be bound ({_reason_of(exc)})"
        raise BindError(f"{told}; choose another address or port") from exc
    finally:
        await runner.cleanup()


def _reason_of(exc: OSError | UnicodeError) -> str:
    """Return why an address cannot be bound, without the address."""
    if isinstance(exc, UnicodeError | socket.gaierror):
        return "its name is not known here"
    if exc.errno == errno.EADDRINUSE:
        return "it is in use"
    return os.strerror(exc.errno) if exc.errno else str(exc)


@contextlib.asynccontextmanager
async def _feeds(hub: Hub, addresses: Sequence[str], curve: Path | None) -> AsyncIterator[None]:
    with contextlib.ExitStack() as stack:
        for address in addresses:
            hub.connections[address] = False, ""
            stack.callback(Feed(address, hub.message, hub.connection, curve).close)
        yield


@contextlib.asynccontextmanager
async def _ticks(hub: Hub) -> AsyncIterator[None]:
    async def tick() -> None:
        while True:
            hub.tick()
            await asyncio.sleep(_TICK_S)

    task = asyncio.create_task(tick())
    try:
        yield
    finally:
        task.cancel()


async def _end(app: web.Application) -> None:
    await app[CLIENTS].close()


def _page_digest() -> str:
    """Return what tells this page from that of another release: a browser that holds that one loads this one."""
    digest = hashlib.sha256()
    for path in sorted(PAGE.iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()


async def _index(_request: web.Request) -> web.FileResponse:
    return web.FileResponse(PAGE / "index.html")


async def _health(request: web.Request) -> web.Response:
    return web.json_response({"version": __version__, "browsers": len(request.app[CLIENTS])})


async def _live(request: web.Request) -> web.WebSocketResponse:
    # pictures are compressed already
    socket = web.WebSocketResponse(heartbeat=_HEARTBEAT_S, compress=False, max_msg_size=_MAX_TEXT_BYTES)
    await socket.prepare(request)
    # the settings come first and never in another form: a page of another release is to see that it must be loaded anew
    await request.app[CLIENTS].serve(socket, request.app[SETTINGS], request.app[HUB].greeting())
    return socket


async def _act(request: web.Request) -> web.Response:
    """Do what was pressed. The type keeps out forms of pages elsewhere, which can send none but theirs."""
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(text="Send JSON.")
    try:
        asked = await request.json()
        address, command, note = str(asked["address"]), str(asked["command"]), asked.get("note")
        json.dumps(note, ensure_ascii=False).encode()  # half a character cannot be sent on
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as exc:
        raise web.HTTPBadRequest(
            text="Send an object with address and command, and a note in whole characters."
        ) from exc
    try:
        await request.app[DESK].act(address, command, note)
    except EdgeError as exc:
        raise web.HTTPConflict(text=str(exc)) from exc
    return web.Response(status=204)


async def _keyframe(request: web.Request) -> web.Response:
    keyframe = request.app[HUB].keyframe(int(request.match_info["id"]))
    if keyframe is None:
        raise web.HTTPNotFound(text="This keyframe is no longer kept.")
    view = keyframe.view
    body = encode(view_facts(view), view.frame.jpeg, *([view.heat.map_hw.tobytes()] if view.heat else []))
    return web.Response(body=body, content_type="application/octet-stream")
