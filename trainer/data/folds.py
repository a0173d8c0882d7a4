"""Who trains, who validates and who tests: patients, or sites, stay whole."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from trainer.data.manifest import Manifest, ManifestError, Video, check_whole

By = Literal["patient", "site"]

_UNITS = {"patient": "patient_id", "site": "site"}


@dataclasses.dataclass(frozen=True, slots=True)
class Split:
    """The videos of one training run."""

    train: tuple[Video, ...]
    validation: tuple[Video, ...]
    test: tuple[Video, ...]
    """Held out: what the manifest's split column calls "test"."""


def fold_numbers(manifest: Manifest, num_folds: int) -> tuple[int, ...]:
    """Return the folds that there are: those of the manifest's fold column, else 0 to `num_folds` - 1."""
    given = sorted({video.fold for video in _not_test(manifest) if video.fold is not None})
    return tuple(given) or tuple(range(num_folds))


def split_for_fold(
    manifest: Manifest, fold: int | None, num_folds: int = 5, seed: int = 0, by: By = "patient"
) -> Split:
    """Return who trains, validates and tests.

    Args:
        manifest: Its "test" videos are held out always.
        fold: The fold that validates, while all others train, "train" and "val" alike. None: "train" trains and "val"
            validates, as the manifest's split column says; where it names no "val", the first fold.
        num_folds: How many folds to make where the manifest has no fold column.
        seed: Draws these folds; the same seed gives the same ones.
        by: What stays whole: "patient", or "site".

    Raises:
        ManifestError: A patient or site is on two sides; there is no such fold; too few patients (or sites) for so
            many folds; or training or validation would see one class alone.
    """
    _check_sites(manifest, by)
    check_whole(manifest.path, manifest.videos, _UNITS[by])
    videos, test = _not_test(manifest), tuple(video for video in manifest.videos if video.split == "test")
    if fold is None and any(video.split == "val" for video in videos):
        is_validating = [video.split == "val" for video in videos]
    else:
        fold = fold_numbers(manifest, num_folds)[0] if fold is None else fold
        is_validating = _in_fold(manifest, videos, fold, num_folds, seed, by)
    where = "by the split column" if fold is None else f"of fold {fold}"
    train = tuple(video for video, validates in zip(videos, is_validating, strict=True) if not validates)
    validation = tuple(video for video, validates in zip(videos, is_validating, strict=True) if validates)
    _check_classes(manifest, train, f"training {where}", len(manifest.classes))
    _check_classes(manifest, validation, f"validation {where}", 2)
    return Split(train, validation, test)


def _check_sites(manifest: Manifest, by: By) -> None:
    without = [video.id for video in manifest.videos if video.site is None]
    if by == "site" and without:
        raise ManifestError(
            f"{manifest.path}: {len(without)} of {len(manifest.videos)} videos have no site, {without[0]!r} for one; "
            "folds by site need a column 'site' that is filled in"
        )


def _not_test(manifest: Manifest) -> tuple[Video, ...]:
    return tuple(video for video in manifest.videos if video.split != "test")


def _in_fold(manifest: Manifest, videos: Sequence[Video], fold: int, num_folds: int, seed: int, by: By) -> list[bool]:
    """Return for each video whether it is in the fold."""
    numbers = fold_numbers(manifest, num_folds)
    if fold not in numbers:
        raise ManifestError(f"{manifest.path}: there is no fold {fold}; there are {', '.join(map(str, numbers))}")
    folds = [video.fold for video in videos]
    if all(number is None for number in folds):
        folds = _draw_folds(manifest, videos, num_folds, seed, by)
    without = [video.id for video, number in zip(videos, folds, strict=True) if number is None]
    if without:
        raise ManifestError(
            f"{manifest.path}: {len(without)} videos have no fold while others have, {without[0]!r} for one; give "
            "each a fold, or leave the column out"
        )
    return [number == fold for number in folds]


def _draw_folds(manifest: Manifest, videos: Sequence[Video], num_folds: int, seed: int, by: By) -> list[int]:
    """Give whole patients (or sites) to folds so that the classes are spread evenly."""
    groups = [getattr(video, _UNITS[by]) for video in videos]
    labels = [video.label for video in videos]
    _check_enough(manifest, groups, labels, num_folds, by)
    splitter = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
    folds = np.full(len(videos), -1)
    with warnings.catch_warnings():
        # a class with fewer videos than folds: _check_enough and _check_classes say so in our words
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        for number, (_, validation) in enumerate(splitter.split(labels, labels, groups)):
            folds[validation] = number
    return folds.tolist()


def _check_enough(manifest: Manifest, groups: Sequence[str], labels: Sequence[int], num_folds: int, by: By) -> None:
    if num_folds < 2:
        raise ManifestError(f"got {num_folds} folds; at least 2 are needed")
    for label, name in enumerate(manifest.classes):
        members = {group for group, own in zip(groups, labels, strict=True) if own == label}
        if len(members) < num_folds:
            raise ManifestError(
                f"{manifest.path}: class {name!r} has {len(members)} {by}s outside the test split; {num_folds} folds "
                f"need as many: ask for fewer folds, or add {by}s"
            )


def _check_classes(manifest: Manifest, videos: Sequence[Video], what: str, num_needed: int) -> None:
    absent = sorted(set(range(len(manifest.classes))) - {video.label for video in videos})
    if len(manifest.classes) - len(absent) < num_needed:
        raise ManifestError(
            f"{manifest.path}: {what} has {len(videos)} videos, none of class {manifest.classes[absent[0]]!r}; choose "
            "other splits or folds, or fewer folds"
        )
