"""Plans: what TensorRT is told, the count of its layers, and the refusal of what does not fit the machine."""

import dataclasses
import json
from pathlib import Path

import pytest

from engines.bundle import Bundle, add_files, describe_file, load_bundle
from engines.errors import EngineError
from engines.tensorrt.plan_check import PlanHost, misfit, require_fit
from engines.tensorrt.plan_options import LayerCounts, PlanOptions
from tools.trivial import write_trivial_bundle

HERE = PlanHost(tensorrt="11.0.2.7", gpu="NVIDIA L4", compute_capability="8.9", driver_cuda="13.0")


def entry(host: PlanHost = HERE, **options: object) -> dict[str, object]:
    return {"builder": "tensorrt", "software": host.software, "hardware": host.hardware, "options": options}


def with_host(**changes: str) -> PlanHost:
    return dataclasses.replace(HERE, **changes)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = write_trivial_bundle(tmp_path_factory.mktemp("plans") / "bundle", num_frames=2)
    (folder / "x.plan").write_bytes(b"not looked at")
    host = with_host(tensorrt="10.9.0.1")
    return add_files(load_bundle(folder), describe_file(folder / "x.plan", "tensorrt", "fp16", entry(host)))


def test_plan_built_here_fits() -> None:
    assert misfit(entry(), HERE) is None


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (with_host(tensorrt="10.9.0.1"), "was built by TensorRT 10.9.0.1, this is 11.0.2.7"),
        (with_host(tensorrt="11.0.2.8"), "was built by TensorRT 11.0.2.8, this is 11.0.2.7"),
        (with_host(gpu="NVIDIA A10"), r"was built on NVIDIA A10 \(compute capability 8.9\), this is NVIDIA L4 \(8.9\)"),
        (with_host(compute_capability="9.0"), "compute capability 9.0"),
        (with_host(driver_cuda="13.1"), "a driver for CUDA 13.1, this machine's is older, for 13.0: update it"),
    ],
)
def test_plan_of_another_machine_is_refused(there: PlanHost, said: str) -> None:
    trouble = misfit(entry(there), HERE)
    assert trouble is not None
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(trouble)


def test_plan_of_an_older_driver_fits_a_newer_one() -> None:
    assert misfit(entry(with_host(driver_cuda="12.9")), HERE) is None


@pytest.mark.parametrize(
    ("version", "is_served"),
    [
        ("11.0.2.7", True),
        ("11.0.0.1", True),
        ("11.1.0.1", False),
        ("10.16.1.2", True),
        ("12.0.0.1", False),
        ("9.3.0.1", False),
        ("8.6.1.6", False),
    ],
)
def test_version_compatible_plan_fits_later_versions_of_its_major_and_11_what_10_built(
    version: str, is_served: bool
) -> None:
    trouble = misfit(entry(with_host(tensorrt=version), version_compatible=True), HERE)
    assert (trouble is None) == is_served


@pytest.mark.parametrize(
    ("level", "gpu", "capability", "is_served"),
    [
        ("same-compute-capability", "NVIDIA RTX 4090", "8.9", True),
        ("same-compute-capability", "NVIDIA A10", "8.6", False),
        ("ampere-plus", "NVIDIA A10", "8.6", True),
        ("ampere-plus", "NVIDIA H100", "9.0", True),
        ("none", "NVIDIA RTX 4090", "8.9", False),
    ],
)
def test_hardware_compatible_plan_fits_its_family(level: str, gpu: str, capability: str, is_served: bool) -> None:
    there = with_host(gpu=gpu, compute_capability=capability)
    assert (misfit(entry(there, hardware_compatibility=level), HERE) is None) == is_served


def test_ampere_plus_plan_does_not_fit_a_turing_gpu() -> None:
    here = with_host(gpu="NVIDIA T4", compute_capability="7.5")
    assert misfit(entry(hardware_compatibility="ampere-plus"), here) is not None


@pytest.mark.parametrize(
    "build",
    [
        {},
        {"software": {}},
        {"software": None},
        {"software": {"tensorrt": 11}},
        entry(with_host(tensorrt=""), version_compatible=True),
        entry(with_host(driver_cuda="")),
    ],
)
def test_plan_without_a_record_is_refused(build: dict[str, object]) -> None:
    assert misfit(build, HERE) == "has no record in the manifest of what it was built on"


def test_refusal_names_the_file_and_the_command_that_builds_it_anew(bundle: Bundle) -> None:
    with pytest.raises(EngineError) as caught:
        require_fit(bundle, bundle.file("tensorrt"), HERE)
    text = str(caught.value)
    assert text.startswith(f"{bundle.path / 'x.plan'} was built by TensorRT 10.9.0.1")
    assert text.endswith(f"edge-build {bundle.path} --backend tensorrt --precision fp16")
    assert (caught.value.exit_code, "\n" in text) == (4, False)


def test_plan_that_the_manifest_says_nothing_of_is_refused_with_the_command(bundle: Bundle) -> None:
    file = dataclasses.replace(bundle.file("tensorrt"), build=None)
    with pytest.raises(EngineError, match=r"has no record .*: edge-build .* --backend tensorrt --precision fp16$"):
        require_fit(bundle, file, HERE)


def test_options_are_read_from_settings() -> None:
    options = PlanOptions.parse(
        {"workspace_mb": "2", "optimization_level": "5", "version_compatible": "true", "timing_cache": "a/b"}
    )
    assert options.workspace_bytes == 2 * 1024 * 1024
    assert (options.optimization_level, options.version_compatible) == (5, True)
    assert options.cache_path("11.0", "L4") == Path("a/b").absolute()


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        ("fp16", "true", "setting 'fp16' is unknown; allowed are workspace_mb, optimization_level, version_compatible"),
        ("workspace_mb", "0", "workspace_mb is 0; it must be 1 or more"),
        ("workspace_mb", "1.5", "setting workspace_mb is '1.5'; it must be a whole number"),
        ("optimization_level", "6", "optimization_level is 6; it must be 0 to 5"),
        ("version_compatible", "yes", "setting version_compatible is 'yes'; allowed are true and false"),
        ("hardware_compatibility", "turing", "'turing'; allowed are none, ampere-plus, same-compute-capability"),
    ],
)
def test_option_that_cannot_be_is_refused_with_the_allowed(key: str, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PlanOptions.parse({key: text})


def test_timing_cache_serves_one_version_and_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    paths = {PlanOptions().cache_path(*pair) for pair in [("11.0", "L4"), ("11.1", "L4"), ("11.0", "A10")]}
    assert len(paths) == 3
    assert {path.parent for path in paths} == {tmp_path / "edge-ultrasound"}
    assert PlanOptions().cache_path("11.0", "NVIDIA RTX 4090/24").name == "tensorrt-11.0-nvidia-rtx-4090-24.timing"


def layer(*formats: str, key: str = "Format/Datatype") -> dict[str, object]:
    return {"Name": "x", "Inputs": [{"Name": "i", key: formats[0]}], "Outputs": [{"Name": "o", key: formats[-1]}]}


def test_layers_are_counted_by_their_types() -> None:
    layers = [
        layer("Row major linear FP32", "Channel major FP16 format where channel % 8 == 0"),
        layer("Half", key="Format"),
        layer("Half", key="Datatype"),
        layer("Half", key="DataType"),
        layer("Float"),
        layer("Row major linear FP32 format"),
        layer("Int32"),
        {"Name": "no tensors"},
        "a layer by its name alone",
    ]
    assert LayerCounts.read(json.dumps({"Layers": layers, "Bindings": ["x"]})) == LayerCounts(9, 4, 2)


@pytest.mark.parametrize("told", ["", "no JSON", "[]", "{}", '{"Layers": null}'])
def test_list_of_layers_that_cannot_be_read_is_an_error_of_ours(told: str) -> None:
    with pytest.raises(EngineError, match="list of layers cannot be read"):
        LayerCounts.read(told)
