"""The exam's result as a Structured Report (PS3.16, TID 1500 Measurement Report)."""

from collections.abc import Sequence

import highdicom
from highdicom import sr
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from edge import __version__
from edge.exams.exam import ExamSummary
from edge.report.dicom_common import MANUFACTURER, MODEL_NAME, RESEARCH, Study, finding_of, instance

SERIES = 9100
_SCHEME = "99EDGEUS"
_NO_UNITS = Code("1", "UCUM", "no units")


def structured_report(summary: ExamSummary, study: Study, pictures: Sequence[Dataset]) -> Dataset:
    """Return the report: finding, probability with its interval, the algorithm, and the keyframes that it rests on.

    Args:
        summary: The exam.
        study: Whose it is.
        pictures: The plain keyframes, of the same study.
    """
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=_observer()),
        procedure_reported=Code("16310003", "SCT", "Ultrasonography"),
        imaging_measurements=[_measurements(summary, pictures)],
        title=codes.DCM.ImagingMeasurementReport,
        referenced_images=list(pictures),
    )
    document: Dataset = sr.ComprehensiveSR(
        evidence=list(pictures),
        content=report[0],
        **instance(summary, study, "report", SERIES, 1),
        is_complete=True,
        is_final=False,
        is_verified=False,
    )
    document.SeriesDescription = "Video network's result, research only"
    document.ContentDate, document.ContentTime = document.InstanceCreationDate, document.InstanceCreationTime
    return document


def _observer() -> sr.ObserverContext:
    return sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=generate_uid(entropy_srcs=[MANUFACTURER, MODEL_NAME, __version__]),
            name=f"{MANUFACTURER} {__version__}",
            manufacturer_name=MANUFACTURER,
            model_name=MODEL_NAME,
        ),
    )


def _measurements(summary: ExamSummary, pictures: Sequence[Dataset]) -> sr.MeasurementsAndQualitativeEvaluations:
    side = "at or above" if summary.positive else "below"
    verdict = Code("positive" if summary.positive else "negative", _SCHEME, f"{side} the operating threshold")
    sources = [sr.SourceImageForMeasurementGroup(p.SOPClassUID, p.SOPInstanceUID) for p in pictures]
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=generate_uid(entropy_srcs=[str(summary.started_wall_ns), summary.stream]),
            identifier=f"{finding_of(summary)} ({RESEARCH})",
        ),
        # not the finding alone: a reader of a negative report would take it for found
        finding_type=Code("finding", _SCHEME, _short(f"Assessed for {finding_of(summary)}")),
        algorithm_id=_algorithm(summary),
        measurements=_numbers(summary),
        qualitative_evaluations=[
            sr.QualitativeEvaluation(Code("verdict", _SCHEME, "Result against the operating threshold"), verdict),
            sr.QualitativeEvaluation(
                Code("intended-use", _SCHEME, "Intended use"), Code("research", _SCHEME, RESEARCH)
            ),
        ],
        source_images=sources or None,
    )


def _numbers(summary: ExamSummary) -> list[sr.Measurement]:
    numbers = {"probability": summary.probability, "threshold": summary.threshold}
    if summary.interval is not None:
        numbers["probability-low"], numbers["probability-high"] = summary.interval
    names = {
        "probability": f"Probability of {finding_of(summary)}",
        "threshold": "Operating threshold",
        "probability-low": "Lower limit of the 95% interval",
        "probability-high": "Upper limit of the 95% interval",
    }
    measured = [
        sr.Measurement(Code(key, _SCHEME, _short(names[key])), value, _NO_UNITS) for key, value in numbers.items()
    ]
    windows = sr.Measurement(Code("windows", _SCHEME, "Number of windows"), float(summary.num_windows), _NO_UNITS)
    return [*measured, windows]


def _algorithm(summary: ExamSummary) -> highdicom.sr.AlgorithmIdentification:
    engine, bundle = summary.engine, summary.bundle
    return sr.AlgorithmIdentification(
        name=str(bundle.get("name") or engine.get("name")),
        version=f"sha256:{bundle.get('manifest_sha256') or engine.get('sha256')}",
        parameters=[
            f"model file sha256:{engine.get('sha256')}",
            f"backend {engine.get('backend')} {engine.get('precision')}",
            f"edge-infer {summary.version}",
        ],
        manufacturer=MANUFACTURER,
    )


def _short(text: str) -> str:
    return text[:64]  # a code's meaning is LO
