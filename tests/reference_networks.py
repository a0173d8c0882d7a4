"""The networks beside TIN once more, from their papers' tables and as plainly as possible, to hold ours against.

All take the state dict of the network under test. A 3D convolution is a sum of 2D ones, tap by tap; Inception is a
table.
"""

from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional as fn

Weights = dict[str, Tensor]


def normalised(clip: Tensor, weights: Weights) -> Tensor:
    return (clip - weights["pixel_mean"]) / weights["pixel_std"]


def norm(x: Tensor, weights: Weights, name: str, eps: float) -> Tensor:
    mean, var, scale, shift = (weights[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
    channels = (1, -1) + (1,) * (x.ndim - 2)
    return (x - mean.view(channels)) / (var + eps).sqrt().view(channels) * scale.view(channels) + shift.view(channels)


def conv3d(x: Tensor, weight: Tensor, stride_t: int, stride: int) -> Tensor:
    """Convolve (N, C, T, H, W) with half-kernel zero padding."""
    num_frames, num_taps, pad = x.shape[2], weight.shape[2], weight.shape[3] // 2
    frames = []
    for t in range(0, num_frames, stride_t):
        taps = [tap for tap in range(num_taps) if 0 <= t + tap - num_taps // 2 < num_frames]
        parts = [
            fn.conv2d(x[:, :, t + tap - num_taps // 2], weight[:, :, tap], stride=stride, padding=pad) for tap in taps
        ]
        frames.append(torch.stack(parts).sum(0))
    return torch.stack(frames, dim=2)


def video_unit(x: Tensor, weights: Weights, name: str, stride: int, eps: float) -> Tensor:
    """Run a convolution, whole or as space and time, and its norm."""
    if f"{name}.0.weight" in weights:
        x = conv3d(x, weights[f"{name}.0.weight"], stride, stride)
    else:
        x = conv3d(x, weights[f"{name}.0.0.weight"], 1, stride)
        x = torch.relu(norm(x, weights, f"{name}.0.1", eps))
        x = conv3d(x, weights[f"{name}.0.3.weight"], stride, 1)
    return norm(x, weights, f"{name}.1", eps)


def blocks_of(weights: Weights) -> list[tuple[str, int]]:
    """Return each residual block's name and stride, in order."""
    names = sorted({".".join(key.split(".")[:3]) for key in weights if key.startswith("backbone.layer")})
    return [(name, 2 if name.endswith(".0") and "layer1" not in name else 1) for name in names]


def video_logits(clip: Tensor, weights: Weights, eps: float = 1e-5) -> Tensor:
    """Return logits of R(2+1)D and of the 3D ResNets without pooling in the stem."""
    x = normalised(clip, weights).transpose(1, 2)
    x = torch.relu(norm(conv3d(x, weights["backbone.stem.0.weight"], 1, 2), weights, "backbone.stem.1", eps))
    if "backbone.stem.3.weight" in weights:
        x = torch.relu(norm(conv3d(x, weights["backbone.stem.3.weight"], 1, 1), weights, "backbone.stem.4", eps))
    for name, stride in blocks_of(weights):
        y = torch.relu(video_unit(x, weights, f"{name}.conv1", stride, eps))
        y = video_unit(y, weights, f"{name}.conv2", 1, eps)
        if f"{name}.downsample.0.weight" in weights:
            x = video_unit(x, weights, f"{name}.downsample", stride, eps)
        x = torch.relu(x + y)
    return x.mean((2, 3, 4)) @ weights["fc.weight"].T + weights["fc.bias"]


def resnet50_frame_logits(images: Tensor, weights: Weights) -> Tensor:
    def unit(x: Tensor, conv: str, bn: str, stride: int = 1) -> Tensor:
        kernel = weights[f"backbone.{conv}.weight"]
        return norm(fn.conv2d(x, kernel, None, stride, kernel.shape[-1] // 2), weights, f"backbone.{bn}", 1e-5)

    x = fn.max_pool2d(unit(images, "conv1", "bn1", 2).relu(), 3, 2, 1)
    for full_name, stride in blocks_of(weights):
        name = full_name.removeprefix("backbone.")
        y = unit(x, f"{name}.conv1", f"{name}.bn1").relu()
        y = unit(y, f"{name}.conv2", f"{name}.bn2", stride).relu()
        y = unit(y, f"{name}.conv3", f"{name}.bn3")
        if f"backbone.{name}.downsample.0.weight" in weights:
            x = unit(x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
        x = (x + y).relu()
    return x.mean((2, 3)) @ weights["fc.weight"].T + weights["fc.bias"]


def vgg19_frame_logits(images: Tensor, weights: Weights) -> Tensor:
    """Follow configuration E: every convolution's place in the sequence tells where the maxima lie."""
    x = images
    for place in range(37):
        if f"backbone.{place}.weight" in weights:
            x = fn.conv2d(x, weights[f"backbone.{place}.weight"], weights[f"backbone.{place}.bias"], padding=1).relu()
        elif place in (4, 9, 18, 27, 36):
            x = fn.max_pool2d(x, 2)
    x = fn.adaptive_avg_pool2d(x, 7).flatten(1)
    for place in (0, 3, 6):
        x = x @ weights[f"classifier.{place}.weight"].T + weights[f"classifier.{place}.bias"]
        x = x if place == 6 else x.relu()
    return x


SEVEN = "1x1 | 7x7_1 7x7_2 7x7_3 | 7x7dbl_1 7x7dbl_2 7x7dbl_3 7x7dbl_4 7x7dbl_5 | avg _pool"
FIVE = "1x1 | 5x5_1 5x5_2 | 3x3dbl_1 3x3dbl_2 3x3dbl_3 | avg _pool"
LAST = "1x1 | 3x3_1 (3x3_2a 3x3_2b) | 3x3dbl_1 3x3dbl_2 (3x3dbl_3a 3x3dbl_3b) | avg _pool"
MIXED = {
    "5b": FIVE,
    "5c": FIVE,
    "5d": FIVE,
    "6a": "3x3! | 3x3dbl_1 3x3dbl_2 3x3dbl_3! | max",
    "6b": SEVEN,
    "6c": SEVEN,
    "6d": SEVEN,
    "6e": SEVEN,
    "7a": "3x3_1 3x3_2! | 7x7x3_1 7x7x3_2 7x7x3_3 7x7x3_4! | max",
    "7b": LAST,
    "7c": LAST,
}
"""Branches of each block; `!` halves the map, what stands in parentheses lies side by side."""


def inception_unit(x: Tensor, weights: Weights, name: str, stride: int = 1, is_padded: bool = True) -> Tensor:
    kernel = weights[f"{name}.conv.weight"]
    padding = [side // 2 for side in kernel.shape[2:]] if is_padded else 0
    return norm(fn.conv2d(x, kernel, None, stride, padding), weights, f"{name}.bn", 1e-3).relu()


def inception_branch(x: Tensor, weights: Weights, block: str, text: str) -> Tensor:
    for is_pair, words in groupby(text.split(), key=lambda word: word.strip("()") != word):
        if is_pair:
            parts = [inception_unit(x, weights, f"{block}.branch{word.strip('()')}") for word in words]
            x = torch.cat(parts, 1)
            continue
        for word in words:
            if word == "avg":
                x = fn.avg_pool2d(x, 3, 1, 1)
            elif word == "max":
                x = fn.max_pool2d(x, 3, 2)
            else:
                is_halved = word.endswith("!")
                name = f"{block}.branch{word.rstrip('!')}"
                x = inception_unit(x, weights, name, 2 if is_halved else 1, not is_halved)
    return x


def inception_frame_logits(images: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """Return the logits and the map that the auxiliary head takes."""
    x = inception_unit(images, weights, "backbone.Conv2d_1a_3x3", 2, False)
    x = inception_unit(x, weights, "backbone.Conv2d_2a_3x3", 1, False)
    x = fn.max_pool2d(inception_unit(x, weights, "backbone.Conv2d_2b_3x3"), 3, 2)
    x = inception_unit(x, weights, "backbone.Conv2d_3b_1x1")
    x = fn.max_pool2d(inception_unit(x, weights, "backbone.Conv2d_4a_3x3", 1, False), 3, 2)
    middle = x
    for key, table in MIXED.items():
        branches = [inception_branch(x, weights, f"backbone.Mixed_{key}", text) for text in table.split("|")]
        x = torch.cat(branches, 1)
        middle = x if key == "6e" else middle
    return x.mean((2, 3)) @ weights["fc.weight"].T + weights["fc.bias"], middle
