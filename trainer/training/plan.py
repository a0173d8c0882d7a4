"""A training that was found sound before hours are spent on it."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import nn

from edge.commandline import print_line
from edge.errors import ConfigError
from trainer.data.clips import ClipStore, VideoFrames, default_cache_dir
from trainer.data.folds import By, Split, split_for_fold
from trainer.data.manifest import MAX_NAMED, Manifest, ManifestError, read_manifest
from trainer.data.seen import Seen, digest_of
from trainer.data.video import Video
from trainer.errors import RunError
from trainer.evaluation.calibration import DEFAULT_RULE, parse_rule
from trainer.models import MODELS
from trainer.runs import Run, build_network, load_run
from trainer.training.recipe import Recipe, make_recipe
from trainer.training.resume import Start, find_start
from trainer.training.surroundings import default_precision, hardware, versions

Decoded = tuple[Video, VideoFrames]

MAX_SEED = 2**32 - 1
"""The largest that all libraries take."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions:
    """What `edge-train fit` is asked for."""

    manifest: Path
    model: str
    out: Path
    preset: str = "paper"
    settings: tuple[str, ...] = ()
    """`KEY=VALUE` each."""
    fold: int | None = None
    num_folds: int = 5
    by: By = "patient"
    seed: int = 0
    resume: bool = False
    cache: Path | None = None
    """Where decoded videos are kept; None: where all commands keep them."""
    devices: int = 1
    """On each node."""
    num_nodes: int = 1
    precision: str | None = None
    """As Lightning names it; None: what the recipe says."""
    threshold_rule: str = DEFAULT_RULE


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What is trained, on what, and from where on."""

    run: Run
    recipe: Recipe
    start: Start
    network: nn.Module
    """With its start weights."""
    train: tuple[Decoded, ...]
    validation: tuple[Decoded, ...]


def make_plan(options: FitOptions) -> Plan:
    """Check all that can be checked before training, the cheap first; build the network and decode the videos.

    Raises:
        ConfigError: Wrong options, manifest, folds, recipe, run folder or start weights.
    """
    parse_rule(options.threshold_rule)
    if not 0 <= options.seed <= MAX_SEED:
        raise ConfigError(f"--seed is {options.seed}; a whole number from 0 to {MAX_SEED} is needed")
    recipe = make_recipe(options.preset, options.settings, is_static=MODELS[options.model].is_static)
    manifest = read_manifest(options.manifest)
    split = split_for_fold(manifest, options.fold, options.num_folds, options.seed, options.by)
    run = _describe(options, manifest, recipe, split)
    # other processes of the same training find the folder that the first has made
    start = find_start(run, options.resume or rank_zero_only.rank > 0)
    network = _make_network(run, recipe)
    if start.is_finished:
        return Plan(run, recipe, start, network, (), ())
    store = _store(options, recipe)
    left_out = store.prepare([*split.train, *split.validation]).left_out
    _tell_left_out(left_out)
    train = tuple((video, store.get(video)) for video in split.train if video.id not in left_out)
    validation = tuple((video, store.get(video)) for video in split.validation if video.id not in left_out)
    _check_classes(manifest, train, "training", set(range(len(manifest.classes))))
    _check_classes(manifest, validation, "validation", {len(manifest.classes) - 1})
    run = dataclasses.replace(run, left_out=left_out, video_digests=_seen(recipe, store, train, validation).as_json())
    return Plan(run, recipe, start, network, train, validation)


def _seen(recipe: Recipe, store: ClipStore, train: Sequence[Decoded], validation: Sequence[Decoded]) -> Seen:
    """Return what the network will have seen, here and in the run that it starts from; warn where that spoils both."""
    own = Seen.of_videos((video for video, _ in train), (video for video, _ in validation), store.content)
    start = Seen() if recipe.init is None else Seen.of_json(load_run(recipe.init).video_digests)
    known = {"training": own.train, f"the training of {recipe.init}": start.train}
    for whose, digests in known.items():
        names = [video.id for video, _ in validation if digest_of(store.content(video)) in digests]
        if names and rank_zero_only.rank == 0:
            more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
            print_line(
                "warning",
                f"{len(names)} validation videos are files of {whose} too: {', '.join(names[:MAX_NAMED])}{more}; the "
                "validation, and all that is chosen by it, will flatter",
            )
    return own | start


def _describe(options: FitOptions, manifest: Manifest, recipe: Recipe, split: Split) -> Run:
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    return Run(
        path=options.out,
        model=options.model,
        model_options={**_options_of_start(recipe), **recipe.model_options},
        classes=manifest.classes,
        preprocess=recipe.preprocess,
        num_frames=recipe.num_frames,
        frame_interval_ms=recipe.frame_interval_ms,
        recipe={"preset": options.preset, **recipe.as_dict()},
        seed=options.seed,
        manifest={"name": manifest.path.name, "sha256": manifest.sha256},
        fold=options.fold,
        threshold_rule=options.threshold_rule,
        split={name: [video.id for video in videos] for name, videos in parts.items()},
        versions=versions(),
        hardware=hardware(options.devices, options.num_nodes, options.precision or default_precision(recipe)),
    )


def _store(options: FitOptions, recipe: Recipe) -> ClipStore:
    folder = options.cache or default_cache_dir()
    return ClipStore(folder, recipe.preprocess, recipe.num_frames, recipe.frame_interval_ms, recipe.roi)


def _make_network(run: Run, recipe: Recipe) -> nn.Module:
    _check_step(run, recipe)
    torch.manual_seed(run.seed)
    network = build_network(run)
    if recipe.init is not None:
        _start_from(network, Path(recipe.init))
    return network


def _check_step(run: Run, recipe: Recipe) -> None:
    """Take a training step with shapes in place of numbers: what does not fit shows before the videos are decoded.

    Raises:
        RunError: The network cannot work on clips, or learn from batches, of this size.
    """
    clip = (run.num_frames, recipe.channels, recipe.crop, recipe.crop)
    with torch.device("meta"):
        network = build_network(run).train()
        try:
            network.training_logits(torch.empty(recipe.batch_size, *clip))
        except (RuntimeError, ValueError) as exc:
            shape = " x ".join(map(str, clip))
            raise RunError(
                f"{run.model} cannot learn from batches of {recipe.batch_size} clips of {shape} "
                f"({str(exc).splitlines()[0].rstrip('.')}); choose a larger crop (and resize) or batch_size"
            ) from exc


def _options_of_start(recipe: Recipe) -> dict[str, Any]:
    """Return how the run that training starts from builds its network, such as the pixels' mean that it expects."""
    return {} if recipe.init is None else dict(load_run(recipe.init).model_options)


def _start_from(network: nn.Module, path: Path) -> None:
    """Take a run's weights, by name and shape; say what keeps its random start, mostly the head of other classes."""
    given, own = load_run(path).network().state_dict(), network.state_dict()
    fitting = {name: tensor for name, tensor in given.items() if name in own and own[name].shape == tensor.shape}
    if _num_elements(fitting.values()) < _num_elements(own.values()) / 2:
        raise RunError(
            f"--set init={path}: most of its weights do not fit this network; give a run of the same --model"
        )
    network.load_state_dict(fitting, strict=False)
    left = [name for name in own if name not in fitting]
    if rank_zero_only.rank == 0:
        names = ", ".join(left[:MAX_NAMED]) + (f" and {len(left) - MAX_NAMED} more" if len(left) > MAX_NAMED else "")
        print(f"started from {path}: {len(fitting)} of {len(own)} tensors; random: {names or 'none'}", flush=True)


def _num_elements(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _tell_left_out(left_out: dict[str, str]) -> None:
    if rank_zero_only.rank == 0:
        for name, reason in left_out.items():
            print_line("warning", f"{name} is left out: {reason}")


def _check_classes(manifest: Manifest, videos: Sequence[Decoded], what: str, needed: set[int]) -> None:
    """Refuse videos that lack a needed class, or are all of one."""
    labels = {video.label for video, _ in videos}
    if not videos:
        raise ManifestError(f"{manifest.path}: no {what} video can be used; mend the files that are left out")
    if len(labels) < 2 or not needed <= labels:
        there = " and ".join(repr(manifest.classes[label]) for label in sorted(labels))
        raise ManifestError(
            f"{manifest.path}: the {len(videos)} {what} videos that can be used are of class {there} alone; mend the "
            "files that are left out, choose another split or fold, or add videos"
        )
