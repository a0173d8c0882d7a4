"""`--backend auto`: the best engine that this machine has, and the reasons for each better one that it has not."""

import ctypes
import dataclasses
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from small_bundle import small_bundle

from engines import Bundle, Engine, PreprocessSpec, auto, host, load_bundle, load_engine
from engines.build import BuildOptions, build_engine
from engines.bundle import add_files, describe_file
from engines.engine import EngineOptions
from engines.errors import BackendError, BundleError, EngineError, ParityError
from engines.ranking import Ranked, keep_ranking, ranked_here
from tools.rank import rank
from tools.trivial import write_trivial_bundle

SPEC = PreprocessSpec(resize_hw=(16, 16), crop_hw=(16, 16))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_trivial_bundle(tmp_path / "bundle", num_frames=4, preprocess=SPEC)


@pytest.fixture
def told() -> Iterator[list[str]]:
    """Return what is logged, as it comes."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("edge.engines")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(level)


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


def _chosen(bundle: Bundle, **options: Any) -> tuple[str, str]:
    engine = load_engine(bundle, "auto", **options)
    engine.close()
    return engine.spec.backend, engine.spec.precision


@pytest.fixture
def without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "cuda_trouble", lambda: "no NVIDIA driver")


pytestmark = pytest.mark.usefixtures("without_cuda")


def test_auto_without_a_gpu_takes_openvino_and_says_why_no_better_one(folder: Path, told: list[str]) -> None:
    assert _chosen(load_bundle(folder)) == ("openvino", "fp32")
    assert "auto: passed over torch cuda: no NVIDIA driver" in told
    assert any(line.startswith("auto: passed over tensorrt") for line in told)
    assert not any("onnxruntime" in line for line in told)  # it is no better one


@pytest.mark.parametrize("device", ["cpu", "CPU"])
def test_auto_asked_for_the_processor_of_a_machine_with_a_gpu_takes_the_fastest_there(
    built: Bundle, told: list[str], monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setattr(host, "cuda_trouble", lambda: None)
    assert _chosen(_with_build(built, gain_over_fp32=1.8), device=device) == ("openvino", "int8")
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
    assert _chosen(load_bundle(folder)) == ("torch", "bf16")
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
    assert _chosen(_with_build(built, gain_over_fp32=1.8)) == ("openvino", "int8")
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
    assert _chosen(_with_build(built, **changes)) == ("openvino", "fp32")
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
    assert _chosen(_with_build(built, **measured)) == ("openvino", "fp32")
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
    assert _chosen(both, device=device) == ("openvino", "int8")
    assert any(line.startswith(f"auto: passed over openvino GPU int8: {reason}") for line in told)


def test_auto_passes_over_a_lower_precision_that_no_longer_loads(built: Bundle, told: list[str]) -> None:
    path = built.path / "model.openvino-int8.xml"
    path.write_text("<net/>")
    build = {**(built.file("openvino").build or {}), "gain_over_fp32": 2.0}
    kept = tuple(file for file in built.files if file.kind != "openvino")
    broken = dataclasses.replace(built, files=(*kept, describe_file(path, "openvino", "int8", build)))
    assert _chosen(broken) == ("openvino", "fp32")
    assert any("openvino int8: OpenVINO cannot load" in line for line in told)


def test_auto_with_a_precision_takes_no_other(built: Bundle, told: list[str]) -> None:
    assert _chosen(_with_build(built, gain_over_fp32=2.0), precision="fp32") == ("openvino", "fp32")
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
    _chosen(bundle)
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
    assert _chosen(load_bundle(folder)) == ("onnxruntime", "fp32")
    assert any("openvino fp32: it is not installed" in line for line in told)


RANKED = (Ranked("onnxruntime", "CPU", "fp32", 9.5), Ranked("openvino", "CPU", "fp32", 9.9))


def test_auto_takes_the_engine_that_ranks_first_on_this_machine(folder: Path, told: list[str]) -> None:
    keep_ranking(load_bundle(folder), reversed(RANKED))
    assert _chosen(load_bundle(folder)) == ("onnxruntime", "fp32")
    assert "auto: by rank, as measured on this machine: onnxruntime CPU fp32 9.5 ms, openvino CPU fp32 9.9 ms" in told
    assert "auto: passed over torch cuda: no NVIDIA driver" in told


def test_auto_ranks_a_lower_precision_first_only_for_a_gain_beyond_noise(folder: Path) -> None:
    bundle = load_bundle(folder)
    order = keep_ranking(bundle, [Ranked("openvino", "CPU", "int8", 9.3), *RANKED]).rankings[0]["engines"]
    assert [(engine["backend"], engine["precision"]) for engine in order][:2] == [
        ("onnxruntime", "fp32"),
        ("openvino", "int8"),
    ]


def test_auto_heeds_no_rank_for_a_named_device_or_several_windows_in_flight(folder: Path) -> None:
    keep_ranking(load_bundle(folder), RANKED)
    for options in ({"device": "CPU"}, {"is_for_throughput": True}):
        assert _chosen(load_bundle(folder), **options) == ("openvino", "fp32")


def test_auto_falls_back_from_an_engine_that_ranks_first_and_does_not_run(folder: Path, told: list[str]) -> None:
    keep_ranking(load_bundle(folder), [Ranked("onnxruntime", "CUDA", "fp32", 0.5)])
    assert _chosen(load_bundle(folder)) == ("openvino", "fp32")
    assert any(line.startswith("auto: passed over onnxruntime CUDA fp32: ONNX Runtime has no") for line in told)


@pytest.mark.parametrize("changed", ["processor", "library", "network"])
def test_auto_heeds_no_rank_of_other_circumstances(folder: Path, monkeypatch: pytest.MonkeyPatch, changed: str) -> None:
    keep_ranking(load_bundle(folder), RANKED)
    bundle = load_bundle(folder)
    if changed == "processor":
        monkeypatch.setattr(host, "describe", lambda: {"processor": "abacus"})
    elif changed == "library":
        monkeypatch.setitem(sys.modules, "openvino", None)
    else:
        file = dataclasses.replace(bundle.files[0], name="other", sha256="ab" * 32, kind="openvino", precision="int8")
        bundle = dataclasses.replace(bundle, files=(*bundle.files, file))
    assert ranked_here(bundle) == ()


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder in which the driver tells of a GPU, as it writes it."""
    file = tmp_path / "gpus" / "0000:65:00.0" / "information"
    file.parent.mkdir(parents=True)
    file.write_text("Model: \t\t NVIDIA A2\nIRQ:   \t\t 184\nGPU UUID: \t GPU-0\nVideo BIOS: \t ??\n")
    monkeypatch.setattr(host, "_GPUS", tmp_path / "gpus")
    return tmp_path / "gpus"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("gpu", "the GPU is another one"),
        ("openvino", f"a library is another version: openvino 1.2.3, was {version('openvino')}"),
        ("onnxruntime-openvino", "a library is another version: onnxruntime-openvino 1.2.3, was not there"),
        ("network", "the bundle's engines are others"),
    ],
)
def test_auto_tells_in_one_line_why_a_rank_of_this_machine_no_longer_holds(
    folder: Path, tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch, gpus: Path, changed: str, said: str
) -> None:
    keep_ranking(load_bundle(folder), RANKED)
    if changed == "gpu":
        file = gpus / "0000:65:00.0" / "information"
        file.write_text(file.read_text().replace("A2", "L4"))
    elif changed == "network":
        path = folder / "model.openvino-int8.xml"
        path.write_text("<net/>")
        add_files(load_bundle(folder), describe_file(path, "openvino", "int8"))
    else:
        installed = tmp_path / "site" / f"{changed.replace('-', '_')}-1.2.3.dist-info"
        installed.mkdir(parents=True)
        (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {changed}\nVersion: 1.2.3\n")
        monkeypatch.syspath_prepend(tmp_path / "site")
    assert _chosen(load_bundle(folder)) == ("openvino", "fp32")
    assert [line for line in told if "no longer holds" in line] == [
        f"auto: the order measured on this machine no longer holds ({said}); measure anew: edge-build {folder} --rank"
    ]
    keep_ranking(load_bundle(folder), RANKED)
    assert ranked_here(load_bundle(folder)) == RANKED


def test_machines_that_differ_in_the_gpu_alone_keep_their_ranks_beside_each_other(
    folder: Path, gpus: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reverse = tuple(reversed([one._replace(p50_ms=10 * (2 - place)) for place, one in enumerate(RANKED)]))
    file = gpus / "0000:65:00.0" / "information"
    keep_ranking(load_bundle(folder), RANKED)
    file.write_text(file.read_text().replace("A2", "L4"))
    keep_ranking(load_bundle(folder), RANKED)
    keep_ranking(load_bundle(folder), reverse)
    assert [one["circumstances"]["gpus"] for one in load_bundle(folder).rankings] == [["NVIDIA A2"], ["NVIDIA L4"]]
    assert ranked_here(load_bundle(folder)) == reverse
    file.write_text(file.read_text().replace("L4", "A2"))
    assert ranked_here(load_bundle(folder)) == RANKED
    monkeypatch.setattr(host, "library_versions", dict)
    assert ranked_here(load_bundle(folder)) == ()
    assert "the GPU is another one" not in told[-1], "what is told is what has changed on this machine"


ODD = {"has_cuda": None, "gpus": 1, "backends": "all", "libraries": ["openvino"], "files": {}}


@pytest.mark.parametrize(
    ("circumstances", "said"),
    [({"has_cuda": False}, "an older version kept it"), (ODD, "a library is another version")],
)
def test_auto_passes_over_a_rank_that_an_older_version_or_another_hand_kept(
    folder: Path, told: list[str], circumstances: dict[str, Any], said: str
) -> None:
    keep_ranking(load_bundle(folder), RANKED)
    manifest = json.loads((folder / "manifest.json").read_text())
    (ranking,) = manifest["rankings"]
    ranking["circumstances"] = {"hardware": ranking["circumstances"]["hardware"], **circumstances}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert _chosen(load_bundle(folder)) == ("openvino", "fp32")
    (line,) = [line for line in told if "no longer holds" in line]
    assert said in line


def test_auto_on_fewer_cores_says_what_differs_and_how_to_measure_anew(
    built: Bundle, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = keep_ranking(built, RANKED)
    monkeypatch.setattr(host, "num_cores", lambda: 1000)
    cores = f"(num_cores here 1000, there {len(os.sched_getaffinity(0))})"
    assert _chosen(bundle) == ("openvino", "fp32")
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
    assert _chosen(_with_build(built, hardware={"processor": "abacus"})) == ("openvino", "fp32")
    assert "auto: passed over openvino int8: device CPU here does not compute in int8" in told


@pytest.mark.parametrize("changes", [{"gain_over_fp32": 0.7}, {"hardware": {"processor": "abacus"}}])
def test_auto_takes_a_precision_that_is_asked_for_though_it_is_no_gain(built: Bundle, changes: dict[str, Any]) -> None:
    assert _chosen(_with_build(built, **changes), precision="int8") == ("openvino", "int8")


def test_auto_passes_over_no_engine_that_it_takes_by_rank(built: Bundle, told: list[str]) -> None:
    """What the build measured, on other hardware at that, tells nothing beside what was measured here since."""
    elsewhere = _with_build(built, gain_over_fp32=0.9, hardware={"processor": "abacus"})
    bundle = keep_ranking(elsewhere, [Ranked("openvino", "CPU", "int8", 3.0), *RANKED])
    assert _chosen(bundle) == ("openvino", "int8")
    assert not any("passed over openvino" in line for line in told)


def test_auto_that_finds_none_names_each_engine_once_though_it_is_ranked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "fast_precisions", lambda: ())
    bundle = keep_ranking(load_bundle(folder), RANKED)
    with pytest.raises(BackendError, match="runs here in int8; edge-build makes more; ") as caught:
        load_engine(bundle, "auto", precision="int8")
    reasons = str(caught.value).partition("makes more; ")[2].split("; ")
    names = [reason.partition(":")[0] for reason in reasons]
    assert sorted(set(names)) == sorted(names)
    assert sum(name.startswith("openvino") for name in names) == 1


def test_auto_without_a_gpu_asks_for_no_library_for_one(
    folder: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", _without("torch", "tensorrt"))
    monkeypatch.setattr(host, "fast_precisions", lambda: ())
    assert _chosen(load_bundle(folder)) == ("openvino", "fp32")
    passed_over = [line for line in told if "passed over" in line]
    assert [line for line in passed_over if "no NVIDIA driver" in line] == passed_over
    assert len(passed_over) == 2


def _without(*missing: str) -> Callable[..., Any]:
    find = importlib.util.find_spec
    return lambda name, package=None: None if name in missing else find(name, package)


def test_gpu_names_are_those_that_the_driver_tells(gpus: Path) -> None:
    (gpus / "0000:66:00.0").mkdir()  # of one that it tells nothing of
    assert host.gpu_names() == ["NVIDIA A2"]


def test_ranking_of_other_machines_alone_is_said_to_be_of_no_use_here(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "edge.engines")
    assert ranked_here(load_bundle(folder)) == ()
    assert caplog.text == ""
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(host, "describe", lambda: {"processor": "abacus"})
        keep_ranking(load_bundle(folder), RANKED)
    assert ranked_here(load_bundle(folder)) == ()
    assert "was measured on other hardware (arithmetic here " in caplog.text
    assert f", there abacus); measure on this: edge-build {folder} --rank" in caplog.text


def test_ranking_of_another_machine_is_kept_and_of_this_one_replaced(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(host, "describe", lambda: {"processor": "abacus"})
        keep_ranking(load_bundle(folder), RANKED[:1])
    keep_ranking(load_bundle(folder), RANKED[:1])
    keep_ranking(load_bundle(folder), RANKED)
    bundle = load_bundle(folder)
    assert len(bundle.rankings) == 2
    assert ranked_here(bundle) == RANKED


OPENVINO = {"backend": "openvino", "device": "CPU", "precision": "fp32", "p50_ms": 1.0}


@pytest.mark.parametrize(
    "engines",
    [
        [{**OPENVINO, "backend": "x"}],
        [{"backend": "openvino"}],
        [{**OPENVINO, "p50_ms": "1.0"}],
        [{**OPENVINO, "p50_ms": True}],
        [{**OPENVINO, "p50_ms": 10**400}],
        3,
    ],
)
def test_damaged_ranking_is_refused_with_the_command_that_mends_it(folder: Path, engines: Any) -> None:
    bundle = keep_ranking(load_bundle(folder), RANKED)
    damaged = dataclasses.replace(bundle, rankings=({**bundle.rankings[0], "engines": engines},))
    with pytest.raises(BundleError, match=r"ranking is damaged .*edge-build .* --rank"):
        load_engine(damaged)


def test_ranking_that_says_not_where_it_was_measured_hinders_no_new_one(folder: Path) -> None:
    bundle = dataclasses.replace(load_bundle(folder), rankings=({}, {"circumstances": None}, {"circumstances": [1]}))
    assert ranked_here(bundle) == ()
    keep_ranking(bundle, RANKED)
    assert ranked_here(load_bundle(folder)) == RANKED


def test_rank_times_every_engine_here_and_auto_takes_the_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tools.rank._SECONDS", 0.2)
    assert rank(load_bundle(folder)) == 0
    bundle = load_bundle(folder)
    ranked = ranked_here(bundle)
    assert {engine[:3] for engine in ranked} >= {("openvino", "CPU", "fp32"), ("onnxruntime", "CPU", "fp32")}
    assert f"{ranked[0]} a window: --backend auto takes it on this machine" in capsys.readouterr().out
    assert _chosen(bundle) == (ranked[0].backend, ranked[0].precision)


def test_rank_of_a_bundle_that_cannot_be_written_is_refused_before_any_engine_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.rank._measure", lambda _: pytest.fail("it measures"))
    monkeypatch.setattr("os.access", lambda *_: False)  # whoever is root may write everywhere
    with pytest.raises(EngineError, match=r"bundle cannot be written, .*; give it write permission"):
        rank(load_bundle(folder))


def test_auto_tries_onnxruntimes_accelerators_before_the_processor(
    folder: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["Tensorrt", "CUDA", "Azure", "CPU"]
    providers = [f"{name}ExecutionProvider" for name in names]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(Path, "glob", lambda self, _pattern: iter([self / "libonnxruntime_providers_cuda.so"]))
    assert _chosen(load_bundle(folder)) == ("openvino", "fp32")
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
