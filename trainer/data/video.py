"""One line of a manifest, from text to values."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from edge.errors import ConfigError
from edge.roi import parse_roi
from edge.sources.base import Rect

T = TypeVar("T")

REQUIRED = ("path", "label", "patient_id")
OPTIONAL = ("split", "fold", "site", "roi", "keyframe", "mask")
OF_PREDICTIONS = ("id", "probability", "threshold")
"""Columns of a table of predictions, which may serve as a manifest: passed over, they are no covariates."""
SPLITS = ("train", "val", "test")


class ManifestError(ConfigError):
    """A manifest that cannot be read, contradicts itself or leaks a patient from training into testing."""


@dataclasses.dataclass(frozen=True, slots=True)
class Video:
    """One line of a manifest."""

    id: str
    """The path as it stands in the CSV: names the video in tables of predictions."""
    path: Path
    """Where the file, or the folder of images, is."""
    label: int
    """Index into the manifest's classes."""
    patient_id: str
    split: str | None = None
    """"train", "val" or "test"; None where the manifest has no splits."""
    fold: int | None = None
    """The cross-validation fold in which the video validates; None where the manifest does not say."""
    site: str | None = None
    """The hospital or machine it comes from."""
    roi: Rect | None = None
    """The ultrasound image in source pixels; None where the manifest does not say."""
    keyframe: int | None = None
    """Index of the frame in the source that an expert would show."""
    mask: str | None = None
    """The file of the expert's masks as it stands in the CSV: relative to its folder."""
    covariates: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)
    """Text of all other columns, as it stands in the CSV; not of `OF_PREDICTIONS`."""


def video_of(path: Path, line: int, row: dict[str, str], classes: Sequence[str] | None) -> Video:
    """Return the video that a line describes.

    Args:
        path: The manifest's.
        line: The line's number, for messages.
        row: Text by column.
        classes: Names by label, where they are known.

    Raises:
        ManifestError: A value is none of its kind.
    """

    def read(name: str, parse: Callable[[str], T], allowed: str) -> T:
        try:
            return parse(row[name])
        except ValueError as exc:
            got = f"is {row[name]!r}" if row[name] else "is missing"
            raise ManifestError(f"{path}, line {line}: {name} {got}; it must be {allowed}") from exc

    def read_optional(name: str, parse: Callable[[str], T], allowed: str) -> T | None:
        return read(name, parse, allowed) if row.get(name) else None

    text = read("path", _text, "a file or folder, relative to the manifest's folder")
    return Video(
        id=text,
        path=path.parent / text,
        label=read("label", lambda value: _label(value, classes), _allowed_labels(classes)),
        patient_id=read("patient_id", _text, "text"),
        split=read_optional("split", _split, f"one of {', '.join(SPLITS)}, or empty"),
        fold=read_optional("fold", _whole, "a whole number from 0, or empty"),
        site=row.get("site") or None,
        roi=read_optional("roi", _rect, 'X,Y,W,H in source pixels such as "80,40,640,480", or empty'),
        keyframe=read_optional("keyframe", _whole, "a frame's index from 0, or empty"),
        mask=row.get("mask") or None,
        covariates={name: row[name] for name in covariate_names(row)},
    )


def covariate_names(columns: Iterable[str]) -> tuple[str, ...]:
    """Return the columns that have no meaning of their own here."""
    return tuple(name for name in columns if name not in REQUIRED + OPTIONAL + OF_PREDICTIONS)


def _text(value: str) -> str:
    if not value or value.casefold() == "nan" or "\0" in value:
        raise ValueError(value)
    return value


def _whole(value: str) -> int:
    number = float(value)  # tables with gaps are often written with 1.0 for 1
    if not math.isfinite(number) or number != int(number) or number < 0:
        raise ValueError(value)
    return int(number)


def _label(value: str, classes: Sequence[str] | None) -> int:
    if classes is None:
        return _whole(value)
    if value in classes:
        return list(classes).index(value)
    label = _whole(value)
    if label >= len(classes):
        raise ValueError(value)
    return label


def _allowed_labels(classes: Sequence[str] | None) -> str:
    if classes is None:
        return "a whole number from 0 (the highest is the positive class)"
    return f"a whole number from 0 to {len(classes) - 1} or one of {', '.join(classes)}"


def _split(value: str) -> str:
    if value not in SPLITS:
        raise ValueError(value)
    return value


def _rect(value: str) -> Rect:
    rect = parse_roi(value)
    if isinstance(rect, str):
        raise ValueError(value)
    return rect
