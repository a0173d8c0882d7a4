"""How a TensorRT plan is compiled, and how its layers are counted; without TensorRT, so that it is checked anywhere."""

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.errors import EngineError

HARDWARE_COMPATIBILITY = ("none", "ampere-plus", "same-compute-capability")
_MAX_LEVEL = 5
_MEBIBYTE = 1 << 20
_FP32_BYTES = 4
_MAX_FP32_SHARE = 0.75
"""Of the size that the weights have in FP32; an FP16 plan's are half as large."""
_CODE_BYTES = 12 * _MEBIBYTE
"""What a plan may hold beside its weights: more than the weights of a small network. TIN-ResNet50's holds 10 MB."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What TensorRT may be told; the defaults serve one fixed machine."""

    workspace_mb: int = 1024
    """Device memory, in MiB, that a layer may use beside its tensors; TensorRT's own default is all there is."""
    optimization_level: int = 3
    """0 to 5: how long to search for fast kernels."""
    version_compatible: bool = False
    """Runs on later versions of TensorRT with the same major version, and from 10 on 11; somewhat slower."""
    hardware_compatibility: str = "none"
    """"none": this GPU model; "same-compute-capability"; "ampere-plus": all from Ampere on; slower in this order."""
    timing_cache: str = ""
    """File that keeps kernel timings between builds; empty: one in the user's cache folder a version and GPU."""

    def __post_init__(self) -> None:
        if self.workspace_mb < 1:
            raise ValueError(f"workspace_mb is {self.workspace_mb}; it must be 1 or more")
        if not 0 <= self.optimization_level <= _MAX_LEVEL:
            raise ValueError(f"optimization_level is {self.optimization_level}; it must be 0 to {_MAX_LEVEL}")
        if self.hardware_compatibility not in HARDWARE_COMPATIBILITY:
            raise ValueError(
                f"hardware_compatibility is {self.hardware_compatibility!r}; allowed are "
                f"{', '.join(HARDWARE_COMPATIBILITY)}"
            )

    @classmethod
    def parse(cls, settings: Mapping[str, str]) -> "PlanOptions":
        """Read `KEY=VALUE` settings.

        Raises:
            ValueError: An unknown key or a value that is not allowed; the text names what is.
        """
        kinds = {field.name: type(field.default) for field in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for key, text in settings.items():
            if key not in kinds:
                raise ValueError(f"setting {key!r} is unknown; allowed are {', '.join(kinds)}")
            values[key] = _parse(key, text, kinds[key])
        return cls(**values)

    @property
    def workspace_bytes(self) -> int:
        """The workspace's limit as TensorRT takes it."""
        return self.workspace_mb * _MEBIBYTE

    def cache_path(self, version: str, gpu_name: str) -> Path:
        """Return the timing cache's absolute path; a cache serves one version and one GPU model."""
        if self.timing_cache:
            return Path(self.timing_cache).absolute()
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge-ultrasound"
        return folder / f"tensorrt-{_slug(version)}-{_slug(gpu_name)}.timing"


def _parse(key: str, text: str, kind: type) -> Any:
    if kind is bool:
        if text not in ("true", "false"):
            raise ValueError(f"setting {key} is {text!r}; allowed are true and false")
        return text == "true"
    try:
        return kind(text)
    except ValueError as exc:
        raise ValueError(f"setting {key} is {text!r}; it must be a whole number") from exc


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


@dataclasses.dataclass(frozen=True, slots=True)
class LayerCounts:
    """How many of a plan's layers read or write which type, by TensorRT's engine inspector."""

    num_layers: int
    num_half: int
    """Layers with an FP16 input or output."""
    num_float: int
    """Layers whose floats are all FP32."""

    @classmethod
    def read(cls, inspected_json: str) -> "LayerCounts":
        """Count from what `EngineInspector.get_engine_information` gives as JSON.

        Source: the form that TensorRT 8.2 to 11 print with ProfilingVerbosity.DETAILED; a tensor's type is called
        "Half", "FP16" or "... FP16 format" under a key that begins with "Format" or "Datatype", in large and small
        letters as the version likes.

        Raises:
            EngineError: It is no such JSON.
        """
        try:
            layers = list(json.loads(inspected_json)["Layers"])
        except (ValueError, KeyError, TypeError) as exc:
            raise EngineError(
                f"TensorRT's list of layers cannot be read ({exc!r}); build with a version from 10 to 11"
            ) from exc
        types = [_types(layer) for layer in layers if isinstance(layer, Mapping)]
        return cls(
            num_layers=len(layers),
            num_half=sum(any(_is_half(text) for text in each) for each in types),
            num_float=sum(
                any(_is_float(text) for text in each) and not any(_is_half(text) for text in each) for each in types
            ),
        )

    def require_half(self, num_plan_bytes: int, path: Path, num_weights: int) -> None:
        """Refuse a plan that is FP32 all the same.

        TensorRT may fuse the whole network into one layer that shows only its FP32 ends, and torch-tensorrt has it keep
        the layers' names alone; then the plan's size tells, of a network of ten million weights or more.

        Args:
            num_plan_bytes: The plan's size.
            path: What it was made of.
            num_weights: How many weights that holds.

        Raises:
            EngineError: No layer shows FP16, and the plan holds weights in FP32.
        """
        limit_bytes = _MAX_FP32_SHARE * _FP32_BYTES * num_weights + _CODE_BYTES
        if self.num_half == 0 and num_plan_bytes > limit_bytes:
            raise EngineError(
                f"the plan of {path} is refused: none of its {self.num_layers} layers is in FP16; update TensorRT, "
                "or run this bundle on another backend"
            )


def _types(layer: Mapping[str, Any]) -> list[str]:
    tensors = [*(layer.get("Inputs") or []), *(layer.get("Outputs") or [])]
    return [
        str(value)
        for tensor in tensors
        if isinstance(tensor, Mapping)
        for key, value in tensor.items()
        if key.lower().startswith(("format", "datatype"))
    ]


def _is_half(text: str) -> bool:
    return re.search(r"\b(fp16|half|float16)\b", text, re.IGNORECASE) is not None


def _is_float(text: str) -> bool:
    return re.search(r"\b(fp32|float|float32)\b", text, re.IGNORECASE) is not None
