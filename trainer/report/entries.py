"""What a report is made of: evaluations, and runs that tell of their training and, for want of a test, validation."""

import csv
import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from edge.errors import ConfigError
from trainer.evaluation.evaluate import Setup, measure_all
from trainer.evaluation.folder import METRICS_NAME, PREDICTIONS_NAME, TRAINING_NAME
from trainer.evaluation.metrics import Metrics
from trainer.evaluation.metrics_file import read_metrics
from trainer.evaluation.predictions import Predictions, read_predictions
from trainer.evaluation.statistics import DEFAULT_INTERVAL
from trainer.inference.predictors import about_run
from trainer.runs import CROSSVAL_NAME, RUN_NAME, load_run
from trainer.runs import METRICS_NAME as HISTORY_NAME
from trainer.training.out_of_fold import out_of_fold_predictions

_VALIDATION = "validation videos, on which the weights and the threshold were chosen: not a test"
_OUT_OF_FOLD = (
    "every video by the network of the fold that left it out, at a threshold chosen on the other folds' videos; the "
    "epoch and the temperature of that network were chosen on it"
)

History = dict[str, list[float]]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One network measured on one set of videos."""

    name: str
    folder: Path
    metrics: Metrics
    predictions: Predictions
    is_validation: bool = False
    """Weights and threshold were chosen on these videos."""

    @property
    def dataset_key(self) -> tuple[object, ...]:
        """What is equal for networks that were measured on the same videos, all tested or all chosen there."""
        videos = sorted(zip(self.predictions.ids, self.predictions.labels.tolist(), strict=True))
        return self.is_validation, *videos

    @property
    def weights_sha256(self) -> str | None:
        return self.metrics["model"].get("weights_sha256")


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class TrainingRecord:
    """How one network was trained."""

    name: str
    about: Metrics
    """As `model` in metrics.json."""
    history: History
    """Column of the training's metrics.csv to a value an epoch; empty where it is not known."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """All that a report shows."""

    entries: tuple[Entry, ...]
    trainings: tuple[TrainingRecord, ...]


def load_contents(paths: Sequence[Path]) -> Contents:
    """Read evaluations' and runs' folders, in the order given.

    A run gives its validation as an entry only where no evaluation of the same weights is there; a cross-validation
    always: its videos were predicted by the networks of all folds, of which an evaluation measures the best alone.

    Raises:
        ConfigError: A folder is neither, or a file in it cannot be read.
    """
    evaluations = [load_evaluation(path) for path in paths if (path / METRICS_NAME).is_file()]
    measured = {entry.weights_sha256 for entry in evaluations} - {None}
    entries, trainings = [], []
    for path in paths:
        if (path / METRICS_NAME).is_file():
            entries.append(next(entry for entry in evaluations if entry.folder == path))
            trainings += _training_of_evaluation(entries[-1])
        elif any((path / name).is_file() for name in (RUN_NAME, CROSSVAL_NAME)):
            found = _load_run(path)
            is_crossval = (path / CROSSVAL_NAME).is_file()
            entries += [entry for entry in found.entries if is_crossval or entry.weights_sha256 not in measured]
            trainings += found.trainings
        else:
            raise ConfigError(
                f"{path} has neither {METRICS_NAME} nor {RUN_NAME}; give the --out of evaluate, fit or crossval"
            )
    if not entries:
        raise ConfigError("the runs hold no validation predictions yet; wait for the training, or evaluate a run first")
    return Contents(tuple(_with_distinct_names(entries)), tuple(_without_repetition(trainings)))


def load_evaluation(folder: Path) -> Entry:
    """Read an evaluation's folder.

    Raises:
        ConfigError: It cannot be read.
    """
    metrics = read_metrics(folder / METRICS_NAME)
    predictions = read_predictions(folder / PREDICTIONS_NAME)
    if metrics["threshold"] is None and predictions.thresholds is None:
        raise ConfigError(
            f"{folder / METRICS_NAME}: threshold is null, and {PREDICTIONS_NAME} has no column threshold; "
            "run edge-train evaluate again"
        )
    return Entry(metrics["name"], folder, metrics, predictions)


def read_history(path: Path) -> History:
    """Read a training's metrics.csv; a missing value is NaN, and a file that is not there is empty."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return {name: [_number(row[name]) for row in rows] for name in (rows[0] if rows else {})}


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _training_of_evaluation(entry: Entry) -> list[TrainingRecord]:
    about = entry.metrics["model"]
    if about.get("kind") not in ("run", "bundle"):
        return []
    return [TrainingRecord(entry.name, about, read_history(entry.folder / TRAINING_NAME))]


def _load_run(path: Path) -> Contents:
    run = load_run(path)
    is_crossval = (path / CROSSVAL_NAME).is_file()
    folders = sorted(path.glob("fold-*"), key=_fold_number) if is_crossval else [path]
    name = path.absolute().name
    trainings = [
        TrainingRecord(f"{name}/{folder.name}" if is_crossval else name, about_run(own), history)
        for folder in folders
        if (folder / RUN_NAME).is_file()
        and (own := load_run(folder))
        and (history := read_history(folder / HISTORY_NAME))
    ]
    table = path / PREDICTIONS_NAME
    if not table.is_file():
        return Contents((), tuple(trainings))
    predictions = out_of_fold_predictions(path) if is_crossval else read_predictions(table)
    setup = Setup(
        name=name,
        threshold=run.threshold,
        interval=DEFAULT_INTERVAL,
        model={**about_run(run), "classes": run.classes},
        data={**run.manifest, "selection": _OUT_OF_FOLD if is_crossval else _VALIDATION},
    )
    entry = Entry(name, path, measure_all(predictions, setup), predictions, is_validation=True)
    return Contents((entry,), tuple(trainings))


def _fold_number(folder: Path) -> tuple[int, str]:
    digits = folder.name.removeprefix("fold-")
    return (int(digits) if digits.isdecimal() else 10**9, folder.name)


def _with_distinct_names(entries: Iterable[Entry]) -> list[Entry]:
    """Add the folder to names that come twice on the same videos."""
    entries = list(entries)
    keys = [(entry.name, entry.dataset_key) for entry in entries]
    return [
        dataclasses.replace(entry, name=f"{entry.name} ({entry.folder})") if keys.count(key) > 1 else entry
        for entry, key in zip(entries, keys, strict=True)
    ]


def _without_repetition(trainings: Iterable[TrainingRecord]) -> list[TrainingRecord]:
    """Keep one record of the same weights: the one that knows the history."""
    kept: dict[Any, TrainingRecord] = {}
    for training in trainings:
        key = training.about.get("weights_sha256") or training.name
        if key not in kept or (training.history and not kept[key].history):
            kept[key] = training
    return list(kept.values())
