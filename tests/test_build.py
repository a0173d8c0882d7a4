"""edge-build: what is compiled must prove itself before the bundle lists it; and the table of the parity gate alone."""

import contextlib
import dataclasses
import errno
import fcntl
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from daemon import run_command
from media import write_video
from small_bundle import random_clips, small_bundle

from engines import Bundle, Engine, PreprocessSpec, build, load_bundle, load_engine, openvino_build
from engines.build import BuildOptions, build_engine
from engines.bundle import add_files, describe_file
from engines.engine import EngineOptions
from engines.errors import BackendError, BundleError, EngineError, ParityError
from engines.openvino_engine import shared_core
from tools.calibration import read_clips
from tools.rank import rank
from tools.trivial import write_trivial_bundle

SPEC = PreprocessSpec(resize_hw=(32, 32), crop_hw=(32, 32))


def _small(folder: Path, **options: object) -> Path:
    return write_trivial_bundle(folder, num_frames=4, preprocess=SPEC, **options)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return _small(tmp_path / "bundle")


@pytest.fixture
def tin_folder(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle of a small TIN, to be changed at will."""
    return shutil.copytree(small_bundle(tmp_path_factory).path, tmp_path / "tin")


def _build(folder: Path, precision: str, **options: object) -> Bundle:
    bundle, _, _ = build_engine(
        load_bundle(folder),
        "openvino",
        precision,
        BuildOptions(**options),
        lambda *_: None,  # type: ignore[arg-type]
    )
    return bundle


def _command(*arguments: object) -> tuple[int, str, str]:
    done = run_command(*map(str, arguments), module="tools.build")
    return done.returncode, done.stdout, done.stderr


def _state(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_build_adds_a_proven_engine_that_then_runs(folder: Path) -> None:
    _build(folder, "fp32")
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
    build = _build(folder, "fp32").file("openvino", "fp32").build
    assert build is not None
    assert build["options"] == {"is_stem_cut": is_cut, "stem_cut_gain": gain}


def test_build_that_cannot_be_run_for_timing_is_refused_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _state(folder)

    def fail(*_: object) -> float:
        raise RuntimeError("Exception from src/core.cpp:1:\nno kernel for this layer\n")

    monkeypatch.setattr(openvino_build, "measure_gain", fail)
    with pytest.raises(EngineError, match=r"cannot run .* on CPU: no kernel for this layer; "):
        _build(folder, "fp32")
    assert _state(folder) == before


def test_build_again_replaces_the_files_and_keeps_all_else(folder: Path) -> None:
    _build(folder, "fp32")
    first = json.loads((folder / "manifest.json").read_text())
    _build(folder, "fp32")
    second = json.loads((folder / "manifest.json").read_text())
    assert sorted(file["name"] for file in first["files"]) == sorted(file["name"] for file in second["files"])
    assert {**first, "files": 0} == {**second, "files": 0}
    assert not list(folder.glob(".build-*"))


def _build_until(monkeypatch: pytest.MonkeyPatch, folder: Path, num_steps: int) -> None:
    """Build, and end as a process that is killed after so many steps of putting files in place."""
    steps = itertools.count()

    def counted(step: Callable[..., Any]) -> Callable[..., Any]:
        def do(*arguments: Any) -> Any:
            if next(steps) >= num_steps:
                raise KeyboardInterrupt
            return step(*arguments)

        return do

    with monkeypatch.context() as patch:
        for name in ("hardlink_to", "replace"):
            patch.setattr(Path, name, counted(getattr(Path, name)))
        with pytest.raises(KeyboardInterrupt):
            _build(folder, "fp32")


@pytest.mark.parametrize(
    "num_steps", [0, *(pytest.param(number, marks=pytest.mark.slow) for number in (1, 2, 4)), 3, 5]
)
def test_build_killed_between_two_steps_leaves_a_whole_bundle_with_an_engine(
    folder: Path, monkeypatch: pytest.MonkeyPatch, num_steps: int
) -> None:
    _build(folder, "fp32")
    names = sorted(path.name for path in folder.iterdir())
    weights = folder / "model.openvino-fp32.bin"
    weights.write_bytes(b"of an older build")  # so that what is moved there has another hash
    older = add_files(load_bundle_unchecked(folder), describe_file(weights, "openvino-weights", "fp32"))
    _build_until(monkeypatch, folder, num_steps)
    left = load_bundle(folder)
    assert sorted(file.sha256 for file in left.files) == sorted(file.sha256 for file in older.files)
    _build(folder, "fp32")
    load_engine(load_bundle(folder), "openvino").close()
    assert sorted(path.name for path in folder.iterdir()) == names
    assert {file.name for file in load_bundle(folder).files} < set(names)


def test_build_on_a_drive_without_links_replaces_the_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    _build(folder, "fp32")
    names = sorted(path.name for path in folder.iterdir())
    monkeypatch.setattr(Path, "hardlink_to", fail)
    _build(folder, "fp32")
    load_engine(load_bundle(folder), "openvino").close()
    assert sorted(path.name for path in folder.iterdir()) == names


def load_bundle_unchecked(folder: Path) -> Bundle:
    """Return the bundle by a manifest that no longer fits its files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engines.bundle._check_file", lambda *_: None)
        return load_bundle(folder)


def test_build_beside_another_on_the_same_bundle_is_refused(folder: Path) -> None:
    (folder / ".build-of the other").mkdir()
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(EngineError, match=r"another edge-build is at work on .*bundle; let it end first"):
        _build(folder, "fp32")
    assert (folder / ".build-of the other").exists()
    os.close(descriptor)
    _build(folder, "fp32")
    assert not list(folder.glob(".build-*"))  # its process is gone


def test_command_that_is_terminated_leaves_the_bundle_as_it_was_and_says_so(folder: Path) -> None:
    before = _state(folder)
    script = (
        "import os, signal, engines.openvino_build as module, tools.build\n"
        "module.quantize = lambda *_: os.kill(os.getpid(), signal.SIGTERM)\n"
        "raise SystemExit(tools.build.main())"
    )
    command = [sys.executable, "-c", script, str(folder), "--backend", "openvino", "--precision", "int8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == f"error: the build was stopped; {folder} has no new engine\n"
    assert _state(folder) == before


@pytest.mark.parametrize(
    ("option", "within", "said"),
    [
        ("--rank", "tools.rank.measure_engines", "the timing was stopped; {} keeps no new order"),
        ("--check", "tools.engine_check.running", "the check was stopped; nothing is known of {}"),
    ],
)
def test_rank_or_check_that_is_terminated_tells_so_and_does_not_pass(
    folder: Path, option: str, within: str, said: str
) -> None:
    before = _state(folder)
    module, _, name = within.rpartition(".")
    script = (
        f"import os, signal, {module} as module, tools.build\n"
        f"module.{name} = lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)\n"
        "raise SystemExit(tools.build.main())"
    )
    command = [sys.executable, "-c", script, str(folder), option]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (4, "", f"error: {said.format(folder)}\n")
    assert _state(folder) == before


ENDED_WHEN_WRITTEN = """
import os, pathlib, signal, sys, tools.build, tools.rank
tools.rank._SECONDS = 0.1
replace, (number, held), sys.argv[1:] = pathlib.Path.replace, sys.argv[1:3], sys.argv[3:]
def replace_and_end(path, target):
    replace(path, target)
    target = pathlib.Path(target)
    if target.name == "manifest.json" and {"new": "fp32.xml", "order": "p50_ms"}.get(held, "") in target.read_text():
        os.kill(os.getpid(), int(number))
    return target
pathlib.Path.replace = replace_and_end
raise SystemExit(tools.build.main())
"""
"""Runs edge-build and ends it by a signal as soon as the manifest is written, and holds what is named."""


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("held", "said"),
    [
        ("new", "the build was stopped after model.openvino-fp32.xml was added to {}"),
        ("any", "the build was stopped; {} has no new engine"),
        ("order", "the timing was stopped after the new order was kept in {}"),
    ],
)
def test_command_stopped_after_it_has_written_the_manifest_says_what_is_there(
    folder: Path, held: str, said: str, number: signal.Signals
) -> None:
    if held == "any":
        _build(folder, "fp32")
    arguments = ["--rank"] if held == "order" else ["--backend", "openvino", "--precision", "fp32"]
    command = [sys.executable, "-c", ENDED_WHEN_WRITTEN, str(int(number)), held, str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (4, "")
    *_, last = done.stderr.splitlines()
    assert last.startswith(f"error: {said.format(folder)}")
    bundle = load_bundle(folder)
    assert (bundle.has("openvino"), bool(bundle.rankings)) == (held != "order", held == "order")


def test_rank_beside_a_build_on_the_same_bundle_is_refused(folder: Path) -> None:
    with build.alone(folder), pytest.raises(EngineError, match="another edge-build is at work on"):
        rank(load_bundle(folder))


def test_build_on_a_full_disk_is_refused_in_one_line(folder: Path) -> None:
    before = _state(folder)
    with full_disk(), pytest.raises(EngineError, match=r"OpenVINO cannot write model\.openvino-fp32\.xml .* make room"):
        _build(folder, "fp32")
    assert _state(folder) == before


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """Let no file of this process grow beyond 100 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_build_that_differs_from_the_reference_leaves_the_bundle_as_it_was(tmp_path: Path) -> None:
    folder = _small(tmp_path / "wrong", is_honest=False)
    before = _state(folder)
    with pytest.raises(
        ParityError, match=r"openvino fp32 of .* is refused: probabilities differ by 0\.1 .*nothing was"
    ):
        _build(folder, "fp32")
    assert _state(folder) == before


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
    entry = _build(folder, "int8").file("openvino", "int8").build
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
        _build(folder, "int8")


def test_precision_that_was_not_built_is_refused_with_the_command(folder: Path) -> None:
    with pytest.raises(BundleError, match=r"edge-build .*bundle --backend openvino --precision int8"):
        load_engine(load_bundle(folder), "openvino", precision="int8")


def test_built_file_that_was_changed_is_refused(folder: Path) -> None:
    _build(folder, "fp32")
    weights = folder / "model.openvino-fp32.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(BundleError, match=r"model\.openvino-fp32\.bin has sha256"):
        load_bundle(folder)


def test_built_file_that_is_none_is_refused_by_name(folder: Path) -> None:
    bundle = _build(folder, "fp32")
    path = folder / "model.openvino-fp32.xml"
    path.write_text("<net/>")
    bundle = add_files(bundle, describe_file(path, "openvino", "fp32", bundle.file("openvino").build))
    with pytest.raises(
        EngineError, match=r"OpenVINO cannot load .*model\.openvino-fp32\.xml on CPU: .*edge-build .* --precision fp32$"
    ):
        load_engine(bundle, "openvino")


def test_built_engine_whose_outputs_changed_is_refused_with_the_command_that_rebuilds_it(folder: Path) -> None:
    _build(folder, "fp32")
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
    built = _build(folder, "fp32").file("openvino", "fp32")
    assert load_bundle(folder).file("openvino", "fp32") == built


@pytest.mark.slow
def test_command_builds_with_a_recording_as_calibration(tin_folder: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "a cine.mp4", 60)
    code, out, err = _command(
        tin_folder, "--backend", "openvino", "--precision", "int8", "--calibrate", video, "--clips", 3
    )
    assert (code, err) == (0, "")
    assert "top class equal, over 2 reference clips" in out
    assert "times as fast as FP32 beside it" in out
    build = load_bundle(tin_folder).file("openvino", "int8").build
    assert build is not None
    assert build["options"]["num_calibration_clips"] == 5  # with the two of the reference


def test_command_check_prints_every_engine_and_passes(folder: Path) -> None:
    _build(folder, "fp32")
    code, out, _ = _command(folder, "--check")
    assert code == 0
    rows = [line for line in out.splitlines() if "passed" in line]
    assert [("openvino" in row, "onnxruntime" in row) for row in rows] == [(True, False), (False, True)]


def test_command_check_of_a_bundle_that_is_not_its_reference_is_refused(tmp_path: Path) -> None:
    code, out, err = _command(_small(tmp_path / "wrong", is_honest=False), "--check", "--backend", "openvino")
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
        (["BUNDLE", "--rank", "--device", ""], 2, "--rank takes nothing beside it; got --device"),
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
    before = _state(folder)
    code, out, err = _command(*(folder if argument == "BUNDLE" else argument for argument in arguments))
    assert (code, out) == (exit_code, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("error: ")
    assert said in err
    assert _state(folder) == before


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


def test_calibration_from_a_recording_too_short_for_a_clip_is_refused(folder: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "short.mp4", 3)
    with pytest.raises(ValueError, match="gives no clip of 4 frames"):
        read_clips(load_bundle(folder), str(video), 2)


def test_bundle_that_was_built_can_be_moved(folder: Path, tmp_path: Path) -> None:
    _build(folder, "fp32")
    shutil.move(folder, tmp_path / "elsewhere")
    load_engine(load_bundle(tmp_path / "elsewhere"), "openvino").close()
