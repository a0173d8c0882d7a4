"""The exams of a recording: who they are, what was noted, and whether a PACS has them.

RECORDING/exams/ID/exam.json     id, times, notes, number of windows, and the PACS that wants it
RECORDING/exams/ID/report/       what edge-report made of it
RECORDING/exams/ID/stored.json   written when the PACS has stored all of it
"""

import json
import logging
import time
from pathlib import Path
from typing import Any

from edge.exams.running import RunningExam
from edge.exams.store import write_whole

_log = logging.getLogger(__name__)

_EXAMS, _ABOUT, _STORED, _REPORT = "exams", "exam.json", "stored.json", "report"
SCHEMA_VERSION = 1


class ExamArchive:
    """Keeps the exams' descriptions beside the recording. A disk that fails is told once and ends nothing."""

    def __init__(self, recording: Path, pacs: str | None) -> None:
        """Read nothing yet.

        Args:
            recording: The recording's folder.
            pacs: Who wants the exams that are written from now on; None: nobody.
        """
        self.recording = recording
        self._pacs = pacs
        self._told: str | None = None
        self.trouble: str | None = None
        """Why the exam that was written last does not stand beside the recording; None where it does."""

    def write(self, exam: RunningExam, stream: str) -> None:
        """Write what the exam is now."""
        about = {"schema_version": SCHEMA_VERSION, "stream": stream, **exam.describe(), "pacs": self._pacs}
        self.trouble = self._write(exam.mark.id, _ABOUT, about)

    def unsent(self) -> list[str]:
        """Return the ended exams with a window that this PACS wants and has not got, oldest first."""
        if self._pacs is None:
            return []
        folders = sorted(path.parent for path in (self.recording / _EXAMS).glob(f"*/{_ABOUT}"))
        return [folder.name for folder in folders if self._is_unsent(folder)]

    def note_stored(self, exam_id: str) -> None:
        """Note that the PACS has it."""
        self._write(exam_id, _STORED, {"pacs": self._pacs, "stored_wall_ns": time.time_ns()})

    def is_reported(self, exam_id: str) -> bool:
        """Return whether the whole exam's report lies there: it is not made again, for segments may be gone by then."""
        ended_wall_ns = read_about(self.recording / _EXAMS / exam_id / _ABOUT).get("ended_wall_ns")
        try:
            made_wall_ns = (self.report_folder(exam_id) / "dicom" / "report.dcm").stat().st_mtime_ns
        except OSError:
            return False
        return isinstance(ended_wall_ns, int) and made_wall_ns > ended_wall_ns

    def report_folder(self, exam_id: str) -> Path:
        """Return where the exam's report is made."""
        return report_folder(self.recording, exam_id)

    def _is_unsent(self, folder: Path) -> bool:
        about = read_about(folder / _ABOUT)
        is_wanted = about.get("pacs") == self._pacs and about.get("ended_wall_ns") and about.get("num_windows")
        return bool(is_wanted) and read_about(folder / _STORED).get("pacs") != self._pacs

    def _write(self, exam_id: str, name: str, content: dict[str, Any]) -> str | None:
        """Write a description; return why not, where that is so."""
        path = self.recording / _EXAMS / exam_id / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
            trouble = None
        except OSError as exc:
            trouble = exc.strerror or str(exc)
        if trouble and trouble != self._told:
            _log.warning("%s cannot be written: %s", path, trouble)
        self._told = trouble
        return trouble


def report_folder(recording: Path, exam_id: str) -> Path:
    """Return where an exam's report goes unless another folder is named."""
    return recording / _EXAMS / exam_id / _REPORT


def notes_of(recording: Path, exam_id: str) -> tuple[str, ...]:
    """Return what was noted during an exam; of a description that somebody changed, what can be used."""
    if exam_id != Path(exam_id).name:
        return ()  # a recording of somebody else's that names a folder elsewhere
    notes = read_about(recording / _EXAMS / exam_id / _ABOUT).get("notes")
    given = notes if isinstance(notes, list) else []
    return tuple(str(note["text"]) for note in given if isinstance(note, dict) and "text" in note)


def read_about(path: Path) -> dict[str, Any]:
    """Return what a description holds; nothing where there is none that can be read."""
    try:
        content = json.loads(path.read_bytes()) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as exc:
        _log.warning("%s cannot be read: %s", path, exc)
        return {}
    return content if isinstance(content, dict) else {}
