"""From a decoded video to one answer with its keyframe."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from edge.preprocess import centre_crop
from trainer.data.clips import VideoFrames
from trainer.data.video import Video
from trainer.evaluation.aggregate import aggregate_logits, probabilities_of
from trainer.inference.evidence import Masks, Peak, covered_share, find_peak, is_hit
from trainer.inference.predictors import Predictor


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class VideoResult:
    """What a model says of one video."""

    video: Video
    probability: float
    """Of the positive class, all windows taken together."""
    window_probabilities: npt.NDArray[np.float64]
    """(n,) of the positive class."""
    window_indices: npt.NDArray[np.int64]
    """(n, 2) first and last source frame of each window."""
    strongest: int
    """The window that speaks most for the positive class."""
    peak: Peak
    """Of the strongest window."""
    picture: npt.NDArray[np.uint8]
    """(H, W) or (H, W, 3) uint8: the keyframe as the network saw it."""
    map_hw: npt.NDArray[np.float32]
    """(h, w) the keyframe's heatmap over its peak, 0..1."""
    hits: tuple[bool, Sequence[bool], float] | None
    """Where masks exist: whether the keyframe's peak lies on them, the same for all windows, the mask's share."""


def predict_video(
    predictor: Predictor,
    video: Video,
    frames: VideoFrames,
    aggregate: str,
    read_masks: Callable[[Video, VideoFrames], Masks | None],
) -> VideoResult:
    """Run every window of a video and keep what is shown of it."""
    spec = predictor.card.clip.preprocess
    masks = read_masks(video, frames)
    logits, hits, best = [], [], None
    for start, output in zip(frames.window_starts.tolist(), predictor.windows(frames), strict=True):
        logits.append(output.logits)
        peak, offset = find_peak(output.heatmap, frames, start, spec)
        hits.append(masks is not None and is_hit(peak, masks))
        odds = float(output.logits[-1] - np.logaddexp.reduce(output.logits[:-1]))
        if best is None or odds > best[0]:
            best = odds, len(logits) - 1, peak, start + offset, output.heatmap[offset].copy()
    assert best is not None  # videos without a window were left out
    _, strongest, peak, place, map_hw = best
    image = centre_crop(frames.frames[place], spec)
    return VideoResult(
        video=video,
        probability=float(probabilities_of(aggregate_logits(np.array(logits), aggregate))[-1]),
        window_probabilities=probabilities_of(np.array(logits))[:, -1],
        window_indices=_spans(frames),
        strongest=strongest,
        peak=peak,
        picture=np.array(image[0] if len(image) == 1 else image.transpose(1, 2, 0)),
        map_hw=map_hw / peak.value if peak.value > 0 else np.zeros_like(map_hw),
        hits=(hits[strongest], hits, covered_share(peak, masks)) if masks is not None else None,
    )


def _spans(frames: VideoFrames) -> npt.NDArray[np.int64]:
    starts = frames.window_starts
    return np.stack([frames.frame_indices[starts], frames.frame_indices[starts + frames.num_frames - 1]], axis=1)


def window_rows(results: Iterable[VideoResult]) -> list[tuple[object, ...]]:
    """Return a row a window: id, first and last source frame, probability."""
    return [
        (result.video.id, first, last, float(probability))
        for result in results
        for (first, last), probability in zip(
            result.window_indices.tolist(), result.window_probabilities.tolist(), strict=True
        )
    ]


WINDOW_COLUMNS = ("id", "first_index", "last_index", "probability")


def keyframe_records(results: Iterable[VideoResult]) -> list[dict[str, object]]:
    """Return a row a video: the strongest window's keyframe and the place of its peak in source pixels."""
    return [
        {
            "id": result.video.id,
            "keyframe": result.peak.frame_index,
            "x_px": result.peak.point_px[0],
            "y_px": result.peak.point_px[1],
            "peak": result.peak.value,
            "window_first_index": int(result.window_indices[result.strongest, 0]),
            "window_last_index": int(result.window_indices[result.strongest, 1]),
            "window_probability": float(result.window_probabilities[result.strongest]),
            "is_inside_mask": None if result.hits is None else int(result.hits[0]),
            "expert_keyframe": result.video.keyframe,
        }
        for result in results
    ]
