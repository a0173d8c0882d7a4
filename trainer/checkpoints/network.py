"""A public checkpoint becomes one of our networks: what fits by name and shape is taken, and what was not is told."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.checkpoints.file import CheckpointError, read_tensors
from trainer.checkpoints.names import Origin, Pixels, find_origin
from trainer.models import MODELS, build_model
from trainer.models.classifier import Classifier

DEFAULT_NUM_FRAMES = 16
_FIRST_CONVS = ("conv1.weight", "stem.0.weight", "Conv2d_1a_3x3.conv.weight", "0.weight")
_HEADS = ("fc.", "classifier.6.", "aux.fc.")
_INTERLACING = (".offset_net.", ".weight_net.")

Tensors = dict[str, Tensor]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Imported:
    """A network with a checkpoint's weights, and what was done to get there."""

    network: Classifier
    options: dict[str, Any]
    """What `build_model` needs beside classes, frames and channels, as JSON."""
    classes: tuple[str, ...]
    num_frames: int
    origin: str
    """The program that wrote the checkpoint."""
    num_used: int
    """Tensors taken, of `num_tensors` in the checkpoint."""
    num_tensors: int
    not_used: tuple[str, ...]
    """Names in the checkpoint."""
    at_start: tuple[str, ...]
    """Names in the network whose values are random, or those that training starts from."""
    notes: tuple[str, ...]
    """What a user must know, a sentence each."""


def import_network(
    path: Path, model_name: str, *, classes: Sequence[str] | None = None, in_channels: int = 1
) -> Imported:
    """Build a network with a checkpoint's weights.

    Args:
        path: mmaction2's TIN, TSM or TSN ResNets; torchvision's ResNets, R(2+1)D, Inception v3 and VGG19;
            3D-ResNets-PyTorch.
        model_name: A name from `MODELS`.
        classes: Names, the positive one last. Where their number is not the checkpoint's, the last layer starts anew.
        in_channels: 1: the first convolution is summed over colour; 3: it stays as it is.

    Raises:
        CheckpointError: The file cannot be read, or is not this network's.
    """
    raw = read_tensors(path)
    if any(name.removeprefix("network.") == "pixel_mean" for name in raw):  # of a run's weights, or a checkpoint
        raise CheckpointError(f"{path} holds weights of this project; use its run folder, or fit with --set init=RUN")
    origin = find_origin(raw, model_name)
    tensors = origin.rename(raw)
    _check_fits(path, tensors, raw, model_name)
    classes = _choose_classes(path, tensors, classes)
    num_frames = _choose_num_frames(tensors, model_name)
    options = _fold_colour(tensors, origin.pixels, in_channels)
    torch.manual_seed(0)  # of what the checkpoint does not hold
    network = build_model(
        model_name, num_classes=len(classes), num_frames=num_frames, in_channels=in_channels, **options
    )
    used = _fitting(network, tensors)
    _check_finite(path, used)
    network.load_state_dict(used, strict=False)
    own = {name for name in network.state_dict() if not name.startswith("pixel_")}
    at_start = tuple(sorted(name for name in own - set(used) if not name.endswith("num_batches_tracked")))
    return Imported(
        network=network.eval(),
        options=options,
        classes=tuple(classes),
        num_frames=num_frames,
        origin=origin.name,
        num_used=len(used),
        num_tensors=len(raw),
        not_used=tuple(name for name in raw if origin.new_name(name) not in used),
        at_start=at_start,
        notes=tuple(_notes(origin, model_name, tensors, at_start, in_channels)),
    )


def _fitting(network: Classifier, tensors: Tensors) -> Tensors:
    own = network.state_dict()
    return {
        name: tensor.to(own[name].dtype)
        for name, tensor in tensors.items()
        if name in own and own[name].shape == tensor.shape
    }


def _check_finite(path: Path, tensors: Tensors) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: {name} holds numbers that are not finite; take another checkpoint")


def _check_fits(path: Path, tensors: Tensors, raw: Tensors, model_name: str) -> None:
    """Refuse a checkpoint of which the convolutional part is not exactly this network's."""
    problem = _misfit(tensors, model_name)
    if problem is None:
        return
    others = [name for name in MODELS if name != model_name and _misfit(_renamed(raw, name), name) is None]
    advice = f"it fits --model {' or '.join(others)}" if others else "it fits no network here"
    raise CheckpointError(f"{path} is no checkpoint of {model_name}: {problem}; {advice}")


def _renamed(raw: Tensors, model_name: str) -> Tensors:
    return find_origin(raw, model_name).rename(raw)


def _misfit(tensors: Tensors, model_name: str) -> str | None:
    """Say what speaks against the checkpoint being this network's; None where nothing does."""
    with torch.device("meta"):
        network = build_model(model_name, num_frames=_choose_num_frames(tensors, model_name), in_channels=3)
    own = {name: tensor for name, tensor in network.state_dict().items() if name.startswith("backbone.")}
    is_interlaced = any(word in name for name in tensors for word in _INTERLACING)
    for name, tensor in own.items():
        is_optional = name.endswith("num_batches_tracked") or (not is_interlaced and _is_interlacing(name))
        if name not in tensors and not is_optional:
            return f"it has no {name.removeprefix('backbone.')}"
        if name in tensors and tensors[name].shape != tensor.shape:
            shapes = tuple(tensors[name].shape), tuple(tensor.shape)
            return f"its {name.removeprefix('backbone.')} is {shapes[0]}, needed is {shapes[1]}"
    for name in tensors:
        if name.startswith("backbone.") and name not in own and not _is_interlacing(name):
            return f"{model_name} has no {name.removeprefix('backbone.')}"
    return None


def _is_interlacing(name: str) -> bool:
    return any(word in name for word in _INTERLACING)


def _choose_classes(path: Path, tensors: Tensors, classes: Sequence[str] | None) -> Sequence[str]:
    if classes is not None:
        return classes
    rows = [len(tensor) for name, tensor in tensors.items() if name in ("fc.weight", "classifier.6.weight")]
    if not rows or rows[0] < 2:
        raise CheckpointError(f"{path} does not say what the classes are; name them with --classes, the positive last")
    return [f"class-{index}" for index in range(rows[0])]


def _choose_num_frames(tensors: Tensors, model_name: str) -> int:
    """Return the clip's length; an interlaced network's is the size of its offset layers."""
    if MODELS[model_name].is_static:
        return 1
    sizes = [len(tensor) for name, tensor in tensors.items() if name.endswith(".offset_net.fc1.weight")]
    return sizes[0] if sizes else DEFAULT_NUM_FRAMES


def _fold_colour(tensors: Tensors, pixels: Pixels, in_channels: int) -> dict[str, Any]:
    """Make the first convolution fit the channels, in place; return how pixels are normalised.

    A gray pixel g is the colour (g, g, g). Red, green and blue have means m and deviations s of their own, and the
    padding around the normalised image is 0. With the mean M and S of the three, `sum_c w_c (g - m_c) / s_c` is
    `(sum_c w_c S / s_c) (g - M) / S + sum_c w_c (M - m_c) / s_c`: one convolution of the gray image, and one of a plane
    that is 1 inside the image. So the gray network gives the colour network's logits, at the borders as well.
    """
    if in_channels == 3:
        return {"pixel_mean": pixels.mean, "pixel_std": pixels.std}
    name = next(f"backbone.{name}" for name in _FIRST_CONVS if f"backbone.{name}" in tensors)
    weight = tensors[name].double()
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (pixels.mean, pixels.std))
    shape = (1, 3) + (1,) * (weight.ndim - 2)
    gray = (weight * (std.mean() / std).view(shape)).sum(1, keepdim=True)
    plane = (weight * ((mean.mean() - mean) / std).view(shape)).sum(1, keepdim=True)
    has_plane = len(set(pixels.mean)) > 1
    tensors[name] = (torch.cat([gray, plane], 1) if has_plane else gray).float()
    options = {"pixel_mean": (float(mean.mean()),), "pixel_std": (float(std.mean()),)}
    return {**options, "constant_plane": True} if has_plane else options


def _notes(
    origin: Origin, model_name: str, tensors: Tensors, at_start: Iterable[str], in_channels: int
) -> Iterable[str]:
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (origin.pixels.mean, origin.pixels.std))
    how = "the first convolution was summed over colour" if in_channels == 1 else "the first convolution takes RGB"
    yield f"{how}; pixels are normalised inside the network: mean {mean}, deviation {std} of red, green and blue"
    if any(name.startswith(_HEADS) for name in at_start):
        yield "the last layer is random: train the network before use"
    if any(_is_interlacing(name) for name in at_start):
        yield "the checkpoint has no interlacing; its layers are at the values that training starts from"
    if "TSM" in origin.name:
        yield f"the checkpoint's network shifts features in time and {model_name} does not: good to train from only"
    elif model_name.startswith("resnet") and any(map(_is_interlacing, tensors)):
        yield f"the checkpoint's network interlaces frames and {model_name} does not: good to train from only"
