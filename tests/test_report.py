"""The exam's summary, and edge-report: the page, DICOM objects that an independent tool finds valid, and their way."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pydicom.examples
import pytest
from daemon import record, run_command

from edge.exams.exam import ExamSummary, summarise
from edge.recording.reader import Recording

NUM_WINDOWS = 70


@pytest.fixture(scope="module")
def exam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recorded sweep over a suspicious phantom node, with the demo network's predictions."""
    folder = tmp_path_factory.mktemp("exams") / "exam"
    done = record("--source", "phantom:3", "--pace", "max", "--max-windows", str(NUM_WINDOWS), "--record", str(folder))
    assert done.exit_code == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def summary(exam: Path) -> ExamSummary:
    return summarise(Recording(exam))


@pytest.fixture(scope="module")
def report(exam: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    done = run_command(str(exam), "--out", str(out), module="edge.report.cli")
    assert (done.returncode, done.stderr) == (0, "")
    return out


def test_summary_is_the_mean_of_the_recorded_logits(exam: Path, summary: ExamSummary) -> None:
    headers = [message.header for message in Recording(exam).messages() if message.kind == "prediction"]
    probabilities = np.array([header["probabilities"][-1] for header in headers])
    mean_logit = np.log(probabilities / (1 - probabilities)).mean()
    assert summary.num_windows == len(headers) == NUM_WINDOWS
    assert summary.probability == pytest.approx(1 / (1 + np.exp(-mean_logit)))
    assert summary.interval is not None
    assert summary.interval[0] <= summary.probability <= summary.interval[1]
    assert summary.positive
    assert summary.finding == "suspicious"
    assert summary.keyframes[0].probability == pytest.approx(probabilities.max())


def test_summary_keyframes_show_the_recorded_images(exam: Path, summary: ExamSummary) -> None:
    images = {times.index: image for segment in Recording(exam).segments for times, image in segment.images()}
    assert summary.keyframes
    for keyframe in summary.keyframes:
        np.testing.assert_array_equal(keyframe.image, images[keyframe.index])
        assert keyframe.map_hw is not None
        assert keyframe.map_hw.max() == 1
    times_ns = sorted(keyframe.t_wall_ns for keyframe in summary.keyframes)
    assert all(step >= 0.9e9 for step in np.diff(times_ns))  # neighbours in time show the same


def test_summary_of_a_recording_without_a_prediction_is_refused(tmp_path: Path, trivial_bundle: Path) -> None:
    options = ("--engine", str(trivial_bundle), "--pace", "max", "--record", str(tmp_path / "exam"))
    record("--source", pydicom.examples.get_path("ct"), "--roi", "full", *options)
    done = run_command(str(tmp_path / "exam"), module="edge.report.cli")
    assert done.returncode == 3
    assert done.stderr.startswith("error: ")
    assert "holds no prediction" in done.stderr


def test_report_page_stands_alone_and_says_what_it_is(report: Path, summary: ExamSummary) -> None:
    page = (report / "report.html").read_text(encoding="utf-8")
    assert "Research use only, not for diagnosis" in page
    assert f"{summary.probability:.1%}" in page
    assert page.count("data:image/png;base64,") == len(summary.keyframes)
    assert "http" not in page.replace("http-equiv", "")
    facts = json.loads((report / "summary.json").read_text())
    assert facts["probability"] == summary.probability
    assert facts["bundle"]["manifest_sha256"] in page


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dciodvfy (Debian package dicom3tools)")
def test_report_objects_are_valid_dicom(report: Path, summary: ExamSummary) -> None:
    paths = sorted((report / "dicom").glob("*.dcm"))
    assert len(paths) == 3 * len(summary.keyframes) + 1
    for path in paths:
        done = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, check=False)
        errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith(("Error", "Abort"))]
        assert errors == [], path.name


def test_validator_finds_what_is_wrong(report: Path, tmp_path: Path) -> None:
    dataset = pydicom.dcmread(report / "dicom" / "report.dcm")
    del dataset.CompletionFlag
    dataset.save_as(tmp_path / "bad.dcm")
    done = subprocess.run(["dciodvfy", "-new", tmp_path / "bad.dcm"], capture_output=True, text=True, check=False)
    assert "Error" in done.stdout + done.stderr


def test_structured_report_holds_the_result_and_points_to_its_pictures(report: Path, summary: ExamSummary) -> None:
    document = pydicom.dcmread(report / "dicom" / "report.dcm")
    text = document.to_json()
    assert (document.Modality, document.VerificationFlag) == ("SR", "UNVERIFIED")
    assert "RESEARCH ONLY, NOT FOR DIAGNOSIS" in text
    assert summary.bundle["manifest_sha256"] in text
    numbers = _numbers(document)
    assert numbers["probability"] == pytest.approx(summary.probability, abs=1e-6)
    assert numbers["windows"] == NUM_WINDOWS
    plain = {pydicom.dcmread(path).SOPInstanceUID for path in (report / "dicom").glob("keyframe-*.dcm")}
    evidence = document.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert {item.ReferencedSOPInstanceUID for series in evidence for item in series.ReferencedSOPSequence} == plain


def _numbers(dataset: pydicom.Dataset) -> dict[str, float]:
    found = {}
    for item in dataset.get("ContentSequence", ()):
        if item.get("ValueType") == "NUM":
            code = item.ConceptNameCodeSequence[0].CodeValue
            found[code] = float(item.MeasuredValueSequence[0].NumericValue)
        found.update(_numbers(item))
    return found


def test_heatmap_outline_lies_on_the_evidence(report: Path, summary: ExamSummary) -> None:
    keyframe = summary.keyframes[0]
    state = pydicom.dcmread(report / "dicom" / "outline-1.dcm")
    points = np.concatenate(
        [
            np.reshape(graphic.GraphicData, (-1, 2))
            for annotation in state.GraphicAnnotationSequence
            for graphic in annotation.GraphicObjectSequence
        ]
    )
    assert keyframe.map_hw is not None
    row, column = np.unravel_index(keyframe.map_hw.argmax(), keyframe.map_hw.shape)
    x, y, width, height = keyframe.map_rect
    peak = (x + (column + 0.5) * width / keyframe.map_hw.shape[1], y + (row + 0.5) * height / keyframe.map_hw.shape[0])
    assert (points.min(axis=0) < peak).all()
    assert (points.max(axis=0) > peak).all()


def test_report_joins_the_study_of_the_image_it_is_given(exam: Path, tmp_path: Path) -> None:
    image = pydicom.examples.get_path("ybr_color")
    done = run_command(str(exam), "--out", str(tmp_path), "--patient-from", str(image), module="edge.report.cli")
    assert done.returncode == 0, done.stderr
    original, document = pydicom.dcmread(image), pydicom.dcmread(tmp_path / "dicom" / "report.dcm")
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID"):
        assert document[keyword].value == original[keyword].value
    assert document.SeriesInstanceUID != original.SeriesInstanceUID


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (["nowhere"], 3, "is not a readable recording"),
        (["EXAM", "--pacs", "ORTHANC"], 2, "it must be AET@HOST:PORT"),
        (["EXAM", "--patient-from", "pyproject.toml"], 2, "is not a readable DICOM file"),
        (["EXAM", "--tls-cert", "a.pem"], 2, "go together"),
        (["EXAM", "--tls-ca", "nowhere.pem"], 2, "the TLS files cannot be used"),
        (["EXAM", "--out", "/proc/nowhere"], 2, "cannot be written"),
        ([], 2, "EXAM"),
    ],
)
def test_report_wrong_input_is_one_line(exam: Path, arguments: list[str], exit_code: int, said: str) -> None:
    given = [str(exam) if argument == "EXAM" else argument for argument in arguments]
    done = run_command(*given, module="edge.report.cli")
    assert done.returncode == exit_code
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert said in done.stderr


@pytest.mark.skipif(shutil.which("Orthanc") is None, reason="needs Orthanc (Debian package orthanc)")
def test_report_reaches_orthanc_once_however_often_it_is_sent(exam: Path, tmp_path: Path, summary: ExamSummary) -> None:
    command = ["unshare", "-n", sys.executable, "-m", "tests.orthanc_session", str(exam), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    absent, first, again = said["runs"]
    num_objects = 3 * len(summary.keyframes) + 1

    assert absent["exit_code"] == 3
    assert "they are kept in" in absent["stderr"]
    assert f"{num_objects} objects are stored" in first["stdout"], first["stderr"]
    assert "0 objects are stored" in again["stdout"]
    assert len(said["stored"]) == num_objects
    assert sorted(tags["Modality"] for tags in said["stored"]).count("SR") == 1
    assert len({tags["StudyInstanceUID"] for tags in said["stored"]}) == 1
