"""Whether the addresses of the daemon and the page are free, and who holds them if not; whether CURVE is there."""

import contextlib
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

from edge.errors import BindError
from tools.doctor.finding import Finding, Verdict, pip_install

_LISTENS = "0A"
"""State of a socket in /proc/net/tcp: TCP_LISTEN."""


def check_zeromq() -> Iterator[Finding]:
    """See that ZeroMQ can encrypt: publishing beyond this machine needs it."""
    import zmq

    version = f"libzmq {zmq.zmq_version()}, pyzmq {zmq.pyzmq_version()}"
    if zmq.has("curve"):
        zmq.curve_keypair()
        yield Finding("ZeroMQ", Verdict.OK, f"{version}, with CURVE")
    else:
        told = f"{version}, without CURVE: nothing can be published beyond this machine but with --insecure"
        mend = pip_install(["pyzmq>=27,<28"], "--force-reinstall", "--only-binary=pyzmq")
        yield Finding("ZeroMQ", Verdict.WARNING, told, mend)


def check_publish(address: str) -> Iterator[Finding]:
    """Bind the daemon's address, as it would, and let it go again."""
    import zmq

    from edge.publish import bind

    if not address.startswith("tcp://"):
        yield Finding("edge-infer", Verdict.NOTE, f"{address} is left alone: to bind it may take it from a daemon")
        return
    with zmq.Context() as context, context.socket(zmq.XPUB) as publisher:
        publisher.linger = 0
        try:
            bind(publisher, address)
        except BindError as exc:
            yield _taken("edge-infer", address, str(exc), "--publish tcp://127.0.0.1:")
            return
    yield Finding("edge-infer", Verdict.OK, f"{address} is free")


def check_http(host: str, port: int) -> Iterator[Finding]:
    """Bind the page's address and let it go again."""
    address = f"{host}:{port}"
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except (OSError, UnicodeError) as exc:
        number = getattr(exc, "errno", None) or -1
        if number < 0:  # no error of the system: of a name
            told = f"{address} cannot be bound: the name {host!r} is not known here"
            yield Finding("edge-display", Verdict.PROBLEM, told, "edge-display --http 127.0.0.1:8080")
            return
        told = f"{address} cannot be bound ({os.strerror(number)})"
        yield _taken("edge-display", address, told, "--http 127.0.0.1:")
        return
    yield Finding("edge-display", Verdict.OK, f"{address} is free")


def _taken(command: str, address: str, told: str, option: str) -> Finding:
    """Say who holds a port; the command itself may: then all is well."""
    port = int(address.rpartition(":")[2])
    holder = holder_of(port)
    if holder is not None and holder[1] == command:
        return Finding(command, Verdict.OK, f"{address} is held by {command} itself (process {holder[0]})")
    by = f"; process {holder[0]} ({holder[1]}) holds it" if holder else ""
    mend = f"{command} {option}{_free_port(port)}   # or end what `ss -ltnp 'sport = :{port}'` names"
    return Finding(command, Verdict.PROBLEM, told.partition(";")[0] + by, mend)


def _free_port(taken: int) -> int:
    """Return the next port above that is free on loopback."""
    for port in range(taken + 1, min(taken + 100, 2**16)):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    return 0


def holder_of(port: int) -> tuple[int, str] | None:
    """Return number and name of the process that listens on a TCP port; None where this user may not know."""
    inodes = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    for descriptors in Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if any(str(descriptor.readlink()) in inodes for descriptor in descriptors.iterdir()):
                name = (descriptors.parent / "comm").read_text(encoding="utf-8", errors="replace").strip()
                return int(descriptors.parent.name), name
    return None


def _listening_inodes(port: int) -> Iterator[str]:
    """Yield the inodes of the sockets; a line is `sl local_address rem_address st ... inode` (proc(5))."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENS and re.fullmatch(rf"[0-9A-F]+:{port:04X}", fields[1]):
                    yield fields[9]
