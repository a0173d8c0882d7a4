"""Bundles on disk: what is written is read back, and whatever was tampered with is refused in one line."""

import json
import re
import shlex
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import Bundle, PreprocessSpec, load_bundle
from engines.bundle import SCHEMA_VERSION, sha256_of, write_manifest
from engines.errors import BundleError
from tools.trivial import write_trivial_bundle

Edit = Callable[[dict[str, Any]], Any]
SPEC = PreprocessSpec(resize_hw=(20, 24), crop_hw=(16, 20))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "small"
    return write_trivial_bundle(folder, num_frames=4, preprocess=SPEC, frame_interval_ms=40.0, threshold=0.25)


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """Return a bundle of one's own, to damage."""
    return Path(shutil.copytree(pristine, tmp_path / "my bundle"))


def _edit(folder: Path, edit: Edit) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    edit(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")


def _rewrite_reference(folder: Path, **arrays: np.ndarray) -> None:
    """Replace arrays of the reference, and list the new file's true hash."""
    path = folder / "reference.npz"
    with np.load(path) as old:
        np.savez(path, **{**dict(old), **arrays})
    _list_true_hash(folder, path.name)


def _list_true_hash(folder: Path, name: str) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        next(file for file in manifest["files"] if file["name"] == name)["sha256"] = sha256_of(folder / name)

    _edit(folder, edit)


def _refusal(load: Callable[[], object]) -> str:
    """Return the text of the error that refuses the bundle; it is one line and says how to mend it."""
    with pytest.raises(BundleError) as caught:
        load()
    text = str(caught.value)
    assert "\n" not in text
    assert re.search("export (it|the bundle) again|copy the whole folder again|update or export|name a bundle's", text)
    assert caught.value.exit_code == 4
    return text


def test_bundle_written_is_read_back(pristine: Path) -> None:
    bundle = load_bundle(pristine)
    assert isinstance(bundle, Bundle)
    assert (bundle.path, bundle.name, bundle.classes) == (pristine, "trivial-mean", ("dark", "bright"))
    assert (bundle.threshold, bundle.num_frames, bundle.frame_interval_ms) == (0.25, 4, 40.0)
    assert bundle.preprocess == SPEC
    assert bundle.clip_tchw == (4, 1, 16, 20)
    assert "Not a medical device" in bundle.intended_use
    assert [(file.name, file.kind, file.precision) for file in bundle.files] == [
        ("model.onnx", "onnx", "fp32"),
        ("reference.npz", "reference", None),
    ]


def test_bundle_manifest_has_the_documented_keys(pristine: Path) -> None:
    manifest = json.loads((pristine / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["schema_version"] == SCHEMA_VERSION == 1
    assert manifest["clip"] == {"num_frames": 4, "frame_interval_ms": 40.0}
    for file in manifest["files"]:
        path = pristine / file["name"]
        assert (file["sha256"], file["size_bytes"]) == (sha256_of(path), path.stat().st_size)
    assert sorted(path.name for path in pristine.iterdir()) == ["manifest.json", "model.onnx", "reference.npz"]


def test_bundle_text_beyond_ascii_is_kept(folder: Path) -> None:
    write_manifest(
        folder,
        name="Größe",
        classes=("gutartig", "転移"),
        threshold=0.5,
        preprocess=SPEC,
        num_frames=4,
        frame_interval_ms=40.0,
        outputs={},
        intended_use="",
        training={},
        files=[("model.onnx", "onnx", "fp32")],
    )
    bundle = load_bundle(folder)
    assert (bundle.name, bundle.classes) == ("Größe", ("gutartig", "転移"))


def test_bundle_reference_has_the_manifests_shapes(pristine: Path) -> None:
    reference = load_bundle(pristine).reference()
    assert (reference.clips.shape, reference.probabilities.shape) == ((2, 4, 1, 16, 20), (2, 2))
    assert reference.heatmaps.shape == (2, 4, 4, 4)
    assert {array.dtype.name for array in (reference.clips, reference.probabilities, reference.heatmaps)} == {"float32"}


@pytest.mark.parametrize("name", ["model.onnx", "reference.npz"])
def test_bundle_file_missing_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert f"{folder}: {name} is missing" in _refusal(lambda: load_bundle(folder))


@pytest.mark.parametrize("name", ["model.onnx", "reference.npz"])
def test_bundle_file_with_one_byte_changed_is_refused(folder: Path, name: str) -> None:
    path = folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    text = _refusal(lambda: load_bundle(folder))
    assert name in text
    assert sha256_of(path)[:12] in text


def test_bundle_folder_in_place_of_a_file_is_refused(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").mkdir()
    assert "model.onnx cannot be read (Is a directory)" in _refusal(lambda: load_bundle(folder))


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx"])
def test_bundle_device_or_pipe_in_place_of_a_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/null")  # a pipe goes the same way, but would hold up a test that fails
    assert "not a regular file" in _refusal(lambda: load_bundle(folder))


@pytest.mark.parametrize("place", ["", "nowhere", "model.onnx"])
def test_bundle_folder_without_manifest_is_refused(folder: Path, place: str) -> None:
    (folder / "manifest.json").unlink()
    assert f"{folder / place} is not a bundle" in _refusal(lambda: load_bundle(folder / place))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000], ids=["empty", "cut", "binary", "deep"])
def test_bundle_manifest_that_is_no_json_is_refused(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    assert "manifest.json cannot be read" in _refusal(lambda: load_bundle(folder))


@pytest.mark.parametrize(
    "content", ["[]", "3", "null", "{}", *(f'{{"schema_version": {value}}}' for value in ("2", '"1"', "true", "1.0"))]
)
def test_bundle_manifest_of_unknown_schema_is_refused(folder: Path, content: str) -> None:
    (folder / "manifest.json").write_text(content, encoding="utf-8")
    text = _refusal(lambda: load_bundle(folder))
    assert "schema_version" in text
    assert "this version reads 1" in text


@pytest.mark.parametrize(
    "key", ["name", "classes", "threshold", "preprocess", "clip", "intended_use", "training", "files"]
)
def test_bundle_manifest_key_missing_is_named(folder: Path, key: str) -> None:
    _edit(folder, lambda manifest: manifest.pop(key))
    assert f"manifest.json is not valid: KeyError '{key}'" in _refusal(lambda: load_bundle(folder))


BAD_VALUES: dict[str, Edit] = {
    "no classes": lambda m: m.update(classes=[]),
    "one class": lambda m: m.update(classes=["only"]),
    "classes as text": lambda m: m.update(classes="ab"),
    "classes as numbers": lambda m: m.update(classes=[0, 1]),
    "classes alike": lambda m: m.update(classes=["same", "same"]),
    "threshold above 1": lambda m: m.update(threshold=1.5),
    "threshold NaN": lambda m: m.update(threshold=float("nan")),
    "threshold as text": lambda m: m.update(threshold="high"),
    "no frames": lambda m: m["clip"].update(num_frames=0),
    "endless frames": lambda m: m["clip"].update(num_frames=float("inf")),
    "interval zero": lambda m: m["clip"].update(frame_interval_ms=0),
    "interval endless": lambda m: m["clip"].update(frame_interval_ms=float("inf")),
    "clip null": lambda m: m.update(clip=None),
    "two channels": lambda m: m["preprocess"].update(channels=2),
    "crop beyond resize": lambda m: m["preprocess"].update(crop_hw=[300, 16]),
    "crop empty": lambda m: m["preprocess"].update(crop_hw=[0, 16]),
    "resize too large": lambda m: m["preprocess"].update(resize_hw=[100_000, 100_000]),
    "resize of three": lambda m: m["preprocess"].update(resize_hw=[1, 2, 3]),
    "preprocess a list": lambda m: m.update(preprocess=[]),
    "training a number": lambda m: m.update(training=3),
    "files a text": lambda m: m.update(files="model.onnx"),
    "file without hash": lambda m: m["files"][0].pop("sha256"),
    "file above": lambda m: m["files"][0].update(name="../model.onnx"),
    "file at the root": lambda m: m["files"][0].update(name="/etc/passwd"),
    "file below": lambda m: m["files"][0].update(name="sub/model.onnx"),
    "file dot dot": lambda m: m["files"][0].update(name=".."),
    "file without name": lambda m: m["files"][0].update(name=""),
    "file with a zero byte": lambda m: m["files"][0].update(name="model\0.onnx"),
    "file twice": lambda m: m["files"].append({**m["files"][0], "precision": "fp16"}),
    "precision a list": lambda m: m["files"][0].update(precision=["fp32"]),
    "device a number": lambda m: m["files"][0].update(build={"device": 5}),
    "options null": lambda m: m["files"][0].update(build={"options": None}),
    "too many frames": lambda m: m["clip"].update(num_frames=10**18),
}


@pytest.mark.parametrize("edit", BAD_VALUES.values(), ids=BAD_VALUES.keys())
def test_bundle_manifest_with_a_bad_value_is_refused(folder: Path, edit: Edit) -> None:
    _edit(folder, edit)
    assert "manifest.json is not valid" in _refusal(lambda: load_bundle(folder))


@pytest.mark.parametrize(
    "edit", [lambda m: m["files"][0].update(name="\ud800"), lambda m: m.update(classes=["no", "\ud800"])]
)
def test_bundle_manifest_with_text_that_no_file_can_hold_is_refused(folder: Path, edit: Edit) -> None:
    _edit(folder, edit)
    assert "manifest.json cannot be read" in _refusal(lambda: load_bundle(folder))


def test_bundle_random_damage_to_the_manifest_is_refused_or_harmless(folder: Path) -> None:
    rng = np.random.default_rng(7)
    path = folder / "manifest.json"
    original = path.read_bytes()
    for _ in range(300):
        content = bytearray(original)
        for place in rng.integers(len(content), size=3):
            content[place] = rng.integers(256)
        path.write_bytes(content)
        try:
            bundle = load_bundle(folder)
        except BundleError:
            continue
        assert bundle.clip_tchw[0] >= 1


def test_bundle_unknown_manifest_key_is_ignored(folder: Path) -> None:
    _edit(folder, lambda manifest: manifest.update(note="of a later version"))
    assert load_bundle(folder).name == "trivial-mean"


def test_bundle_file_of_absent_kind_is_named(pristine: Path) -> None:
    bundle = load_bundle(pristine)
    assert bundle.file("onnx").name == bundle.file("onnx", "fp32").name == "model.onnx"
    assert "has no fp16 onnx file (it lists: onnx, reference)" in _refusal(lambda: bundle.file("onnx", "fp16"))


BAD_REFERENCES = {
    "fewer frames": {"clips": np.zeros((2, 3, 1, 16, 20), np.float32)},
    "other size": {"clips": np.zeros((2, 4, 1, 16, 16), np.float32)},
    "no clip": {"clips": np.zeros((0, 4, 1, 16, 20), np.float32), "probabilities": np.zeros((0, 2), np.float32)},
    "one class": {"probabilities": np.zeros((2, 1), np.float32)},
    "heatmaps of other clips": {"heatmaps": np.zeros((3, 4, 4, 4), np.float32)},
    "heatmaps without frames": {"heatmaps": np.zeros((2, 4, 4), np.float32)},
    "text": {"probabilities": np.array([["a", "b"]] * 2)},
    "objects": {"probabilities": np.array([[None, None]] * 2)},
    "complex numbers": {"probabilities": np.ones((2, 2), np.complex64)},
    "NaN": {"clips": np.full((2, 4, 1, 16, 20), np.nan, np.float32)},
    "infinity": {"heatmaps": np.full((2, 4, 4, 4), np.inf, np.float32)},
    "more than float32 holds": {"heatmaps": np.full((2, 4, 4, 4), 1e300)},
}


@pytest.mark.parametrize("arrays", BAD_REFERENCES.values(), ids=BAD_REFERENCES.keys())
def test_bundle_reference_of_wrong_shape_is_refused(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    _rewrite_reference(folder, **arrays)
    assert "reference.npz" in _refusal(load_bundle(folder).reference)


def test_bundle_reference_that_is_no_npz_is_refused(folder: Path) -> None:
    path = folder / "reference.npz"
    whole = path.read_bytes()
    with path.open("wb") as stream:
        np.save(stream, np.zeros(3))
    contents = [b"", b"PK\x03\x04 cut", whole[: len(whole) // 2], path.read_bytes()]
    contents.append(whole[:500] + bytes(100) + whole[600:])
    for content in contents:
        path.write_bytes(content)
        _list_true_hash(folder, path.name)
        assert "is not a reference file" in _refusal(load_bundle(folder).reference)


@pytest.mark.parametrize("value", [-0.5, 3.25])
def test_bundle_reference_of_a_network_that_gives_no_probabilities_is_refused(folder: Path, value: float) -> None:
    path = folder / "reference.npz"
    with np.load(path) as arrays:
        changed = dict(arrays)
    changed["probabilities"][0, 0] = value
    np.savez(path, **changed)
    _list_true_hash(folder, path.name)
    said = _refusal(load_bundle(folder).reference)
    assert "its probabilities are" in said
    assert f"{value:g}" in said


def test_bundle_reference_without_an_array_is_refused(folder: Path) -> None:
    np.savez(folder / "reference.npz", clips=np.zeros((1, 4, 1, 16, 20), np.float32))
    _list_true_hash(folder, "reference.npz")
    assert "probabilities" in _refusal(load_bundle(folder).reference)


@pytest.mark.parametrize("damage", ["encrypted", "packed in an unknown way"])
def test_bundle_reference_that_cannot_be_unpacked_is_refused(folder: Path, damage: str) -> None:
    path = folder / "reference.npz"
    content = bytearray(path.read_bytes())
    # the flags and the method of the first member, as the archive's directory has them
    place = content.find(b"PK\x01\x02") + (8 if damage == "encrypted" else 10)
    content[place] = 1 if damage == "encrypted" else 77
    path.write_bytes(content)
    _list_true_hash(folder, path.name)
    assert "is not a reference file" in _refusal(load_bundle(folder).reference)


def _write_first_member(path: Path, shape: tuple[int, ...], num_blocks: int) -> None:
    """Write clips whose header promises a shape, and in 16 MiB blocks of zeros what is there of it."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("clips.npy", "w") as member,
    ):
        np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for _ in range(num_blocks):
            member.write(bytes(1 << 24))


def test_bundle_reference_that_unpacks_to_more_than_memory_is_refused_before_it_does(folder: Path) -> None:
    _write_first_member(folder / "reference.npz", (1 << 28, 1), num_blocks=65)
    assert (folder / "reference.npz").stat().st_size < 1 << 24
    _list_true_hash(folder, "reference.npz")
    assert "1073741824 are allowed" in _refusal(load_bundle(folder).reference)


def test_bundle_reference_that_promises_more_than_memory_is_refused(folder: Path) -> None:
    _write_first_member(folder / "reference.npz", (1 << 60,), num_blocks=0)
    _list_true_hash(folder, "reference.npz")
    assert "is not a reference file" in _refusal(load_bundle(folder).reference)


def test_bundle_command_in_a_message_can_be_pasted_into_a_shell(folder: Path, tmp_path: Path) -> None:
    moved = load_bundle(folder.rename(tmp_path / "Dr. O'Neill's model"))
    assert shlex.split(f"edge-build {moved.shell_path} --check") == ["edge-build", str(moved.path), "--check"]
