"""Folds: who is where, that patients and sites stay whole, and what is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trainer_files import manifest_of

from trainer.data.folds import Split, fold_numbers, split_for_fold
from trainer.data.manifest import Manifest, ManifestError, Video


def _videos(num_patients: int = 20, videos_each: int = 3, **columns: Any) -> list[Video]:
    """Return videos of patients of alternating class."""
    return [
        Video(f"{patient}-{n}", Path(f"{patient}-{n}"), patient % 2, f"p{patient}", **columns)
        for patient in range(num_patients)
        for n in range(videos_each)
    ]


def _names(split: Split) -> tuple[set[str], set[str], set[str]]:
    parts = (split.train, split.validation, split.test)
    return tuple({video.patient_id for video in part} for part in parts)  # type: ignore[return-value]


@pytest.mark.parametrize("seed", range(5))
def test_folds_drawn_keep_patients_whole_and_validate_each_video_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    videos = [video for video in _videos(40, 4) if rng.random() < 0.7]
    manifest = manifest_of(videos)
    validated = []
    for fold in fold_numbers(manifest, 5):
        split = split_for_fold(manifest, fold, 5, seed)
        train, validation, test = _names(split)
        assert not train & validation
        assert not test
        assert sorted(video.id for video in split.train + split.validation) == sorted(video.id for video in videos)
        assert 0.25 < np.mean([video.label for video in split.validation]) < 0.75
        validated += [video.id for video in split.validation]
    assert sorted(validated) == sorted(video.id for video in videos)


def test_folds_drawn_with_the_same_seed_are_the_same_and_with_another_are_others() -> None:
    manifest = manifest_of(_videos())
    first, again, other = (split_for_fold(manifest, 0, 5, seed).validation for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_folds_of_the_fold_column_are_used_and_test_is_held_out() -> None:
    videos = [dataclasses.replace(video, fold=int(video.patient_id[1:]) // 2 % 3 + 1) for video in _videos(12)]
    videos += [Video(f"t{n}", Path(f"t{n}"), n, f"test{n}", split="test", fold=9 if n else None) for n in range(2)]
    manifest = manifest_of(videos)

    assert fold_numbers(manifest, 5) == (1, 2, 3)
    train, validation, test = _names(split_for_fold(manifest, 2))

    assert validation == {"p2", "p3", "p8", "p9"}
    assert train == {"p0", "p1", "p4", "p5", "p6", "p7", "p10", "p11"}
    assert test == {"test0", "test1"}


def _with_splits(*splits: str) -> Manifest:
    videos = _videos(2 * len(splits), 1)
    return manifest_of([dataclasses.replace(video, split=splits[n // 2]) for n, video in enumerate(videos)])


def test_split_column_says_who_validates_where_no_fold_is_asked_for() -> None:
    train, validation, test = _names(split_for_fold(_with_splits("train", "val", "test", "train"), None))
    assert (train, validation, test) == ({"p0", "p1", "p6", "p7"}, {"p2", "p3"}, {"p4", "p5"})


def test_fold_asked_for_pools_train_and_val_and_holds_test_out() -> None:
    manifest = _with_splits("train", "val", "test", "train", "train")
    validated: set[str] = set()
    for fold in range(4):
        train, validation, test = _names(split_for_fold(manifest, fold, 4))
        assert test == {"p4", "p5"}
        assert train | validation == {"p0", "p1", "p2", "p3", "p6", "p7", "p8", "p9"}
        validated |= validation
    assert validated == {"p0", "p1", "p2", "p3", "p6", "p7", "p8", "p9"}


def test_split_without_val_validates_with_the_first_fold() -> None:
    manifest = _with_splits("train", "train", "test", "train", "train")
    assert split_for_fold(manifest, None, 3, 7) == split_for_fold(manifest, 0, 3, 7)


def _with_sites() -> list[Video]:
    return [dataclasses.replace(video, site="ABCDEF"[int(video.patient_id[1:]) // 4]) for video in _videos(24, 2)]


def test_folds_by_site_keep_sites_whole() -> None:
    for fold in range(3):
        split = split_for_fold(manifest_of(_with_sites()), fold, 3, by="site")
        assert not {video.site for video in split.train} & {video.site for video in split.validation}


def test_folds_by_site_that_leak_a_site_name_it() -> None:
    videos = [dataclasses.replace(video, fold=int(video.patient_id[1:]) % 4 // 2) for video in _with_sites()]
    assert len(split_for_fold(manifest_of(videos), 0).train) == 24
    with pytest.raises(ManifestError, match=r"leak: site 'A' \(and 5 more\) is in fold 0"):
        split_for_fold(manifest_of(videos), 0, by="site")


def test_folds_by_site_without_a_site_are_refused() -> None:
    videos = _with_sites()
    videos[5] = dataclasses.replace(videos[5], site=None)
    with pytest.raises(ManifestError, match="1 of 48 videos have no site"):
        split_for_fold(manifest_of(videos), 0, by="site")


def test_folds_that_leak_a_patient_name_him() -> None:
    videos = [dataclasses.replace(video, fold=n % 2) for n, video in enumerate(_videos())]
    with pytest.raises(ManifestError, match="leak: patient 'p0'"):
        split_for_fold(manifest_of(videos), 0)


@pytest.mark.parametrize("fold", [-1, 5])
def test_fold_that_is_not_there_is_refused(fold: int) -> None:
    with pytest.raises(ManifestError, match=f"no fold {fold}; there are 0, 1, 2, 3, 4"):
        split_for_fold(manifest_of(_videos()), fold)


def test_more_folds_than_patients_of_a_class_are_refused() -> None:
    with pytest.raises(ManifestError, match="class 'class 0' has 3 patients outside the test split; 5 folds"):
        split_for_fold(manifest_of(_videos(6)), 0)
    rare = [Video(f"{n}", Path(f"{n}"), int(n < 2), f"p{n}") for n in range(20)]
    with pytest.raises(ManifestError, match="class 'class 1' has 2 patients outside the test split; 5 folds"):
        split_for_fold(manifest_of(rare), 0)


@pytest.mark.parametrize("num_folds", [0, 1])
def test_fewer_than_two_folds_are_refused(num_folds: int) -> None:
    with pytest.raises(ManifestError, match=f"got {num_folds} folds|there is no fold 0"):
        split_for_fold(manifest_of(_videos()), 0, num_folds)


def test_some_videos_without_a_fold_are_refused() -> None:
    videos = [dataclasses.replace(video, fold=0) for video in _videos(4)] + _videos(6)[12:]
    with pytest.raises(ManifestError, match="6 videos have no fold while others have, '4-0' for one"):
        split_for_fold(manifest_of(videos), 0)


@pytest.mark.parametrize(("lone", "other", "said"), [("train", "val", "training"), ("val", "train", "validation")])
def test_split_with_one_class_alone_is_refused(lone: str, other: str, said: str) -> None:
    videos = _videos(4, 1, split=other)
    videos += [Video(f"x{n}", Path(f"x{n}"), 1, f"x{n}", split=lone) for n in range(3)]
    with pytest.raises(ManifestError, match=f"{said} by the split column has 3 videos, none of class 'class 0'"):
        split_for_fold(manifest_of(videos), None)
