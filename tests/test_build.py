"""edge-build: what is compiled must prove itself before the bundle lists it; and the table of the parity gate alone."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from daemon import run_command
from media import write_video
from small_build import build_for_openvino, files_of, small_trivial
from small_bundle import random_clips, small_bundle

from engines import Bundle, Engine, build, load_bundle, load_engine
from engines.build import BuildOptions, build_engine
from engines.bundle import add_files, describe_file
from engines.engine import EngineOptions
from engines.errors import BackendError, BundleError, EngineError, ParityError
from engines.openvino import build as openvino_build
from engines.openvino.engine import shared_core
from tools.calibration import read_clips


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small_trivial(tmp_path / "bundle")


@pytest.fixture
def tin_folder(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle of a small TIN, to be changed at will."""
    return shutil.copytree(small_bundle(tmp_path_factory).path, tmp_path / "tin")


def _command(*arguments: object) -> tuple[int, str, str]:
    done = run_command(*map(str, arguments), module="tools.build")
    return done.returncode, done.stdout, done.stderr


def test_build_adds_a_proven_engine_that_then_runs(folder: Path) -> None:
    build_for_openvino(folder, "fp32")
    bundle = load_bundle(folder)  # every hash is right
    file = bundle.file("openvino", "fp32")
    assert bundle.has("openvino-weights", "fp32")
    build = file.build
    assert build is not None
    assert (build["builder"], build["backend"], build["device"]) == ("openvino", "openvino", "CPU")
    assert build["parity"]["num_clips"] == 2
    assert build["parity"]["probability_difference"] < 1e-5
    assert build["windows_per_s"] > 0
    assert set(build["software"]) == {"openvino"}
    assert build["hardware"]["num_cores"] >= 1
    engine = load_engine(bundle, "openvino", precision="fp32")
    assert engine.spec.sha256 == file.sha256 != bundle.file("onnx").sha256
    engine.close()


@pytest.mark.parametrize(("gain", "is_cut"), [(1.2, True), (0.9, False)])
def test_build_cuts_the_stem_off_where_that_was_measured_faster(
    folder: Path, monkeypatch: pytest.MonkeyPatch, gain: float, is_cut: bool
) -> None:
    monkeypatch.setattr(openvino_build, "measure_gain", lambda *_: gain)
    build = build_for_openvino(folder, "fp32").file("openvino", "fp32").build
    assert build is not None
    assert build["options"] == {"is_stem_cut": is_cut, "stem_cut_gain": gain}


def test_build_that_cannot_be_run_for_timing_is_refused_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_of(folder)

    def fail(*_: object) -> float:
        raise RuntimeError("Exception from src/core.cpp:1:\nno kernel for this layer\n")

    monkeypatch.setattr(openvino_build, "measure_gain", fail)
    with pytest.raises(EngineError, match=r"cannot run .* on CPU: no kernel for this layer; "):
        build_for_openvino(folder, "fp32")
    assert files_of(folder) == before


def test_build_again_replaces_the_files_and_keeps_all_else(folder: Path) -> None:
    build_for_openvino(folder, "fp32")
    first = json.loads((folder / "manifest.json").read_text())
    build_for_openvino(folder, "fp32")
    second = json.loads((folder / "manifest.json").read_text())
    assert sorted(file["name"] for file in first["files"]) == sorted(file["name"] for file in second["files"])
    assert {**first, "files": 0} == {**second, "files": 0}
    assert not list(folder.glob(".build-*"))


def test_build_that_differs_from_the_reference_leaves_the_bundle_as_it_was(tmp_path: Path) -> None:
    folder = small_trivial(tmp_path / "wrong", is_honest=False)
    before = files_of(folder)
    with pytest.raises(
        ParityError, match=r"openvino fp32 of .* is refused: probabilities differ by 0\.1 .*nothing was"
    ):
        build_for_openvino(folder, "fp32")
    assert files_of(folder) == before


@pytest.fixture(scope="module")
def in_int8(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return a small TIN's bundle with an INT8 engine; do not change it."""
    folder = shutil.copytree(small_bundle(tmp_path_factory).path, tmp_path_factory.mktemp("int8") / "tin")
    told: list[str] = []
    options = BuildOptions(calibration_clips=random_clips(8, seed=5))
    bundle, _, _ = build_engine(load_bundle(folder), "openvino", "int8", options, lambda what, _: told.append(what))
    assert {"quantising", "proving on the reference clips"} <= set(told)
    return bundle


@pytest.mark.slow
def test_build_in_int8_tells_its_gain_and_stays_close_on_other_clips(in_int8: Bundle) -> None:
    build = in_int8.file("openvino", "int8").build
    assert build is not None
    assert build["gain_over_fp32"] > 0
    assert build["options"]["num_calibration_clips"] == 8
    quantised, exact = (load_engine(in_int8, "openvino", precision=precision) for precision in ("int8", "fp32"))
    for clip in random_clips(4, seed=6):
        difference = np.abs(quantised.run_clip(clip).probabilities - exact.run_clip(clip).probabilities).max()
        assert 0 < difference < 0.02
    quantised.close()
    exact.close()


def test_engine_of_a_device_without_fp32_is_timed_beside_the_fp32_that_would_run_otherwise(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An NPU, or a GPU with torch: neither has FP32, and both must be buildable all the same."""
    asked: list[EngineOptions] = []
    load = build.load_unproven

    def load_without_npu(bundle: Bundle, backend: str, options: EngineOptions) -> Engine:
        asked.append(options)
        if options.device == "NPU" and options.precision == "fp32":
            raise BackendError("device NPU here does not compute in fp32")
        return load(bundle, backend, dataclasses.replace(options, device="CPU"))

    built = openvino_build.build

    def build_for_npu(bundle: Bundle, precision: str, *rest: Any) -> build.Built:
        return dataclasses.replace(built(bundle, precision, *rest), device="NPU")

    monkeypatch.setattr(build, "load_unproven", load_without_npu)
    monkeypatch.setattr(openvino_build, "build", build_for_npu)
    entry = build_for_openvino(folder, "int8").file("openvino", "int8").build
    assert [(options.device, options.precision) for options in asked] == [("NPU", "int8"), (None, "fp32")]
    assert entry is not None
    assert entry["gain_over_fp32"] > 0
    assert (entry["device"], entry["fp32_device"]) == ("NPU", "CPU")


@pytest.mark.parametrize(
    ("builder", "precision", "device", "said"),
    [
        ("abacus", "fp32", None, "backend 'abacus' cannot be built; allowed are openvino"),
        ("openvino", "fp8", None, "precision 'fp8'; allowed are fp32, bf16, fp16, int8"),
        ("openvino", "fp32", "TPU", "OpenVINO has no device 'TPU' here; it has .*CPU"),
        ("onnx", "fp16", "TPU", "onnx has one file for all devices; got --device TPU; leave it out"),
    ],
)
def test_build_of_what_there_is_not_is_refused(
    folder: Path, builder: str, precision: str, device: str | None, said: str
) -> None:
    with pytest.raises(BackendError, match=said):
        build_engine(load_bundle(folder), builder, precision, BuildOptions(device=device), lambda *_: None)
    assert not list(folder.glob(".build-*"))


@pytest.mark.slow
def test_int8_network_reads_slices_and_convolutions_from_one_quantizer(in_int8: Bundle) -> None:
    model = shared_core().read_model(in_int8.path / in_int8.file("openvino", "int8").name)
    slices = [node for node in model.get_ops() if node.get_type_name() == "Slice"]
    assert len(slices) == 8  # one for each block of a ResNet-18
    sources = [node.input(0).get_source_output() for node in slices]
    quantized = [source for source in sources if source.get_node().get_type_name() == "FakeQuantize"]
    assert len(quantized) >= 7
    for source in quantized:
        readers = {target.get_node().get_type_name() for target in source.get_target_inputs()}
        assert {"Slice", "Convolution"} <= readers


def test_build_without_nncf_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(BackendError, match=r"install it with `pip install 'nncf"):
        build_for_openvino(folder, "int8")


def test_precision_that_was_not_built_is_refused_with_the_command(folder: Path) -> None:
    with pytest.raises(BundleError, match=r"edge-build .*bundle --backend openvino --precision int8"):
        load_engine(load_bundle(folder), "openvino", precision="int8")


def test_precision_that_the_device_has_not_is_refused_before_a_build_is_advised(folder: Path) -> None:
    if "FP16" in shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has FP16")
    with pytest.raises(BackendError, match="CPU here does not compute in fp16; it does in fp32"):
        load_engine(load_bundle(folder), "openvino", precision="fp16")


def test_command_in_a_message_names_a_folder_with_spaces_as_a_shell_takes_it(tmp_path: Path) -> None:
    folder = small_trivial(tmp_path / "my bündle")
    with pytest.raises(BundleError, match=r"edge-build '.*/my bündle' --backend openvino --precision int8$"):
        load_engine(load_bundle(folder), "openvino", precision="int8")


def test_built_file_that_was_changed_is_refused(folder: Path) -> None:
    build_for_openvino(folder, "fp32")
    weights = folder / "model.openvino-fp32.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(BundleError, match=r"model\.openvino-fp32\.bin has sha256"):
        load_bundle(folder)


def test_built_file_that_is_none_is_refused_by_name(folder: Path) -> None:
    bundle = build_for_openvino(folder, "fp32")
    path = folder / "model.openvino-fp32.xml"
    path.write_text("<net/>")
    bundle = add_files(bundle, describe_file(path, "openvino", "fp32", bundle.file("openvino").build))
    with pytest.raises(
        EngineError, match=r"OpenVINO cannot load .*model\.openvino-fp32\.xml on CPU: .*edge-build .* --precision fp32$"
    ):
        load_engine(bundle, "openvino")


def test_built_engine_whose_outputs_changed_is_refused_with_the_command_that_rebuilds_it(folder: Path) -> None:
    build_for_openvino(folder, "fp32")
    with np.load(folder / "reference.npz") as arrays:
        changed = {**arrays, "heatmaps": 2 * arrays["heatmaps"]}
    np.savez(folder / "reference.npz", **changed)
    bundle = load_bundle_as_it_lies(folder)
    with pytest.raises(ParityError, match=r"build it again on this machine: edge-build .* --precision fp32"):
        load_engine(bundle, "openvino")


def load_bundle_as_it_lies(folder: Path) -> Bundle:
    """Let the manifest vouch for a reference that was changed."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for file in manifest["files"]:
        if file["name"] == "reference.npz":
            file.update(dataclasses.asdict(describe_file(folder / file["name"], "reference", None)))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return load_bundle(folder)


def test_manifest_entry_of_a_build_survives_reading_and_writing(folder: Path) -> None:
    built = build_for_openvino(folder, "fp32").file("openvino", "fp32")
    assert load_bundle(folder).file("openvino", "fp32") == built


@pytest.mark.slow
def test_command_builds_with_a_recording_as_calibration(tin_folder: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "a cine.mp4", 60)
    code, out, err = _command(
        tin_folder, "--backend", "openvino", "--precision", "int8", "--calibrate", video, "--clips", 3
    )
    assert code == 0
    assert err == (
        "warning: the ranges of feature maps are from 5 clips; 8 or more make better heatmaps: --calibrate SOURCE\n"
    )
    assert "top class equal, over 2 reference clips" in out
    assert "times as fast as FP32 beside it" in out
    build = load_bundle(tin_folder).file("openvino", "int8").build
    assert build is not None
    assert build["options"]["num_calibration_clips"] == 5  # with the two of the reference


def test_command_check_prints_every_engine_and_passes(folder: Path) -> None:
    build_for_openvino(folder, "fp32")
    code, out, _ = _command(folder, "--check")
    assert code == 0
    rows = [line for line in out.splitlines() if "passed" in line]
    assert [("openvino" in row, "onnxruntime" in row) for row in rows] == [(True, False), (False, True)]


def test_command_check_of_a_bundle_that_is_not_its_reference_is_refused(tmp_path: Path) -> None:
    code, out, err = _command(small_trivial(tmp_path / "wrong", is_honest=False), "--check", "--backend", "openvino")
    assert code == 4
    assert "refused" in out
    assert err.startswith("error: openvino fp32: refused: probabilities differ by 0.1 (allowed 0.0001)")


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (["/nowhere", "--check"], 4, "is not a bundle"),
        (["BUNDLE"], 2, "--backend and --precision, --check or --rank must be given"),
        (["BUNDLE", "--backend", "openvino"], 2, "--backend and --precision, --check or --rank must be given"),
        (["BUNDLE", "--backend", "abacus", "--precision", "fp32"], 4, "cannot be built; allowed are openvino"),
        (["BUNDLE", "--backend", "openvino", "--precision", "fp8"], 4, "allowed are fp32, bf16, fp16, int8"),
        (["BUNDLE", "--check", "--backend", "abacus"], 4, "backend 'abacus' is unknown"),
        (["BUNDLE", "--check", "--backend", "auto"], 4, "backend 'auto' is unknown; allowed are openvino, onnxruntime"),
        (["BUNDLE", "--check", "--precision", "int8"], 2, "--check takes only"),
        (["BUNDLE", "--check", "--set", "workspace_mb=1"], 2, "--check takes only"),
        (["BUNDLE", "--check", "--clips", "0"], 2, "--check takes only --backend and --device beside it; got --clips"),
        (["BUNDLE", "--rank", "--device", "CPU"], 2, "--rank takes nothing beside it"),
        (["BUNDLE", "--rank", "--device", ""], 2, "--device is ''; leave it out"),
        (["BUNDLE", "--rank", "--clips", "64"], 2, "--rank takes nothing beside it; got --clips; see edge-build"),
        (["BUNDLE", "--rank", "--check", "--set", "x=1"], 2, "--rank takes nothing beside it; got --check and --set"),
        (
            ["BUNDLE", "--backend", "openvino", "--precision", "int8", "--clips", "3"],
            2,
            "--clips serves --calibrate SOURCE",
        ),
        (
            ["BUNDLE", "--backend", "openvino", "--precision", "fp32", "--calibrate", "demo"],
            2,
            "serves --precision int8",
        ),
        (["BUNDLE", "--backend", "openvino", "--precision", "int8", "--clips", "0"], 2, "--clips is 0"),
        (
            ["BUNDLE", "--backend", "openvino", "--precision", "int8", "--calibrate", "/nowhere.mp4"],
            3,
            "there is no file",
        ),
        (
            ["BUNDLE", "--backend", "openvino", "--precision", "int8", "--calibrate", "/nowhere.csv"],
            2,
            "cannot be read",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_command_error_is_one_line_and_its_exit_code(
    folder: Path, arguments: list[str], exit_code: int, said: str
) -> None:
    before = files_of(folder)
    code, out, err = _command(*(folder if argument == "BUNDLE" else argument for argument in arguments))
    assert (code, out) == (exit_code, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("error: ")
    assert said in err
    assert files_of(folder) == before


@pytest.mark.slow
def test_calibration_clips_of_a_manifest_are_those_of_its_training_videos(folder: Path, phantom_manifest: Path) -> None:
    bundle = load_bundle(folder)
    clips = read_clips(bundle, str(phantom_manifest), 6)
    assert clips.shape == (6, 4, 1, 32, 32)
    assert 0 <= clips.min() < clips.max() <= 1
    assert len({clip.tobytes() for clip in clips}) == 6  # of different videos
    split = phantom_manifest.with_name("split.csv")
    header, first, second, *_ = phantom_manifest.read_text().splitlines()
    split.write_text(f"{header},split\n{first},test\n{second},train\n")
    only = read_clips(bundle, str(split), 2)
    np.testing.assert_array_equal(only, read_clips(bundle, str(split.parent / second.split(",")[0]), 2))


@pytest.mark.parametrize("num_clips", [2, 6, 12])
def test_calibration_clips_are_from_all_along_a_manifest_in_the_order_of_its_classes(
    folder: Path, phantom_manifest: Path, num_clips: int
) -> None:
    bundle = load_bundle(folder)
    clips = read_clips(bundle, str(phantom_manifest), num_clips)
    last = phantom_manifest.parent / phantom_manifest.read_text().splitlines()[-1].split(",")[0]
    assert len(clips) == num_clips
    assert clips[-1].tobytes() in {clip.tobytes() for clip in read_clips(bundle, str(last), num_clips)}


def test_calibration_from_a_recording_too_short_for_a_clip_is_refused(folder: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "short.mp4", 3)
    with pytest.raises(ValueError, match="gives no clip of 4 frames"):
        read_clips(load_bundle(folder), str(video), 2)


def test_bundle_that_was_built_can_be_moved(folder: Path, tmp_path: Path) -> None:
    build_for_openvino(folder, "fp32")
    shutil.move(folder, tmp_path / "elsewhere")
    load_engine(load_bundle(tmp_path / "elsewhere"), "openvino").close()
