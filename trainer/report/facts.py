"""What a report tells of a training in words: recipe, versions, hardware, hashes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from trainer.evaluation.metrics import Metrics


@dataclasses.dataclass(frozen=True, slots=True)
class Fact:
    """A name and what it is."""

    name: str
    value: str


def facts_of_training(about: Metrics) -> tuple[tuple[Fact, ...], tuple[Fact, ...]]:
    """Return the facts of a run or a bundle, and its recipe; what is not known is left out."""
    facts = {
        "network": _with_options(about.get("network"), about.get("network_options")),
        "clip": _clip(about),
        "trained on": _trained_on(about.get("trained_on")),
        "fold": about.get("fold"),
        "seed": about.get("seed"),
        "threshold, chosen in validation": _rounded(about.get("threshold")),
        "temperature": _rounded(about.get("temperature")),
        "state": _state(about.get("state")),
        "wall time": _duration(about.get("wall_s")),
        "hardware": _joined(about.get("hardware")),
        "versions": _joined(about.get("versions")),
        "engine": _engine(about.get("engine")),
        "weights, SHA-256": about.get("weights_sha256"),
        "as the bundle says": _nested(about.get("training")),
    }
    recipe = about.get("recipe") or {}
    return (
        tuple(Fact(name, str(value)) for name, value in facts.items() if value not in (None, "")),
        tuple(Fact(name, _plain(value)) for name, value in recipe.items()),
    )


def _with_options(network: Any, options: Any) -> str | None:
    given = _joined(options)
    return f"{network} ({given})" if network and given else network


def _clip(about: Metrics) -> str | None:
    clip, spec = about.get("clip"), about.get("preprocess")
    if not clip or not spec:
        return None
    (height, width), (crop_height, crop_width) = spec["resize_hw"], spec["crop_hw"]
    colours = "gray" if spec["channels"] == 1 else "RGB"
    return (
        f"{clip['num_frames']} frames, {clip['frame_interval_ms']:.4g} ms apart; resized to {width} x {height}, "
        f"centre {crop_width} x {crop_height}, {colours}"
    )


def _trained_on(trained_on: Any) -> str | None:
    if not trained_on:
        return None
    numbers = [f"{trained_on[key]} {key.removeprefix('num_')}" for key in trained_on if key.startswith("num_")]
    name, sha256 = trained_on.get("name", "not told"), str(trained_on.get("sha256") or "not told")[:16]
    return f"{name}, SHA-256 {sha256}; videos: {', '.join(numbers) or 'not told'}"


def _engine(engine: Any) -> str | None:
    return f"{engine['backend']} {engine['precision']} on {engine['device']}" if engine else None


def _state(state: Any) -> str | None:
    """Return what matters of a run's state: a finished training goes without saying."""
    return "training did not finish: threshold and temperature were not chosen" if state == "training" else None


def _duration(seconds: Any) -> str | None:
    if not seconds:
        return None
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"


def _rounded(value: Any) -> str | None:
    return None if value is None else f"{value:.4g}"


def _joined(values: Any) -> str:
    return ", ".join(f"{name} {_plain(value)}" for name, value in values.items()) if isinstance(values, Mapping) else ""


def _nested(value: Any) -> str:
    """Return a mapping of any depth as one text."""
    if isinstance(value, Mapping):
        return "; ".join(
            f"{name}: ({_nested(part)})" if isinstance(part, Mapping) else f"{name}: {_plain(part)}"
            for name, part in value.items()
        )
    return ""


def _plain(value: Any) -> str:
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return f"{len(value)} items" if len(value) > 8 else ", ".join(_plain(part) for part in value)
    return str(value)
