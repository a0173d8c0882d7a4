"""The form of run.json: what a run's description must be, if somebody changed it by hand."""

from typing import Any

from trainer.json_forms import COUNT, FIGURE, NUMBER, OBJECT, TEXT, TOTAL, Each, Kind, Optional, check_form, is_number

_SHARE = Kind("a number from 0 to 1", lambda value: is_number(value) and 0 <= value <= 1)
_POSITIVE = Kind("a number above 0", lambda value: is_number(value) and value > 0)
_SIZE = Kind(
    "two whole numbers from 1",
    lambda value: isinstance(value, list) and len(value) == 2 and all(map(TOTAL.is_right, value)),
)
_CLASSES = Kind(
    "two names or more",
    lambda value: isinstance(value, list) and len(value) > 1 and all(map(TEXT.is_right, value)),
)
_STATE = Kind("training, finished or imported", lambda value: value in ("training", "finished", "imported"))

_REQUIRED = {
    "model": TEXT,
    "model_options": OBJECT,
    "classes": _CLASSES,
    "preprocess": {"resize_hw": _SIZE, "crop_hw": _SIZE, "channels": COUNT},
    "clip": {"num_frames": TOTAL, "frame_interval_ms": _POSITIVE},
}
_IF_GIVEN = {
    "recipe": OBJECT,
    "seed": COUNT,
    "manifest": Each(TEXT),
    "fold": Optional(COUNT),
    "split": Each([TEXT]),
    "video_digests": Each([TEXT]),
    "left_out": Each(TEXT),
    "threshold": _SHARE,
    "threshold_rule": TEXT,
    "temperature": _POSITIVE,
    "validation": dict.fromkeys(
        ("auc", "accuracy", "sensitivity", "specificity", "f1", "kappa", "brier"), Optional(FIGURE)
    ),
    "versions": OBJECT,
    "hardware": OBJECT,
    "weights_sha256": Optional(TEXT),
    "best_epoch": Optional(COUNT),
    "wall_s": NUMBER,
    "state": _STATE,
}
"""What earlier versions did not write may be missing, and has a default then."""


def check_run(content: dict[str, Any]) -> None:
    """Hold what run.json says against what a run must say.

    Raises:
        ValueError: It names the first key that is missing or of another kind.
    """
    check_form(content, {**_REQUIRED, **{key: form for key, form in _IF_GIVEN.items() if key in content}})
