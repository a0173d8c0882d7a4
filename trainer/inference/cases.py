"""Pictures of right and wrong cases: the keyframe, and the keyframe with its heatmap."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from edge.picture import overlay
from trainer.evaluation.folder import NUM_CASES_A_KIND, case_name
from trainer.files import write_atomic
from trainer.inference.video_results import VideoResult

KINDS = {
    "tp": "right: positive, called positive",
    "fp": "wrong: negative, called positive",
    "fn": "wrong: positive, called negative",
    "tn": "right: negative, called negative",
}
_SIDE_PX = 336
_GAP_PX = 6


def write_cases(
    out: Path, results: Sequence[VideoResult], positive_label: int, threshold: float
) -> list[dict[str, object]]:
    """Write the most confident cases of each kind under `out/cases`; return what is told of each."""
    records = []
    for kind in KINDS:
        own = [result for result in results if _kind(result, positive_label, threshold) == kind]
        own.sort(key=lambda result: result.probability, reverse=kind in ("tp", "fp"))
        for place, result in enumerate(own[:NUM_CASES_A_KIND]):
            name = case_name(kind, place + 1)
            write_atomic(out / name, _png(result))
            records.append(
                {
                    "kind": kind,
                    "picture": name,
                    "id": result.video.id,
                    "probability": result.probability,
                    "keyframe": result.peak.frame_index,
                    "peak": result.peak.value,
                    "is_inside_mask": None if result.hits is None else int(result.hits[0]),
                }
            )
    return records


def _kind(result: VideoResult, positive_label: int, threshold: float) -> str:
    is_positive, is_called = result.video.label == positive_label, result.probability >= threshold
    return ("t" if is_positive == is_called else "f") + ("p" if is_called else "n")


def _png(result: VideoResult) -> bytes:
    picture = result.picture if result.picture.ndim == 3 else np.repeat(result.picture[..., None], 3, axis=2)
    height, width = picture.shape[:2]
    scale = _SIDE_PX / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    large = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC), np.uint8)
    marked = overlay(large, result.map_hw, (0, 0, *size))
    gap = np.full((size[1], _GAP_PX, 3), 255, np.uint8)
    return _encoded(np.concatenate([large, gap, marked], axis=1))


def _encoded(image: npt.NDArray[np.uint8]) -> bytes:
    ok, png = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert ok
    return bytes(png.data)
