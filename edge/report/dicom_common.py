"""What all DICOM objects of a report share: patient and study, UIDs, and that they are research."""

import dataclasses
import datetime
from pathlib import Path
from typing import Any

import pydicom
from pydicom.uid import generate_uid

from edge import __version__
from edge.errors import ConfigError
from edge.exams.exam import ExamSummary
from edge.sources.dicom.header import READ_ERRORS

MANUFACTURER = "edge-ultrasound"
MODEL_NAME = "edge-infer"
RESEARCH = "RESEARCH ONLY, NOT FOR DIAGNOSIS"
_COPIED = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "AccessionNumber", "StudyID",
    "StudyDate", "StudyTime", "ReferringPhysicianName",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Study:
    """Whose exam it is, and the study that the objects join."""

    patient_id: str
    patient_name: str
    study_instance_uid: str
    patient_birth_date: str = ""
    patient_sex: str = ""
    accession_number: str = ""
    study_id: str = ""
    study_date: str = ""
    study_time: str = ""
    referring_physician_name: str = ""

    def arguments(self) -> dict[str, Any]:
        """Return what highdicom's constructors call patient and study."""
        values = dataclasses.asdict(self)
        return {name: value or None for name, value in values.items()}


def study_without_patient(summary: ExamSummary) -> Study:
    """Return a study of its own for an exam whose patient is not told: recordings hold no name."""
    started = datetime.datetime.fromtimestamp(summary.started_wall_ns / 1e9)
    uid = generate_uid(entropy_srcs=[identity(summary), "study"])
    return Study(
        patient_id=f"RESEARCH-{uid[-8:]}",
        patient_name="RESEARCH^EXAM",
        study_instance_uid=uid,
        study_id=uid[-8:],
        study_date=f"{started:%Y%m%d}",
        study_time=f"{started:%H%M%S}",
    )


def study_of_file(path: Path) -> Study:
    """Return the patient and study of a DICOM file: the exam's results then lie beside its images.

    Raises:
        ConfigError: The file cannot be read, or names no patient and study.
    """
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True)
        values = {_snake(keyword): str(header.get(keyword) or "") for keyword in _COPIED}
    except READ_ERRORS as exc:
        is_other = isinstance(exc, pydicom.errors.InvalidDicomError)
        # what pydicom says may quote the patient
        reason = getattr(exc, "strerror", None) or ("it is none" if is_other else "it is damaged")
        raise ConfigError(
            f"--patient-from {path} is not a readable DICOM file ({reason}); give an image of the exam"
        ) from exc
    if not values["patient_id"] or not values["study_instance_uid"]:
        raise ConfigError(f"--patient-from {path} names no PatientID or StudyInstanceUID; give an image of the exam")
    return Study(**values)


def identity(summary: ExamSummary) -> str:
    """Return what makes this exam itself: the same recording always gets the same UIDs, and is not stored twice."""
    engine = summary.engine.get("sha256")
    return f"{summary.stream} {summary.started_wall_ns} {summary.ended_wall_ns} {summary.num_windows} {engine}"


def instance(summary: ExamSummary, study: Study, kind: str, series_number: int, number: int) -> dict[str, Any]:
    """Return the UIDs and numbers of one object."""
    entropy = [identity(summary), study.study_instance_uid, kind]
    return {
        "series_instance_uid": generate_uid(entropy_srcs=[*entropy, "series"]),
        "series_number": series_number,
        "sop_instance_uid": generate_uid(entropy_srcs=[*entropy, str(number)]),
        "instance_number": number,
        "manufacturer": MANUFACTURER,
        "specific_character_set": "ISO_IR 192",  # UTF-8: patients' names and findings are of every language
    }


def finding_of(summary: ExamSummary) -> str:
    """Return what the finding is called, without what DICOM's texts cannot hold."""
    return "".join(letter if letter.isprintable() and letter != "\\" else " " for letter in summary.finding)


def device() -> dict[str, Any]:
    """Return what presentation states say of the device."""
    return {"manufacturer_model_name": MODEL_NAME, "software_versions": __version__, "device_serial_number": "0"}


def _snake(keyword: str) -> str:
    name = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in keyword).lstrip("_")
    return name.replace("patient_i_d", "patient_id").replace("study_i_d", "study_id").replace("u_i_d", "uid")
