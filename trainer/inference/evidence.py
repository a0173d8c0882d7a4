"""Where a video's evidence lies: the keyframe of its strongest window, and whether it is inside the expert's mask."""

import contextlib
import dataclasses
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge.errors import ConfigError
from edge.preprocess import visible_rect
from edge.sources.base import Rect
from engines import PreprocessSpec
from trainer.data.clips import VideoFrames
from trainer.data.video import Video

Masks = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, slots=True)
class Peak:
    """The strongest cell of a window's heatmap."""

    value: float
    """>= 0; 0 where the window has no evidence."""
    frame_index: int
    """The keyframe's index in the source."""
    point_px: tuple[int, int]
    """x, y of the cell's centre in source pixels."""
    visible: Rect
    """The part of that frame that the network saw, in source pixels."""


def find_peak(
    heatmap: npt.NDArray[np.float32], video: VideoFrames, start: int, spec: PreprocessSpec
) -> tuple[Peak, int]:
    """Return the peak of a heatmap (T, h, w) of the window that begins at place `start`, and its offset in time."""
    offset, row, column = (int(index) for index in np.unravel_index(heatmap.argmax(), heatmap.shape))
    roi = tuple(int(value) for value in video.rois[start + offset])
    x, y, width, height = rect = visible_rect((roi[0], roi[1], roi[2], roi[3]), spec)
    point = int(x + (column + 0.5) * width / heatmap.shape[2]), int(y + (row + 0.5) * height / heatmap.shape[1])
    peak = Peak(float(heatmap[offset, row, column]), int(video.frame_indices[start + offset]), point, rect)
    return peak, offset


def mask_path(video: Video, manifest: Path) -> Path | None:
    """Return where the expert's masks of a video are; None where the manifest, whose path is given, names none."""
    return None if video.mask is None else manifest.parent / video.mask


def read_masks(path: Path, video: VideoFrames) -> Masks:
    """Read an expert's (or a phantom's) masks.

    Args:
        path: An .npz with `masks` (frames, H, W), non-zero where the finding is; one for each source frame.
        video: The video that they belong to.

    Returns:
        (frames, H, W) bool in source pixels.

    Raises:
        ConfigError: The file cannot be read, or does not fit the video.
    """
    with _mask_errors(path), path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        masks = arrays["masks"].astype(bool)
    _check_shape(path, masks.shape, video)
    return masks


def check_masks(path: Path, video: VideoFrames) -> None:
    """Look at the head of a file of masks, before hours are spent on what is to be compared with it.

    Raises:
        ConfigError: As `read_masks`, but for damage further on in the file.
    """
    with _mask_errors(path), zipfile.ZipFile(path) as archive, archive.open("masks.npy") as stream:
        version = np.lib.format.read_magic(stream)
        read_head = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, _ = read_head(stream)
    _check_shape(path, shape, video)


@contextlib.contextmanager
def _mask_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as exc:
        raise ConfigError(f"mask {path} is not there; mend or empty its field") from exc
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as exc:
        raise ConfigError(f"mask {path} is no .npz with an array `masks` ({exc}); mend it or empty its field") from exc


def _check_shape(path: Path, shape: tuple[int, ...], video: VideoFrames) -> None:
    width, height = video.size_wh
    if shape != (video.num_source_frames, height, width):
        raise ConfigError(
            f"mask {path} has the shape {shape}; the video has {video.num_source_frames} frames of "
            f"{width}x{height} pixels: (frames, height, width) must be equal"
        )


def is_hit(peak: Peak, masks: Masks) -> bool:
    """Whether there is evidence and its strongest cell's centre lies on the mask of that frame."""
    x, y = peak.point_px
    return peak.value > 0 and bool(masks[peak.frame_index, y, x])


def covered_share(peak: Peak, masks: Masks) -> float:
    """Return how much of what the network saw of the keyframe is mask: the hit rate of a blind guess."""
    x, y, width, height = peak.visible
    return float(masks[peak.frame_index, y : y + height, x : x + width].mean())


def summarise_hits(hits: Sequence[tuple[bool, Sequence[bool], float]]) -> dict[str, float | int] | None:
    """Return the hit rates of the positive videos that have masks; None where there is none.

    Args:
        hits: For each video whether its keyframe's peak lies on the mask, the same for every window, and the share of
            the image that is mask.
    """
    if not hits:
        return None
    windows = [hit for _, of_windows, _ in hits for hit in of_windows]
    return {
        "num_videos": len(hits),
        "num_windows": len(windows),
        "keyframe_hit_rate": float(np.mean([keyframe for keyframe, _, _ in hits])),
        "window_hit_rate": float(np.mean(windows)),
        "mask_share": float(np.mean([share for _, _, share in hits])),
    }
