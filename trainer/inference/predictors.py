"""A run or a bundle as one thing: decoded videos in, what is said of every window out."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edge.errors import ConfigError
from edge.preprocess import centre_crop
from engines import Bundle, Engine, load_bundle, load_engine
from engines.bundle import MANIFEST_NAME, sha256_of
from trainer.data.clips import VideoFrames
from trainer.data.decode import ClipSpec
from trainer.data.seen import Seen
from trainer.evaluation.aggregate import logits_of
from trainer.runs import CROSSVAL_NAME, METRICS_NAME, RUN_NAME, WEIGHTS_NAME, Run, load_run, warn_of_unfinished


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class WindowOutput:
    """What was said of one window."""

    logits: npt.NDArray[np.float64]
    """(K,) logarithms of the probabilities, up to a constant; temperature is in them."""
    heatmap: npt.NDArray[np.float32]
    """(T, h, w) >= 0: where the evidence for the positive class lies."""


@dataclasses.dataclass(frozen=True, slots=True)
class Card:
    """What is known of a model before it sees a video."""

    name: str
    classes: tuple[str, ...]
    threshold: float
    clip: ClipSpec
    roi: str
    """ "auto" or "full", for videos whose ROI the manifest does not say."""
    about: Mapping[str, Any]
    """What the report tells: network, recipe, versions, hashes."""
    manifest_sha256: str | None
    """Of the manifest that it was trained on, where that is known."""
    split: Mapping[str, list[str]]
    """Ids of that manifest's videos under `train`, `validation` and `test`; empty where it is not known."""
    seen: Seen = dataclasses.field(default_factory=Seen)
    """Digests of the videos of its training; none where it was trained before they were kept, or by others."""
    history: Path | None = None
    """The training's metrics.csv."""


class Predictor(Protocol):
    """Runs every window of a video, in order."""

    card: Card

    def windows(self, video: VideoFrames) -> Iterator[WindowOutput]: ...

    def close(self) -> None: ...


def open_predictor(path: Path, backend: str | None = None, device: str | None = None) -> Predictor:
    """Load a run's or a bundle's network.

    Args:
        path: A run's, a cross-validation's (its best fold is taken) or a bundle's folder.
        backend: For a bundle, as `edge-infer --backend`.
        device: Where it runs; None for the backend's default, or a run on the GPU where there is one.

    Raises:
        ConfigError: The folder is neither, or the device is not there.
        EngineError: The bundle was refused.
    """
    if (path / MANIFEST_NAME).is_file():
        return BundlePredictor(load_bundle(path), backend or "auto", device)
    if not any((path / name).is_file() for name in (RUN_NAME, CROSSVAL_NAME)):
        raise ConfigError(
            f"{path} is neither a run ({RUN_NAME}), a cross-validation ({CROSSVAL_NAME}) nor a bundle "
            f"({MANIFEST_NAME}); give the --out of edge-train fit, crossval, import or export"
        )
    if backend is not None:
        raise ConfigError(f"--backend runs bundles; {path} is a run: leave it out, or edge-train export the run first")
    run = load_run(path)
    predictor = RunPredictor(run, device)
    warn_of_unfinished(run)
    return predictor


class RunPredictor:
    """A run's network in PyTorch."""

    def __init__(self, run: Run, device: str | None) -> None:
        import torch

        self.card = _card_of_run(run)
        self._temperature = run.temperature
        try:
            self._network = run.network().to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        except (RuntimeError, AssertionError) as exc:
            reason = str(exc).splitlines()[0]
            raise ConfigError(f"--device {device} cannot be used ({reason}); give cpu or cuda") from exc

    def windows(self, video: VideoFrames) -> Iterator[WindowOutput]:
        import torch

        from trainer.inference.predict import window_batches

        with torch.inference_mode():
            for clips in window_batches(self._network, video):
                logits, heatmaps = self._network.explain(clips)
                scaled = logits.double().cpu().numpy() / self._temperature
                for row, heatmap in zip(scaled, heatmaps.float().cpu().numpy(), strict=True):
                    yield WindowOutput(row, heatmap)

    def close(self) -> None:
        del self._network


class BundlePredictor:
    """A bundle's engine, as the daemon runs it."""

    def __init__(self, bundle: Bundle, backend: str, device: str | None) -> None:
        self._engine: Engine = load_engine(bundle, backend, device)
        self.card = _card_of_bundle(bundle, self._engine)

    def windows(self, video: VideoFrames) -> Iterator[WindowOutput]:
        # frames before a gap are never in a window that starts after it, so the ring needs no reset
        ends = set((video.window_starts + video.num_frames - 1).tolist())
        self._engine.reset()
        for place in range(len(video.frames)):
            frame_chw = centre_crop(video.frames[place], self.card.clip.preprocess)
            self._engine.push(np.multiply(frame_chw, np.float32(1 / 255), dtype=np.float32))
            if place in ends:
                output = self._engine.infer()
                yield WindowOutput(logits_of(output.probabilities), output.heatmap)

    def close(self) -> None:
        self._engine.close()


def name_of_run(run: Run) -> str:
    """Return the folder's name; a fold's says of which cross-validation."""
    path = run.path.absolute()
    return f"{path.parent.name}/{path.name}" if (path.parent / CROSSVAL_NAME).is_file() else path.name


def about_run(run: Run) -> dict[str, Any]:
    """Return what a report tells of a run."""
    weights = run.path / WEIGHTS_NAME
    return {
        "kind": "run",
        "name": name_of_run(run),
        "network": run.model,
        "network_options": dict(run.model_options),
        "clip": {"num_frames": run.num_frames, "frame_interval_ms": run.frame_interval_ms},
        "preprocess": dataclasses.asdict(run.preprocess),
        "recipe": dict(run.recipe),
        "seed": run.seed,
        "fold": run.fold,
        "threshold": run.threshold,
        "temperature": run.temperature,
        "validation": dict(run.validation),
        "versions": dict(run.versions),
        "hardware": dict(run.hardware),
        "wall_s": run.wall_s,
        "state": run.state,
        "trained_on": {**run.manifest, **{f"num_{part}": len(ids) for part, ids in run.split.items()}},
        "weights_sha256": sha256_of(weights) if weights.is_file() else None,
    }


def _card_of_run(run: Run) -> Card:
    return Card(
        name=name_of_run(run),
        classes=run.classes,
        threshold=run.threshold,
        clip=ClipSpec(run.preprocess, run.num_frames, run.frame_interval_ms),
        roi=run.roi,
        about=about_run(run),
        manifest_sha256=run.manifest.get("sha256"),
        split=run.split,
        seen=Seen.of_json(run.video_digests),
        history=run.path / METRICS_NAME,
    )


_TOLD = (
    *("recipe", "seed", "fold", "temperature", "versions", "hardware", "wall_time_s", "data", "num_videos"),
    *("model_options", "validation", "state", "video_digests"),
)
"""What the export writes of a training and the card tells by itself; other bundles may say anything."""


def _card_of_bundle(bundle: Bundle, engine: Engine) -> Card:
    training = dict(bundle.training)
    data, recipe = _mapping(training, "data"), _mapping(training, "recipe")
    about = {
        "kind": "bundle",
        "name": bundle.name,
        "network": training.pop("model", None),
        "network_options": _mapping(training, "model_options"),
        "validation": _mapping(training, "validation"),
        "clip": {"num_frames": bundle.num_frames, "frame_interval_ms": bundle.frame_interval_ms},
        "preprocess": dataclasses.asdict(bundle.preprocess),
        "threshold": bundle.threshold,
        "recipe": recipe,
        **{name: training.get(name) for name in ("seed", "fold", "temperature", "versions", "hardware", "state")},
        "wall_s": training.get("wall_time_s"),
        "trained_on": {**data, **{f"num_{part}": n for part, n in _mapping(training, "num_videos").items()}},
        "training": {name: value for name, value in training.items() if name not in _TOLD or _is_text(name, value)},
        "engine": dataclasses.asdict(engine.spec),
        "weights_sha256": engine.spec.sha256,
    }
    return Card(
        name=bundle.name,
        classes=bundle.classes,
        threshold=bundle.threshold,
        clip=ClipSpec(bundle.preprocess, bundle.num_frames, bundle.frame_interval_ms),
        roi=str(recipe.get("roi", "auto")),
        about=about,
        manifest_sha256=data.get("sha256"),
        split={},  # a bundle names no videos: it travels
        seen=Seen.of_json(training.get("video_digests")),
    )


def _is_text(name: str, value: Any) -> bool:
    return isinstance(value, str) and name != "state"


def _mapping(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a part of what people may write freely; empty where it is no mapping."""
    return dict(part) if isinstance(part := values.get(name), Mapping) else {}
