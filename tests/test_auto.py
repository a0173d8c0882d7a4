"""`--backend auto`: the best engine that this machine has, and the reasons for each better one that it has not."""

import ctypes
import dataclasses
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from auto_choice import RANKED, SPEC, chosen, heard, write_small
from small_bundle import small_bundle

from engines import Bundle, Engine, auto, host, load_bundle, load_engine
from engines.build import BuildOptions, build_engine
from engines.bundle import describe_file
from engines.engine import EngineOptions
from engines.errors import BackendError, ParityError
from engines.ranking import Ranked, keep_ranking
from tools.trivial import write_trivial_bundle


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_small(tmp_path / "bundle")


@pytest.fixture
def told() -> Iterator[list[str]]:
    """Return what is logged, as it comes."""
    with heard() as lines:
        yield lines


@pytest.fixture(scope="module")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(small_bundle(tmp_path_factory).path, tmp_path_factory.mktemp("auto") / "tin")
    build_engine(load_bundle(folder), "openvino", "int8", BuildOptions(), lambda *_: None)
    return folder


@pytest.fixture
def built(built_once: Path, tmp_path: Path) -> Bundle:
    """Return a bundle with an INT8 engine, to be changed at will."""
    return load_bundle(shutil.copytree(built_once, tmp_path / "built"))


def _with_build(bundle: Bundle, **changes: Any) -> Bundle:
    """Return the bundle as if its INT8 engine had been measured otherwise."""
    changed = [
        dataclasses.replace(file, build={**(file.build or {}), **changes}) if file.kind == "openvino" else file
        for file in bundle.files
    ]
    return dataclasses.replace(bundle, files=tuple(changed))


@pytest.fixture
def without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "cuda_trouble", lambda: "no NVIDIA driver")


pytestmark = pytest.mark.usefixtures("without_cuda")


def test_auto_without_a_gpu_takes_openvino_and_says_why_no_better_one(folder: Path, told: list[str]) -> None:
    assert chosen(load_bundle(folder)) == ("openvino", "fp32")
    assert "auto: passed over torch cuda: no NVIDIA driver" in told
    assert any(line.startswith("auto: passed over tensorrt") for line in told)
    assert not any("onnxruntime" in line for line in told)  # it is no better one


@pytest.mark.parametrize("device", ["cpu", "CPU"])
def test_auto_asked_for_the_processor_of_a_machine_with_a_gpu_takes_the_fastest_there(
    built: Bundle, told: list[str], monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setattr(host, "cuda_trouble", lambda: None)
    assert chosen(_with_build(built, gain_over_fp32=1.8), device=device) == ("openvino", "int8")
    assert f"auto: passed over torch cuda: {device} is asked for" in told


def test_auto_on_a_gpu_takes_bf16_where_the_network_does_not_hold_in_fp16(
    folder: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = auto.load_proven

    def load_without_gpu(bundle: Bundle, backend: str, options: EngineOptions) -> Engine:
        if (backend, options.device) != ("torch", "cuda"):
            raise BackendError("not here")
        if options.precision != "bf16":
            raise ParityError("it overflows")
        engine = load(bundle, "openvino", EngineOptions())
        engine.spec = dataclasses.replace(engine.spec, backend=backend, precision=options.precision)
        return engine

    monkeypatch.setattr(host, "cuda_trouble", lambda: None)
    monkeypatch.setattr(auto, "load_proven", load_without_gpu)
    assert chosen(load_bundle(folder)) == ("torch", "bf16")
    assert "auto: passed over torch cuda: it overflows" in told


@pytest.mark.parametrize(
    ("code", "num_devices", "said"),
    [
        (100, 0, "no CUDA device"),
        (0, 0, "no CUDA device"),
        (0, 1, None),
        (803, 1, "the NVIDIA driver does not start (CUDA error 803)"),
    ],
)
def test_driver_tells_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, code: int, num_devices: int, said: str | None
) -> None:
    class Driver:
        def cuInit(self, flags: int) -> int:  # noqa: N802
            return code

        def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
            count._obj.value = num_devices
            return 0

    monkeypatch.undo()  # the fixture's own answer
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    assert host.cuda_trouble.__wrapped__() == said


def test_auto_takes_the_precision_that_was_measured_faster_here(built: Bundle, told: list[str]) -> None:
    assert chosen(_with_build(built, gain_over_fp32=1.8)) == ("openvino", "int8")
    assert not any("openvino" in line for line in told)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gain_over_fp32": 0.7}, "openvino int8: it is 0.70 times as fast as FP32 on this machine"),
        (
            {"gain_over_fp32": 9.0, "hardware": {"processor": "abacus"}},
            "openvino int8: it was measured on other hardware (",
        ),
        ({"gain_over_fp32": None}, "openvino int8: it is 0.00 times"),
    ],
)
def test_auto_passes_over_a_precision_that_is_no_gain_here(
    built: Bundle, told: list[str], changes: dict[str, Any], reason: str
) -> None:
    assert chosen(_with_build(built, **changes)) == ("openvino", "fp32")
    assert any(reason in line for line in told)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Arc", "OpenVINO has no device 'GPU' here"),
        ("Iris", "it was measured on other hardware (device here Arc, there Iris)"),
    ],
)
def test_auto_tries_an_engine_of_another_device_where_that_is_the_one_it_was_measured_on(
    built: Bundle, told: list[str], monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    """There is no such device here: that it is asked for tells that auto takes it."""
    monkeypatch.setattr(auto, "hardware", lambda device: {**host.describe(), "device": {"GPU": "Arc"}[device]})
    measured = {"gain_over_fp32": 9.0, "device": "GPU", "hardware": {**host.describe(), "device": name}}
    assert chosen(_with_build(built, **measured)) == ("openvino", "fp32")
    assert any(line.startswith(f"auto: passed over openvino GPU int8: {reason}") for line in told)


@pytest.mark.parametrize(
    ("device", "reason"), [(None, "OpenVINO has no device 'GPU' here"), ("cpu", "cpu is asked for")]
)
def test_auto_takes_the_processors_engine_where_another_devices_of_that_precision_does_not_run(
    built: Bundle, told: list[str], monkeypatch: pytest.MonkeyPatch, device: str | None, reason: str
) -> None:
    monkeypatch.setattr(auto, "hardware", lambda _: host.describe())
    (own,) = (file for file in _with_build(built, gain_over_fp32=1.8).files if file.kind == "openvino")
    (built.path / "gpu.xml").write_bytes((built.path / own.name).read_bytes())
    of_gpu = dataclasses.replace(own, name="gpu.xml", build={**(own.build or {}), "device": "GPU", "gain_over_fp32": 9})
    others = tuple(file for file in built.files if file.kind != "openvino")
    both = dataclasses.replace(built, files=(*others, of_gpu, own))
    assert chosen(both, device=device) == ("openvino", "int8")
    assert any(line.startswith(f"auto: passed over openvino GPU int8: {reason}") for line in told)


def test_auto_passes_over_a_lower_precision_that_no_longer_loads(built: Bundle, told: list[str]) -> None:
    path = built.path / "model.openvino-int8.xml"
    path.write_text("<net/>")
    build = {**(built.file("openvino").build or {}), "gain_over_fp32": 2.0}
    kept = tuple(file for file in built.files if file.kind != "openvino")
    broken = dataclasses.replace(built, files=(*kept, describe_file(path, "openvino", "int8", build)))
    assert chosen(broken) == ("openvino", "fp32")
    assert any("openvino int8: OpenVINO cannot load" in line for line in told)


def test_auto_with_a_precision_takes_no_other(built: Bundle, told: list[str]) -> None:
    assert chosen(_with_build(built, gain_over_fp32=2.0), precision="fp32") == ("openvino", "fp32")
    assert "auto: passed over openvino int8: fp32 is asked for" in told


@pytest.mark.parametrize(
    ("built_precision", "flags", "missing"),
    [
        (None, ("avx2",), []),
        (None, ("avx512_bf16", "avx512_vnni"), ["int8", "bf16"]),
        (None, ("avx_vnni",), ["int8"]),
        ("bf16", ("avx512_bf16", "avx512_vnni"), ["int8"]),
        ("int8", ("avx512_bf16", "avx512_vnni"), []),
    ],
)
def test_auto_says_what_is_faster_on_this_processor_and_the_bundle_has_not(
    folder: Path,
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
    built_precision: str | None,
    flags: tuple[str, ...],
    missing: list[str],
) -> None:
    monkeypatch.setattr(host, "_arithmetic", lambda: flags)
    bundle = load_bundle(folder)
    if built_precision is not None:
        file = dataclasses.replace(bundle.file("onnx", "fp32"), kind="openvino", precision=built_precision)
        bundle = dataclasses.replace(bundle, files=(*bundle.files, file))
    chosen(bundle)
    lines = [line for line in told if "is not built" in line]
    assert lines == [
        f"auto: passed over openvino {precision}: it is not built, and this processor is made for it; "
        f"`edge-build {folder} --backend openvino --precision {precision}` builds and measures it"
        for precision in missing
    ]


@pytest.mark.parametrize(
    ("flags", "fast"),
    [
        (("avx2", "avx512f"), ()),
        (("avx2", "avx_vnni"), ("int8",)),
        (("amx_bf16", "amx_int8"), ("int8", "bf16")),
        (("asimddp", "bf16"), ("int8", "bf16")),
    ],
)
def test_fast_precisions_are_those_the_processor_has_instructions_for(
    monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], fast: tuple[str, ...]
) -> None:
    monkeypatch.setattr(host, "_arithmetic", lambda: flags)
    assert host.fast_precisions() == fast


def test_auto_without_openvino_takes_onnxruntime(
    folder: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert chosen(load_bundle(folder)) == ("onnxruntime", "fp32")
    assert any("openvino fp32: it is not installed" in line for line in told)


def test_auto_on_fewer_cores_says_what_differs_and_how_to_measure_anew(
    built: Bundle, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = keep_ranking(built, RANKED)
    monkeypatch.setattr(host, "num_cores", lambda: 1000)
    cores = f"(num_cores here 1000, there {len(os.sched_getaffinity(0))})"
    assert chosen(bundle) == ("openvino", "fp32")
    said = [line for line in told if "other hardware" in line]
    assert [line.partition(cores)[1] for line in said] == [cores, cores]
    assert said[0].endswith(f"measure on this: edge-build {bundle.path} --rank")
    assert said[1].endswith(f"edge-build {bundle.path} --backend openvino --precision int8")


def test_auto_asks_for_no_build_in_an_arithmetic_that_the_processor_has_not(
    built: Bundle, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(core: Any, device: str, precision: str) -> None:
        raise BackendError(f"device {device} here does not compute in {precision}")

    monkeypatch.setattr(auto, "check_device", refuse)
    assert chosen(_with_build(built, hardware={"processor": "abacus"})) == ("openvino", "fp32")
    assert "auto: passed over openvino int8: device CPU here does not compute in int8" in told


@pytest.mark.parametrize("changes", [{"gain_over_fp32": 0.7}, {"hardware": {"processor": "abacus"}}])
def test_auto_takes_a_precision_that_is_asked_for_though_it_is_no_gain(built: Bundle, changes: dict[str, Any]) -> None:
    assert chosen(_with_build(built, **changes), precision="int8") == ("openvino", "int8")


def test_auto_passes_over_no_engine_that_it_takes_by_rank(built: Bundle, told: list[str]) -> None:
    """What the build measured, on other hardware at that, tells nothing beside what was measured here since."""
    elsewhere = _with_build(built, gain_over_fp32=0.9, hardware={"processor": "abacus"})
    bundle = keep_ranking(elsewhere, [Ranked("openvino", "CPU", "int8", 3.0), *RANKED])
    assert chosen(bundle) == ("openvino", "int8")
    assert not any("passed over openvino" in line for line in told)


def test_auto_without_a_gpu_asks_for_no_library_for_one(
    folder: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", _without("torch", "tensorrt"))
    monkeypatch.setattr(host, "fast_precisions", lambda: ())
    assert chosen(load_bundle(folder)) == ("openvino", "fp32")
    passed_over = [line for line in told if "passed over" in line]
    assert [line for line in passed_over if "no NVIDIA driver" in line] == passed_over
    assert len(passed_over) == 2


def _without(*missing: str) -> Callable[..., Any]:
    find = importlib.util.find_spec
    return lambda name, package=None: None if name in missing else find(name, package)


def test_auto_tries_onnxruntimes_accelerators_before_the_processor(
    folder: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["Tensorrt", "CUDA", "Azure", "CPU"]
    providers = [f"{name}ExecutionProvider" for name in names]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(Path, "glob", lambda self, _pattern: iter([self / "libonnxruntime_providers_cuda.so"]))
    assert chosen(load_bundle(folder)) == ("openvino", "fp32")
    assert any(line.startswith("auto: passed over onnxruntime CUDA fp32: ") for line in told)
    assert not any(f"passed over onnxruntime {name}" in line for line in told for name in ("Azure", "Tensorrt"))


def test_auto_on_a_processor_does_not_import_what_it_does_not_run(folder: Path) -> None:
    keep_ranking(load_bundle(folder), [Ranked("openvino", "CPU", "fp32", 9.5)])
    code = f"import sys, engines; engines.load_engine(engines.load_bundle({str(folder)!r})); print(*sys.modules)"
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "openvino" in imported
    assert {"onnxruntime", "torch"}.isdisjoint(imported)


def test_auto_where_nothing_runs_names_every_reason(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("openvino", "onnxruntime"):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        BackendError, match=r"no engine of .* runs here; edge-build .*; tensorrt.*openvino fp32: it is not.*torch cpu"
    ):
        load_engine(load_bundle(folder))


def test_auto_does_not_look_elsewhere_where_the_bundle_is_not_its_reference(tmp_path: Path) -> None:
    folder = write_trivial_bundle(tmp_path / "wrong", num_frames=4, preprocess=SPEC, is_honest=False)
    with pytest.raises(ParityError, match=r"model\.onnx is refused on openvino fp32"):
        load_engine(load_bundle(folder))
