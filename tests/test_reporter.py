"""Reports that edge-infer makes and sends when an exam ends: to a real store, at the end, and after all that fails."""

import json
import os
import threading
import time
from pathlib import Path

import pydicom
import pytest
from daemon import record, run_command
from pacs import Store

from edge.exams.archive import ExamArchive
from edge.exams.reporter import Reporter

DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def store() -> Store:
    return Store()


@pytest.fixture(scope="module")
def recording(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of the daemon that was recorded, and whose report was sent at its end."""
    folder = tmp_path_factory.mktemp("exams") / "recording"
    with store.serving():
        pacs = f"STORE@127.0.0.1:{store.port}"
        options = ("--pace", "max", "--max-windows", "70", "--record", str(folder), "--pacs", pacs)
        done = record("--source", "phantom:3", "--state", str(folder.parent / "state"), *options)
    assert done.exit_code == 0, done.stderr
    assert all(header["exam"]["id"] == _exam(folder).name for header in done.predictions)
    assert "is stored at" in done.stderr
    return folder


def _exam(recording: Path) -> Path:
    (folder,) = (recording / "exams").iterdir()
    return folder


def _uids(exam: Path) -> set[str]:
    return {pydicom.dcmread(path).SOPInstanceUID for path in (exam / "report" / "dicom").glob("*.dcm")}


def test_run_with_a_pacs_is_an_exam_whose_report_is_stored_at_its_end(recording: Path, store: Store) -> None:
    exam = _exam(recording)
    about = json.loads((exam / "exam.json").read_text())
    assert (about["num_windows"], about["ended_wall_ns"] > about["started_wall_ns"]) == (70, True)
    assert json.loads((exam / "stored.json").read_text())["pacs"].endswith(str(store.port))
    objects = {path.name for path in (exam / "report" / "dicom").glob("*.dcm")}
    assert "report.dcm" in objects
    assert set(store.uids) == _uids(exam)


def test_report_that_could_not_be_sent_is_sent_by_the_next_daemon(
    recording: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    exam, pacs = _exam(recording), f"STORE@127.0.0.1:{store.port}"
    (exam / "stored.json").unlink()
    for path in (exam / "report" / "dicom").iterdir():
        path.unlink()
    num_before = len(store.uids)
    archive = ExamArchive(recording, pacs)
    assert archive.unsent() == [exam.name]
    assert ExamArchive(recording, "OTHER@127.0.0.1:104").unsent() == []

    reporter = Reporter(archive, pacs)  # nobody listens
    deadline_s = time.monotonic() + DEADLINE_S
    while not (exam / "report" / "dicom" / "report.dcm").exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    reporter.finish(0)
    assert "sends it when it runs again" in caplog.text
    assert archive.unsent() == [exam.name]

    reporter = Reporter(archive, pacs)
    with store.serving():
        reporter.finish(DEADLINE_S)
    assert archive.unsent() == []
    assert set(store.uids[num_before:]) == _uids(exam)
    assert "report" not in {thread.name for thread in threading.enumerate()}


def test_report_that_waits_is_sent_also_when_its_recording_is_gone(recording: Path, store: Store) -> None:
    exam, pacs = _exam(recording), f"STORE@127.0.0.1:{store.port}"
    summary, num_before = (exam / "report" / "summary.json").read_text(), len(store.uids)
    (exam / "stored.json").unlink()
    (exam / "report" / "dicom" / "sent.json").unlink()
    (recording / "000001.messages").rename(recording / "kept")  # as --record-max-gb does
    try:
        reporter = Reporter(ExamArchive(recording, pacs), pacs)
        with store.serving():
            reporter.finish(DEADLINE_S)
    finally:
        (recording / "kept").rename(recording / "000001.messages")
    assert (exam / "stored.json").exists()
    assert (exam / "report" / "summary.json").read_text() == summary
    assert set(store.uids[num_before:]) == _uids(exam)


def test_report_that_was_made_while_its_exam_was_open_is_made_again(recording: Path, store: Store) -> None:
    exam, pacs = _exam(recording), f"STORE@127.0.0.1:{store.port}"
    archive = ExamArchive(recording, pacs)
    assert archive.is_reported(exam.name)
    os.utime(exam / "report" / "dicom" / "report.dcm", (0, 0))
    assert not archive.is_reported(exam.name)


def test_exam_without_a_recorded_window_is_given_up_and_told(
    recording: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    lost = recording / "exams" / "20260101-000000-abcdef"
    lost.mkdir()
    about = json.loads((_exam_about(recording)).read_text())
    (lost / "exam.json").write_text(json.dumps({**about, "id": lost.name}))
    try:
        archive = ExamArchive(recording, about["pacs"])
        reporter = Reporter(archive, about["pacs"])
        reporter.finish(DEADLINE_S)
        assert f"holds no prediction of exam '{lost.name}'" in caplog.text
    finally:
        (lost / "exam.json").unlink()
        lost.rmdir()


def _exam_about(recording: Path) -> Path:
    return next(path for path in (recording / "exams").glob("*/exam.json") if not path.parent.name.endswith("abcdef"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--pacs", "A@b:1"], "--pacs needs --record"),
        (["--pacs", "nobody", "--record", "x"], "it must be AET@HOST:PORT"),
        (["--exam-auto", "0"], "1 to 86400 s"),
        (["--state", "x"], "give one"),
        (["--control", "5556"], "is not an address"),
        (["--control", "tcp://0.0.0.0:5556", "--state", "STATE"], "--curve DIR"),
        (["--control", "ipc:///nowhere/at/all", "--state", "STATE"], "cannot be bound"),
        (["--control", "tcp://127.0.0.1:0", "--state", "/proc/x"], "cannot be written"),
    ],
)
def test_infer_wrong_exam_options_are_one_line(tmp_path: Path, arguments: list[str], said: str) -> None:
    given = [str(tmp_path) if argument == "STATE" else argument for argument in arguments]
    address = f"ipc://{tmp_path}/publish"
    done = run_command("--source", "phantom:1", "--publish", address, *given)
    assert done.returncode in (2, 5)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert said in errors[0]
    assert "Traceback" not in done.stderr
