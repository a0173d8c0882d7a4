"""A run: the folder that a training leaves, and that evaluation, report and export read.

    RUN/run.json              what was trained, on what, how, and how it went
    RUN/model.safetensors     the weights of the chosen epoch
    RUN/checkpoints/          where `--resume` goes on
    RUN/metrics.csv           a line an epoch;  RUN/tensorboard/ the same for TensorBoard
    RUN/predictions.csv       the validation videos

A cross-validation is a folder of runs, `fold-0` ..., with `crossval.json`, which names the best.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.commandline import print_line
from engines import PreprocessSpec
from trainer.errors import RunError
from trainer.files import write_atomic, write_json
from trainer.run_form import check_run

if TYPE_CHECKING:
    from torch import Tensor, nn

SCHEMA = 1
RUN_NAME = "run.json"
WEIGHTS_NAME = "model.safetensors"
METRICS_NAME = "metrics.csv"
PREDICTIONS_NAME = "predictions.csv"
CROSSVAL_NAME = "crossval.json"

TRAINING, FINISHED, IMPORTED = "training", "finished", "imported"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What `run.json` says."""

    path: Path
    model: str
    """A name of `trainer.models.MODELS`."""
    model_options: Mapping[str, Any]
    """What the builder is given beyond the sizes of its input and output."""
    classes: tuple[str, ...]
    """The last class is the positive one."""
    preprocess: PreprocessSpec
    num_frames: int
    frame_interval_ms: float
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seed: int = 0
    manifest: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """`name` and `sha256`."""
    fold: int | None = None
    split: Mapping[str, list[str]] = dataclasses.field(default_factory=dict)
    """Ids of the videos under `train`, `validation` and `test`."""
    video_digests: Mapping[str, list[str]] = dataclasses.field(default_factory=dict)
    """Of the contents of the videos under `train` and `validation`, as `trainer.data.seen` says; also of earlier runs
    that training started from."""
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Id to reason of the videos that could not be used."""
    threshold: float = 0.5
    """Operating point on the positive class's probability, chosen on the validation videos."""
    threshold_rule: str = "youden"  # `trainer.evaluation.calibration.DEFAULT_RULE`, without loading SciPy
    """How it is chosen; see `trainer.evaluation.calibration.choose_threshold`."""
    temperature: float = 1.0
    """The logits are divided by it before the softmax."""
    validation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    hardware: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    weights_sha256: str | None = None
    """Of model.safetensors; None while training lasts."""
    best_epoch: int | None = None
    """The one whose weights were kept, from 1."""
    wall_s: float = 0.0
    """Of all epochs together."""
    state: str = TRAINING
    """`training`, `finished` or `imported`."""

    @property
    def roi(self) -> str:
        """How the ROI is found where the manifest names none."""
        return str(self.recipe.get("roi", "auto"))

    def network(self) -> "nn.Module":
        """Build the network with the run's weights, in evaluation mode, on the CPU.

        Raises:
            RunError: The weights are missing, damaged or another network's.
        """
        model = build_network(self)
        load_weights(model, self.path / WEIGHTS_NAME, self.weights_sha256)
        return model.eval()


def build_network(run: Run) -> "nn.Module":
    """Build the network that a run describes, with its start weights.

    Raises:
        RunError: The network does not know one of the options, or cannot be built with them.
    """
    from trainer.models import build_model

    sizes = {"num_classes": len(run.classes), "num_frames": run.num_frames, "in_channels": run.preprocess.channels}
    try:
        return build_model(run.model, **sizes, **run.model_options)
    except (TypeError, ValueError, RuntimeError) as exc:
        options = ", ".join(f"{key}={value}" for key, value in run.model_options.items()) or "no options"
        raise RunError(f"{run.model} cannot be built with {options}: {str(exc).splitlines()[0]}") from exc


def load_weights(model: "nn.Module", path: Path, sha256: str | None = None) -> None:
    """Load safetensors into a network, all of them by name and shape.

    Raises:
        RunError: The file is missing, damaged or another network's.
    """
    weights = read_weights(path)
    if sha256 is not None and hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise RunError(f"{path} is damaged or another's: its hash is not that of {RUN_NAME}; train or import again")
    try:
        model.load_state_dict(weights)
    except RuntimeError as exc:
        raise RunError(f"{path} holds another network's weights ({_misfit(exc)}); give the run's own --model") from exc


def _misfit(exc: RuntimeError) -> str:
    """Return the first difference of many that torch lists, and how long its first list is."""
    lines = [line.strip() for line in str(exc).splitlines()]
    first = lines[1] if len(lines) > 1 else lines[0]
    named, *others = first.rstrip(".").split('", "')
    return f'{named}" and {len(others)} more' if others else named


def read_weights(path: Path) -> dict[str, "Tensor"]:
    """Return the tensors of a safetensors file, by name.

    Raises:
        RunError: The file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError as exc:
        raise RunError(
            f"{path} is missing: the training did not finish, or someone took it away; the same command with --resume "
            "goes on, or makes it again"
        ) from exc
    except (OSError, SafetensorError) as exc:
        raise RunError(f"{path} is damaged ({exc}); train or import again") from exc


def write_weights(path: Path, weights: Mapping[str, "Tensor"]) -> str:
    """Write tensors as safetensors, in one piece; return the file's sha256."""
    from safetensors.torch import save

    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()})
    write_atomic(path, content)
    return hashlib.sha256(content).hexdigest()


def write_run(run: Run) -> None:
    """Write `run.json` into the run's folder."""
    content = {key: value for key, value in dataclasses.asdict(run).items() if key not in ("path", *_CLIP_KEYS)}
    clip = {key: getattr(run, key) for key in _CLIP_KEYS}
    write_json(run.path / RUN_NAME, {"schema": SCHEMA, **content, "clip": clip})


_CLIP_KEYS = ("num_frames", "frame_interval_ms")


def load_run(path: str | os.PathLike[str]) -> Run:
    """Read a run's folder; that of a cross-validation gives its best fold.

    Raises:
        RunError: The folder is no run, or its description cannot be read.
    """
    folder = Path(path)
    if (folder / CROSSVAL_NAME).is_file():
        best = _read_json(folder / CROSSVAL_NAME).get("best")
        if not isinstance(best, str):
            raise RunError(
                f"{folder / CROSSVAL_NAME} does not name the best fold; give the folder of a fold, or train again"
            )
        folder = folder / best
    if not (folder / RUN_NAME).is_file():
        raise RunError(
            f"{folder} is no run: it has no {RUN_NAME}; give the --out of edge-train fit, crossval or import"
        )
    return _parse(folder, _read_json(folder / RUN_NAME))


def _parse(folder: Path, content: dict[str, Any]) -> Run:
    schema = content.pop("schema", None)
    if schema != SCHEMA:
        raise RunError(f"{folder / RUN_NAME} has schema {schema}, this version reads {SCHEMA}; update edge-ultrasound")
    try:
        check_run(content)
        spec = content.pop("preprocess")
        preprocess = PreprocessSpec(tuple(spec["resize_hw"]), tuple(spec["crop_hw"]), spec["channels"])
    except ValueError as exc:
        raise RunError(f"{folder / RUN_NAME} cannot be read ({exc}); put it right, or train again") from exc
    clip, classes = content.pop("clip"), tuple(content.pop("classes"))
    known = {field.name for field in dataclasses.fields(Run)} - {"path"}
    rest = {key: value for key, value in content.items() if key in known}
    sizes = {key: clip[key] for key in _CLIP_KEYS}
    return Run(path=folder, preprocess=preprocess, classes=classes, **sizes, **rest)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise RunError(f"{path} cannot be read ({exc}); train again") from exc
    if not isinstance(content, dict):
        raise RunError(f"{path} holds no JSON object; train again")
    return content


def warn_of_unfinished(run: Run) -> None:
    """Say of a run whose training goes on, or was interrupted, what its weights and threshold are."""
    if run.state == TRAINING:
        print_line(
            "warning",
            f"the training of {run.path} did not finish: these are the best weights so far, at a threshold of "
            f"{run.threshold:g} and a temperature of {run.temperature:g} that nobody chose; the same command with "
            "--resume goes on",
        )


def describe_result(run: Run) -> str:
    """Return one line on how a training went."""
    found = run.validation
    figures = ", ".join(f"{name} {found[name]:.3f}" for name in ("auc", "sensitivity", "specificity"))
    return (
        f"{run.path}: best epoch {run.best_epoch}; on {found['n']} validation videos {figures} "
        f"at threshold {run.threshold:.3f}"
    )
