"""The table of labelled videos that everything starts from: a CSV file, one line a video."""

import csv
import dataclasses
import hashlib
import io
import itertools
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from trainer.data.video import OPTIONAL, REQUIRED, ManifestError, Video, covariate_names, video_of

__all__ = ["Manifest", "ManifestError", "Video", "check_whole", "read_manifest"]

MAX_NAMED = 3
"""How many of many faults an error names."""


@dataclasses.dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest whose every line was read and found sound."""

    path: Path
    videos: tuple[Video, ...]
    classes: tuple[str, ...]
    """Names by label; the last is the positive one."""
    covariate_names: tuple[str, ...]
    sha256: str
    """Of the CSV file."""

    @property
    def labels(self) -> list[int]:
        """Each video's label."""
        return [video.label for video in self.videos]


def read_manifest(path: str | os.PathLike[str], classes: Sequence[str] | None = None) -> Manifest:
    """Read a manifest and refuse one that would spoil hours of training.

    Args:
        path: A CSV file in UTF-8. Columns: path (relative to the CSV's folder), label, patient_id; where there is one,
            split (train, val, test; empty is train), fold, site, roi (X,Y,W,H in source pixels), keyframe, mask (a file
            relative to the CSV's folder); all others are covariates, but for those of a table of predictions: id,
            probability, threshold.
        classes: Names by label, where they are known already: labels may then be such names too, and not every class
            needs a video. By default labels are whole numbers from 0, each with at least one video.

    Raises:
        ManifestError: The file cannot be read; a column is missing; a value is none of its kind; a video is listed
            twice or is not there; only one class is there; a patient is in two splits or two folds.
    """
    path = Path(path)
    content = _content(path)
    rows, header = _rows(path, content)
    videos = _with_split([video_of(path, line, row, classes) for line, row in rows])
    _check_unique(path, videos)
    _check_files(path, videos)
    names = tuple(classes) if classes else _class_names(path, videos)
    check_whole(path, videos, "patient_id")
    return Manifest(path, videos, names, covariate_names(header), hashlib.sha256(content).hexdigest())


def check_whole(path: Path, videos: Sequence[Video], unit: str) -> None:
    """Refuse a patient (or a site) that the manifest itself puts into two splits, or into two folds.

    Args:
        path: The manifest's, for the message.
        videos: What it lists.
        unit: "patient_id" or "site": what must stay whole.

    Raises:
        ManifestError: One is divided; it is named.
    """
    _check_one_value(path, videos, unit, "split")
    _check_one_value(path, [video for video in videos if video.split != "test"], unit, "fold")


def _check_one_value(path: Path, videos: Sequence[Video], unit: str, column: str) -> None:
    places: dict[str, dict[str | int, str]] = {}
    for video in videos:
        if (value := getattr(video, column)) is not None:
            places.setdefault(getattr(video, unit), {}).setdefault(value, video.id)
    divided = [name for name, found in places.items() if len(found) > 1]
    if divided:
        noun = unit.removesuffix("_id")
        (one, first), (other, second) = list(places[divided[0]].items())[:2]
        more = f" (and {len(divided) - 1} more)" if len(divided) > 1 else ""
        raise ManifestError(
            f"{path}: leak: {noun} {divided[0]!r}{more} is in {column} {one} ({first}) and in {column} {other} "
            f"({second}); all videos of a {noun} belong into one {column}"
        )


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise ManifestError(f"the manifest {path} cannot be read ({exc.strerror}); give a CSV file") from exc


def _rows(path: Path, content: bytes) -> tuple[list[tuple[int, dict[str, str]]], list[str]]:
    """Return each line's number with its fields by column, and the columns."""
    try:
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        lines = [(reader.line_num, [field.strip() for field in fields]) for fields in reader if any(fields)]
    except (UnicodeDecodeError, csv.Error) as exc:
        raise ManifestError(f"the manifest {path} is no CSV file in UTF-8 ({exc}); save it as such") from exc
    if not lines:
        raise ManifestError(f"the manifest {path} is empty; it needs the columns {', '.join(REQUIRED)}")
    header = lines[0][1]
    _check_header(path, header)
    for line, fields in lines[1:]:
        if len(fields) != len(header):
            raise ManifestError(
                f"{path}, line {line}: {len(fields)} fields for {len(header)} columns; put fields that hold a comma "
                "into double quotes"
            )
    if len(lines) < 2:
        raise ManifestError(f"{path} lists no video; add one line for each")
    return [(line, dict(zip(header, fields, strict=True))) for line, fields in lines[1:]], header


def _check_header(path: Path, header: list[str]) -> None:
    missing = [name for name in REQUIRED if name not in header]
    if missing:
        raise ManifestError(
            f"{path} has no column {', '.join(map(repr, missing))}; its columns are {', '.join(map(repr, header))}; "
            f"needed are {', '.join(REQUIRED)}, allowed are {', '.join(OPTIONAL)} and covariates, separated by commas"
        )
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise ManifestError(f"{path} has two columns {twice[0]!r}; give each column a name of its own")


def _with_split(videos: Sequence[Video]) -> tuple[Video, ...]:
    """Take an empty split for "train" in a manifest that names others."""
    if all(video.split is None for video in videos):
        return tuple(videos)
    return tuple(dataclasses.replace(video, split=video.split or "train") for video in videos)


def _check_unique(path: Path, videos: Sequence[Video]) -> None:
    seen: dict[str, Video] = {}
    for video in videos:
        place = os.path.normpath(video.path)
        if place in seen:
            raise ManifestError(f"{path} lists the video {video.id!r} twice; leave one line of each video")
        seen[place] = video


def _check_files(path: Path, videos: Sequence[Video]) -> None:
    missing = [video.id for video in videos if not _is_there(video.path)]
    if missing:
        raise ManifestError(
            f"{path}: {len(missing)} of {len(videos)} files are not there: "
            f"{_some(missing)}; paths are relative to {path.absolute().parent}; pipes and devices do not count"
        )


def _is_there(path: Path) -> bool:
    try:
        return path.is_file() or path.is_dir()  # a pipe or a device would be read for ever
    except (OSError, ValueError):
        return False


def _class_names(path: Path, videos: Sequence[Video]) -> tuple[str, ...]:
    labels = {video.label for video in videos}
    if len(labels) == 1:
        raise ManifestError(
            f"{path}: all {len(videos)} videos are of the one class {labels.pop()}; at least two classes are needed"
        )
    absent = next(label for label in itertools.count() if label not in labels)
    if absent < max(labels):
        raise ManifestError(
            f"{path}: no video has label {absent}, but the highest label is {max(labels):.15g}; number the "
            "classes from 0 without gaps"
        )
    return ("negative", "positive") if len(labels) == 2 else tuple(f"class {label}" for label in sorted(labels))


def _some(names: Collection[str]) -> str:
    """Return the first few of many names."""
    first = ", ".join(repr(name) for name in sorted(names)[:MAX_NAMED])
    return f"{first} and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else first
