"""VGG19 on single frames.

Layer names are those of torchvision, but for `backbone`, which is `features` there.
Source: Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition", 2015,
configuration E.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.models.classifier import Classifier
from trainer.models.resnet import init_convolutions

WIDTHS = ((1, 1), (2, 2), (4, 4, 4, 4), (8, 8, 8, 8), (8, 8, 8, 8))
"""Channels of each convolution over `width`; each stage ends in a 2x2 maximum."""
GRID = 7
"""Side of the feature map that the classifier takes; that of a 224 x 224 image."""


def make_backbone(in_channels: int, width: int) -> nn.Sequential:
    """Make images `(N, C, H, W)` to features `(N, 8 * width, H / 32, W / 32)`."""
    layers: list[nn.Module] = []
    for stage in WIDTHS:
        for multiple in stage:
            layers += [nn.Conv2d(in_channels, multiple * width, 3, padding=1), nn.ReLU()]
            in_channels = multiple * width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


class VGG19(Classifier):
    """VGG19 on each frame by itself, and the mean of the frames' logits.

    Args:
        num_classes: The last class is the positive one.
        num_frames: Frames a clip; any number is taken.
        in_channels: Channels of a frame.
        width: Channels of the first convolution; the published network has 64.
        hidden: Units of the two hidden layers; the published network has 4096.
        dropout: Share of the hidden units dropped in training.
        pixels: How pixels are normalised; see `Classifier`.
    """

    def __init__(
        self,
        num_classes: int = 2,
        num_frames: int = 1,
        in_channels: int = 1,
        width: int = 64,
        hidden: int = 4096,
        dropout: float = 0.5,
        **pixels: Any,
    ) -> None:
        super().__init__(num_frames, **pixels)
        self.backbone = make_backbone(in_channels + self.constant_plane, width)
        self.classifier = nn.Sequential(
            nn.Linear(8 * width * GRID**2, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )
        init_convolutions(self)
        for module in self.classifier:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def features(self, clip: Tensor) -> Tensor:
        return self.backbone(self.normalise(clip).flatten(0, 1))

    def classify(self, features: Tensor, num_clips: int) -> Tensor:
        frame_logits = self.classifier(self._pool(features).flatten(1))
        return frame_logits.unflatten(0, (num_clips, -1)).mean(1)

    def explain(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and heatmap; the head is piecewise linear, so its gradient is a product of its own weights."""
        features = self.features(clip)
        first, _, _, second, _, _, last = self.classifier
        hidden1 = first(self._pool(features).flatten(1)).relu()
        hidden2 = second(hidden1).relu()
        logits = last(hidden2).unflatten(0, (len(clip), -1)).mean(1)
        slope = (hidden2 > 0) * last.weight[-1]
        slope = (hidden1 > 0) * (slope @ second.weight)
        alpha = (slope @ first.weight).unflatten(1, (-1, GRID**2)).sum(2)  # (N * T, num_features)
        heatmap = (features * alpha[:, :, None, None]).sum(1).relu()
        return logits, heatmap.unflatten(0, (len(clip), -1))

    @staticmethod
    def _pool(features: Tensor) -> Tensor:
        is_whole = features.shape[-2:] == (GRID, GRID)
        return features if is_whole else F.adaptive_avg_pool2d(features, GRID)
