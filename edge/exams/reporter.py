"""Makes the reports of ended exams and sends them to a PACS, in child processes: the stream never waits for it."""

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from edge.exams.archive import ExamArchive

_log = logging.getLogger(__name__)

_SETTLE_S = 2.0
"""From an exam's end to its report: what was captured just before is then in the recording."""
_TRY_S = 30.0
"""How long a child tries to send before it is started again, so that a long night holds no process."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 300.0
_NICENESS = 10
_LOOK_S = 0.1
"""How soon the end heeds a signal."""


class Reporter:
    """One thread that runs `edge-report` for one exam after the other, again and again until the PACS has it.

    What is still to be sent stands on disk beside the recording: the next daemon goes on with it.
    """

    def __init__(self, archive: ExamArchive, pacs: str, options: Sequence[str] = ()) -> None:
        """Start with what an earlier daemon left.

        Args:
            archive: The exams.
            pacs: Where to.
            options: More of `edge-report`'s options.
        """
        self._archive, self._pacs, self._options = archive, pacs, tuple(options)
        self._changed = threading.Condition()
        self._due_s = time.monotonic()
        self._is_last_round = self._is_closing = self._is_hurried = False
        self._given_up: set[str] = set()
        self._told: str | None = None
        self._child: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._run, name="report")
        self._thread.start()

    def wake(self) -> None:
        """Say that an exam has ended."""
        with self._changed:
            self._due_s = time.monotonic() + _SETTLE_S
            self._changed.notify_all()

    def finish(self, patience_s: float) -> None:
        """Report what is left, for no longer than this; idempotent."""
        if self._is_closing:
            return
        with self._changed:
            self._is_last_round, self._due_s = True, time.monotonic()
            self._changed.notify_all()
        if patience_s and self._unsent():
            _log.info("the report is made and sent to %s; this waits for it, up to %g s", self._pacs, patience_s)
        deadline_s = time.monotonic() + patience_s
        while self._thread.is_alive() and time.monotonic() < deadline_s and not self._is_hurried:
            self._thread.join(_LOOK_S)
        with self._changed:
            self._is_closing = True
            if self._child is not None:
                self._child.terminate()
            self._changed.notify_all()
        self._thread.join()
        for exam_id in self._unsent():
            _log.warning(
                "the report of exam %s is not at %s yet; edge-infer --record %s --pacs %s sends it when it runs again",
                *(exam_id, self._pacs, self._archive.recording, self._pacs),
            )

    def hurry(self) -> None:
        """Let `finish` wait no longer. Takes no lock, so that a signal handler may call it."""
        self._is_hurried = True

    def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while self._wait():
            is_last_round = self._is_last_round
            for exam_id in self._unsent():
                if not self._is_closing:
                    self._report(exam_id)
            if self._unsent():
                self._retry_in(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            elif is_last_round:
                return
            else:
                pause_s = _FIRST_PAUSE_S

    def _wait(self) -> bool:
        """Wait until it is time to look again; return False where it is time to end."""
        with self._changed:
            while not self._is_closing and (left_s := self._due_s - time.monotonic()) > 0:
                self._changed.wait(None if left_s == float("inf") else left_s)
            self._due_s = float("inf")
            return not self._is_closing

    def _retry_in(self, pause_s: float) -> None:
        with self._changed:
            pause_s = min(pause_s, 1.0) if self._is_last_round else pause_s
            self._due_s = min(self._due_s, time.monotonic() + pause_s)

    def _unsent(self) -> list[str]:
        return [exam_id for exam_id in self._archive.unsent() if exam_id not in self._given_up]

    def _report(self, exam_id: str) -> None:
        exit_code, said = self._run_child(exam_id)
        if exit_code == 0:
            self._archive.note_stored(exam_id)
            self._told = None
            _log.info("the report of exam %s is stored at %s", exam_id, self._pacs)
        elif not self._is_closing:
            if not self._archive.is_reported(exam_id):
                self._given_up.add(exam_id)  # it would fail again: what is wrong is not the way to the PACS
            if said != self._told:
                _log.warning("the report of exam %s: %s", exam_id, said)
            self._told = said

    def _run_child(self, exam_id: str) -> tuple[int, str]:
        """Run `edge-report`; return its exit code and the last line that it said."""
        command = [sys.executable, "-m", "edge.report.cli", str(self._archive.recording), "--exam", exam_id]
        command += ["--send-only"] if self._archive.is_reported(exam_id) else []
        command += ["--pacs", self._pacs, "--timeout", f"{_TRY_S:g}", *self._options]
        with self._changed:
            if self._is_closing:
                return 1, "the daemon ends"
            self._child = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, process_group=0
            )
        with contextlib.suppress(OSError):  # it has ended already
            os.setpriority(os.PRIO_PROCESS, self._child.pid, _NICENESS)
        _, stderr = self._child.communicate()
        lines = stderr.strip().splitlines() or ["it ended without a word"]
        return self._child.returncode, lines[-1].removeprefix("error: ").removeprefix("warning: ")
