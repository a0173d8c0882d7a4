"""Who may listen: addresses, and ZeroMQ CURVE keys in a folder.

A key folder holds `server.key`, `server.key_secret`, `client.key`, `client.key_secret` (written by `edge-keygen`). The
daemon needs `server.key_secret` and the clients' public keys, every other `*.key`; a reader needs `server.key` and
`client.key_secret`. So a machine that only reads gets a copy of those two files and no more.
"""

import ipaddress
from pathlib import Path
from typing import Any

import zmq
import zmq.auth
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils import z85

from edge.errors import ConfigError

Socket = zmq.Socket[Any]

_NUM_KEY_BYTES = 32
_LOOPBACK_NAMES = ("localhost", "lo")
_FORMS = "allowed are tcp://HOST:PORT and ipc://PATH, for example tcp://127.0.0.1:5555"


def check_address(address: str, has_keys: bool, insecure: bool) -> None:
    """Refuse to bind where strangers could listen.

    Raises:
        ConfigError: The address is malformed, or is beyond this machine with neither keys nor `insecure`.
    """
    if not is_loopback(address) and not has_keys and not insecure:
        raise ConfigError(
            f"{address} can be reached from other machines; "
            "give --curve DIR (make the keys with edge-keygen DIR), or --insecure if the network is closed"
        )


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach the address.

    A host name other than localhost counts as beyond it, whatever it resolves to today.

    Raises:
        ConfigError: The address is malformed.
    """
    host = _host(address)
    if host is None or host in _LOOPBACK_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_form(address: str) -> None:
    """Refuse what is no address.

    Raises:
        ConfigError: The address is malformed.
    """
    _host(address)


def is_ipv6(address: str) -> bool:
    """Whether the address is an IPv6 one, which a socket must be told."""
    return address.startswith("tcp://[")


def secure_server(socket: Socket, folder: Path) -> ThreadAuthenticator:
    """Make a socket that is not yet bound accept the folder's clients alone.

    There is one authenticator a ZeroMQ context.

    Returns:
        The running authenticator; `stop()` it after the socket is closed.

    Raises:
        ConfigError: A key file is missing or damaged.
    """
    public_key, secret_key = _key_pair(folder, "server")
    client_paths = [path for path in folder.glob("*.key") if path.name != "server.key"]
    if not client_paths:
        raise _missing(folder / "client.key")
    client_keys = {_read_key(path)[0] for path in client_paths}
    authenticator = ThreadAuthenticator(socket.context)
    authenticator.start()
    authenticator.configure_curve_callback(credentials_provider=_KnownClients(client_keys))
    socket.curve_publickey = public_key
    socket.curve_secretkey = secret_key
    socket.curve_server = True
    return authenticator


def secure_client(socket: Socket, folder: Path) -> None:
    """Make a socket that is not yet connected prove itself with the folder's client key, to that server alone.

    Raises:
        ConfigError: A key file is missing or damaged.
    """
    public_key, secret_key = _key_pair(folder, "client")
    server_key, _ = _read_key(folder / "server.key")
    socket.curve_publickey = public_key
    socket.curve_secretkey = secret_key
    socket.curve_serverkey = server_key


class _KnownClients:
    """Answers the authenticator's one question; the keys are in z85 text."""

    def __init__(self, keys: set[bytes]) -> None:
        self._keys = keys

    def callback(self, domain: str, key: bytes) -> bool:
        return key in self._keys


def _host(address: str) -> str | None:
    """Return a tcp address's host without brackets; None for ipc."""
    transport, separator, rest = address.partition("://")
    if transport == "ipc" and rest:
        return None
    host, _, port = rest.rpartition(":")
    is_port = port == "*" or (port.isascii() and port.isdigit() and int(port) <= 65535)
    if transport != "tcp" or not separator or not host or not is_port:
        raise ConfigError(f"{address!r} is not an address; {_FORMS}")
    return host.removeprefix("[").removesuffix("]")


def _key_pair(folder: Path, name: str) -> tuple[bytes, bytes]:
    path = folder / f"{name}.key_secret"
    public_key, secret_key = _read_key(path)
    if secret_key is None:
        raise _damaged(path, "no secret key in it")
    return public_key, secret_key


def _read_key(path: Path) -> tuple[bytes, bytes | None]:
    if not path.is_file():
        raise _missing(path)
    try:
        public_key, secret_key = zmq.auth.load_certificate(path)
        for key in (public_key, secret_key):
            if key is not None and (len(key) != _NUM_KEY_BYTES * 5 // 4 or len(z85.decode(key)) != _NUM_KEY_BYTES):
                raise ValueError("a key is 40 characters of z85")
    except PermissionError as exc:
        raise ConfigError(f"key file {path} cannot be read (no permission); run as its owner") from exc
    except (OSError, KeyError, ValueError, IndexError) as exc:
        raise _damaged(path, str(exc)) from exc
    return public_key, secret_key


def _missing(path: Path) -> ConfigError:
    what = "no such folder" if not path.parent.is_dir() else f"it has no {path.name}"
    return ConfigError(f"key folder {path.parent}: {what}; make the keys with edge-keygen DIR, or copy them from there")


def _damaged(path: Path, reason: str) -> ConfigError:
    return ConfigError(f"key file {path} is damaged ({reason}); make new keys with edge-keygen DIR")
