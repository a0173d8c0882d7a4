"""Finds videos that are copies of each other: recoded, resized, trimmed, brightened or at another frame rate.

A frame's fingerprint is its fine structure at 32 x 32 pixels: speckle tells two recordings apart even where the
anatomy and the probe are alike. Measured on 295 lung videos of one probe, in 43,000 pairs: the most alike videos of
two patients have 0.72, two pieces of one patient's sweep 0.89; copies at CRF 35, at 0.7 times the size, at half the
frame rate, trimmed, with another gain and gamma, or with a border have 0.93 to 1.0. A copy whose image was cropped
anew is not found.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from edge.frame import UInt8Image
from trainer.data.clips import VideoFrames
from trainer.data.video import Video

FloatArray = npt.NDArray[np.float32]
Track = Callable[[Sequence[Video]], Iterable[Video]]

MIN_SIMILARITY = 0.85
SIZE_PX, BLUR_PX = 32, 2.0
NUM_ASKED, NUM_KNOWN = 8, 64
"""How many frames of one video are looked for among how many of the other."""


@dataclasses.dataclass(frozen=True, slots=True)
class NearDuplicate:
    """Two videos that show the same."""

    first: Video
    second: Video
    similarity: float
    """Median correlation, up to 1, of frames of one with the most alike frame of the other."""


def fingerprints(frames: VideoFrames) -> FloatArray:
    """Return (n, 1024) float32 of frames spread over the video, of length 1 each; 0 for a flat frame."""
    chosen = _spread(len(frames.frames), NUM_KNOWN)
    return np.stack([_fingerprint(frames.frames[index]) for index in chosen])


def find_near_duplicates(
    videos: Sequence[Video], contents: Sequence[str], prints: Mapping[str, FloatArray], track: Track = iter
) -> list[NearDuplicate]:
    """Compare each video with each other one.

    Args:
        videos: What to compare, two at least.
        contents: Each video's hash: equal files are copies, whatever ROI the manifest gives them.
        prints: `fingerprints` by id.
        track: Shows how far it is, as it goes through the videos.
    """
    known = np.concatenate([prints[video.id] for video in videos])
    bounds = np.cumsum([0, *(len(prints[video.id]) for video in videos)])
    scores = np.stack([_similarities(prints[video.id], known, bounds) for video in track(videos)])
    scores = np.maximum(scores, scores.T)  # a part of a video is found in the whole, not the whole in the part
    scores[np.equal.outer(np.array(contents), np.array(contents))] = 1
    return [
        NearDuplicate(videos[one], videos[other], float(scores[one, other]))
        for one, other in itertools.combinations(range(len(videos)), 2)
        if scores[one, other] >= MIN_SIMILARITY
    ]


def _similarities(asked: FloatArray, known: FloatArray, bounds: npt.NDArray[np.int64]) -> FloatArray:
    """Return how alike one video is to each: (number of videos,)."""
    correlation = asked[_spread(len(asked), NUM_ASKED)] @ known.T
    return np.median(np.maximum.reduceat(correlation, bounds[:-1], axis=1), axis=0)


def _spread(num_items: int, num_chosen: int) -> npt.NDArray[np.int64]:
    """Return up to `num_chosen` of the places 0 to `num_items` - 1, evenly."""
    return np.linspace(0, num_items - 1, min(num_chosen, num_items)).round().astype(np.int64)


def _fingerprint(image: UInt8Image) -> FloatArray:
    gray = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(gray, (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_AREA).astype(np.float32)
    fine = (small - cv2.GaussianBlur(small, (0, 0), BLUR_PX)).ravel()
    length = np.linalg.norm(fine)
    return fine / length if length > SIZE_PX else np.zeros_like(fine)  # below a gray level it is rounding
