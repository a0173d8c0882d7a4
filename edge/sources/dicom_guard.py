"""Guards pynetdicom's acceptor against peers that are slow, greedy or malicious.

pynetdicom reads a PDU of any length for as long as the peer likes, shakes hands for TLS in the thread that accepts
connections, and holds objects in memory. Here each PDU has a limit of size and time, the handshake has one and happens
in the association's own thread, and objects go to disk as they come.
"""

import contextlib
import functools
import io
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

from pynetdicom import AE, _config
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.dsutils import create_file_meta, encode_file_meta
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.transport import AssociationServer, RequestHandler

from edge.sources.dicom_header import READ_ERRORS
from edge.sources.spool import Incoming, Spool, SpoolFullError

# Peers' names and UIDs stand in pynetdicom's own messages.
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
_config.LOG_HANDLER_LEVEL = "none"

MAX_PDU_BYTES = 131_072
"""What peers are told (PS3.8, section D.1): large, for speed."""
_MAX_ASSOCIATE_BYTES = 2 * MAX_PDU_BYTES
"""For 128 presentation contexts of 40 transfer syntaxes."""
_MAX_COMMAND_BYTES = 16_384
_MAX_QUEUED = 16
"""Messages of one association that wait for their answer; a peer waits for each."""
PDU_DEADLINE_S = 10.0
"""From a PDU's first byte to its last; also for the TLS handshake."""
IDLE_S = 30.0
_GRACE_S, _MIN_RATE_BYTES = 60.0, 16_384
"""An object must come at this rate, after the grace."""
_MAX_UNASSOCIATED = 32
"""Connections that have not asked for an association; the oldest one is closed for a new one."""
_ABORT = bytes.fromhex("07000000000400000206")
"""A-ABORT by the service provider: invalid PDU parameter value (PS3.8, section 9.3.8)."""

Report = Callable[[str, str], None]
"""`report(counter, message)`."""


class PeerError(Exception):
    """The peer breaks the protocol; the association is aborted."""


PEER_ERRORS = (PeerError, *READ_ERRORS)
"""What a thread of pynetdicom's dies of when a peer sends nonsense."""


class PduReader:
    """Reads from one connection, within limits."""

    def __init__(self, connection: socket.socket, peer: str, max_rate_bytes: int, report: Report) -> None:
        self._connection = connection
        self._peer = peer
        self._max_rate_bytes = max_rate_bytes
        self._report = report
        self._t_free_s = 0.0

    def recv(self, num_bytes: int) -> bytearray:
        """Return so many bytes, fewer where the peer closed the connection.

        Raises:
            OSError: It is more than a PDU may have, did not come in time, or the connection is broken.
        """
        if num_bytes > _MAX_ASSOCIATE_BYTES:
            self._report("bad_peers", f"{self._peer} announced a PDU of {num_bytes} bytes; it is cut off")
            self._connection.send(_ABORT)
            raise ConnectionAbortedError("PDU too large")
        try:
            return self._receive(num_bytes)
        except TimeoutError:
            self._report("bad_peers", f"{self._peer} stopped in the middle of a PDU; it is cut off")
            raise

    def _receive(self, num_bytes: int) -> bytearray:
        deadline_s = time.monotonic() + PDU_DEADLINE_S
        buffer = bytearray(num_bytes)
        view, num_got = memoryview(buffer), 0
        while num_got < num_bytes:
            self._connection.settimeout(max(0.001, deadline_s - time.monotonic()))
            num_new = self._connection.recv_into(view[num_got:])
            if not num_new:
                return bytearray(view[:num_got])
            num_got += num_new
        self._slow_down(num_bytes)
        return buffer

    def _slow_down(self, num_bytes: int) -> None:
        """Leave bytes in the network while the peer is faster than it may be: TCP then makes it wait."""
        now_s = time.monotonic()
        self._t_free_s = max(self._t_free_s, now_s) + num_bytes / self._max_rate_bytes
        if self._t_free_s - now_s > 0.1:
            time.sleep(self._t_free_s - now_s)


class ObjectSink(io.BytesIO):
    """Takes an object's bytes to the spool. To pynetdicom it is the buffer that it would hold the object in.

    Where there is no room the rest is read and dropped, so that the peer can be told.
    """

    def __init__(self, spool: Spool, header: Callable[[], bytes]) -> None:
        super().__init__()
        self._spool = spool
        self._header = header
        self._num_bytes = 0
        self._t_start_s = 0.0
        self.incoming: Incoming | None = None
        self.refusal: SpoolFullError | None = None
        self.is_begun = False

    def write(self, data: Any) -> int:
        """Take the next bytes.

        Raises:
            PeerError: They come too slowly, or never end.
        """
        if not self.is_begun:
            self._t_start_s, self.is_begun = time.monotonic(), True
            self._keep(self._header())
        self._num_bytes += len(data)
        if time.monotonic() - self._t_start_s > _GRACE_S + self._num_bytes / _MIN_RATE_BYTES:
            raise PeerError("sends an object too slowly")
        if self._num_bytes > 2 * self._spool.limits.max_object_bytes:
            raise PeerError("sends an object without end")
        self._keep(data)
        return len(data)

    def _keep(self, data: bytes) -> None:
        if self.refusal is not None:
            return
        try:
            if self.incoming is None:
                self.incoming = self._spool.incoming()
            self.incoming.write(data)
        except SpoolFullError as exc:
            self.refusal = exc

    def discard(self) -> None:
        """Throw away what was not committed."""
        if self.incoming is not None:
            self.incoming.discard()
            self.incoming = None


class GuardedDimse(DIMSEServiceProvider):
    """Puts messages together from P-DATA, objects on disk."""

    def __init__(self, association: Association, spool: Spool) -> None:
        super().__init__(association)
        self._spool = spool
        self.sink: ObjectSink | None = None
        """Of the object that comes in or waits for its answer."""

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take the next P-DATA; see the base class.

        Raises:
            PeerError: It breaks the protocol.
        """
        if self.msg_queue.qsize() >= _MAX_QUEUED:
            raise PeerError("sends on without waiting for an answer")
        if self.message is None:
            self.message = DIMSEMessage()
            self.message.data_set = ObjectSink(self._spool, functools.partial(self._header, self.message))
        message = self.message
        super().receive_primitive(primitive)
        if message.encoded_command_set.tell() > _MAX_COMMAND_BYTES:
            raise PeerError("sends a command without end")

    def _header(self, message: DIMSEMessage) -> bytes:
        """Return what stands before the data set in a file (PS3.10, section 7.1)."""
        if self.sink is not None:
            raise PeerError("sends an object before the last one was answered")
        command = message.command_set
        contexts = self.assoc._accepted_cx
        if message.context_id not in contexts or "AffectedSOPInstanceUID" not in command:
            raise PeerError("sends data that belong to no object")
        self.sink = message.data_set  # type: ignore[assignment]
        meta = encode_file_meta(
            create_file_meta(
                sop_class_uid=command.AffectedSOPClassUID,
                sop_instance_uid=command.AffectedSOPInstanceUID,
                transfer_syntax=contexts[message.context_id].transfer_syntax[0],
            )
        )
        return bytes(128) + b"DICM" + meta

    def release_sink(self) -> None:
        """Throw away an object that was not committed; the peer may send the next."""
        if self.sink is not None:
            self.sink.discard()
            self.sink = None


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

    @property
    def num_associated(self) -> int:
        """Number of associations."""
        return len(self._associated)

    def admit(self, association: Association, connection: socket.socket) -> None:
        """Keep account of a new connection; the oldest one that idles without an association makes room for it."""
        with self._lock:
            idle = [other for other in self._connections if other not in self._associated]
            if len(idle) >= _MAX_UNASSOCIATED:
                self.report("bad_peers", "too many connections without an association; the oldest one is cut off")
                _shut(self._connections[idle[0]])
            self._connections[association] = connection

    def associate(self, association: Association, max_associations: int) -> bool:
        """Count a connection as an association; False where there are enough."""
        with self._lock:
            if len(self._associated) >= max_associations:
                return False
            self._associated.add(association)
            return True

    def run_association(self, association: Association, run: Callable[[], None], peer: str) -> None:
        """Run an association's thread from the TLS handshake to its end."""
        connection = self._connections[association]
        try:
            if isinstance(connection, ssl.SSLSocket):
                connection.settimeout(PDU_DEADLINE_S)
                connection.do_handshake()
            run()
        except ssl.SSLError as exc:
            self.report("bad_peers", f"{peer} made no TLS connection ({exc.reason}); it is cut off")
        except PEER_ERRORS as exc:
            self._tell(peer, exc)
        finally:
            association._kill = association.dul._kill_thread = True
            _shut(connection)
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
                connection.send(_ABORT)
            association._kill = True
            _shut(connection)

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
            association._kill = association.dul._kill_thread = True
            _shut(connection)
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
        self.request.settimeout(PDU_DEADLINE_S)
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


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the peer was faster
        connection.shutdown(socket.SHUT_RDWR)
