"""Writes manifests with small videos, for the tests of the trainer."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from media import write_video

from trainer.data.manifest import Manifest, Video


def write_manifest(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as CSV; the first row's keys are the columns. Files that are named and not there are made, empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        if row.get("path"):
            (path.parent / row["path"]).touch()
    return path


def rows(num_videos: int = 4, **columns: Sequence[Any]) -> list[dict[str, Any]]:
    """Return rows of videos of one patient each, with labels 0, 1, 0, ...; columns replace or extend what is there."""
    made = [{"path": f"v{n}.mp4", "label": n % 2, "patient_id": f"p{n}"} for n in range(num_videos)]
    return [{**row, **{name: values[n] for name, values in columns.items()}} for n, row in enumerate(made)]


def manifest_of(videos: Sequence[Video], num_classes: int = 2) -> Manifest:
    """Return a manifest without a file."""
    return Manifest(Path("m.csv"), tuple(videos), tuple(f"class {n}" for n in range(num_classes)), (), "0" * 64)


def coded_video(folder: Path, num_frames: int = 30, name: str = "v.mp4", **options: Any) -> Video:
    """Write a small video whose frames differ and return its line."""
    path = write_video(folder / name, num_frames, **{"fps": 25, **options})
    return Video(name, path, 0, "p0")
