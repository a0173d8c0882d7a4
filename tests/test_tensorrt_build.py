"""Compiling for TensorRT with NVIDIA's own ONNX parser and builder.

TensorRT-RTX has TensorRT's interface and builds without a GPU; it stands here where TensorRT stands. A plan that it
builds is not run: nothing here says that a TensorRT plan ran.
"""

import enum
import importlib
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from fake_cuda import FakeCuda
from hardware import missing
from onnx import TensorProto, helper, numpy_helper
from small_bundle import NUM_FRAMES, export_small_bundle, randomised, small_bundle

from engines import cuda
from engines.build import BuildOptions
from engines.errors import EngineError
from engines.tensorrt.plan_options import HARDWARE_COMPATIBILITY, LayerCounts, PlanOptions
from trainer.models.tin import TIN

# its timing cache is there, and does nothing
pytestmark = pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")

MODULES = ("engines.tensorrt.words", "engines.tensorrt.plan", "engines.tensorrt.build")


loaded = []
"""Modules whose logger TensorRT keeps for good."""


@pytest.fixture(scope="module")
def tensorrt_build():
    """The product's module, on TensorRT-RTX."""
    try:
        import tensorrt_rtx_bindings as stand_in
    except ImportError as exc:
        missing(
            ["REQUIRE_TENSORRT"], f"NVIDIA's builder is not installed ({exc}): pip install tensorrt-rtx-cu13-bindings"
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tensorrt", stand_in)
        for name in MODULES:
            patch.delitem(sys.modules, name, raising=False)
        yield importlib.import_module("engines.tensorrt.build")
        loaded.extend(sys.modules.pop(name) for name in MODULES)


@pytest.fixture(scope="module")
def half_path(tmp_path_factory):
    bundle = small_bundle(tmp_path_factory)
    return bundle.path / bundle.file("onnx", "fp16").name


@pytest.fixture
def compile_plan(tensorrt_build, tmp_path):
    def compile_to_bytes(onnx_path: Path, progress=lambda what, share: None, **options) -> bytes:
        target = tmp_path / "x.plan"
        cache = tmp_path / "cache" / "x.timing"
        tensorrt_build.compile_plan(onnx_path, target, PlanOptions(**options), cache, progress)
        return target.read_bytes()

    return compile_to_bytes


def save(folder, nodes, dtype=TensorProto.FLOAT16):
    """Write a network of one float input and output `x` to `y`."""
    numbers = np.float16 if dtype == TensorProto.FLOAT16 else np.float32
    weights = numpy_helper.from_array(np.ones((4, 1, 3, 3), numbers), "w")
    ends = [helper.make_tensor_value_info(name, dtype, shape) for name, shape in ((("x"), [1, 1, 8, 8]), ("y", None))]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], [weights])
    path = folder / "network.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_half_file_of_tin_is_parsed_and_built_by_nvidias_own(compile_plan, half_path):
    told = []
    assert len(compile_plan(half_path, lambda what, share: told.append((what, share)))) > 0.8 * half_path.stat().st_size
    shares = [share for _, share in told]
    assert len(told) > 20
    assert shares == sorted(shares), "progress goes one way"
    assert (shares[0], shares[-1] > 0.5, shares[-1] <= 1) == (0.0, True, True)
    assert told[0][0] == "TensorRT: building engine"


def test_ctrl_c_during_a_build_ends_it(compile_plan, half_path, tmp_path):
    def interrupt(what, share):
        if share > 0.1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile_plan(half_path, interrupt)
    assert not (tmp_path / "x.plan").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_within_tensorrts_own_calls_ends_a_build(tensorrt_build, compile_plan, half_path, monkeypatch, number):
    told, sent = [], []
    log = tensorrt_build.WORDS.log

    def log_and_interrupt(self, severity, msg):
        log(severity, msg)
        if told and not sent:
            sent.append(msg)
            signal.raise_signal(number)

    before = signal.getsignal(number)
    monkeypatch.setattr(type(tensorrt_build.WORDS), "log", log_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        compile_plan(half_path, lambda what, share: told.append(what))
    assert sent
    assert signal.getsignal(number) is before


def test_fp32_file_is_refused_before_its_silent_fp32_plan(compile_plan, half_path):
    with pytest.raises(EngineError, match=r"model\.onnx: none of its \d+ convolutions and matrix products is in FP16"):
        compile_plan(half_path.with_name("model.onnx"))


def test_fp32_plan_is_about_twice_as_large_which_the_second_check_sees(
    tensorrt_build, compile_plan, half_path, monkeypatch
):
    half_bytes = len(compile_plan(half_path))
    monkeypatch.setattr(tensorrt_build, "require_half_network", lambda network, path: None)
    float_bytes = len(compile_plan(half_path.with_name("model.onnx")))
    num_weights = tensorrt_build._num_weights(half_path)
    opaque = LayerCounts(num_layers=1, num_half=0, num_float=1)
    # the small network's plan holds more code than weights: the check is for what code is little beside
    overhead, scale = half_bytes - 2 * num_weights, 24_000_000 // num_weights  # as many as TIN-ResNet50 has
    large_half, large_float = (scale * (size - overhead) + overhead for size in (half_bytes, float_bytes))
    opaque.require_half(half_bytes, half_path, num_weights)
    opaque.require_half(large_half, half_path, scale * num_weights)
    with pytest.raises(EngineError, match=r"is refused: none of its 1 layers is in FP16"):
        opaque.require_half(large_float, half_path, scale * num_weights)
    seen = LayerCounts(num_layers=9, num_half=5, num_float=4)
    seen.require_half(large_float, half_path, scale * num_weights)


def test_unsupported_operator_is_told_in_tensorrts_words_with_the_file(compile_plan, tmp_path):
    path = save(tmp_path, [helper.make_node("Unknown", ["x"], ["y"], "strange", domain="")])
    with pytest.raises(EngineError) as caught:
        compile_plan(path)
    text = str(caught.value)
    assert f"cannot read {path}" in text
    assert "Unknown" in text
    assert text.endswith("or run this bundle on another backend")
    assert "\n" not in text


@pytest.mark.parametrize("content", [b"", b"not an ONNX file", b"\x08"])
def test_file_that_is_no_onnx_is_told_with_the_file(compile_plan, tmp_path, content):
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(EngineError, match=r"broken\.onnx"):
        compile_plan(path)


@pytest.mark.parametrize(("name", "what"), [("Builder", "start its builder"), ("OnnxParser", "start its parser")])
def test_object_that_tensorrt_does_not_give_is_told_in_its_words(
    tensorrt_build, compile_plan, half_path, monkeypatch, name, what
):
    """Its bindings raise a TypeError that says nothing, and its reason goes to the logger."""

    def give_none(*args):
        args[-1].log(tensorrt_build.trt.ILogger.Severity.ERROR, "CUDA initialization failure with error: 2")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(tensorrt_build.trt, name, give_none)
    with pytest.raises(EngineError, match=f"TensorRT cannot {what}: CUDA initialization failure with error: 2"):
        compile_plan(half_path)


def test_timing_cache_that_does_not_fit_is_begun_anew(compile_plan, half_path, tmp_path):
    cache = tmp_path / "cache" / "x.timing"
    cache.parent.mkdir()
    cache.write_bytes(b"no timing cache")
    compile_plan(half_path)
    assert cache.read_bytes() not in (b"no timing cache", b"")


def test_timing_cache_that_cannot_be_written_is_told(tensorrt_build, half_path, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match=r"timing cache .* cannot be read and written .*give it another place"):
        tensorrt_build.compile_plan(
            half_path, tmp_path / "x.plan", PlanOptions(), tmp_path / "file" / "x", lambda what, share: None
        )
    assert not (tmp_path / "x.plan").exists(), "told before minutes of building"


def test_options_reach_the_builder(tensorrt_build, monkeypatch, half_path, tmp_path):
    seen = {}
    configure = tensorrt_build._configure

    def spy(config, options):
        configure(config, options)
        pool = tensorrt_build.trt.MemoryPoolType.WORKSPACE
        seen.update(
            workspace=config.get_memory_pool_limit(pool),
            verbosity=config.profiling_verbosity.name,
            tf32=config.get_flag(tensorrt_build.trt.BuilderFlag.TF32),
        )

    monkeypatch.setattr(tensorrt_build, "_configure", spy)
    tensorrt_build.compile_plan(
        half_path, tmp_path / "x", PlanOptions(workspace_mb=64), tmp_path / "c", lambda what, share: None
    )
    assert seen == {"workspace": 64 << 20, "verbosity": "DETAILED", "tf32": False}


def test_hardware_level_that_an_older_tensorrt_has_not_is_refused(tensorrt_build, monkeypatch):
    for name in HARDWARE_COMPATIBILITY:
        assert tensorrt_build._hardware_level(name).name == name.replace("-", "_").upper()
    monkeypatch.setattr(tensorrt_build.trt, "HardwareCompatibilityLevel", enum.Enum("Level", ["NONE", "AMPERE_PLUS"]))
    assert tensorrt_build._hardware_level("ampere-plus").name == "AMPERE_PLUS"
    with pytest.raises(EngineError, match=r"TensorRT .* has no hardware_compatibility same-compute-capability; update"):
        tensorrt_build._hardware_level("same-compute-capability")


def test_build_is_for_the_device_that_is_asked_for(tensorrt_build, tmp_path_factory, tmp_path, monkeypatch):
    fake = FakeCuda(num_devices=2)
    monkeypatch.setattr(cuda, "_runtime", lambda: fake)
    devices = []

    def compile_nothing(*_):
        devices.append(fake.device)
        raise EngineError("no further")

    monkeypatch.setattr(tensorrt_build, "compile_plan", compile_nothing)
    with pytest.raises(EngineError, match="no further"):
        tensorrt_build.build(
            small_bundle(tmp_path_factory), "fp16", BuildOptions(device="cuda:1"), tmp_path, lambda what, share: None
        )
    assert devices == [1]


@pytest.mark.slow
def test_half_file_of_a_full_width_tin_r50_is_parsed_and_built_by_nvidias_own(compile_plan, tmp_path):
    model = randomised(TIN(50, num_frames=NUM_FRAMES), seed=0)
    with torch.no_grad():
        model.fc.weight.abs_()  # evidence that cancels out would be little but rounding error
    bundle = export_small_bundle(model, tmp_path / "bundle")
    half_path = bundle.path / bundle.file("onnx", "fp16").name
    assert half_path.stat().st_size < 0.55 * (bundle.path / "model.onnx").stat().st_size
    assert len(compile_plan(half_path)) > 0.9 * half_path.stat().st_size


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("trt.BuilderFlag.FP16", "has no attribute"),
        ("trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH", "has no attribute"),
        ("context.execute_async_v2([], 0)", "has no attribute"),
        ("context.set_tensor_address(0, 'clip')", "incompatible type"),
        ("context.execute_async_v3(0)", ""),
    ],
)
def test_types_of_tensorrt_calls_are_checked(tmp_path, line, said):
    (tmp_path / "snippet.py").write_text(
        f"import tensorrt as trt\n\n\ndef f(context: trt.IExecutionContext) -> None:\n    {line}\n"
    )
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "mypy", "--config-file", root / "pyproject.toml", tmp_path / "snippet.py"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode == 0, said in done.stdout) == (not said, True), done.stdout
