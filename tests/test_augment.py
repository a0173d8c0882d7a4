"""Augmentation and the order of clips."""

import collections
import dataclasses

import numpy as np
import numpy.typing as npt
import pytest
import torch

from edge.preprocess import preprocess
from trainer.training.augment import Augment, draw_frames
from trainer.training.dataset import TrainingOrder
from trainer.training.recipe import Recipe, make_recipe

SIZE, CROP = 64, 56
PLAIN = Recipe(resize=SIZE, crop=CROP, num_frames=4, flip=0, elastic=0, random_crop=False)
STRONG = dataclasses.replace(
    make_recipe("best", ["resize=64", "crop=56", "num_frames=4"]), elastic=1.0, gain=0.5, depth_gain=0.5, gamma=0.5
)


def image(*shape: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, shape, np.uint8)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("channels", [1, 3])
def test_augment_without_any_change_is_the_daemons_preprocessing(channels: int) -> None:
    frames = image(4, SIZE, SIZE) if channels == 1 else image(4, SIZE, SIZE, 3)
    recipe = dataclasses.replace(PLAIN, channels=channels)
    clip = Augment(recipe)(frames, rng())
    assert clip.shape == (4, channels, CROP, CROP)
    expected = np.stack([preprocess(frame, (0, 0, SIZE, SIZE), recipe.preprocess) for frame in frames])
    assert np.array_equal(clip.numpy(), expected)


@pytest.mark.parametrize("seed", range(5))
def test_augment_changes_all_frames_alike(seed: int) -> None:
    frames = np.repeat(image(1, SIZE, SIZE), 4, axis=0)
    clip = Augment(dataclasses.replace(STRONG, speckle=0))(frames, rng(seed))
    assert all(torch.equal(frame, clip[0]) for frame in clip[1:])
    assert not np.array_equal(clip[0, 0].numpy() * 255, frames[0, 4:60, 4:60])


def test_augment_is_decided_by_the_generator_alone() -> None:
    augment, frames = Augment(STRONG), image(4, SIZE, SIZE)
    first, other, again = (augment(frames, rng(seed)) for seed in (1, 2, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(first, Augment(STRONG)(frames, rng(1)))


def test_augment_keeps_the_range_and_black_black() -> None:
    frames = image(4, SIZE, SIZE)
    frames[:, :, : SIZE // 2] = 0
    grays = dataclasses.replace(STRONG, elastic=0, flip=0, random_crop=False, speckle=0.9)
    for seed in range(5):
        clip = Augment(grays)(frames, rng(seed))
        assert clip.min() == 0
        assert clip.max() <= 1
        assert clip.dtype == torch.float32
        assert clip[..., : CROP // 2].max() == 0
        assert clip[..., CROP // 2 :].mean() > 0.1


def test_flip_mirrors_left_and_right() -> None:
    frames = image(4, SIZE, SIZE)
    plain, flipped = (Augment(dataclasses.replace(PLAIN, flip=flip))(frames, rng()) for flip in (0, 1))
    assert torch.equal(flipped, plain.flip(-1))


def test_random_crop_takes_parts_of_the_image_from_everywhere() -> None:
    # a pixel's value tells its place
    rows, columns = np.mgrid[:16, :16]
    frames = np.repeat((rows * 16 + columns).astype(np.uint8)[None], 4, axis=0)
    augment = Augment(dataclasses.replace(PLAIN, resize=16, crop=14, random_crop=True))
    corners = set()
    for seed in range(60):
        clip = (augment(frames, rng(seed)) * 255).round().to(torch.int64)[0, 0]
        top, left = divmod(int(clip[0, 0]), 16)
        assert np.array_equal(clip, frames[0, top : top + 14, left : left + 14])
        corners.add((top, left))
    assert corners == {(top, left) for top in range(3) for left in range(3)}


def test_elastic_of_no_strength_moves_nothing() -> None:
    ramp = np.repeat(np.arange(SIZE, dtype=np.uint8)[None, :, None], SIZE, axis=2).repeat(4, axis=0)
    still = Augment(dataclasses.replace(PLAIN, elastic=1, elastic_px=0))(ramp, rng())
    moved_px = (still - Augment(PLAIN)(ramp, rng())) * 255
    # MONAI interpolates its grid with a wave of a third of a pixel
    assert moved_px.abs().max() < 0.4


def test_elastic_moves_a_point_by_about_its_strength() -> None:
    frames = np.zeros((4, SIZE, SIZE), np.uint8)
    frames[:, 31:33, 31:33] = 255
    augment = Augment(dataclasses.replace(PLAIN, elastic=1, elastic_px=3))
    moved_px = []
    for seed in range(40):
        spot = augment(frames, rng(seed))[0, 0].numpy()
        rows, columns = np.mgrid[:CROP, :CROP]
        moved_px.append([(spot * grid).sum() / spot.sum() - (CROP - 1) / 2 for grid in (rows, columns)])
    assert 0.3 < np.std(moved_px) < 3


def test_gain_changes_brightness_within_its_limits() -> None:
    frames = np.full((4, SIZE, SIZE), 100, np.uint8)
    augment = Augment(dataclasses.replace(PLAIN, gain=0.2))
    factors = [float(augment(frames, rng(seed)).mean()) * 255 / 100 for seed in range(40)]
    assert 0.8 <= min(factors) < 0.9
    assert 1.1 < max(factors) <= 1.2 + 1e-6


def test_depth_gain_changes_rows_and_not_columns() -> None:
    frames = np.full((4, SIZE, SIZE), 100, np.uint8)
    clip = Augment(dataclasses.replace(PLAIN, depth_gain=0.4))(frames, rng())[0, 0]
    assert torch.equal(clip, clip[:, :1].expand_as(clip))
    assert clip[:, 0].std() > 0.01


def test_speckle_differs_between_frames_and_has_its_strength() -> None:
    frames = np.full((4, SIZE, SIZE), 100, np.uint8)
    augment = Augment(dataclasses.replace(PLAIN, speckle=0.2))
    spreads = [(augment(frames, rng(seed)) * 255 / 100).std().item() for seed in range(20)]
    assert 0.05 < max(spreads) <= 0.2
    clip = augment(frames, rng())
    assert not torch.equal(clip[0], clip[1])


STARTS = np.array([0, 1, 2, 10, 11, 12, 13, 14])
"""Two unbroken stretches of frames: 0 to 5 and 10 to 17, for clips of 4."""


def test_draw_frames_without_jitter_gives_every_window() -> None:
    drawn = {tuple(draw_frames(STARTS, PLAIN, rng(seed))) for seed in range(200)}
    assert drawn == {tuple(range(start, start + 4)) for start in STARTS}


def test_draw_frames_with_jitter_stays_in_one_stretch_and_changes_speed() -> None:
    recipe = dataclasses.replace(PLAIN, time_jitter=0.9, reverse=0.5)
    spans = collections.Counter()
    for seed in range(300):
        frames = draw_frames(STARTS, recipe, rng(seed))
        assert len(frames) == 4
        assert {*frames} <= {*range(6)} or {*frames} <= {*range(10, 18)}
        steps = np.diff(frames)
        assert (steps >= 0).all() or (steps <= 0).all()
        spans[int(frames[-1] - frames[0])] += 1
    assert {-5, -3, -1, 1, 3, 5} <= spans.keys()


def test_draw_frames_of_one_frame_gives_each() -> None:
    recipe = dataclasses.replace(PLAIN, num_frames=1, time_jitter=0.5, reverse=0.5)
    drawn = {int(draw_frames(np.arange(5), recipe, rng(seed))[0]) for seed in range(100)}
    assert drawn == {0, 1, 2, 3, 4}


def order(num_videos: int, epoch: int = 0, **changes: int) -> list[tuple[int, int, int]]:
    recipe = Recipe(batch_size=4, clips_per_video=3)
    return list(TrainingOrder(num_videos, recipe, 7, epoch, **changes))


def test_training_order_takes_each_video_equally_often_in_another_order_each_epoch() -> None:
    keys = order(8)
    assert sorted(key[1:] for key in keys) == [(video, draw) for video in range(8) for draw in range(3)]
    assert [key[1:] for key in order(8, 1)] != [key[1:] for key in keys]
    assert keys == order(8)


def test_training_order_fills_the_last_batch() -> None:
    keys = order(7)  # 21 clips: 6 batches of 4
    assert len(keys) == 24
    assert {key[1:] for key in keys} == {(video, draw) for video in range(7) for draw in range(3)}


def test_training_order_of_two_processes_is_that_of_one_dealt_out() -> None:
    recipe = Recipe(batch_size=2, clips_per_video=3)
    both = [list(TrainingOrder(8, recipe, 7, rank=rank, num_processes=2)) for rank in range(2)]
    assert [key for pair in zip(*both, strict=True) for key in pair] == order(8)
