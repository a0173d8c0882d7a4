"""The DICOM listener's network side: answers C-ECHO, and takes C-STORE objects into the spool."""

import ssl
import threading
from pathlib import Path
from typing import Any

from pydicom.uid import UID, AllTransferSyntaxes
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from edge.errors import BindError, ConfigError, SourceError
from edge.sources.dicom.address import ListenerAddress
from edge.sources.dicom.guard import IDLE_S, MAX_IDLE_S, MAX_PDU_BYTES, PDU_DEADLINE_S, ObjectSink, Report
from edge.sources.dicom.header import read_image
from edge.sources.dicom.pixels import DECODE_ERRORS, PixelReader, check_attributes, find_decoder, find_plugin
from edge.sources.dicom.server import GuardedServer
from edge.sources.dicom.spool import Spool, SpoolFullError
from edge.sources.dicom.video import is_video
from edge.sources.options import SourceOptions

STORAGE_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.3.1",  # Ultrasound Multi-frame Image
    "1.2.840.10008.5.1.4.1.1.6.1",  # Ultrasound Image
    "1.2.840.10008.5.1.4.1.1.3",  # the same before 1993, which old scanners still send
    "1.2.840.10008.5.1.4.1.1.6",
    "1.2.840.10008.5.1.4.1.1.7",  # Secondary Capture Image
    "1.2.840.10008.5.1.4.1.1.7.2",  # Multi-frame Grayscale Byte Secondary Capture Image
    "1.2.840.10008.5.1.4.1.1.7.3",  # Multi-frame Grayscale Word Secondary Capture Image
    "1.2.840.10008.5.1.4.1.1.7.4",  # Multi-frame True Color Secondary Capture Image
)
SUCCESS, OUT_OF_RESOURCES, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xC000
"""C-STORE status (PS3.4, section B.2.3)."""
_LIMIT_EXCEEDED = (0x02, 0x03, 0x02)
"""A-ASSOCIATE-RJ: transient, by the service provider, local limit exceeded (PS3.8, section 9.3.4)."""
_STOP_S = 2.0


def transfer_syntaxes() -> list[UID]:
    """Return what the file source can decode."""
    return [uid for uid in AllTransferSyntaxes if is_video(uid) or _has_decoder(uid)]


def _has_decoder(uid: UID) -> bool:
    decoder = find_decoder(uid)
    return decoder is not None and (decoder.is_native or find_plugin(decoder) is not None)


class StorageScp:
    """Listens in a thread of its own, `dicom-listen`; each association has two more."""

    def __init__(self, address: ListenerAddress, options: SourceOptions, spool: Spool, report: Report) -> None:
        """Bind and listen.

        Raises:
            ConfigError: The certificates cannot be used.
            BindError: The address is in use or not of this host.
        """
        self._max_associations = address.max_associations
        self._report = report
        self._checking = threading.Lock()
        """One object at a time: a deflated one may need half a gigabyte to look at."""
        ae = _entity(address, options)
        tls = tls_context(options)
        try:
            self._server: GuardedServer = ae.make_server(  # type: ignore[assignment]
                (address.host, address.port),
                evt_handlers=[
                    (evt.EVT_REQUESTED, self._on_requested),
                    (evt.EVT_REJECTED, self._on_rejected),
                    (evt.EVT_C_STORE, self._on_store),
                ],
                server_class=GuardedServer,
                spool=spool,
                tls=tls,
                report=report,
                max_rate_bytes=address.max_rate_bytes,
            )
        except OSError as exc:
            mend = "is another program there, and is the address of this host?"
            if isinstance(exc, PermissionError):
                mend = "ports below 1024 are root's: take 11112, or give edge-infer CAP_NET_BIND_SERVICE"
            raise BindError(
                f"the DICOM listener cannot bind {address.host}:{address.port} ({exc.strerror}); {mend}"
            ) from exc
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="dicom-listen")
        self._thread.start()

    def close(self) -> None:
        """End all associations and stop listening. Once."""
        self._server.stop(_STOP_S)
        self._thread.join(_STOP_S)

    def _on_requested(self, event: Any) -> None:
        if self._server.associate(event.assoc, self._max_associations):
            return
        self._report("rejected_associations", f"{_peer(event)} was rejected: {self._max_associations} are open already")
        event.assoc.acse.send_reject(*_LIMIT_EXCEEDED)
        event.assoc.kill()

    def _on_rejected(self, event: Any) -> None:
        self._report("rejected_associations", f"{_peer(event)} was rejected: its AE title or the one it calls is wrong")

    def _on_store(self, event: Any) -> int:
        try:
            return self._store(event)
        finally:
            event.assoc.dimse.release_sink()

    def _store(self, event: Any) -> int:
        """Take an object over; success is answered only for what is on disk and can be read."""
        sink = event.request.DataSet
        if not isinstance(sink, ObjectSink) or not sink.is_begun:
            return CANNOT_UNDERSTAND
        try:
            if sink.refusal is not None or sink.incoming is None:
                raise sink.refusal or SpoolFullError("it could not be written")
            path = sink.incoming.finish()
            with self._checking:
                _check(path)
            sink.incoming.commit()
        except SpoolFullError as exc:
            self._report("refused_objects", f"an object of {_peer(event)} was refused: {exc}")
            return OUT_OF_RESOURCES
        except (SourceError, *DECODE_ERRORS) as exc:
            self._report("bad_objects", f"an object of {_peer(event)} was refused: {exc}")
            return CANNOT_UNDERSTAND
        sink.incoming = None  # it belongs to the spool now
        return SUCCESS


def _check(path: Path) -> None:
    """Look at the header, as far as it takes to know that there are images of a kind that can be decoded.

    Raises:
        SourceError: There are none.
    """
    image = read_image(path)
    check_attributes(image.header, "it", ("Rows", "Columns"))
    if not is_video(image.transfer_syntax):
        PixelReader(image)


def _peer(event: Any) -> str:
    return f"the DICOM peer {event.assoc.requestor.address}"


def _entity(address: ListenerAddress, options: SourceOptions) -> AE:
    ae = AE(ae_title=address.aet)
    ae.require_called_aet = True
    ae.require_calling_aet = list(options.allow_aet)
    ae.maximum_associations = 2**16  # counted by the server: here connections without an association count too
    ae.maximum_pdu_size = MAX_PDU_BYTES
    ae.acse_timeout, ae.dimse_timeout, ae.network_timeout = PDU_DEADLINE_S, IDLE_S, MAX_IDLE_S
    syntaxes = transfer_syntaxes()
    for storage_class in STORAGE_CLASSES:
        ae.add_supported_context(storage_class, syntaxes)
    ae.add_supported_context(Verification)
    return ae


def tls_context(options: SourceOptions) -> ssl.SSLContext | None:
    """Return a context that asks peers for a certificate; None where TLS was not asked for.

    Raises:
        ConfigError: A file is missing or is not what it should be.
    """
    cert, key, ca = options.tls_cert, options.tls_key, options.tls_ca
    if not (cert or key or ca):
        return None
    if not (cert and key and ca):
        raise ConfigError("TLS needs --tls-cert, --tls-key and --tls-ca together: give all three, or none of them")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(cert, key, password=lambda: b"")
        context.load_verify_locations(ca)
    except OSError as exc:  # ssl.SSLError is one
        reason = exc.strerror or str(exc)
        raise ConfigError(
            f"--tls-cert {cert}, --tls-key {key}, --tls-ca {ca} cannot be used ({reason}); "
            "they must be PEM files, the key that of the certificate and without a password"
        ) from exc
    return context
