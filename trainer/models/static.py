"""ResNet-50 on single frames."""

from typing import Any

from trainer.models.classifier import PooledClassifier
from trainer.models.resnet import ResNet


class StaticResNet(PooledClassifier):
    """A ResNet on each frame by itself, and the mean of the frames' logits.

    Args:
        depth: 18, 34 or 50.
        num_classes: The last class is the positive one.
        num_frames: Frames a clip; any number is taken.
        in_channels: Channels of a frame.
        width: Channels of the first stage; the published networks have 64.
        strides: Stride of each stage.
        dropout: Share of pooled features dropped in training.
        pixels: How pixels are normalised; see `Classifier`.
    """

    def __init__(
        self,
        depth: int = 50,
        num_classes: int = 2,
        num_frames: int = 1,
        in_channels: int = 1,
        width: int = 64,
        strides: tuple[int, int, int, int] = (1, 2, 2, 2),
        dropout: float = 0.0,
        **pixels: Any,
    ) -> None:
        super().__init__(num_frames, **pixels)
        self.backbone = ResNet(depth, in_channels + self.constant_plane, width, strides)
        self.make_head(self.backbone.num_features, num_classes, dropout)
