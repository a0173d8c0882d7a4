"""How a network is trained: every choice that changes its weights, with the paper's values as defaults."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from edge.errors import ConfigError
from engines import PreprocessSpec

_RANGE = "range"
_CHOICES = "choices"


def _number(default: Any, low: float, high: float = math.inf) -> Any:
    return dataclasses.field(default=default, metadata={_RANGE: (low, high)})


def _choice(default: str, *choices: str) -> Any:
    return dataclasses.field(default=default, metadata={_CHOICES: choices})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All that decides on the weights, beside the network's name, the videos and the seed.

    The defaults are those of Li et al. 2023 (Front. Oncol. 13:1219838). The paper does not say how strong its elastic
    transformation was, nor at which time grid the 16 frames were taken; those values are ours.
    """

    resize: int = _number(256, 8)
    """Side in pixels that the ROI is resized to."""
    crop: int = _number(224, 8)
    """Side in pixels of what the network sees."""
    channels: int = _number(1, 1, 3)
    """1: gray; 3: RGB."""
    num_frames: int = _number(16, 1)
    """T, frames a clip; static networks always take 1."""
    frame_interval_ms: float = _number(1000 / 30, 1e-3)
    """Time grid of the clip."""
    roi: str = _choice("auto", "auto", "full")
    """Where the manifest names no ROI: found in the video, or the whole frame."""

    width: int | None = _number(None, 1)
    """Channels of the network's first stage; none: as published."""
    dropout: float | None = _number(None, 0, 1)
    """Share of pooled features dropped; none: the network's own."""
    init: str | None = None
    """A run whose weights are the start, for fine-tuning; none: random."""

    epochs: int = _number(300, 1)
    batch_size: int = _number(4, 1)
    """Clips a step, on each device."""
    clips_per_video: int = _number(1, 1)
    """Clips that an epoch draws from each training video, from random places."""
    optimizer: str = _choice("adam", "adam", "adamw")
    learning_rate: float = _number(1e-4, 0)
    weight_decay: float = _number(0.0, 0)
    """Not on biases and normalisation layers."""
    schedule: str = _choice("constant", "constant", "cosine")
    """Of the learning rate after its warm-up; cosine ends at 0."""
    warmup_epochs: float = _number(0.0, 0)
    """Epochs over which the learning rate rises from 0."""
    label_smoothing: float = _number(0.0, 0, 0.99)
    class_balance: bool = False
    """Weigh each class in the loss by the inverse of its number of training videos."""
    gradient_clip: float = _number(0.0, 0)
    """Largest norm of the gradient; 0: no limit."""
    ema_decay: float = _number(0.0, 0, 0.999999)
    """Decay of the running mean of the weights, which is then what is validated and kept; 0: none."""
    patience: int = _number(0, 0)
    """Epochs without a better validation after which training ends; 0: never."""
    mixed_precision: bool = False
    """bfloat16 where the GPU has it."""

    random_crop: bool = True
    """Crop at a random place; else the centre, as live."""
    flip: float = _number(0.5, 0, 1)
    """Probability of a horizontal flip."""
    elastic: float = _number(0.5, 0, 1)
    """Probability of an elastic deformation, with the rotation and zoom below in the same resampling."""
    elastic_px: float = _number(4.0, 0)
    """Largest standard deviation of the shifts of its control points, eight of which lie along a side."""
    rotate_deg: float = _number(0.0, 0, 180)
    """Largest rotation."""
    zoom: float = _number(0.0, 0, 0.9)
    """Largest relative change of scale along each axis, as other imaging depths show it."""
    time_jitter: float = _number(0.0, 0, 0.9)
    """Largest relative change of the probe's speed: the clip's frames lie that much closer or farther apart."""
    reverse: float = _number(0.0, 0, 1)
    """Probability of playing the clip backwards."""
    gamma: float = _number(0.0, 0, 0.9)
    """Largest relative change of the gray curve's exponent, as other dynamic ranges show it."""
    gain: float = _number(0.0, 0, 0.9)
    """Largest relative change of brightness."""
    depth_gain: float = _number(0.0, 0, 0.9)
    """Largest relative change of brightness along the depth, as other time gain compensation shows it."""
    speckle: float = _number(0.0, 0, 0.9)
    """Largest standard deviation of multiplicative noise in grains of two pixels."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))
        if self.channels == 2:
            raise ConfigError("recipe: channels is 2; 1 (gray) and 3 (RGB) are allowed")
        if self.crop > self.resize:
            raise ConfigError(f"recipe: crop {self.crop} does not fit into resize {self.resize}; give crop <= resize")

    @property
    def preprocess(self) -> PreprocessSpec:
        """What the bundle will say about preprocessing."""
        return PreprocessSpec((self.resize, self.resize), (self.crop, self.crop), self.channels)

    @property
    def model_options(self) -> dict[str, Any]:
        """What the network's builder is given beyond the sizes of its input and output."""
        return {key: value for key in ("width", "dropout") if (value := getattr(self, key)) is not None}

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def _check(field: dataclasses.Field[Any], value: Any) -> None:
    if _CHOICES in field.metadata and value not in field.metadata[_CHOICES]:
        raise ConfigError(f"recipe: {field.name} is {value!r}; allowed: {', '.join(field.metadata[_CHOICES])}")
    if _RANGE in field.metadata and value is not None:
        low, high = field.metadata[_RANGE]
        if not low <= value <= high or math.isinf(value):
            allowed = f"from {low:g}" if math.isinf(high) else f"{low:g} to {high:g}"
            raise ConfigError(f"recipe: {field.name} is {value:g}; allowed: {allowed}")


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "best": {
        "epochs": 100,
        "batch_size": 8,
        "clips_per_video": 4,
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "weight_decay": 0.05,
        "schedule": "cosine",
        "warmup_epochs": 5.0,
        "label_smoothing": 0.05,
        "class_balance": True,
        "gradient_clip": 1.0,
        "ema_decay": 0.998,
        "patience": 30,
        "mixed_precision": True,
        "rotate_deg": 10.0,
        "zoom": 0.15,
        "time_jitter": 0.25,
        "reverse": 0.5,
        "gamma": 0.2,
        "gain": 0.2,
        "depth_gain": 0.2,
        "speckle": 0.1,
    },
}
"""Preset to what it changes of the defaults."""


def make_recipe(preset: str = "paper", settings: Sequence[str] = (), *, is_static: bool = False) -> Recipe:
    """Return a preset with the user's changes.

    Args:
        preset: A key of `PRESETS`.
        settings: `KEY=VALUE` each, as typed after `--set`.
        is_static: The network looks at one frame: its clips have one.

    Raises:
        ConfigError: An unknown preset or key, or a value of the wrong type or out of range.
    """
    if preset not in PRESETS:
        raise ConfigError(f"preset {preset!r} is unknown; allowed: {', '.join(PRESETS)}")
    changes = dict(parse_setting(text) for text in settings)
    if is_static:
        if changes.get("num_frames", 1) != 1:
            raise ConfigError(f"--set num_frames={changes['num_frames']}: a static network sees 1 frame")
        changes["num_frames"] = 1
    return Recipe(**{**PRESETS[preset], **changes})


def parse_setting(text: str) -> tuple[str, Any]:
    """Return the key and the typed value of `KEY=VALUE`.

    Raises:
        ConfigError: No `=`, an unknown key, or a value of the wrong type.
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text!r} has no '='; give KEY=VALUE, e.g. --set epochs=50")
    hints = typing.get_type_hints(Recipe)
    if key not in hints:
        close = difflib.get_close_matches(key, hints, 1)
        meant = f", did you mean {close[0]!r}?" if close else ";"
        raise ConfigError(f"--set key {key!r} is unknown{meant} allowed: {', '.join(hints)}")
    return key, _parse_value(key, value, hints[key])


_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_EXPECTED = {int: "a whole number", float: "a number", bool: "true or false"}


def _parse_value(key: str, text: str, hint: Any) -> Any:
    kind = hint
    if isinstance(hint, types.UnionType):
        if text.lower() == "none":
            return None
        kind = next(part for part in typing.get_args(hint) if part is not types.NoneType)
    try:
        return _WORDS[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError) as exc:
        raise ConfigError(f"--set {key}={text}: expected {_EXPECTED[kind]}") from exc


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return `key: old, not new` for each entry that two descriptions of a training do not share."""
    keys = dict.fromkeys((*old, *new))
    return [f"{key} {old.get(key)}, not {new.get(key)}" for key in keys if old.get(key) != new.get(key)]
