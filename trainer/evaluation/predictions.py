"""The predictions CSV and the readers CSV: what anyone's model and anyone's readers said of the same videos."""

import csv
import dataclasses
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge.errors import ConfigError
from trainer.files import write_atomic

REQUIRED = ("id", "label", "probability")
READER_COLUMNS = ("reader", "id", "call")
_KNOWN = (*REQUIRED, "path", "patient_id", "fold", "threshold", "split", "roi", "keyframe", "mask")
"""Columns that say nothing about the patient; every other one is a covariate."""

_NAMES = ("reader", "id")
"""Columns that say whom or what a row is about."""

Row = dict[str, str]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """One probability a video, with its truth. All sequences are as long as there are videos."""

    ids: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    """(n,) 0 or 1: the video is of the positive class."""
    probabilities: npt.NDArray[np.float64]
    """(n,) in 0..1, of the positive class."""
    patient_ids: tuple[str, ...] | None = None
    paths: tuple[str, ...] | None = None
    folds: tuple[str, ...] | None = None
    thresholds: npt.NDArray[np.float64] | None = None
    """(n,) in 0..1: each video's own operating point, as in cross-validation; None where all share the model's."""
    covariates: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """Column to values as they stand in the file; an empty one is missing."""

    def __len__(self) -> int:
        return len(self.ids)

    def cut(self, threshold: float) -> float | npt.NDArray[np.float64]:
        """Return each video's own operating point, or the one of all where they have none."""
        return threshold if self.thresholds is None else self.thresholds

    def at(self, places: Iterable[int]) -> "Predictions":
        """Return the videos at these places."""
        chosen = np.fromiter(places, int)

        def take(values: tuple[str, ...] | None) -> tuple[str, ...] | None:
            return None if values is None else tuple(values[place] for place in chosen)

        return Predictions(
            ids=take(self.ids) or (),
            labels=self.labels[chosen],
            probabilities=self.probabilities[chosen],
            patient_ids=take(self.patient_ids),
            paths=take(self.paths),
            folds=take(self.folds),
            thresholds=None if self.thresholds is None else self.thresholds[chosen],
            covariates={name: take(values) or () for name, values in self.covariates.items()},
        )


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """One person's answers."""

    name: str
    places: npt.NDArray[np.int64]
    """(m,) the read videos' places among the predictions."""
    calls: npt.NDArray[np.int64]
    """(m,) 0 or 1."""
    scores: npt.NDArray[np.float64] | None
    """(m,) any finite numbers, higher for the positive class; None where the file has none for this reader."""


def read_predictions(path: str | os.PathLike[str]) -> Predictions:
    """Read and check a predictions CSV.

    Raises:
        ConfigError: The file, a column or a value cannot be used, an id comes twice, or one class is missing.
    """
    rows = _read_rows(Path(path), REQUIRED)
    labels = [_binary(path, line, row, "label") for line, row in rows]
    probabilities = [_fraction(path, line, row, "probability") for line, row in rows]
    has_thresholds = "threshold" in rows[0][1]
    thresholds = [_fraction(path, line, row, "threshold") for line, row in rows] if has_thresholds else None
    _refuse_repeated(path, ((line, row["id"]) for line, row in rows))
    if len(set(labels)) < 2:
        raise ConfigError(
            f"{path} holds videos of one class only (label {labels[0]}); measuring needs both, labelled 0 and 1"
        )
    columns = {name: tuple(row[name] for _, row in rows) for name in rows[0][1]}
    return Predictions(
        ids=columns["id"],
        labels=np.array(labels, np.int64),
        probabilities=np.array(probabilities, np.float64),
        patient_ids=_patients(path, columns.get("patient_id")),
        paths=columns.get("path"),
        folds=columns.get("fold"),
        thresholds=None if thresholds is None else np.array(thresholds, np.float64),
        covariates={name: values for name, values in columns.items() if name not in _KNOWN},
    )


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write a predictions CSV that `read_predictions` reads back unchanged."""
    optional = {
        "path": predictions.paths,
        "patient_id": predictions.patient_ids,
        "fold": predictions.folds,
        "threshold": None if predictions.thresholds is None else _texts(predictions.thresholds),
        **predictions.covariates,
    }
    columns = {
        "id": predictions.ids,
        "label": predictions.labels.tolist(),
        "probability": _texts(predictions.probabilities),
        **{name: values for name, values in optional.items() if values is not None},
    }
    write_table(path, list(columns), zip(*columns.values(), strict=True))


def _texts(values: npt.NDArray[np.float64]) -> list[str]:
    return [repr(float(value)) for value in values]


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a CSV file, whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_atomic(path, text.getvalue().encode())


def read_readers(path: str | os.PathLike[str], ids: Sequence[str]) -> list[Reader]:
    """Read and check a readers CSV: readers in the order in which they come.

    Args:
        path: The file.
        ids: Of the videos that a network is measured on, in the order of its predictions.

    Raises:
        ConfigError: The file, a column or a value cannot be used, or an id is not one of the videos.
    """
    rows = _read_rows(Path(path), READER_COLUMNS)
    _refuse_repeated(path, ((line, f"{row['id']} of reader {row['reader']}") for line, row in rows))
    places = {id_: place for place, id_ in enumerate(ids)}
    by_reader: dict[str, list[tuple[int, Row]]] = {}
    for line, row in rows:
        if row["id"] not in places:
            raise ConfigError(
                f"{path} line {line}: id {row['id']!r} is not in the predictions, the first of which is {ids[0]!r}; "
                "mend or remove the line"
            )
        by_reader.setdefault(row["reader"], []).append((line, row))
    return [
        Reader(
            name=name,
            places=np.array([places[row["id"]] for _, row in lines], np.int64),
            calls=np.array([_binary(path, line, row, "call") for line, row in lines], np.int64),
            scores=_scores(path, name, lines),
        )
        for name, lines in by_reader.items()
    ]


def _read_rows(path: Path, required: Sequence[str]) -> list[tuple[int, Row]]:
    """Return each row with its line number; empty lines are passed over."""
    wanted = ",".join(required)
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            columns = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = columns
            rows = [(reader.line_num, row) for row in reader if any(row.values())]  # Excel ends tables with ",,"
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read ({exc.strerror}); name a CSV file with the columns {wanted}") from exc
    except (csv.Error, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path} is not a CSV file in UTF-8 ({exc}); it needs the columns {wanted}") from exc
    missing = [name for name in required if name not in columns]
    if missing or len(set(columns)) < len(columns):
        trouble = f"has no column {', '.join(missing)}" if missing else "has a column twice"
        raise ConfigError(
            f"{path} {trouble}; its columns are {', '.join(columns) or 'none'}, it needs {wanted}, with commas between"
        )
    for line, row in rows:
        if None in row or None in row.values():
            raise ConfigError(f"{path} line {line} does not have {len(columns)} values as the header; mend the line")
    if not rows:
        raise ConfigError(f"{path} has no rows; it needs one a video, with {wanted}")
    stripped = [(line, {name: value.strip() for name, value in row.items()}) for line, row in rows]
    _refuse_nameless(path, stripped, [name for name in _NAMES if name in required])
    return stripped


def _refuse_nameless(path: Path, rows: Iterable[tuple[int, Row]], columns: Iterable[str]) -> None:
    for line, row in rows:
        for column in columns:
            if not row[column]:
                raise ConfigError(f"{path} line {line} has no {column}; name it, or remove the line")


def _binary(path: object, line: int, row: Row, column: str) -> int:
    value = _number(row[column])
    if value not in (0, 1):
        raise ConfigError(f"{path} line {line}: {column} is {row[column]!r}; 0 and 1 are allowed")
    return int(value)


def _fraction(path: object, line: int, row: Row, column: str) -> float:
    value = _number(row[column])
    if not 0 <= value <= 1:
        raise ConfigError(f"{path} line {line}: {column} is {row[column]!r}; a number in 0..1 is needed")
    return value


def _scores(path: object, name: str, lines: list[tuple[int, Row]]) -> npt.NDArray[np.float64] | None:
    texts = [row.get("score", "") for _, row in lines]
    if not any(texts):
        return None
    for (line, _), text in zip(lines, texts, strict=True):
        if not math.isfinite(_number(text)):
            raise ConfigError(
                f"{path} line {line}: score is {text!r}; give reader {name} a number in every row, or in none"
            )
    return np.array([_number(text) for text in texts], np.float64)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _patients(path: object, patient_ids: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if patient_ids is not None and not all(patient_ids):
        raise ConfigError(f"{path} lacks a patient_id in some rows; give it in every row, or leave the column out")
    return patient_ids


def _refuse_repeated(path: object, keys: Iterable[tuple[int, str]]) -> None:
    seen: dict[str, int] = {}
    for line, key in keys:
        if key in seen:
            raise ConfigError(f"{path} line {line}: id {key} stands in line {seen[key]} already; one row a video")
        seen[key] = line
