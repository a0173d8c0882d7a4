"""Interlaced video: what moved between two fields is no comb, whatever coded it."""

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
from source_files import noise, play, write_movie

from edge.sources.fields import TOLD, without_comb
from edge.sources.stored import ColourImage
from edge.sources.video import VideoFile

INTERLACED = {
    "a.mp4": ("libx264", {"x264-params": "tff=1", "crf": "4"}),
    "a.mpeg": ("mpeg2video", {"flags": "+ildct+ilme", "qscale": "2", "global_quality": "200"}),
}


def _bar(left: float) -> np.ndarray:
    """Return a bright bar that begins at a column, (64, 96, 3) uint8."""
    columns = np.broadcast_to(np.arange(96), (64, 96))
    bar = np.where((columns >= left) & (columns < left + 16), 200, 60).astype(np.uint8)
    return np.repeat(bar[..., None], 3, axis=-1)


def _woven(num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Return frames whose odd rows show the bar half a frame later, and what their first fields show."""
    first = np.stack([_bar(8 * n) for n in range(num_frames)])
    later = np.stack([_bar(8 * n + 4) for n in range(num_frames)])
    woven = first.copy()
    woven[:, 1::2] = later[:, 1::2]
    return woven, first


@pytest.mark.parametrize("size", [(1, 4), (2, 4), (3, 5), (8, 6), (9, 6), (7, 5, 3)])
def test_odd_rows_are_made_from_the_even_ones_around_them(size: tuple[int, ...]) -> None:
    (image,) = noise(1, *size)
    made = without_comb(image)
    assert isinstance(made, np.ndarray)
    assert made.shape == image.shape
    np.testing.assert_array_equal(made[::2], image[::2])
    for row in range(1, size[0], 2):
        below = image[row + 1] if row + 1 < size[0] else image[row - 1]
        mean = (image[row - 1].astype(float) + below) / 2
        assert np.abs(made[row] - mean).max() <= 0.5


@pytest.mark.parametrize("name", INTERLACED)
def test_video_that_was_coded_as_interlaced_shows_one_moment_in_each_frame(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    woven, first = _woven(8)
    codec, options = INTERLACED[name]
    with caplog.at_level(logging.INFO):
        frames = play(VideoFile(write_movie(tmp_path / name, woven, codec=codec, options=options)))
    assert len(frames) == 8
    for frame, wanted in zip(frames, first, strict=True):
        assert np.abs(frame.rgb().astype(int) - wanted).mean() < 6
        assert np.abs(frame.pixels.astype(int) - cv2.cvtColor(wanted, cv2.COLOR_RGB2GRAY)).mean() < 4
    assert caplog.messages.count(TOLD) == 1


def test_video_that_was_not_stays_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    woven, _ = _woven(3)
    with caplog.at_level(logging.INFO):
        frames = play(VideoFile(write_movie(tmp_path / "a.mkv", woven, codec="ffv1", pix_fmt="bgr0")))
    np.testing.assert_array_equal([frame.pixels for frame in frames], woven)
    assert TOLD not in caplog.messages


def test_colours_are_of_the_same_moment_as_the_luma() -> None:
    luma, rgb = noise(1, 6, 8)[0], noise(1, 6, 8, 3, seed=1)[0]
    image = without_comb(ColourImage(luma, lambda: rgb))
    assert isinstance(image, ColourImage)
    np.testing.assert_array_equal(image.luma, without_comb(luma))
    np.testing.assert_array_equal(image.rgb(), without_comb(rgb))
