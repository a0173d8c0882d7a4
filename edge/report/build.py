"""Writes an exam's report into a folder: page, pictures, summary and DICOM objects."""

import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from edge.errors import ConfigError
from edge.exams.exam import ExamSummary
from edge.exams.store import write_whole
from edge.report.dicom_common import RESEARCH, Study
from edge.report.dicom_images import heatmap_keyframe, outline, plain_keyframe
from edge.report.dicom_sr import structured_report
from edge.report.page import keyframe_png, render_page

DICOM_FOLDER = "dicom"
PAGE_NAME = "report.html"
SUMMARY_NAME = "summary.json"
_LAST_NAME = "report"
_NUMBERED = (
    "keyframe-[0-9].png",
    *(f"{DICOM_FOLDER}/{kind}-[0-9].dcm" for kind in ("keyframe", "heatmap", "outline")),
)


def write_report(summary: ExamSummary, study: Study, folder: Path) -> None:
    """Write the report; one that is there already is replaced.

    A folder that is made here is its owner's alone; one that was there is left as it is, and what is written into it is
    open to whom the folder is.

    Raises:
        ConfigError: The folder cannot be written.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # pictures of a patient, and notes that may name one
        mode = folder.stat().st_mode & 0o777
        (folder / DICOM_FOLDER).mkdir(mode=mode, exist_ok=True)
        _remove_earlier(folder)
        for name, content in _files(summary, study):
            # whole or not there, also where the process is ended
            write_whole(folder / name, content, mode=mode & 0o666)
    except OSError as exc:
        raise ConfigError(f"--out {folder} cannot be written ({exc.strerror}); name another folder") from exc


def _files(summary: ExamSummary, study: Study) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each file; the structured report is the last one."""
    yield PAGE_NAME, render_page(summary).encode()
    yield SUMMARY_NAME, (json.dumps(_facts(summary), indent=2) + "\n").encode()
    for number, keyframe in enumerate(summary.keyframes, start=1):
        yield f"keyframe-{number}.png", keyframe_png(keyframe)
    for name, dataset in _objects(summary, study):
        buffer = io.BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        yield f"{DICOM_FOLDER}/{name}.dcm", buffer.getvalue()


def has_report(folder: Path) -> bool:
    """Return whether a report is there with all of its DICOM objects: the last one is written last."""
    return (folder / DICOM_FOLDER / f"{_LAST_NAME}.dcm").exists()


def _remove_earlier(folder: Path) -> None:
    """Remove the pictures and objects of an earlier report, which may have had more of them."""
    (folder / DICOM_FOLDER / f"{_LAST_NAME}.dcm").unlink(missing_ok=True)
    for pattern in _NUMBERED:
        for path in folder.glob(pattern):
            path.unlink()


def _objects(summary: ExamSummary, study: Study) -> Iterator[tuple[str, Dataset]]:
    plain = []
    for number in range(1, len(summary.keyframes) + 1):
        plain.append(plain_keyframe(summary, study, number))
        yield f"keyframe-{number}", plain[-1]
        yield f"heatmap-{number}", heatmap_keyframe(summary, study, number)
        yield f"outline-{number}", outline(summary, study, number, plain[-1])
    if plain:  # a report without evidence is not a valid one
        yield _LAST_NAME, structured_report(summary, study, plain)


def _facts(summary: ExamSummary) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(summary) if field.name not in ("keyframes", "history")]
    keyframes = [
        {"probability": keyframe.probability, "index": keyframe.index, "t_wall_ns": keyframe.t_wall_ns}
        for keyframe in summary.keyframes
    ]
    facts = {name: getattr(summary, name) for name in names}
    return {"notice": RESEARCH, **facts, "positive": summary.positive, "keyframes": keyframes}
