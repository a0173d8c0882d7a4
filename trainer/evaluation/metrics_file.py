"""Reads an evaluation's metrics.json, and refuses one that somebody changed into what a report cannot show."""

import json
from pathlib import Path

from edge.errors import ConfigError
from trainer.evaluation.folder import CASE_KINDS
from trainer.evaluation.metrics import Metrics
from trainer.evaluation.summary import PROPORTIONS
from trainer.json_forms import COUNT, FIGURE, NUMBER, OBJECT, RANGE, SIZE, TEXT, TOTAL, Kind, Optional, check_form

_CASE_KIND = Kind(f"one of {', '.join(CASE_KINDS)}", lambda value: value in CASE_KINDS)
_IN_MASK = Kind("0, 1 or null", lambda value: value in (0, 1, None))

_CALLS = {
    "n": TOTAL,
    "counts": dict.fromkeys(("tp", "fp", "tn", "fn"), COUNT),
    **dict.fromkeys((*PROPORTIONS, "f1", "kappa", "kappa_se", "auc"), FIGURE),
    **{f"{name}_ci": RANGE for name in (*PROPORTIONS, "auc")},
}
_FIGURES = {**_CALLS, "threshold": FIGURE, **dict.fromkeys(("average_precision", "brier", "ece"), FIGURE)}
_TEST = {"p_value": FIGURE}
_READER = {"reader": TEXT, **_CALLS, "auc_of": TEXT, "mcnemar": _TEST, "delong": _TEST}
_CASE = {
    "kind": _CASE_KIND,
    "id": TEXT,
    "picture": TEXT,
    "probability": NUMBER,
    "keyframe": COUNT,
    "peak": NUMBER,
    "is_inside_mask": Optional(_IN_MASK),
}
_HITS = {
    **dict.fromkeys(("num_videos", "num_windows"), COUNT),
    **dict.fromkeys(("keyframe_hit_rate", "window_hit_rate", "mask_share"), NUMBER),
}
_MODEL = {
    **dict.fromkeys(("network_options", "recipe", "trained_on"), Optional(OBJECT)),
    **dict.fromkeys(("network", "weights_sha256"), Optional(TEXT)),
    **dict.fromkeys(("threshold", "temperature", "wall_s"), Optional(NUMBER)),
    "clip": Optional({"num_frames": COUNT, "frame_interval_ms": NUMBER}),
    "preprocess": Optional({"resize_hw": SIZE, "crop_hw": SIZE, "channels": COUNT}),
    "engine": Optional(dict.fromkeys(("backend", "precision", "device"), TEXT)),
}
_METRICS = {
    "name": TEXT,
    **_FIGURES,
    "interval": TEXT,
    "num_patients": Optional(COUNT),
    "patient_level": Optional(_FIGURES),
    "patient_level_reason": Optional(TEXT),
    "reasons": Optional(OBJECT),
    "subgroups": Optional([{"covariate": TEXT, "level": TEXT, **_CALLS}]),
    "readers": Optional([_READER]),
    "cases": Optional([_CASE]),
    "heatmap": Optional(_HITS),
    "model": _MODEL,
    "data": {"left_out": Optional(OBJECT)},
}


def read_metrics(path: Path) -> Metrics:
    """Read metrics.json.

    Raises:
        ConfigError: It cannot be read, or what a report needs is missing or of another kind; the key is named.
    """
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        check_form(metrics, _METRICS)
    except (OSError, ValueError, RecursionError) as exc:
        raise ConfigError(f"{path} cannot be read ({exc}); run edge-train evaluate again") from exc
    assert isinstance(metrics, dict)
    return metrics
