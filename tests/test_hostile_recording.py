"""A recording that is somebody else's, or was tampered with: reports and replays end well, and write nothing else."""

import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_publisher import SmallPublisher, heatmap

from edge.errors import SourceError
from edge.exams.archive import notes_of
from edge.recording.layout import MARKER_NAME, FrameTimes, SegmentPaths
from edge.recording.segment import SegmentWriter
from edge.report.cli import main
from edge.sources.recording import RecordingSource
from edge.sources.stored import DEFAULT_INTERVAL_MS
from edge.wire import encode, heatmap_buffer

INTERVAL_NS = 40_000_000
NUM_FRAMES = 18
ABOUT: dict[str, Any] = {"size_wh": [320, 240], "roi_px": [40, 20, 224, 200], "frame_interval_ms": 40.0}


def recorded(folder: Path, about: dict[str, Any], changes: dict[str, Any]) -> Path:
    """Write a recording of one segment."""
    folder.mkdir()
    (folder / MARKER_NAME).write_text('{"schema_version": 1}')
    writer = SegmentWriter(SegmentPaths(folder, 1), {**ABOUT, **about}, "h264-lossless")
    image = np.random.default_rng(0).integers(0, 255, (200, 224), dtype=np.uint8)
    for index in range(NUM_FRAMES):
        t_ns = index * INTERVAL_NS
        writer.add_frame(image, FrameTimes(index, t_ns, 10**12 + t_ns, 10**18 + t_ns))
    with SmallPublisher() as publisher:
        for index in range(15, NUM_FRAMES):
            t_ns = index * INTERVAL_NS
            header = publisher.prediction_header(t_capture_ns=10**12 + t_ns, t_wall_ns=10**18 + t_ns)
            header["heatmap"] |= changes.get("heatmap", {})
            header |= {name: value for name, value in changes.items() if name != "heatmap"}
            sent = {name: value for name, value in header.items() if value is not None}
            writer.add_message(encode("prediction", sent, heatmap_buffer(heatmap())))
    writer.close()
    return folder


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """The command sets up its process's logging, which here is that of all tests."""
    log = logging.getLogger("edge")
    handlers, propagate, level = log.handlers, log.propagate, log.level
    yield
    log.handlers, log.propagate = handlers, propagate
    log.setLevel(level)


def report(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["edge-report", str(folder), *arguments])
    return main()


@pytest.mark.parametrize(
    ("about", "changes"),
    [
        ({}, {"engine": None}),
        ({}, {"classes": ["benign", "back\\slash\nand line"]}),
        ({}, {"heatmap": {"roi_px": [0, 0, 8192, 8192]}}),
        ({}, {"exam": {"id": "../../elsewhere"}}),
        ({"bundle": ["name"]}, {}),
        ({"bundle": {"threshold": 10**400}}, {}),
        ({"roi_px": [0, 0, 100, 100]}, {}),
    ],
    ids=str,
)
def test_report_is_made_of_what_can_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, about: dict[str, Any], changes: dict[str, Any]
) -> None:
    folder = recorded(tmp_path / "exam", about, changes)
    assert report(monkeypatch, folder) == 0
    assert (folder / "report" / "report.html").exists()


def test_terminal_obeys_no_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = recorded(tmp_path / "exam", {}, {"classes": ["benign", "\x1b]0;title\x07"]})
    assert report(monkeypatch, folder) == 0
    out = capsys.readouterr().out
    assert "title" in out
    assert "\x1b" not in out


@pytest.mark.parametrize("about", [{"size_wh": [10**6, 10**6]}, {"size_wh": [1e400, 240]}], ids=str)
def test_image_of_no_size_is_refused(tmp_path: Path, about: dict[str, Any]) -> None:
    with pytest.raises(SourceError, match="is not a readable recording"):
        RecordingSource(recorded(tmp_path / "exam", about, {}))


@pytest.mark.parametrize("told", ["x", [1], -5, float("nan"), float("inf")], ids=str)
def test_replay_has_an_interval_whatever_is_told(tmp_path: Path, told: Any) -> None:
    source = RecordingSource(recorded(tmp_path / "exam", {"frame_interval_ms": told}, {}))
    assert source.info.frame_interval_ms == DEFAULT_INTERVAL_MS
    assert len(list(source.frames())) == NUM_FRAMES


def test_video_of_another_size_than_told_is_passed_over(tmp_path: Path) -> None:
    source = RecordingSource(recorded(tmp_path / "exam", {"roi_px": [0, 0, 100, 100]}, {}))
    with pytest.raises(SourceError, match="without a whole image"):
        list(source.frames())


def test_report_follows_no_link_out_of_the_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    folder = recorded(tmp_path / "exam", {}, {})
    (folder / "report").mkdir()
    (folder / "report" / "report.html.tmp").symlink_to(mine)
    assert report(monkeypatch, folder) == 0
    assert mine.read_text() == "mine"

    (tmp_path / "elsewhere").mkdir()
    for number, place in enumerate(("report", "report/dicom")):
        folder = recorded(tmp_path / f"exam-{number}", {}, {})
        if place != "report":
            (folder / "report").mkdir()
        (folder / place).symlink_to(tmp_path / "elsewhere")
        assert report(monkeypatch, folder) == 2
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(("name", "code"), [("000001.frames", 0), ("000001.messages", 3), (MARKER_NAME, 3)])
def test_what_is_no_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int) -> None:
    folder = recorded(tmp_path / "exam", {}, {})
    (folder / name).unlink()
    os.mkfifo(folder / name)  # whoever opens it waits
    assert report(monkeypatch, folder) == code


def test_notes_are_those_of_the_recording(tmp_path: Path) -> None:
    folder = tmp_path / "exam"
    (tmp_path / "elsewhere").mkdir()
    (folder / "exams").mkdir(parents=True)
    (tmp_path / "elsewhere" / "exam.json").write_text(json.dumps({"notes": [{"text": "another's"}]}))
    assert notes_of(folder, "../../elsewhere") == ()
