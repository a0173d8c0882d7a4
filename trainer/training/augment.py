"""Random changes of a training clip: the same for all of its frames, and drawn from a generator that is handed in.

Which frames a clip takes is drawn by `draw_frames`; what becomes of their pixels by `Augment`.
"""

import math

import cv2
import numpy as np
import numpy.typing as npt
import torch
from monai.data import set_track_meta
from monai.transforms import (
    CenterSpatialCrop,
    Compose,
    Rand2DElastic,
    RandAdjustContrast,
    RandFlip,
    RandSpatialCrop,
    Transform,
)
from torch import Tensor

from trainer.training.recipe import Recipe

_CONTROL_POINTS = 8
"""Of the elastic deformation, along a side."""
_DEPTH_KNOTS = 4
"""Of the curve of brightness over depth."""
_GRAIN_PX = 2
_SCALE = float(np.float32(1 / 255))  # as edge.preprocess scales, to the last bit

set_track_meta(False)  # plain tensors: nobody here asks where the pixels lie in a patient


def draw_frames(
    window_starts: npt.NDArray[np.int64], recipe: Recipe, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Draw which frames of a video form a clip: a random place, then speed and direction as the recipe allows.

    Args:
        window_starts: Where whole windows begin, ascending; neighbours that differ by 1 belong to one unbroken stretch.
        recipe: `num_frames`, `time_jitter` and `reverse` count.
        rng: Is drawn from.

    Returns:
        (num_frames,) indices, all within one unbroken stretch. Without jitter a window's own:

            window_starts 0 1 2, 4 frames, speed 1        1 2 3 4
            the same at speed 1.5, from 0.5 on            0 2 4 5
    """
    place = int(rng.integers(len(window_starts)))
    last_offset = recipe.num_frames - 1
    speed = 1 + rng.uniform(-recipe.time_jitter, recipe.time_jitter)
    first, last = _stretch(window_starts, place)
    span = min(last_offset * speed, last + last_offset - first)
    start = min(float(window_starts[place]), last + last_offset - span)
    frames = np.rint(np.linspace(start, start + span, recipe.num_frames)).astype(np.int64)
    return frames[::-1] if rng.random() < recipe.reverse else frames


def _stretch(window_starts: npt.NDArray[np.int64], place: int) -> tuple[int, int]:
    """Return the first and the last start of the unbroken stretch around a place."""
    breaks = np.flatnonzero(np.diff(window_starts) != 1)
    after = int(np.searchsorted(breaks, place))
    first = int(breaks[after - 1]) + 1 if after else 0
    last = int(breaks[after]) if after < len(breaks) else len(window_starts) - 1
    return int(window_starts[first]), int(window_starts[last])


class Augment:
    """Changes a clip's pixels as a recipe says.

    Flip, elastic deformation, rotation, zoom and crop move pixels; gamma, gain, depth gain and speckle change gray
    values and keep black black, which in ultrasound means: below what the scanner shows.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._compose = Compose(list(_spatial(recipe)))
        self._gamma = RandAdjustContrast(1.0, (1 / (1 + recipe.gamma), 1 + recipe.gamma)) if recipe.gamma else None

    def __call__(self, frames: npt.NDArray[np.uint8], rng: np.random.Generator) -> Tensor:
        """Return a changed clip.

        Args:
            frames: (T, H, W) gray or (T, H, W, 3) RGB, uint8, before the crop.
            rng: Is drawn from.

        Returns:
            (T, C, crop, crop) float32 in 0..1.
        """
        channels = np.moveaxis(frames.reshape(*frames.shape[:3], -1), 3, 1).reshape(-1, *frames.shape[1:3])
        self._compose.set_random_state(seed=_seed(rng))
        clip = torch.as_tensor(self._compose(channels)).to(torch.float32) * _SCALE
        clip = clip.unflatten(0, (len(frames), -1))
        return self._change_grays(clip, rng).clamp_(0, 1).contiguous()

    def _change_grays(self, clip_tchw: Tensor, rng: np.random.Generator) -> Tensor:
        recipe = self._recipe
        if self._gamma is not None:
            clip_tchw = torch.as_tensor(self._gamma.set_random_state(seed=_seed(rng))(clip_tchw))
        if recipe.gain or recipe.depth_gain:
            clip_tchw = clip_tchw * torch.from_numpy(_gain_curve(clip_tchw.shape[2], recipe, rng))[:, None]
        if recipe.speckle:
            clip_tchw = clip_tchw * torch.from_numpy(_grains(clip_tchw.shape, rng.uniform(0, recipe.speckle), rng))
        return clip_tchw


def _spatial(recipe: Recipe) -> list[Transform]:
    """Return what moves pixels. MONAI moves all channels alike, and the clip's frames are handed to it as channels."""
    size = (recipe.crop, recipe.crop)
    rotation = math.radians(recipe.rotate_deg)
    return [
        RandFlip(recipe.flip, spatial_axis=1),
        Rand2DElastic(
            spacing=recipe.resize / _CONTROL_POINTS,
            magnitude_range=(0, recipe.elastic_px),
            prob=recipe.elastic,
            rotate_range=rotation,
            scale_range=(recipe.zoom, recipe.zoom),
            padding_mode="zeros",
        ),
        RandSpatialCrop(size, random_size=False) if recipe.random_crop else CenterSpatialCrop(size),
    ]


def _gain_curve(height: int, recipe: Recipe, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return a factor a row: one gain for all, and a smooth curve over the depth."""
    knots = rng.uniform(-recipe.depth_gain, recipe.depth_gain, (_DEPTH_KNOTS, 1)).astype(np.float32)
    curve = cv2.resize(knots, (1, height), interpolation=cv2.INTER_CUBIC)[:, 0]
    return np.asarray((1 + rng.uniform(-recipe.gain, recipe.gain)) * (1 + curve), np.float32)


def _grains(shape: torch.Size, sigma: float, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return factors around 1, (T, 1, H, W): each frame has grains of its own, as moving tissue has."""
    num_frames, _, height, width = shape
    coarse = rng.standard_normal((num_frames, -(-height // _GRAIN_PX), -(-width // _GRAIN_PX)), np.float32)
    fine = [cv2.resize(grains, (width, height), interpolation=cv2.INTER_LINEAR) for grains in coarse]
    return 1 + np.float32(sigma) * np.stack(fine)[:, None]


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**32, dtype=np.uint32))
