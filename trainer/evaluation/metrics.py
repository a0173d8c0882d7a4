"""What a table of predictions measures, as plain values for JSON: None with a reason where there is no number."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.evaluation import roc
from trainer.evaluation.aggregate import aggregate_logits, binary_logits, probabilities_of
from trainer.evaluation.calibration import expected_calibration_error, reliability
from trainer.evaluation.predictions import Predictions
from trainer.evaluation.statistics import DEFAULT_INTERVAL, Counts, Labels, TestResult, proportion_interval

Metrics = dict[str, Any]

_REASONS = {
    "threshold": "each video has its own, by its fold; predictions.csv holds them",
    "sensitivity": "no positive video",
    "specificity": "no negative video",
    "ppv": "no video was called positive",
    "npv": "no video was called negative",
    "f1": "no positive video, and none was called positive",
    "kappa": "labels and calls are all of one class",
    "auc": "videos of one class only",
    "auc_ci": "DeLong's variance needs two videos of each class",
    "average_precision": "no positive video",
}
_FULLY_SEPARATED = (
    "DeLong's variance is 0 where the scores part the classes without error: the interval tells nothing of new videos"
)


def measure(
    labels: Labels,
    probabilities: npt.NDArray[np.float64],
    threshold: float | npt.NDArray[np.float64],
    interval: str = DEFAULT_INTERVAL,
) -> Metrics:
    """Return all figures of one model on one set of videos.

    Args:
        labels: (n,) 0 or 1.
        probabilities: (n,) in 0..1; a video is positive at or above the threshold.
        threshold: Operating point; or (n,) each video's own, then `threshold` is None among the figures.
        interval: A name of `trainer.evaluation.statistics.INTERVALS`.
    """
    values = measure_calls(labels, (probabilities >= threshold).astype(np.int64), interval)
    values.update(measure_scores(labels, probabilities))
    values["brier"] = roc.brier_score(labels, probabilities)
    values["ece"] = expected_calibration_error(reliability(labels, probabilities))
    return explained({"threshold": math.nan if isinstance(threshold, np.ndarray) else float(threshold), **values})


def measure_calls(labels: Labels, calls: Labels, interval: str = DEFAULT_INTERVAL) -> Metrics:
    """Return what follows from the counts alone; NaN where there is no number."""
    counts = Counts.of(labels, calls)
    values: Metrics = {"n": counts.n, "counts": dataclasses.asdict(counts)}
    for name, (count, total) in counts.proportions.items():
        values[name] = count / total if total else math.nan
        values[f"{name}_ci"] = proportion_interval(count, total, interval)
    return {**values, "f1": counts.f1, "kappa": counts.kappa, "kappa_se": counts.kappa_se}


def measure_scores(labels: Labels, scores: npt.NDArray[np.floating]) -> Metrics:
    """Return what follows from the order of the scores."""
    auc = roc.auc_delong(labels, scores)
    return {
        "auc": auc.value,
        "auc_ci": auc.ci,
        "auc_se": math.sqrt(auc.variance) if auc.variance >= 0 else math.nan,
        "average_precision": roc.average_precision(labels, scores),
    }


def explained(values: Metrics) -> Metrics:
    """Replace what is not finite by None, and say under `reasons` why."""
    reasons = {}
    for name, value in values.items():
        if _is_undefined(value):
            stem = name.removesuffix("_ci").removesuffix("_se")
            reasons[name] = _REASONS.get(stem) if _is_undefined(values.get(stem)) else _REASONS.get(f"{stem}_ci")
    if values.get("auc") in (0.0, 1.0) and values.get("auc_se") == 0:
        reasons["auc_ci"] = _FULLY_SEPARATED
    return {**plain(values), "reasons": {name: reason or "too few videos" for name, reason in reasons.items()}}


def _is_undefined(value: object) -> bool:
    if isinstance(value, tuple):
        return any(_is_undefined(part) for part in value)
    return isinstance(value, float) and not math.isfinite(value)


def plain(value: Any) -> Any:
    """Return a value that JSON holds: no NaN, no infinity, no array."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, tuple) and _is_undefined(value):
        return None  # half an interval is none
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(part) for part in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    return None if _is_undefined(value) else value


def as_record(result: TestResult | roc.AucComparison) -> Metrics:
    """Return a test's method, statistic and p-value, and why it has none."""
    values = plain(dataclasses.asdict(result))
    if values["p_value"] is None:
        values["reason"] = "too few videos, or no variance"
    return values


def by_patient(predictions: Predictions) -> Predictions | str:
    """Return one prediction a patient, the mean of the videos' logits; or the reason why that cannot be."""
    if predictions.patient_ids is None:
        return "no patient_id column"
    places: dict[str, list[int]] = {}
    for place, patient in enumerate(predictions.patient_ids):
        places.setdefault(patient, []).append(place)
    if len(places) == len(predictions):
        return "one video a patient: the same as by video"
    mixed = [patient for patient, own in places.items() if len({int(label) for label in predictions.labels[own]}) > 1]
    if mixed:
        return f"{len(mixed)} patients have videos of both classes, such as {mixed[0]}"
    cuts = predictions.thresholds
    if cuts is not None and any(len(set(cuts[own].tolist())) > 1 for own in places.values()):
        return "a patient's videos have different thresholds"
    logits = binary_logits(predictions.probabilities)
    first = predictions.at(own[0] for own in places.values())
    pooled = [probabilities_of(aggregate_logits(logits[own]))[1] for own in places.values()]
    return dataclasses.replace(first, ids=tuple(places), probabilities=np.array(pooled), paths=None)
