"""The exam's summary, and edge-report: the page, DICOM objects that an independent tool finds valid, and their way."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import msgpack
import numpy as np
import pydicom
import pydicom.examples
import pytest
from certificates import Certificates
from daemon import record, run_command
from pacs import Store

from edge.errors import ConfigError, SourceError
from edge.exams.exam import ExamSummary, summarise
from edge.recording.layout import pack_message, read_messages
from edge.recording.reader import Recording
from edge.report.address import Pacs, parse_pacs
from edge.report.build import write_report
from edge.report.dicom_common import study_of_file, study_without_patient
from edge.report.dicom_images import heatmap_keyframe
from edge.report.pacs import send
from edge.report.page import render_page

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


def test_report_page_tells_a_threshold_that_was_set_by_hand(report: Path, summary: ExamSummary) -> None:
    assert "set by hand" not in (report / "report.html").read_text(encoding="utf-8")
    page = render_page(dataclasses.replace(summary, threshold=0.2))
    assert f"threshold of 20.0% (set by hand; the network&#x27;s own is {summary.bundle['threshold']:.1%})" in page


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dciodvfy (Debian package dicom3tools)")
def test_report_objects_are_valid_dicom(report: Path, summary: ExamSummary) -> None:
    paths = sorted((report / "dicom").glob("*.dcm"))
    assert len(paths) == 3 * len(summary.keyframes) + 1
    for path in paths:
        assert _errors(path) == [], path.name


def _errors(path: Path) -> list[str]:
    done = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, check=False)
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith(("Error", "Abort"))]


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


def test_structured_report_of_a_negative_exam_states_no_finding(summary: ExamSummary, tmp_path: Path) -> None:
    negative = dataclasses.replace(summary, probability=0.25, threshold=0.5)
    write_report(negative, study_without_patient(negative), tmp_path)
    document = pydicom.dcmread(tmp_path / "dicom" / "report.dcm")
    codes = _codes(document)
    assert codes["Finding"] == ["Assessed for suspicious"]
    assert codes["Result against the operating threshold"] == ["below the operating threshold"]


def _codes(dataset: pydicom.Dataset) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for item in dataset.get("ContentSequence", ()):
        if item.ValueType == "CODE":
            name = item.ConceptNameCodeSequence[0].CodeMeaning
            found.setdefault(name, []).append(item.ConceptCodeSequence[0].CodeMeaning)
        for name, values in _codes(item).items():
            found.setdefault(name, []).extend(values)
    return found


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dciodvfy (Debian package dicom3tools)")
def test_report_of_colour_images_and_a_foreign_name_is_valid_dicom(summary: ExamSummary, tmp_path: Path) -> None:
    colour = [
        dataclasses.replace(keyframe, image=np.repeat(keyframe.image[..., None], 3, axis=2))
        for keyframe in summary.keyframes[:1]
    ]
    study = dataclasses.replace(study_without_patient(summary), patient_name="Müller^Jörg=山田^太郎")
    foreign = dataclasses.replace(summary, keyframes=tuple(colour), finding="Métastase ganglionnaire")
    write_report(foreign, study, tmp_path)
    for path in (tmp_path / "dicom").glob("*.dcm"):
        assert _errors(path) == [], path.name
        dataset = pydicom.dcmread(path)
        assert str(dataset.PatientName) == "Müller^Jörg=山田^太郎", path.name
        assert "BurnedInAnnotation" not in dataset or dataset.BurnedInAnnotation == "YES"
    assert _codes(pydicom.dcmread(tmp_path / "dicom" / "report.dcm"))["Finding"] == [
        "Assessed for Métastase ganglionnaire"
    ]
    outline = pydicom.dcmread(tmp_path / "dicom" / "outline-1.dcm")
    assert outline.SOPClassUID == pydicom.uid.ColorSoftcopyPresentationStateStorage


@pytest.mark.parametrize("width", [160, 280, 1000])
def test_heatmap_keyframe_says_research_in_full_below_the_image(summary: ExamSummary, width: int) -> None:
    height = 100
    keyframe = dataclasses.replace(summary.keyframes[0], image=np.zeros((height, width), np.uint8), map_hw=None)
    finding = "axillary lymph node metastasis in early breast cancer"
    long = dataclasses.replace(summary, keyframes=(keyframe,), finding=finding)
    pixels = heatmap_keyframe(long, study_without_patient(long), 1).pixel_array
    assert not pixels[:height].any()
    caption = pixels[height:].max(axis=(0, 2))
    assert caption[:-3].any()
    assert not caption[-3:].any()  # no line reaches the edge


def test_report_made_again_leaves_nothing_of_the_one_before_and_is_sent(summary: ExamSummary, tmp_path: Path) -> None:
    store, study = Store(), study_without_patient(summary)
    with store.serving():
        pacs = Pacs("STORE", "127.0.0.1", store.port)
        write_report(summary, study, tmp_path)
        num_first = send(tmp_path / "dicom", pacs, tls=None, patience_s=0)
        assert send(tmp_path / "dicom", pacs, tls=None, patience_s=0) == 0
        shorter = dataclasses.replace(summary, keyframes=summary.keyframes[:1])
        write_report(shorter, dataclasses.replace(study, study_instance_uid="1.2.3"), tmp_path)
        assert send(tmp_path / "dicom", pacs, tls=None, patience_s=0) == 4
    assert num_first == 3 * len(summary.keyframes) + 1
    assert len(set(store.uids)) == len(store.uids) == num_first + 4
    assert len(list(tmp_path.glob("*.png"))) == 1


@pytest.mark.parametrize(
    ("made_before", "modes"), [(None, (0o700, 0o600)), pytest.param(0o750, (0o750, 0o640), marks=pytest.mark.slow)]
)
def test_report_is_open_to_its_owner_alone_or_to_whom_its_folder_is(
    exam: Path, tmp_path: Path, made_before: int | None, modes: tuple[int, int]
) -> None:
    out = tmp_path / "report"
    if made_before is not None:
        out.mkdir()
        out.chmod(made_before)
    command = [sys.executable, "-m", "edge.report.cli", str(exam), "--out", str(out)]
    for _ in range(2):  # and when it is made again
        subprocess.run(command, check=True, capture_output=True, timeout=60, umask=0)
    paths = [out, *out.rglob("*")]
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_dir()} == {modes[0]}
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_file()} == {modes[1]}


def test_report_of_a_damaged_recording_says_what_was_passed_over(exam: Path, tmp_path: Path) -> None:
    shutil.copytree(exam, tmp_path / "exam")
    path = tmp_path / "exam" / "000001.messages"
    whole = path.read_bytes()
    place = sum(len(pack_message(parts)) for parts in list(read_messages(path))[:40])
    path.write_bytes(whole[:place] + b"\xff" * 100 + whole[place:])
    done = run_command(str(tmp_path / "exam"), module="edge.report.cli")
    assert done.returncode == 0
    assert done.stderr == (
        f"warning: {path} was damaged: 100 bytes in its midst hold no whole message and are passed over\n"
    )


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_report_tells_that_the_recordings_pictures_are_missing(exam: Path, tmp_path: Path, damage: str) -> None:
    folder = shutil.copytree(exam, tmp_path / "exam")
    video = folder / "000001.mkv"
    if damage == "gone":
        video.unlink()
    else:
        video.write_bytes(video.read_bytes()[:500])
    done = run_command(str(folder), module="edge.report.cli")
    assert done.returncode == 0
    assert re.fullmatch(
        rf"warning: {folder} holds no picture of (\d) of the \1 strongest windows: its video is cut, .*\n", done.stderr
    )


def test_summary_passes_over_messages_that_were_overwritten(
    exam: Path, summary: ExamSummary, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(exam, tmp_path / "exam")
    path = tmp_path / "exam" / "000001.messages"
    packed, num_left = [], {"torn": 3, "lacking": 2}
    for parts in read_messages(path):
        if parts[0].startswith(b"prediction.") and num_left["torn"]:
            num_left["torn"] -= 1
            parts[1] = b"\xff" * len(parts[1])
        elif parts[0].startswith(b"prediction.") and num_left["lacking"]:
            num_left["lacking"] -= 1
            parts[1] = parts[1].replace(b"probabilities", b"probabilitie?")
        packed.append(pack_message(parts))
    path.write_bytes(b"".join(packed))
    assert summarise(Recording(tmp_path / "exam")).num_windows == summary.num_windows - 5
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} holds 3 damaged messages; they are passed over",
        f"{path} holds 2 messages that lack something; they are passed over",
    ]


def mark_exams(recording: Path, exam_of: Callable[[int], str | None]) -> None:
    """Let each prediction, by its place among the messages, belong to an exam."""
    path = recording / "000001.messages"
    num_bytes = path.stat().st_size
    packed = []
    for number, parts in enumerate(read_messages(path)):
        header = msgpack.unpackb(parts[1])
        if parts[0].startswith(b"prediction.") and (name := exam_of(number)):
            header["exam"] = {"id": name, "started_wall_ns": 1}
        packed.append(pack_message([parts[0], msgpack.packb(header), *parts[2:]]))
    path.write_bytes(b"".join(packed))
    assert path.stat().st_size > num_bytes


@pytest.mark.parametrize("named", [(), ("--exam", "exam-a")])
def test_recording_of_one_exam_is_reported_without_what_was_seen_around_it(
    exam: Path, tmp_path: Path, named: tuple[str, ...]
) -> None:
    one = tmp_path / "one"
    shutil.copytree(exam, one, ignore=shutil.ignore_patterns("report"))
    mark_exams(one, lambda number: "exam-a" if 20 <= number < 60 else None)
    (one / "exams" / "exam-a").mkdir(parents=True)
    notes = [{"t_wall_ns": 1, "text": "left <axilla>"}, "of another kind", {"t_wall_ns": 2}]
    (one / "exams" / "exam-a" / "exam.json").write_text(json.dumps({"notes": notes}))
    done = run_command(str(one), *named, "--out", str(tmp_path / "report"), module="edge.report.cli")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert (told["exam_id"], told["notes"]) == ("exam-a", ["left <axilla>"])
    assert told["num_windows"] == summarise(Recording(one), "exam-a").num_windows < NUM_WINDOWS
    assert "<li>left &lt;axilla&gt;</li>" in (tmp_path / "report" / "report.html").read_text()


def test_recording_of_several_exams_is_not_summed_up(exam: Path, tmp_path: Path) -> None:
    several = tmp_path / "several"
    shutil.copytree(exam, several, ignore=shutil.ignore_patterns("report"))
    mark_exams(several, lambda number: "exam-a" if number < 40 else "exam-b")
    done = run_command(str(several), module="edge.report.cli")
    assert done.returncode == 3
    assert "holds 2 exams; name one with --exam: exam-a, exam-b" in done.stderr
    assert not (several / "report").exists()
    assert summarise(Recording(several), "exam-b").num_windows < NUM_WINDOWS


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
    # through the middles of the outermost pixels; (0, 0) is the corner of the first one (PS3.3, section C.10.5)
    assert (points % 1 == 0.5).all()
    smooth = cv2.resize(keyframe.map_hw, (width, height), interpolation=cv2.INTER_CUBIC)
    rows, columns = np.nonzero(smooth >= 0.5)
    assert points.min(axis=0).tolist() == [x + columns.min() + 0.5, y + rows.min() + 0.5]


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # as edge.sources sets it outside of pytest
@pytest.mark.parametrize("damage", [b"\x10\x00\x20\x00ZI", b"\x10\x00\x20\x00US"], ids=["no VR", "odd length"])
def test_study_of_a_damaged_file_is_refused_in_one_line(tmp_path: Path, damage: bytes) -> None:
    content = Path(pydicom.examples.get_path("ybr_color")).read_bytes()
    head = b"\x10\x00\x20\x00LO"
    at = content.index(head)
    length = int.from_bytes(content[at + 6 : at + 8], "little")
    odd = content[:at] + damage + (length - 1).to_bytes(2, "little") + content[at + 9 :]
    (tmp_path / "a.dcm").write_bytes(odd)
    with pytest.raises(ConfigError, match="give an image of the exam") as caught:
        study_of_file(tmp_path / "a.dcm")
    assert "\n" not in str(caught.value)


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
        (["nowhere"], 3, "is not a readable recording (No such file or directory)"),
        (["tests"], 3, "is not a readable recording (it has no recording.json)"),
        ([""], 2, "an argument is ''"),
        (["EXAM", "--out="], 2, "--out is ''"),
        (["EXAM", "--pacs", "ORTHANC"], 2, "it must be AET@HOST:PORT"),
        (["EXAM", "--patient-from", "pyproject.toml"], 2, "is not a readable DICOM file (it is none)"),
        (["EXAM", "--patient-from", "no.dcm"], 2, "is not a readable DICOM file (No such file or directory)"),
        (["EXAM", "--tls-cert", "a.pem"], 2, "go together"),
        (["EXAM", "--send-only"], 2, "it needs --pacs"),
        (["EXAM", "--send-only", "--pacs", "A@127.0.0.1:9"], 3, "holds no DICOM report: make it first"),
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


def test_pacs_is_told_as_it_was_given() -> None:
    assert [str(parse_pacs(text)) for text in ("A@[::1]:104", "A@b:104")] == ["A@[::1]:104", "A@b:104"]


@pytest.mark.parametrize("content", ["[1]", '{"STORE@127.0.0.1:9": 5}', "[" * 10**5, "torn"])
def test_record_of_what_was_sent_that_is_damaged_is_told_and_all_is_sent(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(pydicom.examples.get_path("ct"), tmp_path / "a.dcm")  # not compressed
    (tmp_path / "sent.json").write_text(content)
    store = Store()
    with store.serving():
        assert send(tmp_path, Pacs("STORE", "127.0.0.1", store.port), tls=None, patience_s=0) == 1
    assert "sent.json is damaged: all objects are sent again" in caplog.text


@pytest.mark.parametrize("host", ["[fe80::1%nowhere]", "a..b"])  # for which no name server is asked
def test_pacs_whose_name_is_not_known_is_told_and_what_waits_stays(
    summary: ExamSummary, tmp_path: Path, host: str
) -> None:
    write_report(summary, study_without_patient(summary), tmp_path)
    with pytest.raises(
        SourceError, match=r"has not taken \d+ of the report's objects: the name '.*' is not known here"
    ):
        send(tmp_path / "dicom", parse_pacs(f"PACS@{host}:104"), tls=None, patience_s=0)


@pytest.mark.skipif(shutil.which("Orthanc") is None, reason="needs Orthanc (Debian package orthanc)")
@pytest.mark.parametrize(
    "is_tls", [pytest.param(False, id="plain"), pytest.param(True, id="TLS", marks=pytest.mark.slow)]
)
def test_report_reaches_orthanc_once_however_often_it_is_sent(
    exam: Path, tmp_path: Path, summary: ExamSummary, is_tls: bool
) -> None:
    command = ["unshare", "-n", sys.executable, "-m", "tests.orthanc_session", str(exam), str(tmp_path)]
    if is_tls:
        certificates = Certificates(tmp_path)
        command += map(str, (certificates.ca, *certificates.server, *certificates.client))
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
