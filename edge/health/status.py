"""What the daemon says of itself: the status message's header, the status file, and the last line of the log."""

import json
import logging
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from edge import __version__, wire
from edge.health.meters import Meters
from edge.prediction import State
from edge.terms import Terms
from engines import EngineSpec

if TYPE_CHECKING:
    from edge.recording.recorder import Recorder  # a heavy one, that most runs do without

_log = logging.getLogger(__name__)


class StatusReport:
    """Puts the status together. `header` runs in the publisher's thread, the rest in the supervisor's."""

    def __init__(
        self,
        stream: str,
        source: str,
        meters: Meters,
        terms: Terms,
        path: Path | None,
        recorder: "Recorder | None" = None,
    ) -> None:
        """Start without an engine.

        Args:
            stream: The stream's name.
            source: The source's public name.
            meters: Counts and times.
            terms: The threshold and the exam.
            path: Where `write_file` writes; None: nowhere.
            recorder: Tells what is not recorded; None: nothing is to be.
        """
        self.engine: EngineSpec | None = None
        """Set once it is loaded."""
        self._stream = stream
        self._source = source
        self._meters = meters
        self._terms = terms
        self._path = path
        self._recorder = recorder
        self._run = secrets.token_hex(8)
        self._last: wire.Header = {}
        self._trouble: str | None = None

    def header(self, state: State, reason: str) -> wire.Header:
        """Return the header of a status message."""
        self._last = {
            "v": wire.VERSION,
            "stream": self._stream,
            "state": str(state),
            "reason": reason[: wire.MAX_TEXT],  # an error's text may be of any length, and this may be the last word
            "counters": dict(self._meters.counters),
            "latency_ms": self._meters.latency_percentiles_ms(),
            "fps": self._meters.fps(),
            "uptime_s": self._meters.uptime_s,
            "source": self._source,
            "engine": wire.engine_header(self.engine) if self.engine else None,
            "version": __version__,
            "run": self._run,
            "recording": self._recorder.header() if self._recorder else None,
            **self._terms.header(),
        }
        return self._last

    @property
    def words(self) -> str:
        """State and reason in one line, for `systemctl status`."""
        state, reason = self._last.get("state", "starting"), self._last.get("reason", "")
        return f"{state}: {reason}" if reason else str(state)

    def write_file(self) -> None:
        """Write the last header; a disk that fails must not end the stream."""
        if self._path is None or not self._last:
            return
        temporary = self._path.with_name(self._path.name + ".tmp")
        try:
            temporary.write_text(json.dumps(self._last) + "\n", encoding="utf-8")
            temporary.replace(self._path)
            trouble = None
        except OSError as exc:
            trouble = exc.strerror
        if trouble and trouble != self._trouble:
            _log.warning("status file %s cannot be written: %s", self._path, trouble)
        self._trouble = trouble

    def log_end(self, reason: str, *, is_stopped: bool, num_needed: int) -> None:
        """Log how it ended; a stream too short for one window is worth a warning."""
        counters = self._meters.counters
        if not counters["inferred"] and not is_stopped:
            _log.warning(
                "no prediction: the source ended after %d frames, %d on the clip's time grid; "
                "a window needs %d of these in a row",
                counters["captured"],
                counters["in_clip"],
                num_needed,
            )
        _log.info(
            "ended: %s; captured %d, published %d, skipped %d",
            reason,
            counters["captured"],
            counters["published"],
            counters["skipped"],
        )
