"""What takes a report's objects in tests: a store of pynetdicom's, and dcmtk's `storescp` with TLS."""

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from certificates import Certificates
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt

DEADLINE_S = 30.0


class Store:
    """A PACS that keeps what it is sent."""

    def __init__(self) -> None:
        self.uids: list[str] = []
        self._entity = AE("STORE")
        for context in AllStoragePresentationContexts:
            self._entity.add_supported_context(context.abstract_syntax, ALL_TRANSFER_SYNTAXES)
        self.port = 0

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        handlers = [(evt.EVT_C_STORE, self._keep)]
        server = self._entity.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        self.port = server.server_address[1]
        try:
            yield
        finally:
            server.shutdown()

    def _keep(self, event: evt.Event) -> int:
        self.uids.append(event.request.AffectedSOPInstanceUID)
        return 0x0000


@contextlib.contextmanager
def tls_store(folder: Path, certificates: Certificates, *, name: str = "server", peers: str = "-rc") -> Iterator[int]:
    """Run `storescp` with TLS, and give its port.

    Args:
        folder: Where it puts what it is sent.
        certificates: Its own, and the authority that it trusts.
        name: Which of the certificates is its own.
        peers: "-rc" takes peers with a certificate alone, "-ic" every one.
    """
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    cert, key = getattr(certificates, name)
    command = ["storescp", "+tls", key, cert, "+cf", certificates.ca, peers, "-od", folder, str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, process)
        yield port
    finally:
        process.kill()
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until someone listens. Each look ends an association that never was, which storescp bears."""
    while process.poll() is None:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), DEADLINE_S):
            return
    raise AssertionError(f"storescp ended with {process.returncode}")
