"""What all networks share: normalised pixels, features, a head, and where the evidence for the positive class lies."""

import abc

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Classifier(nn.Module, abc.ABC):
    """Clips `(N, T, C, H, W)` float32 in 0..1 to logits `(N, K)`: a head on the last feature map.

    Args:
        num_frames: T.
        pixel_mean: Mean of the pixels (0..1) a channel; carried in the graph, as is the next.
        pixel_std: Standard deviation of the pixels (0..1) a channel.
        constant_plane: Give the first convolution one more channel, which is 1 inside the image and 0 in the padding
            around it. With it a network of colour images takes gray ones exactly (see `trainer.checkpoints.network`).
    """

    def __init__(
        self,
        num_frames: int,
        pixel_mean: tuple[float, ...] = (0.2,),
        pixel_std: tuple[float, ...] = (0.2,),
        constant_plane: bool = False,
    ) -> None:
        super().__init__()
        self.num_frames = num_frames
        self.constant_plane = constant_plane
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1))

    def normalise(self, clip: Tensor) -> Tensor:
        """Return the clip as the first convolution takes it."""
        clip = (clip - self.pixel_mean) / self.pixel_std
        return F.pad(clip, (0, 0, 0, 0, 0, 1), value=1.0) if self.constant_plane else clip

    @abc.abstractmethod
    def features(self, clip: Tensor) -> Tensor:
        """Return the last feature map `(N * S, num_features, h, w)` of a clip, S steps in time."""

    @abc.abstractmethod
    def classify(self, features: Tensor, num_clips: int) -> Tensor:
        """Return logits `(num_clips, K)` of features `(num_clips * S, num_features, h, w)`."""

    @abc.abstractmethod
    def explain(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits `(N, K)` and the heatmap `(N, T, h, w)` >= 0: Grad-CAM of the last class, no backward pass.

        The heatmap is Grad-CAM (Selvaraju et al. 2017) times `S * h * w`.
        """

    def forward(self, clip: Tensor) -> Tensor:
        """Return logits `(N, K)` of a clip `(N, T, C, H, W)` float32 in 0..1."""
        return self.classify(self.features(clip), len(clip))

    def training_logits(self, clip: Tensor) -> list[tuple[Tensor, float]]:
        """Return each head's logits with the weight of its loss."""
        return [(self(clip), 1.0)]


class PooledClassifier(Classifier):
    """A network that ends in global average pooling, one linear layer and the mean over time.

    The gradient of a class's logit with respect to the last feature map is then the class's weight row over
    `S * h * w`: Grad-CAM is a 1x1 convolution with that row, and the logits are its mean.

    A subclass sets `backbone` and calls `make_head`.
    """

    backbone: nn.Module

    def make_head(self, num_features: int, num_classes: int, dropout: float) -> None:
        """Add the dropout of pooled features and the linear layer `fc`."""
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(num_features, num_classes)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def features(self, clip: Tensor) -> Tensor:
        return self.backbone(self.normalise(clip).flatten(0, 1))

    def classify(self, features: Tensor, num_clips: int) -> Tensor:
        step_logits = self.fc(self.dropout(features.mean((2, 3))))
        return step_logits.unflatten(0, (num_clips, -1)).mean(1)

    def explain(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        evidence = F.conv2d(self.features(clip), self.fc.weight[:, :, None, None])
        evidence = evidence.unflatten(0, (len(clip), -1))  # (N, S, K, h, w)
        logits = evidence.mean((1, 3, 4)) + self.fc.bias
        return logits, spread_over_frames(evidence[:, :, -1].relu(), clip.shape[1])


def spread_over_frames(maps_nshw: Tensor, num_frames: int) -> Tensor:
    """Interpolate maps `(N, S, h, w)` of S steps linearly to the frames they stand for, `(N, num_frames, h, w)`.

    Steps and frames divide the same time evenly; frames before the first step's centre, and after the last one's, take
    its map. With 2 steps and 4 frames the frames are at steps 0, 0.25, 0.75 and 1.
    """
    num_steps = maps_nshw.shape[1]
    if num_steps == num_frames:
        return maps_nshw
    at = ((torch.arange(num_frames) + 0.5) * num_steps / num_frames - 0.5).clamp(0, num_steps - 1)
    shares = (1 - (at[:, None] - torch.arange(num_steps)).abs()).relu().to(maps_nshw)  # (T, S)
    return (shares @ maps_nshw.flatten(2)).unflatten(2, maps_nshw.shape[2:])
