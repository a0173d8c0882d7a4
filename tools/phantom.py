"""The command `edge-phantom`: a labelled data set of synthetic ultrasound videos, with masks and a manifest."""

import argparse
import csv
import dataclasses
import functools
import multiprocessing
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import Progress

from edge.commandline import Parser, run_command
from edge.errors import ConfigError
from edge.phantom import DEFAULT_SIZE_WH, Phantom
from edge.sources.base import Rect
from tools.phantom_video import FRAME_RATE_HZ, write_dicom, write_mp4

MANIFEST = "manifest.csv"
DEFAULT_NUM_FRAMES = 64
FIRST_SEED = 1_000_000_000
"""Beyond every seed of the demo network's training, so that no data set shares a video with it."""
MAX_NUM_VIDEOS = 1_000_000
"""Even, so that a seed's parity is its label for every dataset seed, and no two data sets share a video."""
FORMATS = {"mp4": write_mp4, "dcm": write_dicom}
CROPS = ("image", "node")
NODE_MARGIN = 0.25
"""Of the node's extent, that its region takes in on each side: the tissue around it."""
_SPLIT_CYCLE = ("train", "train", "train", "val", "train", "train", "test")
_NUM_FOLDS = 5


@dataclasses.dataclass(frozen=True, slots=True)
class DatasetSpec:
    """What to write."""

    out: Path
    num_videos: int
    seed: int
    format: str = "mp4"
    num_frames: int = DEFAULT_NUM_FRAMES
    size_wh: tuple[int, int] = DEFAULT_SIZE_WH
    crop: str = CROPS[0]
    """What the manifest's `roi` holds: the whole image, or where the node passes, as a reader crops to a lesion."""

    def __post_init__(self) -> None:
        if self.crop not in CROPS:
            raise ConfigError(f"crop {self.crop!r} is not known; choose {' or '.join(CROPS)}")
        if self.format not in FORMATS:
            raise ConfigError(f"format {self.format!r} is not known; choose {' or '.join(FORMATS)}")
        if not 1 <= self.num_videos <= MAX_NUM_VIDEOS:
            raise ConfigError(f"got {self.num_videos} videos; give 1 to {MAX_NUM_VIDEOS}")
        if self.num_frames < 1:
            raise ConfigError(f"got {self.num_frames} frames; give 1 or more")
        if self.format == "mp4" and any(side % 2 for side in self.size_wh):
            width, height = self.size_wh
            raise ConfigError(f"an mp4's sides must be even; got {width}x{height}: use even ones, or --format dcm")
        Phantom(self.seed, size_wh=self.size_wh)  # refuses a bad seed or size


def write_dataset(spec: DatasetSpec, *, num_jobs: int = 1) -> Iterator[dict[str, Any]]:
    """Write the videos one by one, then the manifest.

    Yields:
        Each video's row of the manifest once the video is written.

    Raises:
        ConfigError: The folder is not empty or cannot be written to.
    """
    try:
        _prepare(spec.out)
        rows = []
        for row in _write_videos(spec, num_jobs):
            rows.append(row)
            yield row
        _write_manifest(spec.out / MANIFEST, rows)
    except OSError as exc:
        raise ConfigError(f"cannot write to {spec.out} ({exc.strerror}); choose a folder that you may write") from exc


def _prepare(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not an empty folder; nothing is overwritten: choose another")
    for name in ("videos", "masks"):
        (out / name).mkdir(parents=True)


def _write_videos(spec: DatasetSpec, num_jobs: int) -> Iterator[dict[str, Any]]:
    write = functools.partial(write_video, spec)
    if num_jobs == 1:
        yield from map(write, range(spec.num_videos))
        return
    with ProcessPoolExecutor(num_jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(write, range(spec.num_videos))


def write_video(spec: DatasetSpec, index: int) -> dict[str, Any]:
    """Write video `index` of a data set and its masks; return its row of the manifest."""
    phantom = Phantom(
        FIRST_SEED + spec.seed * MAX_NUM_VIDEOS + index, size_wh=spec.size_wh, frame_interval_ms=1000 / FRAME_RATE_HZ
    )
    frames_thw = np.stack([phantom.frame(i) for i in range(spec.num_frames)])
    masks_thw = np.stack([phantom.mask(i) for i in range(spec.num_frames)])
    video, mask = f"videos/{index:06d}.{spec.format}", f"masks/{index:06d}.npz"
    FORMATS[spec.format](spec.out / video, frames_thw, phantom)
    np.savez_compressed(spec.out / mask, masks=masks_thw)
    num_visible = sum(phantom.hilum_visible(i) for i in range(spec.num_frames))
    covariates = dict(phantom.covariates)
    if spec.crop == "node":
        covariates["roi"] = ",".join(map(str, node_region(masks_thw, phantom.region)))
    return {
        "path": video,
        "label": phantom.label,
        "patient_id": f"synthetic-{phantom.seed}",
        **_assign(index),
        "mask": mask,
        "seed": phantom.seed,
        **covariates,
        "hilum_fraction": round(num_visible / spec.num_frames, 3),
    }


def node_region(masks_thw: npt.NDArray[np.uint8], image_xywh: Rect) -> Rect:
    """Return the rectangle inside the image that holds the node in every frame, with a margin around it.

    Args:
        masks_thw: The node's mask a frame, (T, H, W), not 0 inside.
        image_xywh: The image area, which is also the answer where no frame shows the node.
    """
    rows, columns = (np.flatnonzero(masks_thw.any(axis=axes)) for axes in ((0, 2), (0, 1)))
    if not rows.size:
        return image_xywh
    x, y, width, height = image_xywh
    spans = []
    for cells, first, length in ((columns, x, width), (rows, y, height)):
        margin = round(NODE_MARGIN * (cells[-1] + 1 - cells[0]))
        spans.append((max(first, int(cells[0]) - margin), min(first + length, int(cells[-1]) + 1 + margin)))
    (left, right), (top, bottom) = spans
    return left, top, right - left, bottom - top


def _assign(index: int) -> dict[str, Any]:
    """Return split and fold; the two videos of a pair, one of each class, stay together."""
    pair = index // 2
    return {"split": _SPLIT_CYCLE[pair % len(_SPLIT_CYCLE)], "fold": pair % _NUM_FOLDS}


def _write_manifest(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def main() -> int:
    """Run the command."""
    return run_command(_run)


def _run() -> int:
    arguments = vars(_parser().parse_args())
    num_jobs = arguments.pop("jobs")
    spec = DatasetSpec(**arguments)
    num_suspicious = 0
    for row in _with_progress(write_dataset(spec, num_jobs=num_jobs), spec.num_videos):
        num_suspicious += row["label"]
    print(
        f"wrote {spec.num_videos} synthetic videos ({spec.num_videos - num_suspicious} benign, "
        f"{num_suspicious} suspicious; no patient was imaged) and {spec.out / MANIFEST}"
    )
    return 0


def _with_progress(rows: Iterable[dict[str, Any]], num_videos: int) -> Iterator[dict[str, Any]]:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        yield from progress.track(rows, total=num_videos, description="synthetic videos")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "edge-phantom",
        "Write synthetic ultrasound videos of a lymph node (benign or suspicious), a mask a frame and manifest.csv.",
        "edge-phantom phantoms --num-videos 200 --seed 1",
    )
    width, height = DEFAULT_SIZE_WH
    parser.add_argument("out", metavar="OUT", type=Path, help="a new or empty folder")
    parser.add_argument("--num-videos", type=int, required=True, metavar="N", help="half of them of each class")
    parser.add_argument("--seed", type=int, required=True, metavar="S", help="the same seed gives the same videos")
    parser.add_argument(
        "--format", choices=list(FORMATS), default="mp4", help="mp4: H.264; dcm: US Multi-frame, JPEG-LS lossless"
    )
    parser.add_argument(
        "--num-frames",
        type=int,
        default=DEFAULT_NUM_FRAMES,
        metavar="F",
        help="frames a video, 30 a second (%(default)s)",
    )
    parser.add_argument(
        "--size", dest="size_wh", type=_size, default=DEFAULT_SIZE_WH, metavar="WxH", help=f"pixels ({width}x{height})"
    )
    parser.add_argument(
        "--crop", choices=CROPS, default=CROPS[0], help="the manifest's roi: all of the image, or around the node"
    )
    parser.add_argument("--jobs", type=_jobs, default=1, metavar="J", help="processes (%(default)s)")
    return parser


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected WIDTHxHEIGHT in pixels such as 320x240")
    return int(width), int(height)


def _jobs(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from 1")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(main())
