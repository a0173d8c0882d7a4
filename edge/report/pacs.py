"""Sends a report's objects to a PACS by C-STORE, and remembers on disk what has arrived."""

import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pydicom
import pydicom.errors
from pynetdicom import AE
from pynetdicom.association import Association

from edge.errors import SourceError
from edge.report.address import Pacs

_log = logging.getLogger(__name__)

CALLING_AET = "EDGE"
SENT_NAME = "sent.json"
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 60.0
_NETWORK_TIMEOUT_S = 10.0
_PROBE_TIMEOUT_S = 2.0


def send(
    folder: Path, pacs: Pacs, *, tls: ssl.SSLContext | None, patience_s: float, stop: threading.Event | None = None
) -> int:
    """Send every object of a folder that has not arrived yet, again and again until all have.

    Args:
        folder: Holds the `.dcm` files, and `sent.json`, which says which SOPInstanceUIDs have arrived where.
        pacs: The destination.
        tls: For an encrypted connection.
        patience_s: How long to try; an object that did not arrive is sent by the next call.
        stop: Ends the trying.

    Returns:
        The number of objects that arrived in this call.

    Raises:
        SourceError: Some did not arrive in time.
    """
    waiting = stop or threading.Event()
    deadline_s, pause_s, num_sent = time.monotonic() + patience_s, _FIRST_PAUSE_S, 0
    while True:
        pending = _pending(folder, pacs)
        trouble, num_arrived = _send_once(pending, pacs, tls, lambda uid: _note_sent(folder, pacs, uid))
        num_sent += num_arrived
        if trouble is None:
            return num_sent
        left_s = deadline_s - time.monotonic()
        if left_s <= 0 or waiting.wait(min(pause_s, left_s)):
            raise SourceError(
                f"{pacs} has not taken {len(pending) - num_arrived} of the report's objects: {trouble}; they are kept "
                f"in {folder}: run the same command again"
            )
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _send_once(
    paths: Sequence[Path], pacs: Pacs, tls: ssl.SSLContext | None, note: Callable[[str], None]
) -> tuple[str | None, int]:
    """Send over one association; return what went wrong, and the number of objects that arrived."""
    if not paths:
        return None, 0
    datasets = {path: pydicom.dcmread(path) for path in paths}
    entity = AE(CALLING_AET)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = _NETWORK_TIMEOUT_S
    for uid in {dataset.SOPClassUID for dataset in datasets.values()}:
        entity.add_requested_context(uid)
    tls_args = (tls, pacs.host) if tls is not None else None
    try:
        association = entity.associate(pacs.host, pacs.port, ae_title=pacs.aet, tls_args=tls_args)
    except (socket.gaierror, UnicodeError) as exc:  # of a name; what comes after it, the library keeps to itself
        return f"the name {pacs.host!r} is not known here ({getattr(exc, 'strerror', None) or exc})", 0
    if not association.is_established:
        return _why_not(association, pacs, tls), 0
    num_arrived, troubles = 0, []
    try:
        for path, dataset in datasets.items():
            trouble = _store(association, dataset)
            if trouble is None:
                note(dataset.SOPInstanceUID)
                num_arrived += 1
            else:
                troubles.append(f"{path.name}: {trouble}")
    finally:
        association.release()
    return (troubles[0] if troubles else None), num_arrived


def _why_not(association: Association, pacs: Pacs, tls: ssl.SSLContext | None) -> str:
    """Say why there is no association: the library tells a lost network, TLS and a refusal apart in its log alone."""
    if association.is_rejected:
        return f"it refused the association (is the AE title {CALLING_AET!r} known to it, and is its own {pacs.aet!r}?)"
    try:
        with socket.create_connection((pacs.host, pacs.port), _PROBE_TIMEOUT_S) as plain:
            if tls is None:
                return f"it hangs up (is the AE title {CALLING_AET!r} known to it? does it ask for TLS, see --tls-ca?)"
            with tls.wrap_socket(plain, server_hostname=pacs.host) as encrypted:
                encrypted.recv(1)  # with TLS 1.3 a refused certificate is told only now
    except ssl.SSLCertVerificationError as exc:
        return f"TLS: its certificate is not trusted ({exc.verify_message}); see --tls-ca"
    except ssl.SSLError as exc:
        return (
            f"TLS: {(exc.reason or str(exc)).replace('_', ' ').lower()} (does it ask for --tls-cert? does it use TLS?)"
        )
    except OSError as exc:
        if not isinstance(exc, TimeoutError):
            return f"it cannot be reached ({exc.strerror or exc})"
    return f"it does not answer (is the AE title {CALLING_AET!r} known to it?)"


def _store(association: Association, dataset: pydicom.Dataset) -> str | None:
    """Return why an object was not stored."""
    try:
        status = association.send_c_store(dataset).get("Status")
    except (ValueError, RuntimeError, AttributeError) as exc:  # no context was accepted, or the association is gone
        return str(exc)
    if status is None:
        return "no answer"
    if status == 0x0000 or status & 0xF000 == 0xB000:  # success, or stored with a warning (PS3.4, table B.2-1)
        return None
    return f"status 0x{status:04X}"


def _pending(folder: Path, pacs: Pacs) -> list[Path]:
    sent = set(_read_sent(folder).get(str(pacs), ()))
    # by what an object is, not by its file's name: a report that was made again has others
    return [path for path in sorted(folder.glob("*.dcm")) if _uid_of(path) not in sent]


def _uid_of(path: Path) -> str:
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPInstanceUID"])
        return str(header.SOPInstanceUID)
    except (OSError, AttributeError, pydicom.errors.InvalidDicomError) as exc:
        raise SourceError(f"{path} is not a readable DICOM object ({exc}); make the report again") from exc


def _read_sent(folder: Path) -> dict[str, list[str]]:
    """Return which SOPInstanceUIDs have arrived where; nothing where that cannot be read."""
    try:
        sent = json.loads((folder / SENT_NAME).read_text(encoding="utf-8"))
        return {str(pacs): [str(uid) for uid in uids] for pacs, uids in sent.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        _log.warning("%s is damaged: all objects are sent again", folder / SENT_NAME)
        return {}


def _note_sent(folder: Path, pacs: Pacs, uid: str) -> None:
    sent = _read_sent(folder)
    sent.setdefault(str(pacs), []).append(uid)
    temporary = folder / (SENT_NAME + ".tmp")
    try:
        temporary.write_text(json.dumps(sent, indent=2) + "\n", encoding="utf-8")
        temporary.replace(folder / SENT_NAME)
    except OSError as exc:  # it has arrived; that it is sent once more does no harm
        _log.warning("%s cannot be written: %s", folder / SENT_NAME, exc.strerror)
