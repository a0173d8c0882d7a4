"""The networks that can be trained, by the names that the commands know; torch is imported when one is built."""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edge.errors import ConfigError

if TYPE_CHECKING:
    from trainer.models.classifier import Classifier


@dataclasses.dataclass(frozen=True, slots=True)
class ModelInfo:
    """Where a network is written, and what kind it is."""

    class_path: str
    """`module.Class` below `trainer.models`."""
    options: Mapping[str, Any]
    """What makes the class this network."""
    is_static: bool = False
    """It looks at frames one by one; its bundle's clips have one frame."""

    def build(self, **options: Any) -> "Classifier":
        """Make the network, with random weights."""
        module, _, name = self.class_path.rpartition(".")
        network: Classifier = getattr(importlib.import_module(f"trainer.models.{module}"), name)(
            **self.options, **options
        )
        return network


MODELS = {
    "tin-r18": ModelInfo("tin.TIN", {"depth": 18}),
    "tin-r34": ModelInfo("tin.TIN", {"depth": 34}),
    "tin-r50": ModelInfo("tin.TIN", {"depth": 50}),
    "r2plus1d-18": ModelInfo("video3d.R2Plus1D", {"depth": 18}),
    "r2plus1d-34": ModelInfo("video3d.R2Plus1D", {"depth": 34, "is_original": True}),
    "resnet3d-18": ModelInfo("video3d.ResNet3D", {"depth": 18}),
    "resnet3d-50": ModelInfo("video3d.ResNet3D", {"depth": 50}),
    "resnet50": ModelInfo("static.StaticResNet", {"depth": 50}, is_static=True),
    "inception-v3": ModelInfo("inception.InceptionV3", {}, is_static=True),
    "vgg19": ModelInfo("vgg.VGG19", {}, is_static=True),
}


def build_model(
    name: str, *, num_classes: int = 2, num_frames: int = 16, in_channels: int = 1, **options: Any
) -> "Classifier":
    """Make a network with random weights: `forward(clips (N, T, C, H, W) float32 in 0..1) -> logits (N, K)`.

    Args:
        name: A name from `MODELS`.
        num_classes: K; the last class is the positive one.
        num_frames: T; a static network takes any number and gives the mean of the frames' logits.
        in_channels: 1 or 3.
        options: What else the network's class takes, such as `width`, `dropout`, `pixel_mean`.

    Raises:
        ConfigError: The name is unknown.
    """
    if name not in MODELS:
        raise ConfigError(f"model {name!r} is unknown; allowed are {', '.join(MODELS)}")
    return MODELS[name].build(num_classes=num_classes, num_frames=num_frames, in_channels=in_channels, **options)
