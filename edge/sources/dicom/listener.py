"""Plays what scanners and archives send: a DICOM listener (C-STORE and C-ECHO SCP) before a spool."""

import logging
from collections.abc import Iterator

from edge.errors import EdgeError
from edge.sources.base import LiveItem, SourceInfo, Trouble
from edge.sources.dicom.address import ListenerAddress, check_aet
from edge.sources.dicom.file import DicomFile
from edge.sources.dicom.scp import StorageScp
from edge.sources.dicom.spool import Spool
from edge.sources.object_player import ObjectPlayer
from edge.sources.options import SourceOptions
from edge.sources.stored import DEFAULT_INTERVAL_MS

_log = logging.getLogger(__name__)


class DicomListener:
    """A source whose objects are sent to it. Objects that wait in the spool from an earlier run are played first."""

    def __init__(self, address: ListenerAddress, options: SourceOptions) -> None:
        """Open the spool and listen.

        Raises:
            ConfigError: An AE title, the spool or a certificate cannot be used.
            SourceError: The spool cannot be written.
            BindError: The address is in use or not of this host.
        """
        for aet in options.allow_aet:
            check_aet(aet, "--allow-aet")
        self._spool = Spool(address.spool, address.spool_limits)
        self._is_playing = False
        self._player = ObjectPlayer(self._spool, DicomFile, is_realtime=options.is_realtime)
        try:
            self._scp = StorageScp(address, options, self._spool, self._report)
        except EdgeError:
            self._spool.unlock()
            raise
        self._info = SourceInfo(
            name=f"dicom://{f'[{address.host}]' if ':' in address.host else address.host}:{self._scp.port}",
            frame_interval_ms=DEFAULT_INTERVAL_MS,
            is_live=True,
            plays_objects=True,
            kind="DICOM listener",
            note=f"(listens as {address.aet}; {self._spool.num_waiting} objects wait in {address.spool})",
        )
        if not address.is_loopback and options.tls_ca is None:
            _log.warning(
                "%s can be reached from other machines without TLS: whoever reaches it can send; "
                "see --tls-cert, --tls-key, --tls-ca, --allow-aet",
                self._info.name,
            )

    def _report(self, counter: str, message: str) -> None:
        self._player.report(Trouble(counter, message))

    @property
    def info(self) -> SourceInfo:
        return self._info

    def frames(self) -> Iterator[LiveItem]:
        """Yield the frames of the objects in the order in which they came; see `Source.frames`."""
        self._is_playing = True
        try:
            yield from self._player.frames()
        finally:
            self._spool.unlock()

    def close(self) -> None:
        """Stop listening, and end a running `frames()` before its next item."""
        self._player.close()
        self._spool.close()
        self._scp.close()
        if not self._is_playing:
            self._spool.unlock()
