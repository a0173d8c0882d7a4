"""What is kept of one video's windows: probabilities, keyframe, hits and pictures, against naive arithmetic."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import cv2
import numpy as np
import pytest

from engines import PreprocessSpec
from trainer.data.clips import VideoFrames
from trainer.data.decode import ClipSpec
from trainer.data.video import Video
from trainer.inference.cases import write_cases
from trainer.inference.evidence import Masks
from trainer.inference.predictors import Card, Predictor, WindowOutput
from trainer.inference.video_results import VideoResult, keyframe_records, predict_video, window_rows

NUM_FRAMES, SIZE_PX = 2, 8
SPEC = PreprocessSpec((SIZE_PX, SIZE_PX), (SIZE_PX, SIZE_PX))
LOGITS = np.array([[3.0, 0.0, 4.0], [0.0, -9.0, 2.0], [5.0, 5.0, 5.0]])
"""Of three windows and classes. The last class's logit is largest in the third window, its odds in the second."""


class FixedPredictor:
    """Says the same of every video."""

    card = cast(Card, SimpleNamespace(clip=ClipSpec(SPEC, NUM_FRAMES, 40)))

    def __init__(self, peaks: tuple[float, float, float]) -> None:
        self.peaks = peaks

    def windows(self, _video: VideoFrames) -> Iterator[WindowOutput]:
        """Yield heatmaps whose peak lies in the newest frame, in row 1 and in the window's own column."""
        for place, peak in enumerate(self.peaks):
            heatmap = np.full((NUM_FRAMES, 2, 4), peak / 4, np.float32)
            heatmap[1, 1, place] = peak
            yield WindowOutput(LOGITS[place], heatmap)


def frames() -> VideoFrames:
    """Return five frames of every other of a source's, in two runs: windows begin at 0, 1 and 3."""
    pixels = np.stack([np.full((SIZE_PX, SIZE_PX), 10 * place, np.uint8) for place in range(5)])
    known = SimpleNamespace(
        frames=pixels,
        frame_indices=np.array([0, 2, 4, 7, 9]),
        window_starts=np.array([0, 1, 3]),
        rois=np.array([(0, 0, 16, 16)] * 5),
        num_frames=NUM_FRAMES,
    )
    return cast(VideoFrames, known)


def masks() -> Masks:
    """Return masks that hold the peaks of the first two windows, at x = 2 and 6, but not of the third, at 10."""
    found = np.zeros((10, 16, 16), bool)
    found[:, 8:, :8] = True
    return found


def result_of(
    peaks: tuple[float, float, float] = (1.0, 2.0, 4.0), aggregate: str = "mean-logit", *, is_masked: bool = True
) -> VideoResult:
    video = Video("v.mp4", Path("v.mp4"), 2, "p1", keyframe=4)
    predictor = cast(Predictor, FixedPredictor(peaks))
    return predict_video(predictor, video, frames(), aggregate, lambda *_: masks() if is_masked else None)


def test_probability_of_a_video_is_that_of_its_windows_mean_log_probabilities() -> None:
    shares = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    result = result_of()
    assert result.window_probabilities == pytest.approx(shares[:, 2])
    means = shares.prod(0) ** (1 / 3)
    assert result.probability == pytest.approx(means[2] / means.sum())
    assert result_of(aggregate="mean-probability").probability == pytest.approx(shares[:, 2].mean())
    assert result_of(aggregate="strongest").probability == pytest.approx(shares[:, 2].max())


def test_keyframe_is_the_peak_of_the_window_with_the_best_odds() -> None:
    result = result_of()
    assert (result.strongest, result.peak.frame_index, result.peak.value) == (1, 4, 2.0)
    assert (result.picture == 20).all()  # the window's second frame, the third of the video
    assert result.map_hw.tolist() == [[0.25] * 4, [0.25, 1.0, 0.25, 0.25]]
    (record,) = keyframe_records([result])
    assert record == {
        "id": "v.mp4",
        "keyframe": 4,
        "x_px": 6,
        "y_px": 12,
        "peak": 2.0,
        "window_first_index": 2,
        "window_last_index": 4,
        "window_probability": pytest.approx(np.exp(2) / (1 + np.exp(-9) + np.exp(2))),
        "is_inside_mask": 1,
        "expert_keyframe": 4,
    }


def test_first_of_windows_that_are_equally_strong_has_the_keyframe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.LOGITS", np.array([[0.0, 1.0], [2.0, 3.0], [0.0, 0.0]]))
    assert result_of().strongest == 0


def test_windows_are_told_by_their_frames_in_the_source() -> None:
    result = result_of()
    assert [row[:3] for row in window_rows([result])] == [("v.mp4", 0, 2), ("v.mp4", 2, 4), ("v.mp4", 7, 9)]
    assert [row[3] for row in window_rows([result])] == pytest.approx(result.window_probabilities.tolist())


def test_hits_tell_each_window_and_the_keyframe_and_the_share_of_a_blind_guess() -> None:
    assert result_of().hits == (True, [True, True, False], 0.25)
    assert result_of((1.0, 0.0, 4.0)).hits == (False, [True, False, False], 0.25)  # no evidence is no hit
    assert result_of(is_masked=False).hits is None
    assert keyframe_records([result_of(is_masked=False)])[0]["is_inside_mask"] is None


def test_window_without_evidence_has_an_empty_map() -> None:
    assert not result_of((0.0, 0.0, 0.0)).map_hw.any()


def test_cases_are_the_three_most_confident_of_each_kind(tmp_path: Path) -> None:
    (tmp_path / "cases").mkdir()
    given = {
        "tp": (2, (0.5, 0.9, 0.7, 0.8)),
        "fp": (0, (0.6, 0.95, 0.55, 0.65)),
        "fn": (2, (0.4, 0.1, 0.3, 0.2)),
        "tn": (1, (0.45, 0.05, 0.35, 0.25)),
    }
    results = [
        dataclasses.replace(result_of(), video=Video(f"{kind}{p}", Path("x"), label, "p"), probability=p)
        for kind, (label, probabilities) in given.items()
        for p in probabilities
    ]
    records = write_cases(tmp_path, results, positive_label=2, threshold=0.5)
    assert [record["id"] for record in records] == [
        *("tp0.9", "tp0.8", "tp0.7"),
        *("fp0.95", "fp0.65", "fp0.6"),
        *("fn0.1", "fn0.2", "fn0.3"),
        *("tn0.05", "tn0.25", "tn0.35"),
    ]
    assert [record["picture"] for record in records[:3]] == [f"cases/tp-{n}.png" for n in (1, 2, 3)]
    picture = cv2.imread(str(tmp_path / "cases" / "tp-1.png"))
    assert picture is not None
    assert picture.shape == (336, 2 * 336 + 6, 3)
    assert (picture[:, :336] == 20).all()  # the keyframe as it is, beside itself with its heatmap
    assert (picture[:, -336:].std(axis=2) > 1).any()
