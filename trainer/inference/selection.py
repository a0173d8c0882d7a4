"""Which videos of a manifest measure a model: never, unless asked for, those that it was trained or chosen on."""

import dataclasses
from collections.abc import Mapping, Sequence

from edge.commandline import print_line
from edge.errors import ConfigError
from trainer.data.manifest import MAX_NAMED, Manifest
from trainer.data.seen import Contents, find_seen
from trainer.data.video import Video
from trainer.inference.predictors import Card

_PARTS = {"train": "train", "val": "validation", "test": "test"}
"""The command's words to those of run.json."""

Parts = Mapping[str, str]
"""Video's id to "train" or "validation"."""


@dataclasses.dataclass(frozen=True, slots=True)
class Selection:
    """The chosen videos, and in words which they are."""

    videos: tuple[Video, ...]
    description: str
    seen: Parts = dataclasses.field(default_factory=dict)
    """Videos of the manifest whose files the model was trained or chosen on, chosen here or not."""


def select_videos(manifest: Manifest, card: Card, split: str | None, contents: Contents) -> Selection:
    """Choose the videos to measure on.

    Args:
        manifest: All videos.
        card: What the model knows of its training.
        split: "train", "val", "test" or "all"; None for all that training and validation left out, or where they left
            none, for the validation videos, with a warning.
        contents: Returns the SHA-256 of a video's content, by which it is known under any name.

    Raises:
        ConfigError: No video is left; or all that are asked for as a test were seen in training.
    """
    by_content = find_seen(manifest.videos, card.seen, contents)
    is_own = card.manifest_sha256 == manifest.sha256
    by_name = _by_name(manifest, card) if is_own else {}
    parts = {**by_content, **by_name}
    unexpected = _unexpected(manifest, card, is_own, by_content, by_name)
    asked = manifest.videos if split in (None, "all") else _by_split(manifest, card, split, is_own)
    if not is_own and not card.seen:
        _warn_of_shared_paths(manifest, card)
    chosen = _choose(manifest, card, split, parts, is_own)
    _tell_recognised(manifest, card, asked, chosen, unexpected)
    return dataclasses.replace(chosen, seen=by_content)


def _by_name(manifest: Manifest, card: Card) -> dict[str, str]:
    """Return what the training used of its own manifest; a bundle does not name its videos, but a column may."""
    if card.split:
        return {id_: part for part in ("train", "validation") for id_ in card.split.get(part, ())}
    if card.seen:
        return {}
    return {video.id: _PARTS[video.split] for video in manifest.videos if video.split in ("train", "val")}


def _unexpected(manifest: Manifest, card: Card, is_own: bool, by_content: Parts, by_name: Parts) -> Parts:
    """Return what is known by content alone: files under new names, or again in the test."""
    if is_own and not card.split:  # the bundle of a run on this manifest: what it has seen is expected
        return {video.id: by_content[video.id] for video in _of_column(manifest, "test") if video.id in by_content}
    return {id_: part for id_, part in by_content.items() if id_ not in by_name}


def _choose(manifest: Manifest, card: Card, split: str | None, parts: Parts, is_own: bool) -> Selection:
    if split == "all":
        return _all(manifest, card, is_own, parts)
    if split is None and (is_own or parts):
        return _held_out(manifest, card, parts)
    if split is None:
        return Selection(manifest.videos, "all videos of a manifest that the model was not trained on")
    if split == "test":
        return _test(manifest, card, parts, is_own)
    if is_own and parts:
        videos = tuple(video for video in manifest.videos if parts.get(video.id) == _PARTS[split])
    else:
        videos = _of_column(manifest, split)
    if is_own and videos:
        print_line("warning", f"the model was {'trained' if split == 'train' else 'chosen'} on these videos: no test")
    return _named(manifest, videos, split, f"for {card.name}" if is_own else "by its split column")


def _all(manifest: Manifest, card: Card, is_own: bool, parts: Parts) -> Selection:
    if not is_own and not parts:
        return Selection(manifest.videos, "all videos of the manifest")
    if is_own:
        print_line(
            "warning", f"{card.name} was trained on videos of {manifest.path}: measured on all of them, it is no test"
        )
    return Selection(manifest.videos, "all videos of the manifest, those of the training among them: no test")


def _test(manifest: Manifest, card: Card, parts: Parts, is_own: bool) -> Selection:
    """Return what was held out by name, less what is known by content."""
    asked = _by_split(manifest, card, "test", is_own)
    unseen = tuple(video for video in asked if video.id not in parts)
    if asked and not unseen:
        raise ConfigError(
            f"{card.name} was trained or chosen on all {len(asked)} test videos of {manifest.path}, whatever they are "
            f"called there, such as {asked[0].id}; give videos of other patients"
        )
    return _named(manifest, unseen, "test", f"for {card.name}" if is_own else "by its split column")


def _by_split(manifest: Manifest, card: Card, split: str, is_own: bool) -> tuple[Video, ...]:
    """Return what was this part by name: in the run where that is known, else by the manifest's column."""
    if not (is_own and card.split):
        return _of_column(manifest, split)
    own = set(card.split.get(_PARTS[split], ()))
    return tuple(video for video in manifest.videos if video.id in own)


def _of_column(manifest: Manifest, split: str) -> tuple[Video, ...]:
    return tuple(video for video in manifest.videos if video.split == split)


def _named(manifest: Manifest, videos: tuple[Video, ...], split: str, whence: str) -> Selection:
    if not videos:
        raise ConfigError(f"{manifest.path} has no {split} videos {whence}; leave out --split, or give another")
    return Selection(videos, f"{_PARTS[split]} videos")


def _held_out(manifest: Manifest, card: Card, parts: Parts) -> Selection:
    if not parts:
        print_line(
            "warning",
            f"{card.name} was trained on {manifest.path} and does not say on which of its videos: this is no test; "
            "evaluate the run that it was exported from",
        )
        return Selection(manifest.videos, "all videos of the manifest that the model was trained on: no test")
    videos = tuple(video for video in manifest.videos if video.id not in parts)
    validation = tuple(video for video in manifest.videos if parts.get(video.id) == "validation")
    if not videos and validation:
        print_line(
            "warning",
            f"training and validation of {card.name} left no video of {manifest.path} out: its validation videos are "
            "measured, which is no test; give a manifest of other patients, or mark some as split test before training",
        )
        return Selection(validation, "validation videos, on which the weights and the threshold were chosen: no test")
    if not videos:
        raise ConfigError(
            f"{card.name} was trained and chosen on all {len(manifest.videos)} videos of {manifest.path}; give a "
            "manifest of other patients"
        )
    return Selection(videos, "the videos that training and validation left out")


def _tell_recognised(
    manifest: Manifest, card: Card, asked: Sequence[Video], chosen: Selection, recognised: Parts
) -> None:
    """Name the videos that the manifest does not tell to be of the training, and whose files are."""
    known = [video.id for video in asked if video.id in recognised]
    if not known:
        return
    num_trained = sum(recognised[id_] == "train" for id_ in known)
    num_measured = sum(video.id in recognised for video in chosen.videos)
    what = f"{num_measured} of them are measured: no test" if num_measured else "they are left out"
    print_line(
        "warning",
        f"{len(known)} of {len(asked)} videos of {manifest.path} are files that {card.name} was trained "
        f"({num_trained}) or chosen ({len(known) - num_trained}) on, whatever they are called: {_some(known)}; {what}",
    )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more, which metrics.json names" if len(names) > MAX_NAMED else ""
    return f"{', '.join(names[:MAX_NAMED])}{more}"


def _warn_of_shared_paths(manifest: Manifest, card: Card) -> None:
    known = {id_ for ids in card.split.values() for id_ in ids}
    num_shared = sum(video.id in known for video in manifest.videos)
    if num_shared:
        print_line(
            "warning",
            f"{num_shared} videos have the paths of videos that {card.name} was trained on, but {manifest.path} is "
            "another manifest: if they are the same files, this is no test",
        )
