"""Who may see the page: loopback alone, unless a token is set; and what the page itself may load."""

import hmac
import ipaddress
import secrets
from collections.abc import Sequence
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from edge.errors import ConfigError

COOKIE = "edge_display_token"
MIN_TOKEN_LENGTH = 16

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Return whether an address to bind is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def read_token(path: Path) -> str:
    """Return the token that a file holds.

    Raises:
        ConfigError: The file cannot be read, or the token is too short to be secret.
    """
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it holds other characters"
        raise ConfigError(f"--token-file {path} cannot be read ({reason}); write a line of letters and digits") from exc
    if len(token) < MIN_TOKEN_LENGTH or not token.isalnum():
        example = secrets.token_hex(16)
        raise ConfigError(
            f"--token-file {path} must hold {MIN_TOKEN_LENGTH} letters and digits or more, for example {example}"
        )
    return token


def guard(token: str | None, hosts: Sequence[str]) -> list[Middleware]:
    """Return the middlewares that check and mark every request.

    Args:
        token: What a browser must show; None where loopback is protection enough.
        hosts: Names under which a reverse proxy serves the page.
    """

    @web.middleware
    async def admit(request: web.Request, handler: Handler) -> web.StreamResponse:
        if token is None:
            _check_host(request, hosts)
        elif "token" in request.query:
            return _log_in(request, token)
        elif not _is_equal(request.cookies.get(COOKIE, ""), token):
            raise web.HTTPUnauthorized(text="Open this page once as http://HOST:PORT/?token=TOKEN .")
        _check_origin(request, hosts)
        return await handler(request)

    @web.middleware
    async def mark(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            response = await handler(request)
        except web.HTTPException as exc:
            exc.headers.update(HEADERS)
            raise
        if not response.prepared:
            response.headers.update(HEADERS)
        return response

    return [mark, admit]


def _log_in(request: web.Request, token: str) -> web.StreamResponse:
    if not _is_equal(request.query["token"], token):
        raise web.HTTPUnauthorized(text="The token is wrong.")
    response = web.HTTPSeeOther("/")  # the address bar and the history do not keep it
    response.set_cookie(COOKIE, token, httponly=True, samesite="Strict", secure=request.secure, max_age=30 * 86400)
    raise response


def _is_equal(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(errors="surrogateescape"), token.encode())


def _check_host(request: web.Request, hosts: Sequence[str]) -> None:
    """Refuse a page elsewhere that made a name of its own point to this machine."""
    try:
        host = request.url.host or ""
    except ValueError as exc:
        raise web.HTTPBadRequest(text="This request names no host.") from exc
    if not is_loopback(host) and host not in hosts:
        raise web.HTTPForbidden(
            text="This display serves its own machine alone: open http://127.0.0.1 and its port, or see --allow-host."
        )


def _check_origin(request: web.Request, hosts: Sequence[str]) -> None:
    """Refuse a page of another origin that would read the socket with this browser's cookie."""
    origin = request.headers.get("Origin")
    if origin is None:
        return
    address = origin.partition("://")[2]
    # a reverse proxy may ask in its own name
    if address != request.host and address.rpartition(":")[0] not in hosts and address not in hosts:
        raise web.HTTPForbidden(text="The page comes from elsewhere.")
