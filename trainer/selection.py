"""Which videos of a manifest measure a model: never, unless asked for, those that it was trained or chosen on."""

import dataclasses

from edge.commandline import print_line
from edge.errors import ConfigError
from trainer.manifest import Manifest
from trainer.predictors import Card
from trainer.video import Video

_PARTS = {"train": "train", "val": "validation", "test": "test"}
"""The command's words to those of run.json."""


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
        split: "train", "val", "test" or "all"; None for all that training and validation left out.

    Raises:
        ConfigError: No video is left.
    """
    is_own = card.manifest_sha256 == manifest.sha256 and bool(card.split)
    if split == "all":
        return Selection(manifest.videos, "all videos of the manifest")
    if split is not None:
        return _of_split(manifest, card, split, is_own)
    if not is_own:
        _warn_of_shared_paths(manifest, card)
        return Selection(manifest.videos, "all videos of a manifest that the model was not trained on")
    seen = {*card.split.get("train", ()), *card.split.get("validation", ())}
    videos = tuple(video for video in manifest.videos if video.id not in seen)
    if not videos:
        raise ConfigError(
            f"{card.name} was trained and chosen on all {len(manifest.videos)} videos of {manifest.path}; give a "
            "manifest of other patients, or --split val for its validation videos"
        )
    return Selection(videos, "the videos that training and validation left out")


def _of_split(manifest: Manifest, card: Card, split: str, is_own: bool) -> Selection:
    own = card.split.get(_PARTS[split], ())
    videos = tuple(video for video in manifest.videos if (video.id in own if is_own else video.split == split))
    if not videos:
        source = card.name if is_own else "its split column"
        raise ConfigError(f"{manifest.path} has no {split} videos by {source}; leave out --split, or give another")
    if split != "test" and is_own:
        print_line("warning", f"the model was {'trained' if split == 'train' else 'chosen'} on these videos: no test")
    return Selection(videos, f"{_PARTS[split]} videos")


def _warn_of_shared_paths(manifest: Manifest, card: Card) -> None:
    known = {id_ for ids in card.split.values() for id_ in ids}
    num_shared = sum(video.id in known for video in manifest.videos)
    if num_shared:
        print_line(
            "warning",
            f"{num_shared} videos have the paths of videos that {card.name} was trained on, but {manifest.path} is "
            "another manifest: if they are the same files, this is no test",
        )
