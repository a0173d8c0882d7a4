"""Reads an evaluation's metrics.json, and refuses one that somebody changed into what a report cannot show."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edge.errors import ConfigError
from trainer.evaluation.folder import CASE_KINDS
from trainer.evaluation.metrics import Metrics
from trainer.evaluation.summary import PROPORTIONS


@dataclasses.dataclass(frozen=True, slots=True)
class _Kind:
    """What a value must be."""

    words: str
    is_right: Callable[[Any], bool]


@dataclasses.dataclass(frozen=True, slots=True)
class _Optional:
    """A value that may be missing, or null."""

    form: "_Form"


_Form = _Kind | _Optional | Mapping[str, Any] | list[Any]
"""A kind, the forms of an object's keys, or the form of a list's every item."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


_TEXT = _Kind("text", lambda value: isinstance(value, str))
_OBJECT = _Kind("an object", lambda value: isinstance(value, dict))
_COUNT = _Kind("a whole number from 0", _is_count)
_TOTAL = _Kind("a whole number from 1", lambda value: _is_count(value) and value > 0)
_NUMBER = _Kind("a number", _is_number)
_FIGURE = _Kind("a number or null", lambda value: value is None or _is_number(value))
_RANGE = _Kind("two numbers or null", lambda value: value is None or _is_pair(value))
_SIZE = _Kind("two numbers", _is_pair)
_CASE_KIND = _Kind(f"one of {', '.join(CASE_KINDS)}", lambda value: value in CASE_KINDS)
_IN_MASK = _Kind("0, 1 or null", lambda value: value in (0, 1, None))

_CALLS = {
    "n": _TOTAL,
    "counts": dict.fromkeys(("tp", "fp", "tn", "fn"), _COUNT),
    **dict.fromkeys((*PROPORTIONS, "f1", "kappa", "kappa_se", "auc"), _FIGURE),
    **{f"{name}_ci": _RANGE for name in (*PROPORTIONS, "auc")},
}
_FIGURES = {**_CALLS, "threshold": _FIGURE, **dict.fromkeys(("average_precision", "brier", "ece"), _FIGURE)}
_TEST = {"p_value": _FIGURE}
_READER = {"reader": _TEXT, **_CALLS, "auc_of": _TEXT, "mcnemar": _TEST, "delong": _TEST}
_CASE = {
    "kind": _CASE_KIND,
    "id": _TEXT,
    "picture": _TEXT,
    "probability": _NUMBER,
    "keyframe": _COUNT,
    "peak": _NUMBER,
    "is_inside_mask": _Optional(_IN_MASK),
}
_HITS = {
    **dict.fromkeys(("num_videos", "num_windows"), _COUNT),
    **dict.fromkeys(("keyframe_hit_rate", "window_hit_rate", "mask_share"), _NUMBER),
}
_MODEL = {
    **dict.fromkeys(("network_options", "recipe", "trained_on"), _Optional(_OBJECT)),
    **dict.fromkeys(("network", "weights_sha256"), _Optional(_TEXT)),
    **dict.fromkeys(("threshold", "temperature", "wall_s"), _Optional(_NUMBER)),
    "clip": _Optional({"num_frames": _COUNT, "frame_interval_ms": _NUMBER}),
    "preprocess": _Optional({"resize_hw": _SIZE, "crop_hw": _SIZE, "channels": _COUNT}),
    "engine": _Optional(dict.fromkeys(("backend", "precision", "device"), _TEXT)),
}
_METRICS = {
    "name": _TEXT,
    **_FIGURES,
    "interval": _TEXT,
    "num_patients": _Optional(_COUNT),
    "patient_level": _Optional(_FIGURES),
    "patient_level_reason": _Optional(_TEXT),
    "reasons": _Optional(_OBJECT),
    "subgroups": _Optional([{"covariate": _TEXT, "level": _TEXT, **_CALLS}]),
    "readers": _Optional([_READER]),
    "cases": _Optional([_CASE]),
    "heatmap": _Optional(_HITS),
    "model": _MODEL,
    "data": {"left_out": _Optional(_OBJECT)},
}


def read_metrics(path: Path) -> Metrics:
    """Read metrics.json.

    Raises:
        ConfigError: It cannot be read, or what a report needs is missing or of another kind; the key is named.
    """
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        _check(metrics, _METRICS, "")
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{path} cannot be read ({exc}); run edge-train evaluate again") from exc
    assert isinstance(metrics, dict)
    return metrics


def _check(value: Any, form: _Form, name: str) -> None:
    """Raise ValueError with the name of the first value that does not have its form, such as `readers[0].auc`."""
    if isinstance(form, _Optional):
        if value is not None:
            _check(value, form.form, name)
    elif isinstance(form, list):
        _demand(isinstance(value, list), value, name, "a list")
        for place, item in enumerate(value):
            _check(item, form[0], f"{name}[{place}]")
    elif isinstance(form, Mapping):
        _demand(isinstance(value, dict), value, name, "an object")
        for key, own in form.items():
            path = f"{name}.{key}" if name else key
            if key not in value and not isinstance(own, _Optional):
                raise ValueError(f"it has no {path}")
            _check(value.get(key), own, path)
    else:
        _demand(form.is_right(value), value, name, form.words)


def _demand(is_right: bool, value: Any, name: str, words: str) -> None:
    if not is_right:
        raise ValueError(f"{name or 'it'} is {_told(value)}, not {words}")


def _told(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:40]}..."
