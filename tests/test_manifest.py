"""Manifests: what is read, and what is refused in one line that names the fault."""

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from trainer_files import rows, write_manifest

from trainer.data.manifest import ManifestError, read_manifest


def _refused(path: Path) -> str:
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_manifest_all_columns_are_read(tmp_path: Path) -> None:
    columns = {"split": ["train", "val"], "fold": ["0", ""], "site": ["A", ""], "roi": ["1,2,30,40", ""]}
    more = {"keyframe": ["7", ""], "mask": ["masks/0.npz", ""], "age": ["61", ""], "size mm": ["4.5", "9"]}
    path = write_manifest(tmp_path / "m.csv", rows(2, **columns, **more))

    manifest = read_manifest(path)

    first, second = manifest.videos
    assert (first.id, first.path, first.label, first.patient_id) == ("v0.mp4", tmp_path / "v0.mp4", 0, "p0")
    assert (first.split, first.fold, first.site, first.roi, first.keyframe) == ("train", 0, "A", (1, 2, 30, 40), 7)
    assert (second.split, second.fold, second.site, second.roi, second.keyframe) == ("val", None, None, None, None)
    assert (first.mask, second.mask) == ("masks/0.npz", None)
    assert first.covariates == {"age": "61", "size mm": "4.5"}  # a path is none
    assert manifest.covariate_names == ("age", "size mm")
    assert manifest.classes == ("negative", "positive")
    assert manifest.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_manifest_of_three_classes_numbers_their_names(tmp_path: Path) -> None:
    manifest = read_manifest(write_manifest(tmp_path / "m.csv", rows(4, label=[0, 2, 1, 0])))
    assert manifest.classes == ("class 0", "class 1", "class 2")


def test_manifest_columns_of_a_table_of_predictions_are_no_covariates(tmp_path: Path) -> None:
    table = {"id": ["a", "b"], "probability": ["0.1", "0.2"], "threshold": ["0.5", "0.5"], "age": ["61", "48"]}
    manifest = read_manifest(write_manifest(tmp_path / "m.csv", rows(2, **table)))
    assert manifest.covariate_names == ("age",)
    assert [dict(video.covariates) for video in manifest.videos] == [{"age": "61"}, {"age": "48"}]


def test_manifest_absolute_paths_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "elsewhere.mp4"
    file.touch()
    path = write_manifest(tmp_path / "data" / "m.csv", rows(2, path=[str(file), "v1.mp4"]))
    assert read_manifest(path).videos[0].path == file


@pytest.mark.parametrize("label", ["1", "1.0", " 1 "])
def test_manifest_label_of_a_table_with_gaps_is_a_whole_number(tmp_path: Path, label: str) -> None:
    path = write_manifest(tmp_path / "m.csv", rows(2, label=["0", label]))
    assert read_manifest(path).labels == [0, 1]


def test_manifest_with_byte_order_mark_and_blank_lines_is_read(tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "m.csv", rows(2))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\r\n\r\n")
    assert len(read_manifest(path).videos) == 2


def test_manifest_empty_split_among_others_is_train(tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "m.csv", rows(4, split=["test", "", "val", "train"]))
    assert [video.split for video in read_manifest(path).videos] == ["test", "train", "val", "train"]


def test_manifest_without_any_split_has_none(tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "m.csv", rows(2, split=["", ""]))
    assert [video.split for video in read_manifest(path).videos] == [None, None]


def test_manifest_known_classes_may_be_named_and_one_alone_is_enough(tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "m.csv", rows(2, label=["malignant", "1"]))
    manifest = read_manifest(path, ["benign", "malignant"])
    assert manifest.labels == [1, 1]
    assert manifest.classes == ("benign", "malignant")


@pytest.mark.parametrize("label", ["2", "unknown"])
def test_manifest_label_beyond_the_known_classes_is_refused(tmp_path: Path, label: str) -> None:
    path = write_manifest(tmp_path / "m.csv", rows(2, label=["0", label]))
    with pytest.raises(ManifestError, match=f"line 3: label is '{label}'.*0 to 1 or one of benign, malignant"):
        read_manifest(path, ["benign", "malignant"])


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("label", "nan", "line 3: label is 'nan'"),
        ("label", "NaN", "line 3: label is 'NaN'"),
        ("label", "inf", "line 3: label is 'inf'"),
        ("label", "", "line 3: label is missing"),
        ("label", "-1", "line 3: label is '-1'"),
        ("label", "0.5", "line 3: label is '0.5'"),
        ("label", "benign", "line 3: label is 'benign'; it must be a whole number"),
        ("patient_id", "", "line 3: patient_id is missing"),
        ("patient_id", "nan", "line 3: patient_id is 'nan'"),
        ("path", "", "line 3: path is missing"),
        ("split", "training", "line 3: split is 'training'; it must be one of train, val, test"),
        ("fold", "one", "line 3: fold is 'one'"),
        ("roi", "1,2,3", "line 3: roi is '1,2,3'; it must be X,Y,W,H"),
        ("roi", "auto", "line 3: roi is 'auto'"),
        ("keyframe", "-4", "line 3: keyframe is '-4'"),
    ],
)
def test_manifest_wrong_value_is_refused_with_its_line(tmp_path: Path, column: str, value: str, said: str) -> None:
    made = rows(3)
    for row in made:
        row.setdefault(column, "")
    made[1][column] = value
    assert said in _refused(write_manifest(tmp_path / "m.csv", made))


@pytest.mark.parametrize("column", ["path", "label", "patient_id"])
def test_manifest_without_a_needed_column_names_it_and_those_there_are(tmp_path: Path, column: str) -> None:
    made = [{("wrong" if name == column else name): value for name, value in row.items()} for row in rows()]
    message = _refused(write_manifest(tmp_path / "m.csv", made))
    assert f"has no column '{column}'" in message
    assert "'wrong'" in message


def test_manifest_with_semicolons_is_told_of_commas(tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "m.csv", rows())
    path.write_text(path.read_text().replace(",", ";"))
    assert "separated by commas" in _refused(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"path,label,patient_id\n", "lists no video"),
        (b"path,label,patient_id,age,age\n", "two columns 'age'"),
        (b"path,label,patient_id\na,b.mp4,0,p\n", "line 2: 4 fields for 3 columns"),
        (b"path,label,patient_id\na.mp4,0\n", "line 2: 2 fields for 3 columns"),
        (bytes(range(256)), "no CSV file in UTF-8"),
        (b'path,label,patient_id\n"a.mp4,0,p\n', "no CSV file in UTF-8"),
    ],
)
def test_manifest_that_is_no_such_table_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes(content)
    assert said in _refused(path)


def test_manifest_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "No such file" in _refused(tmp_path / "m.csv")


def test_manifest_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    assert "Is a directory" in _refused(tmp_path)


def test_manifest_missing_files_are_counted_and_named(tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "m.csv", rows(6))
    for name in ("v1.mp4", "v2.mp4", "v4.mp4", "v5.mp4"):
        (tmp_path / name).unlink()
    message = _refused(path)
    assert "4 of 6 files are not there: 'v1.mp4', 'v2.mp4', 'v4.mp4' and 1 more; paths" in message
    (tmp_path / "v1.mp4").touch()
    assert "3 of 6 files are not there: 'v2.mp4', 'v4.mp4', 'v5.mp4'; paths" in _refused(path)
    assert str(tmp_path) in message


@pytest.mark.parametrize("again", ["v0.mp4", "./v0.mp4", "sub/../v0.mp4"])
def test_manifest_video_listed_twice_is_refused(tmp_path: Path, again: str) -> None:
    (tmp_path / "sub").mkdir()
    path = write_manifest(tmp_path / "m.csv", rows(2, path=["v0.mp4", again]))
    assert f"lists the video {again!r} twice" in _refused(path)


def test_manifest_of_a_pipe_is_refused_and_not_read_for_ever(tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "m.csv", rows(4))
    (tmp_path / "v1.mp4").unlink()
    os.mkfifo(tmp_path / "v1.mp4")
    with pytest.raises(ManifestError, match=r"1 of 4 files are not there: 'v1\.mp4'"):
        read_manifest(path)


def test_manifest_of_one_class_is_refused(tmp_path: Path) -> None:
    assert "one class 1" in _refused(write_manifest(tmp_path / "m.csv", rows(3, label=[1, 1, 1])))


@pytest.mark.parametrize("labels", [[0, 2, 2], [1, 2, 1], [0, 10**12, 0], [0, 1e300, 0]])
def test_manifest_with_a_gap_in_the_labels_is_refused(tmp_path: Path, labels: list[int]) -> None:
    message = _refused(write_manifest(tmp_path / "m.csv", rows(3, label=labels)))
    assert "no video has label" in message
    assert f"the highest label is {max(labels)};" in message


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"split": ["train", "train", "test"]}, ("patient 'A'", "split train (v0.mp4)", "split test (v2.mp4)")),
        ({"split": ["", "train", "test"]}, ("patient 'A'", "split train (v0.mp4)", "split test (v2.mp4)")),
        ({"split": ["val", "train", "train"]}, ("patient 'A'", "split val (v0.mp4)", "split train (v2.mp4)")),
        ({"fold": [0, 0, 1]}, ("patient 'A'", "fold 0 (v0.mp4)", "fold 1 (v2.mp4)")),
    ],
)
def test_manifest_that_leaks_a_patient_names_him(tmp_path: Path, columns: dict[str, Any], said: tuple[str]) -> None:
    path = write_manifest(tmp_path / "m.csv", rows(3, patient_id=["A", "B", "A "], **columns))
    message = _refused(path)
    assert "leak" in message
    assert all(part in message for part in said), message


def test_manifest_that_leaks_several_patients_names_one_and_counts_the_others(tmp_path: Path) -> None:
    patients, splits = ["A", "B", "C"] * 2, ["train"] * 3 + ["test", "test", "train"]
    message = _refused(write_manifest(tmp_path / "m.csv", rows(6, patient_id=patients, split=splits)))
    assert "leak: patient 'A' (and 1 more) is in split train (v0.mp4) and in split test (v3.mp4)" in message


def test_manifest_fold_of_a_test_video_is_no_leak(tmp_path: Path) -> None:
    columns = {"split": ["test", "test", "train"], "fold": [0, 1, 2]}
    path = write_manifest(tmp_path / "m.csv", rows(3, patient_id=["A", "A", "B"], **columns))
    assert len(read_manifest(path).videos) == 3
