"""Accepts DICOM associations, whatever their peers do to the threads that serve them.

pynetdicom shakes hands for TLS in the thread that accepts connections, and lets a thread die of what a peer sends. Here
the handshake happens in the association's own thread and has a deadline, and what ends a thread is told.
"""

import contextlib
import functools
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.transport import AssociationServer, RequestHandler

from edge.sources.dicom import guard
from edge.sources.dicom.guard import ABORT, PEER_ERRORS, GuardedDimse, PduReader, PeerError, Report
from edge.sources.dicom.spool import Spool

_MAX_UNASSOCIATED = 32
"""Connections that have not asked for an association; the oldest one is closed for a new one."""


class GuardedServer(AssociationServer):
    """Accepts connections, each in a thread of its own from its first byte on."""

    request_queue_size = 64

    def __init__(
        self,
        ae: AE,
        address: tuple[str, int],
        aet: str,
        contexts: list[Any],
        _tls: None,  # done in the association's own thread
        *,
        evt_handlers: list[Any],
        spool: Spool,
        tls: ssl.SSLContext | None,
        report: Report,
        max_rate_bytes: int,
    ) -> None:
        self.spool = spool
        self.tls = tls
        self.report = report
        self.max_rate_bytes = max_rate_bytes
        self._connections: dict[Association, socket.socket] = {}
        self._associated: set[Association] = set()
        self._lock = threading.Lock()
        super().__init__(ae, address, aet, contexts, evt_handlers=evt_handlers, request_handler=_Handler)

    def admit(self, association: Association, connection: socket.socket) -> None:
        """Keep account of a new connection; the oldest one that idles without an association makes room for it."""
        with self._lock:
            idle = [other for other in self._connections if other not in self._associated]
            if len(idle) >= _MAX_UNASSOCIATED:
                self.report("bad_peers", "too many connections without an association; the oldest one is cut off")
                _end(idle[0], self._connections[idle[0]])
            self._connections[association] = connection

    def associate(self, association: Association, max_associations: int) -> bool:
        """Count a connection as an association; False where there are enough and none of them is silent."""
        with self._lock:
            if len(self._associated) >= max_associations and not self._end_a_silent_one():
                return False
            self._associated.add(association)
            return True

    def _end_a_silent_one(self) -> bool:
        association = max(self._associated, key=_silent_s)
        if _silent_s(association) < guard.IDLE_S:
            return False
        peer = f"the DICOM peer {association.requestor.address}"
        self.report("bad_peers", f"{peer} was silent; its association is ended to make room for another")
        self._associated.discard(association)
        _end(association, self._connections[association])
        return True

    def run_association(self, association: Association, run: Callable[[], None], peer: str) -> None:
        """Run an association's thread from the TLS handshake to its end."""
        connection = self._connections[association]
        try:
            if isinstance(connection, ssl.SSLSocket):
                connection.settimeout(guard.PDU_DEADLINE_S)
                connection.do_handshake()
            run()
        except ssl.SSLError as exc:
            self.report("bad_peers", f"{peer} made no TLS connection ({exc.reason}); it is cut off")
        except PEER_ERRORS as exc:
            self._tell(peer, exc)
        finally:
            _end(association, connection)
            if association.dul.ident is not None:
                association.dul.join()  # its reads end now: the connection is shut
            connection.close()
            association.dimse.release_sink()  # type: ignore[attr-defined]
            with self._lock:
                self._connections.pop(association, None)
                self._associated.discard(association)

    def run_reader(self, association: Association, run: Callable[[], None], peer: str) -> None:
        """Run the thread that reads an association's PDUs."""
        try:
            run()
        except PEER_ERRORS as exc:
            self._tell(peer, exc)
            connection = self._connections[association]
            with contextlib.suppress(OSError):
                connection.send(ABORT)
            _end(association, connection)

    def _tell(self, peer: str, exc: Exception) -> None:
        reason = str(exc) if isinstance(exc, PeerError) else "sends what is no DICOM"
        self.report("bad_peers", f"{peer} {reason}; it is cut off")

    def service_actions(self) -> None:
        """Leave out pynetdicom's own garbage collection: it would stop the inference."""

    def stop(self, timeout_s: float) -> None:
        """Accept no more, end all associations, and wait for their threads."""
        super(AssociationServer, self).shutdown()
        self.server_close()
        with self._lock:
            associations = list(self._connections.items())
        for association, connection in associations:
            _end(association, connection)
        deadline_s = time.monotonic() + timeout_s
        for association, _ in associations:
            association.join(max(0.0, deadline_s - time.monotonic()))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Tell what went wrong before an association had its thread; pynetdicom would print a traceback."""
        self.report("bad_peers", f"{client_address[0]}: its connection could not be taken")


class _Handler(RequestHandler):
    """Prepares the association of a new connection."""

    server: GuardedServer

    def _create_association(self) -> Association:
        if self.server.tls is not None:
            self.request = self.server.tls.wrap_socket(self.request, server_side=True, do_handshake_on_connect=False)
        server, peer = self.server, f"the DICOM peer {self.client_address[0]}"
        self.request.settimeout(guard.PDU_DEADLINE_S)
        association = super()._create_association()
        reader = PduReader(self.request, peer, server.max_rate_bytes, server.report)
        association.dul.socket.recv = reader.recv  # type: ignore[union-attr, method-assign]
        association.dimse = GuardedDimse(association, server.spool)
        association.run = functools.partial(  # type: ignore[method-assign]
            server.run_association, association, association.run, peer
        )
        association.dul.run = functools.partial(  # type: ignore[method-assign]
            server.run_reader, association, association.dul.run, peer
        )
        server.admit(association, self.request)
        return association


def _silent_s(association: Association) -> float:
    """Return for how long nothing has come."""
    return guard.MAX_IDLE_S - association.dul._idle_timer.remaining


def _end(association: Association, connection: socket.socket) -> None:
    """Make both threads of an association end soon. From any thread."""
    association._kill = association.dul._kill_thread = True
    association.dul.to_user_queue.put(None)  # as after its own time-out
    with contextlib.suppress(OSError):  # the peer was faster
        connection.shutdown(socket.SHUT_RDWR)
