"""`edge-train check`: what it finds in a manifest, and what it says of a sound one."""

import csv
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from daemon import run_command
from trainer_files import write_manifest

from edge.sources import open_source
from engines import PreprocessSpec
from trainer.checks.confounders import find_confounding
from trainer.checks.file_facts import file_facts
from trainer.checks.findings import Report, check_manifest
from trainer.checks.near_duplicates import MIN_SIMILARITY, find_near_duplicates, fingerprints
from trainer.checks.report import balance_table, warnings_of
from trainer.data.clips import ClipStore
from trainer.data.manifest import ManifestError, read_manifest
from trainer.data.video import Video

NUM_VIDEOS, NUM_FRAMES, SIZE_WH = 8, 24, (160, 120)

Row = dict[str, Any]


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with small videos of speckle; do not change them."""
    folder = tmp_path_factory.mktemp("sweeps")
    for seed in range(NUM_VIDEOS):
        _encode(folder / f"{seed}.mp4", _sweep(seed))
    return folder


def _sweep(seed: int) -> list[np.ndarray]:
    """Return frames of a probe that slides over speckle."""
    width, height = SIZE_WH
    noise = np.random.default_rng(seed).normal(size=(height, width + 3 * NUM_FRAMES))
    speckle = cv2.normalize(np.abs(cv2.GaussianBlur(noise, (0, 0), 3)), None, 0, 255, cv2.NORM_MINMAX)
    return [speckle[:, 3 * n : 3 * n + width].astype(np.uint8) for n in range(NUM_FRAMES)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def _encode(path: Path, frames: list[np.ndarray], *, codec: str = "libx264", crf: int = 20, fps: int = 30) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options={"crf": str(crf)} if codec == "libx264" else {})
        stream.height, stream.width = frames[0].shape
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="gray")))
        container.mux(stream.encode(None))
    return path


def _rows(sweeps: Path, **columns: list[Any]) -> list[Row]:
    """Return a row for each sweep; columns replace or extend what is there."""
    made = [{"path": str(sweeps / f"{n}.mp4"), "label": n % 2, "patient_id": f"p{n}"} for n in range(NUM_VIDEOS)]
    return [{**row, **{name: values[n] for name, values in columns.items()}} for n, row in enumerate(made)]


def _check(folder: Path, rows: list[Row], cache: Path) -> tuple[Report, list[str]]:
    manifest = read_manifest(write_manifest(folder / "m.csv", rows))
    report = check_manifest(manifest, ClipStore(cache, PreprocessSpec()))
    return report, list(warnings_of(manifest, report))


def _pictures(path: Path) -> list[np.ndarray]:
    return [frame.pixels for frame in open_source(str(path)).frames()]


def test_check_sound_manifest_exits_0_and_warns_of_nothing(tmp_path: Path, sweeps: Path, cache: Path) -> None:
    split = ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    path = write_manifest(tmp_path / "m.csv", _rows(sweeps, split=split))
    done = run_command("check", str(path), "--cache", str(cache), module="trainer.cli")
    assert (done.returncode, done.stderr) == (0, "")
    assert "warning" not in done.stdout
    assert "8 of 8 videos are usable; nothing to warn of" in done.stdout
    assert "split val" in done.stdout


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"label": "nan"}, "label is 'nan'"),
        ({"path": "gone.mp4"}, "not there: 'gone.mp4'"),
        ({"patient_id": "p0"}, "leak: patient 'p0'"),
    ],
)
def test_check_unsound_manifest_is_one_line_and_exit_2(
    tmp_path: Path, sweeps: Path, cache: Path, change: Row, said: str
) -> None:
    rows = _rows(sweeps, split=["train"] * 6 + ["test"] * 2)
    rows[7].update(change)
    path = write_manifest(tmp_path / "m.csv", rows)
    (tmp_path / "gone.mp4").unlink(missing_ok=True)
    done = run_command("check", str(path), "--cache", str(cache), module="trainer.cli")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


def test_check_unreadable_short_and_damaged_videos_are_named(tmp_path: Path, sweeps: Path, cache: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    _encode(tmp_path / "short.mp4", _pictures(sweeps / "3.mp4")[:9])
    _encode(tmp_path / "cut.mpeg", 4 * _pictures(sweeps / "4.mp4"), codec="mpeg2video")
    data = (tmp_path / "cut.mpeg").read_bytes()
    middle = len(data) * 3 // 4
    (tmp_path / "cut.mpeg").write_bytes(data[:middle] + bytes(1500) + data[middle + 1500 :])
    rows = _rows(sweeps)
    for place, name in ((2, "text.mp4"), (3, "short.mp4"), (4, "cut.mpeg")):
        rows[place]["path"] = name

    report, lines = _check(tmp_path, rows, cache)

    assert set(report.prepared.unreadable) == {"text.mp4"}
    assert set(report.prepared.short) == {"short.mp4"}
    assert set(report.damaged) == {"cut.mpeg"}
    assert len(report.usable) == NUM_VIDEOS - 2
    assert any(line.startswith("unreadable, left out: text.mp4: ") for line in lines)
    assert any(line.startswith("too short, left out: short.mp4: no 16 frames in a row: 9 lie") for line in lines)
    assert any(line.startswith("cut.mpeg: ") and "'cut.mpeg' is damaged" in line for line in lines)


def test_check_with_one_class_left_is_refused(tmp_path: Path, sweeps: Path, cache: Path) -> None:
    rows = _rows(sweeps)[:4]
    for place in (1, 3):
        (tmp_path / f"{place}.mp4").write_text("no video")
        rows[place]["path"] = f"{place}.mp4"
    with pytest.raises(ManifestError, match=r"the 2 videos .* 2 videos, all of one class, are left \(1.mp4: .*; mend"):
        _check(tmp_path, rows, cache)


def _recoded(frames: list[np.ndarray], path: Path) -> Path:
    return _encode(path, frames, crf=33)


def _smaller(frames: list[np.ndarray], path: Path) -> Path:
    return _encode(path, [cv2.resize(frame, (128, 96), interpolation=cv2.INTER_AREA) for frame in frames])


def _trimmed(frames: list[np.ndarray], path: Path) -> Path:
    return _encode(path, frames[5:23])


def _brighter(frames: list[np.ndarray], path: Path) -> Path:
    return _encode(path, [np.clip((frame / 255) ** 0.8 * 280, 0, 255).astype(np.uint8) for frame in frames])


def _copied(_frames: list[np.ndarray], path: Path) -> Path:
    return Path(shutil.copy(path.parent / "source.mp4", path))


@pytest.mark.parametrize("change", [_recoded, _smaller, _trimmed, _brighter, _copied])
def test_check_copy_across_splits_is_named_with_both_patients(
    tmp_path: Path, sweeps: Path, cache: Path, change: Any
) -> None:
    shutil.copy(sweeps / "1.mp4", tmp_path / "source.mp4")
    change(_pictures(sweeps / "1.mp4"), tmp_path / "copy.mp4")
    rows = _rows(sweeps, split=["train"] * 6 + ["test"] * 2)
    rows[6]["path"] = "copy.mp4"

    report, lines = _check(tmp_path, rows, cache)

    assert [(found.first.patient_id, found.second.patient_id) for found in report.duplicates] == [("p1", "p6")]
    line = next(line for line in lines if line.startswith("near-duplicates"))
    assert "across splits, train and test" in line
    assert "1.mp4 (patient p1) and copy.mp4 (patient p6)" in line
    assert "their labels differ: positive, negative" in line


def test_check_equal_files_with_other_rois_are_copies(tmp_path: Path, sweeps: Path, cache: Path) -> None:
    shutil.copy(sweeps / "0.mp4", tmp_path / "copy.mp4")
    rows = _rows(sweeps, roi=["0,0,60,60"] + [""] * 6 + ["90,50,60,60"], fold=[0, 0, 0, 0, 1, 1, 1, 1])
    rows[7]["path"] = "copy.mp4"
    report, lines = _check(tmp_path, rows, cache)
    assert [found.similarity for found in report.duplicates] == [1.0]
    assert any("across folds, 0 and 1" in line for line in lines)


def test_near_duplicates_of_different_recordings_are_none(sweeps: Path, cache: Path) -> None:
    videos = [Video(f"{n}", sweeps / f"{n}.mp4", n % 2, f"p{n}") for n in range(NUM_VIDEOS)]
    store = ClipStore(cache, PreprocessSpec())
    prints = {video.id: fingerprints(store.get(video)) for video in videos}
    assert find_near_duplicates(videos, [video.id for video in videos], prints) == []


def test_near_duplicates_of_black_videos_are_none(tmp_path: Path, cache: Path) -> None:
    videos = []
    for n, level in enumerate((0, 0, 3)):
        path = _encode(tmp_path / f"{n}.mp4", [np.full((96, 128), level, np.uint8)] * (20 + n))
        videos.append(Video(str(n), path, 0, str(n)))
    store = ClipStore(cache, PreprocessSpec())
    prints = {video.id: fingerprints(store.get(video)) for video in videos}
    assert find_near_duplicates(videos, ["a", "b", "c"], prints) == []
    assert MIN_SIMILARITY > 0


def _with_facts(num_patients: int, fact_of: Any) -> tuple[list[Video], list[dict[str, Any]]]:
    rng = np.random.default_rng(5)
    videos = [Video(f"{n}", Path(f"{n}"), n // 2 % 2, f"p{n // 2}") for n in range(2 * num_patients)]
    return videos, [{"file size": float(rng.integers(1000)), "codec": fact_of(video, rng)} for video in videos]


def test_confounding_codec_that_tells_the_label_is_found_and_named() -> None:
    videos, facts = _with_facts(40, lambda video, rng: "h264" if video.label != (rng.random() < 0.1) else "mpeg4")
    confounding = find_confounding(videos, facts, 1)
    assert confounding is not None
    assert confounding.is_suspicious
    assert confounding.auc.value > 0.8
    assert next(iter(confounding.auc_by_fact)) == "codec"
    assert (confounding.auc.num_positive, confounding.auc.num_negative) == (20, 20)


@pytest.mark.parametrize("seed", range(3))
def test_confounding_of_labels_by_chance_is_not_found(seed: int) -> None:
    videos, facts = _with_facts(40, lambda _video, rng: ["h264", "mpeg4"][int(rng.random() < 0.5)])
    chance = np.random.default_rng(seed).permutation(40) % 2
    videos = [dataclasses.replace(video, label=int(chance[int(video.patient_id[1:])])) for video in videos]
    confounding = find_confounding(videos, facts, 1)
    assert confounding is not None
    assert not confounding.is_suspicious


def test_confounding_that_only_tells_patients_apart_is_no_proof() -> None:
    videos, facts = _with_facts(40, lambda video, _rng: f"scanner of {video.patient_id}")
    confounding = find_confounding(videos, facts, 1)
    assert confounding is not None
    assert not confounding.is_suspicious


def test_confounding_where_nothing_differs_or_patients_are_few_is_none() -> None:
    videos, facts = _with_facts(10, lambda *_: "h264")
    assert find_confounding(videos, [{"codec": "h264", "file size": 1.0}] * 20, 1) is None
    assert find_confounding(videos[:4], facts[:4], 1) is None


def test_check_scanner_of_one_class_is_a_confounder(tmp_path: Path, cache: Path) -> None:
    rows = []
    for n in range(12):
        frames = np.random.default_rng(n).integers(0, 256, (17, 48, 64), np.uint8)
        path = _encode(tmp_path / f"{n}.{('mp4', 'mpeg')[n % 2]}", list(frames), codec=("libx264", "mpeg2video")[n % 2])
        rows.append({"path": path.name, "label": n % 2, "patient_id": str(n)})
    report, lines = _check(tmp_path, rows, cache)
    assert report.confounding is not None
    assert report.confounding.auc.value == 1
    assert {"codec", "suffix", "container"} <= report.confounding.auc_by_fact.keys()
    assert any(line.startswith("confounder: file metadata alone predict the label (AUC 1.00") for line in lines)


def test_file_facts_of_each_kind_are_read(tmp_path: Path, cache: Path) -> None:
    import pydicom.examples
    from media import write_images

    store = ClipStore(cache, PreprocessSpec())
    dicom = Path(pydicom.examples.get_path("ybr_color"))
    folder = write_images(tmp_path / "images", [(64, 48)] * 3)
    video = _encode(tmp_path / "v.mp4", list(np.zeros((5, 48, 64), np.uint8)), fps=20)
    facts = {}
    for path in (dicom, folder, video):
        line = Video(path.name, path, 0, "p", site="A")
        facts[path] = file_facts(line, store.get(line))

    assert facts[dicom]["Manufacturer"]
    assert facts[dicom]["codec"].startswith("1.2.840.10008.1.2")
    assert facts[folder]["kind"] == "folder of images"
    assert facts[folder]["file size"] == sum(file.stat().st_size for file in folder.iterdir())
    assert (facts[video]["codec"], facts[video]["suffix"], facts[video]["frame rate"]) == ("h264", ".mp4", 20.0)
    assert (facts[video]["image width"], facts[video]["image height"]) == (64, 48)
    assert facts[video]["bytes a frame"] == video.stat().st_size / 5
    assert all(one["site"] == "A" for one in facts.values())


def test_check_patients_written_two_ways_are_named(tmp_path: Path, sweeps: Path, cache: Path) -> None:
    names = ["P-07", "p7", "P 007", "70", "7", "a", "b", "c"]
    report, _ = _check(tmp_path, _rows(sweeps, patient_id=names), cache)
    assert len(report.remarks) == 1
    assert "'P 007', 'P-07', 'p7' look like one" in report.remarks[0]


def test_check_fold_without_a_class_is_named(tmp_path: Path, sweeps: Path, cache: Path) -> None:
    report, _ = _check(tmp_path, _rows(sweeps, fold=[0, 0, 1, 1, 2, 2, 3, 2]), cache)
    assert report.remarks == (
        "validation of fold 3 has 1 videos, none of class 'positive'; choose other splits or folds, or fewer folds",
    )


def test_check_keyframes_and_masks_of_another_video_are_named(tmp_path: Path, sweeps: Path, cache: Path) -> None:
    width, height = SIZE_WH
    for name, num_frames in (("good.npz", NUM_FRAMES), ("long.npz", NUM_FRAMES + 1)):
        np.savez_compressed(tmp_path / name, masks=np.zeros((num_frames, height, width), bool))
    masks = ["good.npz", "long.npz", "gone.npz", *[""] * 5]
    keyframes = ["", "", "", NUM_FRAMES - 1, NUM_FRAMES, "", "", ""]
    report, _ = _check(tmp_path, _rows(sweeps, mask=masks, keyframe=keyframes), cache)
    long, gone, keyframe = report.remarks
    assert f"{tmp_path / 'long.npz'} has the shape (25, 120, 160); the video has 24 frames of 160x120 pixels" in long
    assert f"mask {tmp_path / 'gone.npz'} is not there" in gone
    assert keyframe.endswith("4.mp4: keyframe 24 is none of its 24 frames, which are counted from 0")


def test_balance_counts_videos_patients_and_classes_by_part(tmp_path: Path, sweeps: Path, cache: Path) -> None:
    columns = {"split": ["train"] * 6 + ["test"] * 2, "site": list("AABBAABB")}
    patients = ["x", "x", "x", "y", "z", "z", "w", "w"]
    path = write_manifest(tmp_path / "m.csv", _rows(sweeps, patient_id=patients, **columns))
    manifest = read_manifest(path)
    table = balance_table(manifest, manifest.videos)
    cells = list(zip(*(column.cells for column in table.columns), strict=True))
    assert cells == [
        ("all", "8", "4", "4 (50%)", "4 (50%)"),
        ("split train", "6", "3", "3 (50%)", "3 (50%)"),
        ("split test", "2", "1", "1 (50%)", "1 (50%)"),
        ("site A", "4", "2", "2 (50%)", "2 (50%)"),
        ("site B", "4", "3", "2 (50%)", "2 (50%)"),
    ]


def test_check_leaves_a_cache_that_fit_reads(tmp_path: Path, sweeps: Path) -> None:
    path = write_manifest(tmp_path / "m.csv", _rows(sweeps))
    check_manifest(read_manifest(path), ClipStore(tmp_path / "cache", PreprocessSpec()))
    with path.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(list((tmp_path / "cache").iterdir()))
