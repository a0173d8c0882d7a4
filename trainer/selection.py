"""Which videos of a manifest measure a model: never, unless asked for, those that it was trained or chosen on."""

import dataclasses

from edge.commandline import print_line
from edge.errors import ConfigError
from trainer.manifest import Manifest
from trainer.predictors import Card
from trainer.video import Video

_PARTS = {"train": "train", "val": "validation", "test": "test"}
"""The command's words to those of run.json."""

Parts = dict[str, tuple[Video, ...]]


@dataclasses.dataclass(frozen=True, slots=True)
class Selection:
    """The chosen videos, and in words which they are."""

    videos: tuple[Video, ...]
    description: str


def select_videos(manifest: Manifest, card: Card, split: str | None) -> Selection:
    """Choose the videos to measure on.

    Args:
        manifest: All videos.
        card: What the model knows of its training.
        split: "train", "val", "test" or "all"; None for all that training and validation left out, or where they left
            none, for the validation videos, with a warning.

    Raises:
        ConfigError: No video is left.
    """
    if split == "all":
        return _all(manifest, card)
    if card.manifest_sha256 != manifest.sha256:
        _warn_of_shared_paths(manifest, card)
        parts = {name: _of_column(manifest, name) for name in _PARTS}
        if split is None:
            return Selection(manifest.videos, "all videos of a manifest that the model was not trained on")
        return _chosen(manifest, parts, split, "by its split column")
    parts = {name: _of_run(manifest, card, name) for name in _PARTS}
    if split is None:
        return _held_out(manifest, card, parts)
    if split != "test" and parts[split]:
        print_line("warning", f"the model was {'trained' if split == 'train' else 'chosen'} on these videos: no test")
    return _chosen(manifest, parts, split, f"for {card.name}")


def _all(manifest: Manifest, card: Card) -> Selection:
    if card.manifest_sha256 != manifest.sha256:
        _warn_of_shared_paths(manifest, card)
        return Selection(manifest.videos, "all videos of the manifest")
    print_line(
        "warning", f"{card.name} was trained on videos of {manifest.path}: measured on all of them, it is no test"
    )
    return Selection(manifest.videos, "all videos of the manifest, those of the training among them: no test")


def _of_column(manifest: Manifest, split: str) -> tuple[Video, ...]:
    return tuple(video for video in manifest.videos if video.split == split)


def _of_run(manifest: Manifest, card: Card, split: str) -> tuple[Video, ...]:
    """Return what the training used as this part; a bundle does not name its videos, but the manifest may."""
    if not card.split:
        return _of_column(manifest, split)
    own = set(card.split.get(_PARTS[split], ()))
    return tuple(video for video in manifest.videos if video.id in own)


def _chosen(manifest: Manifest, parts: Parts, split: str, whence: str) -> Selection:
    if not parts[split]:
        raise ConfigError(f"{manifest.path} has no {split} videos {whence}; leave out --split, or give another")
    return Selection(parts[split], f"{_PARTS[split]} videos")


def _held_out(manifest: Manifest, card: Card, parts: Parts) -> Selection:
    if not any(parts.values()):
        print_line(
            "warning",
            f"{card.name} was trained on {manifest.path} and does not say on which of its videos: this is no test; "
            "evaluate the run that it was exported from",
        )
        return Selection(manifest.videos, "all videos of the manifest that the model was trained on: no test")
    seen = {video.id for name in ("train", "val") for video in parts[name]}
    videos = tuple(video for video in manifest.videos if video.id not in seen)
    if not videos and parts["val"]:
        print_line(
            "warning",
            f"training and validation of {card.name} left no video of {manifest.path} out: its validation videos are "
            "measured, which is no test; give a manifest of other patients, or mark some as split test before training",
        )
        return Selection(parts["val"], "validation videos, on which the weights and the threshold were chosen: no test")
    if not videos:
        raise ConfigError(
            f"{card.name} was trained and chosen on all {len(manifest.videos)} videos of {manifest.path}; give a "
            "manifest of other patients"
        )
    return Selection(videos, "the videos that training and validation left out")


def _warn_of_shared_paths(manifest: Manifest, card: Card) -> None:
    known = {id_ for ids in card.split.values() for id_ in ids}
    num_shared = sum(video.id in known for video in manifest.videos)
    if num_shared:
        print_line(
            "warning",
            f"{num_shared} videos have the paths of videos that {card.name} was trained on, but {manifest.path} is "
            "another manifest: if they are the same files, this is no test",
        )
