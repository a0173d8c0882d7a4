"""From predictions to a folder that holds all that they measure: metrics.json, tables and pictures. Needs no torch."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from edge.commandline import NOTICE
from trainer.evaluation import plots, roc
from trainer.evaluation.calibration import reliability
from trainer.evaluation.decision import decision_curve
from trainer.evaluation.folder import METRICS_NAME, PREDICTIONS_NAME, READERS_NAME
from trainer.evaluation.metrics import Metrics, by_patient, measure, plain
from trainer.evaluation.plots import ReaderPoint, Series
from trainer.evaluation.predictions import Predictions, Reader, write_predictions, write_table
from trainer.evaluation.readers import measure_readers
from trainer.evaluation.statistics import CONFIDENCE
from trainer.evaluation.subgroups import measure_subgroups
from trainer.evaluation.table_one import table_one
from trainer.files import write_json


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What was measured, and how."""

    name: str
    """Of the model, for people."""
    threshold: float
    interval: str
    """A name of `trainer.evaluation.statistics.INTERVALS`."""
    model: Metrics
    """What the report tells of the model: network, recipe, versions, hashes."""
    data: Metrics
    """What the report tells of the videos: name, hash, which of them."""


def evaluate(
    predictions: Predictions, setup: Setup, out: Path, readers: Sequence[Reader] = (), more: Metrics | None = None
) -> Metrics:
    """Measure, write everything into a folder, and return what metrics.json says.

    Args:
        predictions: Videos of both classes.
        setup: The operating point and what is told with the figures.
        out: The folder, of `trainer.evaluation.folder.new_evaluation`.
        readers: Humans who read the same videos.
        more: Further parts of metrics.json.
    """
    metrics = {**measure_all(predictions, setup, readers), **(more or {})}
    write_predictions(out / PREDICTIONS_NAME, predictions)
    write_tables(out, predictions, metrics)
    if readers:
        _write_readers(out / READERS_NAME, predictions, readers)
    draw_all(out, predictions, setup, metrics["readers"])
    write_json(out / METRICS_NAME, metrics)
    return metrics


def measure_all(predictions: Predictions, setup: Setup, readers: Sequence[Reader] = ()) -> Metrics:
    """Return what metrics.json says of the videos, the patients, the subgroups and the readers."""
    patients = by_patient(predictions)
    by_patient_values = None
    if isinstance(patients, Predictions):
        cut = patients.cut(setup.threshold)
        by_patient_values = measure(patients.labels, patients.probabilities, cut, setup.interval)
    return {
        "schema": 1,
        "notice": NOTICE,
        "name": setup.name,
        "level": "video",
        **measure(predictions.labels, predictions.probabilities, predictions.cut(setup.threshold), setup.interval),
        "confidence": CONFIDENCE,
        "interval": setup.interval,
        "patient_level": by_patient_values,
        "patient_level_reason": patients if isinstance(patients, str) else None,
        "num_patients": len(set(predictions.patient_ids)) if predictions.patient_ids else None,
        "calibration": [
            dataclasses.asdict(bin_) for bin_ in reliability(predictions.labels, predictions.probabilities)
        ],
        "subgroups": measure_subgroups(predictions, setup.threshold, setup.interval),
        "readers": measure_readers(predictions, list(readers), setup.threshold, setup.interval),
        "model": plain(setup.model),
        "data": plain(setup.data),
    }


def series_of(name: str, predictions: Predictions, threshold: float) -> Series:
    """Return what is drawn of predictions."""
    return Series(name, predictions.labels, predictions.probabilities, predictions.cut(threshold))


def reader_points(readers: Sequence[Metrics]) -> list[ReaderPoint]:
    """Return where the readers stand in a ROC diagram; those who read one class only stand nowhere."""
    return [
        ReaderPoint(reader["reader"], reader["sensitivity"], reader["specificity"])
        for reader in readers
        if reader["sensitivity"] is not None and reader["specificity"] is not None
    ]


def draw_all(out: Path, predictions: Predictions, setup: Setup, readers: Sequence[Metrics]) -> None:
    """Write the pictures of one evaluation."""
    series = [series_of(setup.name, predictions, setup.threshold)]
    plots.save_png(plots.draw_roc(series, reader_points(readers)), out / "roc.png")
    for name, draw in plots.PICTURES.items():
        plots.save_png(draw(series), out / name)


def write_tables(out: Path, predictions: Predictions, metrics: Metrics) -> None:
    """Write the curves' points, the subgroups and Table 1 as CSV files."""
    labels, probabilities = predictions.labels, predictions.probabilities
    curve = roc.roc_points(labels, probabilities)
    rows = zip(curve.thresholds, 1 - curve.x, curve.y, strict=True)
    write_table(out / "roc.csv", ("threshold", "specificity", "sensitivity"), rows)
    curve = roc.precision_recall_points(labels, probabilities)
    rows = zip(curve.thresholds, curve.x, curve.y, strict=True)
    write_table(out / "pr.csv", ("threshold", "recall", "precision"), rows)
    benefit = decision_curve(labels, probabilities)
    rows = zip(benefit.thresholds, benefit.model, benefit.all, strict=True)
    write_table(out / "decision.csv", ("threshold", "net_benefit", "net_benefit_all"), rows)
    write_records(out / "calibration.csv", metrics["calibration"])
    write_records(out / "subgroups.csv", [_flat(row) for row in metrics["subgroups"]])
    write_records(out / "table1.csv", table_one(predictions).records())


def write_records(path: Path, records: Sequence[Metrics]) -> None:
    """Write rows of equal keys; no file where there is no row."""
    if records:
        write_table(
            path, list(records[0]), (["" if cell is None else cell for cell in row.values()] for row in records)
        )


def _flat(values: Metrics) -> Metrics:
    """Spread counts and intervals over columns of their own; leave reasons out."""
    flat: Metrics = {}
    for name, value in values.items():
        if name.endswith("_ci"):
            flat[f"{name}_low"], flat[f"{name}_high"] = value or (None, None)
        elif name == "counts":
            flat.update(value)
        elif name != "reasons":
            flat[name] = value
    return flat


def _write_readers(path: Path, predictions: Predictions, readers: Sequence[Reader]) -> None:
    rows = [
        (reader.name, predictions.ids[place], call, "" if reader.scores is None else repr(float(reader.scores[index])))
        for reader in readers
        for index, (place, call) in enumerate(zip(reader.places, reader.calls, strict=True))
    ]
    write_table(path, ("reader", "id", "call", "score"), rows)
