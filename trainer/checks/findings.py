"""What there is to say of a manifest before hours are spent on it."""

import collections
import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from rich.console import Console
from rich.progress import Progress

from edge.errors import ConfigError
from trainer.checks.confounders import Confounding, find_confounding
from trainer.checks.file_facts import file_facts
from trainer.checks.near_duplicates import NearDuplicate, find_near_duplicates, fingerprints
from trainer.data.clips import ClipStore, Prepared
from trainer.data.folds import fold_numbers, split_for_fold
from trainer.data.manifest import Manifest, ManifestError
from trainer.data.video import Video
from trainer.inference.evidence import check_masks, mask_path


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """What was found."""

    usable: tuple[Video, ...]
    """The videos that give a clip."""
    prepared: Prepared
    """Those that do not, and why."""
    damaged: dict[str, str]
    """What is wrong with usable videos, by id."""
    duplicates: tuple[NearDuplicate, ...]
    confounding: Confounding | None
    """What the files' metadata predict; None where they do not differ or patients are few."""
    remarks: tuple[str, ...]
    """What else may spoil a training, one line each."""


def check_manifest(manifest: Manifest, store: ClipStore) -> Report:
    """Decode all videos into the cache and look for what may spoil a training.

    Args:
        manifest: Read, and so without a leak by name.
        store: Holds the decoded videos from then on.

    Raises:
        ManifestError: What can be read holds one class alone.
        ClipCacheError: The cache cannot be written.
    """
    prepared = store.prepare(manifest.videos)
    usable = tuple(video for video in manifest.videos if video.id not in prepared.left_out)
    if len({video.label for video in usable}) < 2:
        left = f"{len(usable)} videos, all of one class, are" if usable else "none is"
        raise ManifestError(
            f"{manifest.path}: without the {len(prepared.left_out)} videos that are unreadable or too short, "
            f"{left} left ({_first(prepared.left_out)}); mend the files, or add videos"
        )
    warned = ((video.id, store.get(video).warnings) for video in usable)
    return Report(
        usable=usable,
        prepared=prepared,
        damaged={id: "; ".join(warnings) for id, warnings in warned if warnings},
        duplicates=_near_duplicates(usable, store),
        confounding=_confounding(manifest, usable, store),
        remarks=(
            *_lookalike_patients(manifest.videos),
            *_poor_folds(dataclasses.replace(manifest, videos=usable)),
            *_wrong_marks(manifest, usable, store),
        ),
    )


def _first(left_out: dict[str, str]) -> str:
    return next((f"{id}: {reason}" for id, reason in left_out.items()), "none is unreadable")


def _near_duplicates(videos: Sequence[Video], store: ClipStore) -> tuple[NearDuplicate, ...]:
    prints = {video.id: fingerprints(store.get(video)) for video in _tracked("taking fingerprints")(videos)}
    contents = [store.content(video) for video in videos]
    return tuple(find_near_duplicates(videos, contents, prints, _tracked("comparing videos")))


def _confounding(manifest: Manifest, videos: Sequence[Video], store: ClipStore) -> Confounding | None:
    facts = [file_facts(video, store.get(video)) for video in _tracked("reading metadata")(videos)]
    return find_confounding(videos, facts, len(manifest.classes) - 1)


def _tracked(title: str) -> Callable[[Sequence[Video]], Iterable[Video]]:
    return functools.partial(_track, title)


def _track(title: str, videos: Sequence[Video]) -> Iterator[Video]:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        yield from progress.track(videos, description=title)


def _lookalike_patients(videos: Sequence[Video]) -> Iterator[str]:
    """Yield names that may be one patient's: "P-07" and "p7"."""
    spellings = collections.defaultdict(set)
    for video in videos:
        words = re.findall(r"\d+|[^\W\d_]+", video.patient_id.casefold())
        spellings[tuple(word.lstrip("0") or "0" for word in words)].add(video.patient_id)
    for names in spellings.values():
        if len(names) > 1:
            yield f"patients {', '.join(map(repr, sorted(names)))} look like one: if so, write them alike, or they leak"


def _wrong_marks(manifest: Manifest, videos: Sequence[Video], store: ClipStore) -> Iterator[str]:
    """Yield keyframes and masks that cannot be of their video: an evaluation would meet them after the training."""
    for video in videos:
        frames = store.get(video)
        if video.keyframe is not None and video.keyframe >= frames.num_source_frames:
            yield (
                f"{video.id}: keyframe {video.keyframe} is none of its {frames.num_source_frames} frames, which are "
                "counted from 0"
            )
        if (path := mask_path(video, manifest.path)) is not None:
            try:
                check_masks(path, frames)
            except ConfigError as exc:
                yield f"{video.id}: {exc}; evaluate refuses it"


def _poor_folds(manifest: Manifest) -> Iterator[str]:
    """Yield what would stop a training on the manifest's own splits and folds."""
    folds = fold_numbers(manifest, 0)
    has_split = any(video.split == "val" for video in manifest.videos)
    for fold in ([None] if has_split else []) + list(folds):
        try:
            split_for_fold(manifest, fold)
        except ManifestError as exc:
            yield str(exc).removeprefix(f"{manifest.path}: ")
