"""The Temporal Interlacing Network, in standard operators only.

Source: Shao, Qian, Liu, "Temporal Interlacing Network", AAAI 2020. The layers and their start values are those of
mmaction2's `ResNetTIN`, so that its weights fit; its custom operator is replaced by a matrix product along time,
which trains, exports and compiles everywhere.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.models.classifier import PooledClassifier
from trainer.models.resnet import ResNet

NUM_LEARNED_GROUPS = 2
NUM_GROUPS = 2 * NUM_LEARNED_GROUPS
"""The learned groups, and their mirror images in time."""
MAX_OFFSET = 2.0
"""Frames; offsets lie in (-2, 2)."""


class OffsetNet(nn.Module):
    """How far each group is shifted along time: pooled `(N, C, T)` to offsets `(N, 2)` in frames."""

    def __init__(self, channels: int, num_frames: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, 1, 3, padding=1)
        self.fc1 = nn.Linear(num_frames, num_frames)
        self.fc2 = nn.Linear(num_frames, NUM_LEARNED_GROUPS)
        nn.init.constant_(self.fc2.bias, 0.5108)  # near half a frame at the start

    def forward(self, pooled_nct: Tensor) -> Tensor:
        x = self.fc1(self.conv(pooled_nct)[:, 0]).relu()
        return 2 * MAX_OFFSET * (self.fc2(x).sigmoid() - 0.5)


class WeightNet(nn.Module):
    """How much each group counts in each frame: pooled `(N, C, T)` to weights `(N, 2, T)` in (0, 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, NUM_LEARNED_GROUPS, 3, padding=1)
        nn.init.zeros_(self.conv.bias)

    def forward(self, pooled_nct: Tensor) -> Tensor:
        return 2 * self.conv(pooled_nct).sigmoid()


def group_lags(num_frames: int) -> Tensor:
    """Return `t - s` for every pair of rows (t, group) and columns (s, group), `(4T, 4T)` float32.

    Pairs of different groups get a lag beyond every offset, so that nothing flows between them.
    """
    time = torch.arange(num_frames).repeat_interleave(NUM_GROUPS)
    group = torch.arange(NUM_GROUPS).repeat(num_frames)
    lags = (time[:, None] - time[None, :]).float()
    return torch.where(group[:, None] == group[None, :], lags, torch.tensor(2 * MAX_OFFSET))


class InterlacedConv2d(nn.Conv2d):
    """A convolution that sees its input's first `in_channels / shift_div` channels shifted along time.

    The shifted channels form four groups with learned, real offsets `(o0, o1, -o0, -o1)` and, for each frame that
    comes out, the weights `(w0, w1, w0, w1)`. A shift by `o` frames with linear interpolation and zeros outside the
    clip is the product with `M[t, s] = max(0, 1 - |t - s - o|)`. The four matrices are used as one block matrix over
    (frame, group) pairs, in the order in which the channels already lie in memory, so nothing is transposed.

    A convolution is linear, so `conv(shift(x))` is `conv(x)` plus the convolution of what the shift changes. That
    spares splitting and joining the whole feature map, which takes a third of the network's time on a CPU.
    """

    def __init__(self, in_channels: int, *args: Any, num_frames: int, shift_div: int = 4, **kwargs: Any) -> None:
        super().__init__(in_channels, *args, **kwargs)
        if in_channels % (shift_div * NUM_GROUPS):
            raise ValueError(f"{in_channels} channels do not divide into {shift_div} x {NUM_GROUPS} groups")
        self.num_frames = num_frames
        self.num_shifted = in_channels // shift_div
        self.offset_net = OffsetNet(self.num_shifted, num_frames)
        self.weight_net = WeightNet(self.num_shifted)
        self.register_buffer("lags", group_lags(num_frames), persistent=False)
        self.register_buffer("identity", torch.eye(NUM_GROUPS * num_frames), persistent=False)

    def mixing_matrix(self, pooled_nct: Tensor) -> Tensor:
        """Return the weighted block matrix `(N, 4T, 4T)` for pooled features `(N, C, T)`."""
        offsets = self.offset_net(pooled_nct)
        offsets = torch.cat([offsets, -offsets], dim=1)  # (N, 4)
        weights = self.weight_net(pooled_nct)
        weights = torch.cat([weights, weights], dim=1)  # (N, 4, T)
        offset_rows = offsets.repeat(1, self.num_frames)[:, :, None]  # (N, 4T, 1), frame-major as the lags
        weight_rows = weights.transpose(1, 2).reshape(-1, NUM_GROUPS * self.num_frames, 1)
        return (1 - (self.lags - offset_rows).abs()).relu() * weight_rows

    def change(self, x: Tensor) -> Tensor:
        """Return what the shift adds to the first channels of `(N * T, C, H, W)`: `(N * T, C / shift_div, H, W)`."""
        shifted = x[:, : self.num_shifted]
        pooled = shifted.mean((2, 3)).reshape(-1, self.num_frames, self.num_shifted)
        matrix = self.mixing_matrix(pooled.transpose(1, 2)) - self.identity
        rows = shifted.reshape(matrix.shape[0], matrix.shape[1], -1)  # (N, 4T, C / 16 * H * W)
        return (matrix @ rows).reshape(shifted.shape)

    def forward(self, x: Tensor) -> Tensor:
        changed = F.conv2d(self.change(x), self.weight[:, : self.num_shifted], None, self.stride, self.padding)
        return super().forward(x) + changed


class TIN(PooledClassifier):
    """Video classifier: a ResNet on each frame, interlaced along time, and the mean of the frames' logits.

    Args:
        depth: 18, 34 or 50.
        num_classes: The last class is the positive one.
        num_frames: Frames a clip; fixed, as OffsetNet looks at all of them.
        in_channels: Channels of a frame.
        width: Channels of the first stage, a multiple of 16.
        strides: Stride of each ResNet stage.
        dropout: Share of pooled features dropped in training.
        pixels: How pixels are normalised; see `Classifier`.
    """

    def __init__(
        self,
        depth: int = 18,
        num_classes: int = 2,
        num_frames: int = 16,
        in_channels: int = 1,
        width: int = 64,
        strides: tuple[int, int, int, int] = (1, 2, 2, 2),
        dropout: float = 0.5,
        **pixels: Any,
    ) -> None:
        super().__init__(num_frames, **pixels)
        first_conv = partial(InterlacedConv2d, num_frames=num_frames)
        self.backbone = ResNet(depth, in_channels + self.constant_plane, width, strides, first_conv)
        self.make_head(self.backbone.num_features, num_classes, dropout)
