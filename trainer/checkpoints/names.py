"""The names that public checkpoints give to the layers, and how their pixels were normalised."""

import dataclasses
import re
from collections.abc import Mapping

from torch import Tensor

_BLOCK = r"(layer\d\.\d+)\."
Rules = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Pixels:
    """Mean and standard deviation of red, green and blue, in 0..1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
KINETICS = Pixels((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989))
"""Of torchvision's video networks and of the public R(2+1)D-34."""
HARA = Pixels((0.4345, 0.4051, 0.3775), (0.2768, 0.2713, 0.2737))
"""Of the 3D-ResNets-PyTorch checkpoints."""
INCEPTION = Pixels((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""What torchvision's Inception v3 makes of ImageNet's normalisation before its first layer."""

MMACTION_RULES: Rules = (
    (rf"^backbone\.{_BLOCK}conv1\.conv\.net1\.", r"backbone.\1.conv1."),
    (rf"^backbone\.{_BLOCK}conv1\.conv\.(?:net2|net)\.", r"backbone.\1.conv1."),
    (rf"^backbone\.{_BLOCK}conv(\d)\.conv\.", r"backbone.\1.conv\2."),
    (rf"^backbone\.{_BLOCK}conv(\d)\.bn\.", r"backbone.\1.bn\2."),
    (rf"^backbone\.{_BLOCK}downsample\.conv\.", r"backbone.\1.downsample.0."),
    (rf"^backbone\.{_BLOCK}downsample\.bn\.", r"backbone.\1.downsample.1."),
    (r"^backbone\.conv1\.conv\.", "backbone.conv1."),
    (r"^backbone\.conv1\.bn\.", "backbone.bn1."),
    (r"^cls_head\.(?:new_)?fc(?:_cls)?\.", "fc."),
)
HARA_RULES: Rules = (
    (r"^conv1\.", "backbone.stem.0."),
    (r"^bn1\.", "backbone.stem.1."),
    (rf"^{_BLOCK}conv(\d)\.", r"backbone.\1.conv\2.0."),
    (rf"^{_BLOCK}bn(\d)\.", r"backbone.\1.conv\2.1."),
    (rf"^{_BLOCK}downsample\.", r"backbone.\1.downsample."),
)
TORCHVISION_RULES: Rules = (
    (r"^AuxLogits\.", "aux."),
    (r"^features\.", "backbone."),
    (r"^(?!fc\.|aux\.|classifier\.|backbone\.)", "backbone."),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Origin:
    """Which program wrote a checkpoint."""

    name: str
    rules: Rules
    pixels: Pixels

    def rename(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors under the names that `trainer.models` has for them; unknown ones stay as they are."""
        return {self.new_name(name): tensor for name, tensor in tensors.items()}

    def new_name(self, name: str) -> str:
        """Return what `trainer.models` calls the tensor."""
        for pattern, replacement in self.rules:
            new_name, num_found = re.subn(pattern, replacement, name)
            if num_found:
                return new_name
        return name


def find_origin(tensors: Mapping[str, Tensor], model_name: str) -> Origin:
    """Tell from the layers' names who wrote a checkpoint; torchvision where nothing speaks for another."""
    if any(name.startswith("backbone.conv1.conv.") for name in tensors):
        return Origin(f"mmaction2 {_mmaction_kind(tensors)}", MMACTION_RULES, IMAGENET)
    is_3d = any(name == "conv1.weight" and tensor.ndim == 5 for name, tensor in tensors.items())
    if is_3d:
        return Origin("3D-ResNets-PyTorch", HARA_RULES, HARA)
    pixels = {"inception-v3": INCEPTION, "r2plus1d-18": KINETICS, "r2plus1d-34": KINETICS, "resnet3d-18": KINETICS}
    return Origin("torchvision", TORCHVISION_RULES, pixels.get(model_name, IMAGENET))


def _mmaction_kind(tensors: Mapping[str, Tensor]) -> str:
    if any(".net1.offset_net." in name for name in tensors):
        return "TIN"
    return "TSM" if any(".conv1.conv.net." in name for name in tensors) else "TSN"
