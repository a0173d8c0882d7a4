"""All that serves exams beside the stream, opened together: keeper, control socket, reporter."""

from pathlib import Path
from typing import TYPE_CHECKING

from edge.commands import commands_of
from edge.config import Config
from edge.control import ControlServer
from edge.exams.archive import ExamArchive
from edge.exams.keeper import ExamKeeper, KeeperSettings
from edge.exams.reporter import Reporter
from edge.exams.store import ExamStore, default_state_folder
from edge.health.meters import Meters
from edge.publish import Publisher
from edge.terms import Terms

if TYPE_CHECKING:
    from edge.recording.recorder import Recorder

_PATIENCE_S, _PATIENCE_STOPPED_S = 60.0, 10.0
"""How long the end of a stream waits for its report to be sent; what is not sent by then waits on disk."""


class ExamService:
    """Keeper, and what was asked for of control socket and reporter."""

    def __init__(self, keeper: ExamKeeper, store: ExamStore, is_whole_run: bool) -> None:
        self._keeper, self._store, self._is_whole_run = keeper, store, is_whole_run
        self.control: ControlServer | None = None
        self.reporter: Reporter | None = None

    @property
    def control_address(self) -> str | None:
        """Where the control socket is bound."""
        return self.control.address if self.control else None

    def end_stream(self, *, was_stopped: bool, recorder: "Recorder | None") -> None:
        """End the exam with its stream, and let its report be sent; one that is stopped may go on in the next daemon.

        Args:
            was_stopped: Someone ended the stream, and not the stream itself.
            recorder: What the report is made from: it is closed first.
        """
        self._close_control()
        self._keeper.close(ends_exam=self._is_whole_run or not was_stopped)
        if self.reporter is not None and recorder is not None:
            recorder.close()
            self.reporter.finish(_PATIENCE_STOPPED_S if was_stopped else _PATIENCE_S)

    def hurry(self) -> None:
        """Let the end of the stream wait for no report any longer. Takes no lock: for a signal handler."""
        if self.reporter is not None:
            self.reporter.hurry()

    def close(self) -> None:
        """End all threads; the exam stays open. Idempotent."""
        self._close_control()
        self._keeper.close(ends_exam=False)
        if self.reporter is not None:
            self.reporter.finish(0)
        self._store.close()

    def _close_control(self) -> None:
        if self.control is not None:
            self.control.close()


def open_exams(
    config: Config, bundle_sha256: str, finding: str, publisher: Publisher, meters: Meters, terms: Terms
) -> ExamService:
    """Open what the configuration asks for; before the publisher starts.

    Raises:
        ConfigError: The state folder or the control address cannot be used.
        BindError: The control address is in use or not of this host.
    """
    store = ExamStore(Path(config.state) if config.state else default_state_folder(), config.stream)
    archive = ExamArchive(Path(config.record), config.pacs) if config.record else None
    settings = KeeperSettings(
        stream=config.stream,
        bundle_sha256=bundle_sha256,
        finding=finding,
        auto_pause_s=config.exam_auto,
        is_whole_run=config.control is None and config.exam_auto is None,
    )
    keeper = ExamKeeper(
        settings,
        terms,
        store,
        archive,
        num_captured=lambda: meters.counters["captured"],
        tell_status=publisher.tell_status,
    )
    service = ExamService(keeper, store, settings.is_whole_run)
    if config.control is not None:
        curve_dir = Path(config.curve) if config.curve else None
        service.control = ControlServer(
            config.control, commands_of(keeper), curve_dir=curve_dir, is_insecure=config.insecure
        )
    if config.pacs is not None and archive is not None:
        service.reporter = Reporter(archive, config.pacs, _tls_options(config))
        keeper.on_end = service.reporter.wake
    publisher.taps.append(keeper.tap)
    keeper.start()
    return service


def _tls_options(config: Config) -> list[str]:
    given = {"--tls-cert": config.tls_cert, "--tls-key": config.tls_key, "--tls-ca": config.tls_ca}
    return [text for name, value in given.items() if value for text in (name, value)]
