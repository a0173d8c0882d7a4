"""Guards the reading of one DICOM association against a peer that is slow, greedy or malicious.

pynetdicom reads a PDU of any length for as long as the peer likes, and holds objects in memory. Here each PDU has a
limit of size and time, and objects go to disk as they come.
"""

import functools
import io
import logging
import socket
import time
from collections.abc import Callable
from typing import Any

from pynetdicom import _config
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.dsutils import create_file_meta, encode_file_meta
from pynetdicom.pdu_primitives import P_DATA

from edge.sources.dicom.header import READ_ERRORS
from edge.sources.dicom.spool import Incoming, Spool, SpoolFullError

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
"""An association that is silent for so long gives its place to a new one where there are no more."""
MAX_IDLE_S = 600.0
"""One that is silent for so long is ended: some scanners keep theirs open between the images of an exam."""
_GRACE_S, _MIN_RATE_BYTES = 60.0, 16_384
"""An object must come at this rate, after the grace."""
ABORT = bytes.fromhex("07000000000400000206")
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
            self._connection.send(ABORT)
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
