"""A small, untrained TIN whose every part matters, and its bundle: for tests of export and engines."""

import functools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from engines.bundle import Bundle, PreprocessSpec, load_bundle
from trainer.export import export_bundle
from trainer.models.tin import TIN

SIZE_PX = 48
NUM_FRAMES = 8


def randomised(model: nn.Module, seed: int) -> nn.Module:
    """Give every layer weights and statistics at which it changes the outcome; return it in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)

    def normal(like: torch.Tensor, std: float) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator) * std

    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Linear):
            module.weight.data = normal(module.weight, module.weight[0].numel() ** -0.5)
            module.bias.data = normal(module.bias, 0.5)
        elif isinstance(module, nn.Conv2d | nn.Conv3d):
            module.weight.data = normal(module.weight, (2 / module.weight[0].numel()) ** 0.5)
            if module.bias is not None:
                module.bias.data = normal(module.bias, 0.3)
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.weight.data = 0.5 + torch.rand(module.weight.shape, generator=generator) / 2
            module.bias.data = normal(module.bias, 0.3)
            module.running_mean = normal(module.running_mean, 0.3)
            module.running_var = 0.5 + torch.rand(module.running_var.shape, generator=generator)
    return model.eval()


def small_model(seed: int = 0) -> TIN:
    return randomised(TIN(18, num_frames=NUM_FRAMES, width=16), seed)


def random_clips(num_clips: int, seed: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).random((num_clips, NUM_FRAMES, 1, SIZE_PX, SIZE_PX), dtype=np.float32)


def small_bundle(paths: pytest.TempPathFactory) -> Bundle:
    """Return the bundle of `small_model()`, exported once for all tests; do not change it."""
    return _export_once(paths.getbasetemp() / "small-bundle")


@functools.cache
def _export_once(folder: Path) -> Bundle:
    return export_small_bundle(small_model(), folder)


def export_small_bundle(model: nn.Module, folder: Path) -> Bundle:
    export_bundle(
        model,
        folder,
        classes=("benign", "suspicious"),
        threshold=0.25,
        preprocess=PreprocessSpec((SIZE_PX, SIZE_PX), (SIZE_PX, SIZE_PX)),
        frame_interval_ms=40.0,
        reference_clips=random_clips(2, seed=7),
        name="small",
        intended_use="tests",
        training={"data": "none"},
    )
    return load_bundle(folder)
