"""Inception v3 on single frames.

Layer names are those of torchvision, but for `backbone.` before all but the heads, and `aux` for `AuxLogits`.
Source: Szegedy et al., "Rethinking the Inception architecture for computer vision", 2016; sizes as in the public
weights.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.models.classifier import PooledClassifier
from trainer.models.resnet import init_convolutions

NUM_FEATURES = 2048
NUM_AUX_FEATURES = 768
AUX_LOSS_WEIGHT = 0.4
"""Of the auxiliary head, as in the published training."""
AUX_POOL_PX, AUX_GRID = 17, 5
"""Side of the feature map from which the published pooling gives a 5 x 5 one: that of a 299 x 299 image."""


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, rectifier."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int | tuple[int, int], **kwargs: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, bias=False, **kwargs)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).relu()


def same(in_channels: int, out_channels: int, *kernel: int) -> ConvNorm:
    """Make a convolution that keeps the size, with a kernel of this height and width."""
    height, width = kernel
    return ConvNorm(in_channels, out_channels, (height, width), padding=(height // 2, width // 2))


def halve(in_channels: int, out_channels: int) -> ConvNorm:
    """Make a 3x3 convolution of stride 2 without padding."""
    return ConvNorm(in_channels, out_channels, 3, stride=2)


class Mixed5(nn.Module):
    """Branches of 1x1, 5x5 and two 3x3 convolutions, and of pooling."""

    def __init__(self, in_channels: int, pool_channels: int) -> None:
        super().__init__()
        self.branch1x1 = same(in_channels, 64, 1, 1)
        self.branch5x5_1 = same(in_channels, 48, 1, 1)
        self.branch5x5_2 = same(48, 64, 5, 5)
        self.branch3x3dbl_1 = same(in_channels, 64, 1, 1)
        self.branch3x3dbl_2 = same(64, 96, 3, 3)
        self.branch3x3dbl_3 = same(96, 96, 3, 3)
        self.branch_pool = same(in_channels, pool_channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), wide, double, self.branch_pool(smooth(x))], 1)


class Mixed6a(nn.Module):
    """Halves the map: strided 3x3, 3x3 before strided 3x3, strided maximum."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.branch3x3 = halve(in_channels, 384)
        self.branch3x3dbl_1 = same(in_channels, 64, 1, 1)
        self.branch3x3dbl_2 = same(64, 96, 3, 3)
        self.branch3x3dbl_3 = halve(96, 96)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, 2)], 1)


class Mixed6(nn.Module):
    """Branches of 7x7 convolutions, each as a row and a column."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch1x1 = same(768, 192, 1, 1)
        self.branch7x7_1 = same(768, channels, 1, 1)
        self.branch7x7_2 = same(channels, channels, 1, 7)
        self.branch7x7_3 = same(channels, 192, 7, 1)
        self.branch7x7dbl_1 = same(768, channels, 1, 1)
        self.branch7x7dbl_2 = same(channels, channels, 7, 1)
        self.branch7x7dbl_3 = same(channels, channels, 1, 7)
        self.branch7x7dbl_4 = same(channels, channels, 7, 1)
        self.branch7x7dbl_5 = same(channels, 192, 1, 7)
        self.branch_pool = same(768, 192, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(smooth(x))], 1)


class Mixed7a(nn.Module):
    """Halves the map once more."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = same(768, 192, 1, 1)
        self.branch3x3_2 = halve(192, 320)
        self.branch7x7x3_1 = same(768, 192, 1, 1)
        self.branch7x7x3_2 = same(192, 192, 1, 7)
        self.branch7x7x3_3 = same(192, 192, 7, 1)
        self.branch7x7x3_4 = halve(192, 192)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, F.max_pool2d(x, 3, 2)], 1)


class Mixed7(nn.Module):
    """Branches that end in a row and a column side by side."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.branch1x1 = same(in_channels, 320, 1, 1)
        self.branch3x3_1 = same(in_channels, 384, 1, 1)
        self.branch3x3_2a = same(384, 384, 1, 3)
        self.branch3x3_2b = same(384, 384, 3, 1)
        self.branch3x3dbl_1 = same(in_channels, 448, 1, 1)
        self.branch3x3dbl_2 = same(448, 384, 3, 3)
        self.branch3x3dbl_3a = same(384, 384, 1, 3)
        self.branch3x3dbl_3b = same(384, 384, 3, 1)
        self.branch_pool = same(in_channels, 192, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pairs = [self.branch3x3_2a(single), self.branch3x3_2b(single)]
        pairs += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        return torch.cat([self.branch1x1(x), *pairs, self.branch_pool(smooth(x))], 1)


def smooth(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, padding=1)


class Backbone(nn.Module):
    """The convolutional part: images `(N, C, H, W)` to features `(N, 2048, h, w)`; 75 x 75 pixels at least."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = halve(in_channels, 32)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, 3)
        self.Conv2d_2b_3x3 = same(32, 64, 3, 3)
        self.maxpool1 = nn.MaxPool2d(3, 2)
        self.Conv2d_3b_1x1 = same(64, 80, 1, 1)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, 3)
        self.maxpool2 = nn.MaxPool2d(3, 2)
        self.Mixed_5b = Mixed5(192, 32)
        self.Mixed_5c = Mixed5(256, 64)
        self.Mixed_5d = Mixed5(288, 64)
        self.Mixed_6a = Mixed6a(288)
        self.Mixed_6b = Mixed6(128)
        self.Mixed_6c = Mixed6(160)
        self.Mixed_6d = Mixed6(160)
        self.Mixed_6e = Mixed6(192)
        self.Mixed_7a = Mixed7a()
        self.Mixed_7b = Mixed7(1280)
        self.Mixed_7c = Mixed7(2048)

    def middle(self, images: Tensor) -> Tensor:
        """Return the `(N, 768, h, w)` map that the auxiliary head takes."""
        for name, module in self.named_children():
            images = module(images)
            if name == "Mixed_6e":
                break
        return images

    def rest(self, middle: Tensor) -> Tensor:
        return self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(middle)))

    def forward(self, images: Tensor) -> Tensor:
        return self.rest(self.middle(images))


class AuxiliaryHead(nn.Module):
    """A second classifier on the middle of the network; only training uses it."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv0 = ConvNorm(NUM_AUX_FEATURES, 128, 1)
        self.conv1 = ConvNorm(128, NUM_AUX_FEATURES, AUX_GRID)
        self.fc = nn.Linear(NUM_AUX_FEATURES, num_classes)

    def forward(self, middle: Tensor) -> Tensor:
        if min(middle.shape[-2:]) < AUX_POOL_PX:  # a 224 x 224 image leaves 12 x 12: too few for the published pooling
            pooled = F.adaptive_avg_pool2d(middle, AUX_GRID)
        else:
            pooled = F.avg_pool2d(middle, 5, 3)
        return self.fc(self.conv1(self.conv0(pooled)).mean((2, 3)))


class InceptionV3(PooledClassifier):
    """Inception v3 on each frame by itself, and the mean of the frames' logits.

    Args:
        num_classes: The last class is the positive one.
        num_frames: Frames a clip; any number is taken.
        in_channels: Channels of a frame.
        dropout: Share of pooled features dropped in training.
        pixels: How pixels are normalised; see `Classifier`.
    """

    backbone: Backbone

    def __init__(
        self, num_classes: int = 2, num_frames: int = 1, in_channels: int = 1, dropout: float = 0.5, **pixels: Any
    ) -> None:
        super().__init__(num_frames, **pixels)
        self.backbone = Backbone(in_channels + self.constant_plane)
        self.aux = AuxiliaryHead(num_classes)
        self.make_head(NUM_FEATURES, num_classes, dropout)
        init_convolutions(self)

    def training_logits(self, clip: Tensor) -> list[tuple[Tensor, float]]:
        middle = self.backbone.middle(self.normalise(clip).flatten(0, 1))
        aux_logits = self.aux(middle).unflatten(0, (len(clip), -1)).mean(1)
        return [(self.classify(self.backbone.rest(middle), len(clip)), 1.0), (aux_logits, AUX_LOSS_WEIGHT)]
