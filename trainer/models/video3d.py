"""Video networks that convolve over space and time: R(2+1)D and 3D ResNets.

Layer names are those of torchvision's `VideoResNet`, so that its weights load by name.
Source: Tran et al., "A closer look at spatiotemporal convolutions for action recognition", 2018; the 50 layers are
those of Hara et al., "Can spatiotemporal 3D CNNs retrace the history of 2D CNNs and ImageNet?", 2018.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from trainer.models.classifier import PooledClassifier
from trainer.models.resnet import init_convolutions

MakeConv = Callable[[int, int, int, int], nn.Module]
"""Makes a block's 3x3x3 convolution from the channels in, between and out, and the stride in time and space."""


def plain_conv(in_channels: int, mid_channels: int, out_channels: int, stride: int) -> nn.Conv3d:
    """Make one 3x3x3 convolution; `mid_channels` is of no use to it."""
    return nn.Conv3d(in_channels, out_channels, 3, stride, padding=1, bias=False)


def factored_conv(
    in_channels: int, mid_channels: int, out_channels: int, stride: int, *, equal_size: bool = False
) -> nn.Sequential:
    """Make a 1x3x3 convolution in space and a 3x1x1 one in time, with a rectifier between.

    Args:
        in_channels: Channels in.
        mid_channels: Channels between the two.
        out_channels: Channels out.
        stride: Stride in time and space.
        equal_size: Choose the channels between so that the pair has the parameters of a 3x3x3 convolution.
    """
    if equal_size:
        mid_channels = equal_size_channels(in_channels, out_channels)
    return nn.Sequential(
        nn.Conv3d(in_channels, mid_channels, (1, 3, 3), (1, stride, stride), padding=(0, 1, 1), bias=False),
        nn.BatchNorm3d(mid_channels),
        nn.ReLU(),
        nn.Conv3d(mid_channels, out_channels, (3, 1, 1), (stride, 1, 1), padding=(1, 0, 0), bias=False),
    )


def equal_size_channels(in_channels: int, out_channels: int) -> int:
    """Return how many channels a (2+1)D pair needs between to have a 3x3x3 convolution's parameters (Tran, 3.5)."""
    return (in_channels * out_channels * 27) // (in_channels * 9 + 3 * out_channels)


def conv_norm(conv: nn.Module, channels: int, *after: nn.Module) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm3d(channels), *after)


def make_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Return the identity where shapes allow it, else a strided projection."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return conv_norm(nn.Conv3d(in_channels, out_channels, 1, stride, bias=False), out_channels)


class BasicBlock(nn.Module):
    """Two 3x3x3 convolutions around a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, make_conv: MakeConv) -> None:
        super().__init__()
        mid_channels = equal_size_channels(in_channels, channels)
        self.conv1 = conv_norm(make_conv(in_channels, mid_channels, channels, stride), channels, nn.ReLU())
        self.conv2 = conv_norm(make_conv(channels, mid_channels, channels, 1), channels)
        self.downsample = make_shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv2(self.conv1(x)) + self.downsample(x)).relu()


class Bottleneck(nn.Module):
    """1x1x1, strided 3x3x3 and widening 1x1x1 convolutions around a shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, make_conv: MakeConv) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = conv_norm(nn.Conv3d(in_channels, channels, 1, bias=False), channels, nn.ReLU())
        self.conv2 = conv_norm(make_conv(channels, channels, channels, stride), channels, nn.ReLU())
        self.conv3 = conv_norm(nn.Conv3d(channels, out_channels, 1, bias=False), out_channels)
        self.downsample = make_shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv3(self.conv2(self.conv1(x))) + self.downsample(x)).relu()


DEPTHS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
}
"""Block type and number of blocks a stage."""


class VideoResNet(nn.Module):
    """The convolutional part: clips `(N, C, T, H, W)` to features `(N, num_features, S, h, w)`.

    Args:
        depth: 18, 34 or 50.
        stem: What comes before the first stage; gives `width` channels.
        width: Channels of the first stage.
        make_conv: Makes the blocks' 3x3x3 convolutions.
    """

    def __init__(self, depth: int, stem: nn.Sequential, width: int, make_conv: MakeConv) -> None:
        super().__init__()
        block, nums_blocks = DEPTHS[depth]
        self.stem = stem
        channels = width
        for stage, num_blocks in enumerate(nums_blocks):
            blocks = []
            for index in range(num_blocks):
                blocks.append(block(channels, width << stage, 2 if stage and index == 0 else 1, make_conv))
                channels = (width << stage) * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.num_features = channels
        init_convolutions(self)

    def forward(self, clip_ncthw: Tensor) -> Tensor:
        return self.layer4(self.layer3(self.layer2(self.layer1(self.stem(clip_ncthw)))))


class Video3D(PooledClassifier):
    """A network whose features have fewer steps in time than the clip has frames."""

    backbone: VideoResNet

    def features(self, clip: Tensor) -> Tensor:
        features_nfshw = self.backbone(self.normalise(clip).transpose(1, 2))
        return features_nfshw.transpose(1, 2).flatten(0, 1)


class R2Plus1D(Video3D):
    """R(2+1)D: each 3x3x3 convolution is one in space and one in time.

    Args:
        depth: 18 or 34.
        num_classes: The last class is the positive one.
        num_frames: Frames a clip.
        in_channels: Channels of a frame.
        width: Channels of the first stage; the published networks have 64.
        dropout: Share of pooled features dropped in training.
        is_original: Build what the authors' own Caffe2 networks are, whose 34 layers are the public ones. torchvision
            gives both convolutions of a block the first one's channels between, and has another `eps`.
        pixels: How pixels are normalised; see `Classifier`.
    """

    def __init__(
        self,
        depth: int = 18,
        num_classes: int = 2,
        num_frames: int = 16,
        in_channels: int = 1,
        width: int = 64,
        dropout: float = 0.0,
        is_original: bool = False,
        **pixels: Any,
    ) -> None:
        super().__init__(num_frames, **pixels)
        mid_channels = 45 * width // 64
        stem = nn.Sequential(
            nn.Conv3d(in_channels + self.constant_plane, mid_channels, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False),
            nn.BatchNorm3d(mid_channels),
            nn.ReLU(),
            nn.Conv3d(mid_channels, width, (3, 1, 1), padding=(1, 0, 0), bias=False),
            nn.BatchNorm3d(width),
            nn.ReLU(),
        )
        self.backbone = VideoResNet(depth, stem, width, partial(factored_conv, equal_size=is_original))
        for module in self.modules():
            if is_original and isinstance(module, nn.BatchNorm3d):
                module.eps = 1e-3
        self.make_head(self.backbone.num_features, num_classes, dropout)


class ResNet3D(Video3D):
    """A ResNet with 3x3x3 convolutions; 18 layers as Tran's, 50 as Hara's, whose stem is larger and pools.

    Args:
        depth: 18 or 50.
        num_classes: The last class is the positive one.
        num_frames: Frames a clip.
        in_channels: Channels of a frame.
        width: Channels of the first stage; the published networks have 64.
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
        dropout: float = 0.0,
        **pixels: Any,
    ) -> None:
        super().__init__(num_frames, **pixels)
        kernel_frames = 7 if depth == 50 else 3
        kernel, padding = (kernel_frames, 7, 7), (kernel_frames // 2, 3, 3)
        conv = nn.Conv3d(in_channels + self.constant_plane, width, kernel, (1, 2, 2), padding, bias=False)
        pool = [nn.MaxPool3d(3, stride=2, padding=1)] if depth == 50 else []
        self.backbone = VideoResNet(depth, conv_norm(conv, width, nn.ReLU(), *pool), width, plain_conv)
        self.make_head(self.backbone.num_features, num_classes, dropout)
