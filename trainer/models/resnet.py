"""ResNet-18, 34 and 50 without their head; the first convolution of every block can be of another class.

Parameter names are those of torchvision, so that public ImageNet weights load by name.
Source: He et al., "Deep residual learning", 2016; the bottleneck has its stride in the 3x3 convolution.
"""

from collections.abc import Callable

from torch import Tensor, nn

FirstConv = Callable[..., nn.Conv2d]
"""Makes a block's first convolution; takes what `nn.Conv2d` takes."""


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, conv: FirstConv = nn.Conv2d) -> nn.Conv2d:
    return conv(in_channels, out_channels, 3, stride, padding=1, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1, conv: FirstConv = nn.Conv2d) -> nn.Conv2d:
    return conv(in_channels, out_channels, 1, stride, bias=False)


def make_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Return the identity where shapes allow it, else a strided projection."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))


def init_convolutions(network: nn.Module) -> None:
    """Start each 2D or 3D convolution at the scale at which rectified layers keep the gradient's (He et al. 2015)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; the shortcut sees the block's untouched input."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, first_conv: FirstConv) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, channels, stride, first_conv)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = make_shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y))
        return (y + self.downsample(x)).relu()


class Bottleneck(nn.Module):
    """1x1, strided 3x3 and widening 1x1 convolutions around a shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, first_conv: FirstConv) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = conv1x1(in_channels, channels, conv=first_conv)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = conv1x1(channels, out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = make_shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        y = self.bn3(self.conv3(y))
        return (y + self.downsample(x)).relu()


DEPTHS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
}
"""Block type and number of blocks a stage."""


class ResNet(nn.Module):
    """The convolutional part: images `(N, C, H, W)` to features `(N, num_features, H/32, W/32)`.

    Args:
        depth: 18, 34 or 50.
        in_channels: Channels of the image.
        width: Channels of the first stage; the published networks have 64.
        strides: Stride of each stage; the last at 1 gives a feature map of twice the side.
        first_conv: Makes the first convolution of each block.
    """

    def __init__(
        self,
        depth: int,
        in_channels: int,
        width: int = 64,
        strides: tuple[int, int, int, int] = (1, 2, 2, 2),
        first_conv: FirstConv = nn.Conv2d,
    ) -> None:
        super().__init__()
        block, nums_blocks = DEPTHS[depth]
        self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = width
        for stage, (num_blocks, stride) in enumerate(zip(nums_blocks, strides, strict=True)):
            blocks = []
            for index in range(num_blocks):
                blocks.append(block(channels, width << stage, stride if index == 0 else 1, first_conv))
                channels = (width << stage) * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.num_features = channels
        init_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(self.bn1(self.conv1(images)).relu())
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))
