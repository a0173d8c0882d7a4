"""The torch backend for GPUs: the lowering to FP16 and BF16, checked on the CPU; on a real GPU all that it is for."""

import argparse
import dataclasses
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_cuda import Error, FakeCuda
from small_bundle import NUM_FRAMES, random_clips, randomised, small_bundle, small_model

from engines import cuda, host
from engines.build import BuildOptions, build_engine
from engines.bundle import load_bundle
from engines.engine import EngineOptions
from engines.errors import BackendError, BundleError, EngineError
from engines.load import load_engine
from engines.tensorrt.plan_options import PlanOptions
from engines.torch import engine as torch_engine
from engines.torch import gpu as torch_cuda
from engines.torch import tensorrt_build as torch_tensorrt_build
from tools.bench.cli import _choices
from tools.engine_check import check_here
from tools.parity_table import check_all
from trainer.export import WithHeatmap
from trainer.models.video3d import R2Plus1D, ResNet3D

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return small_bundle(tmp_path_factory)


@pytest.fixture
def program(bundle):
    return torch.export.load(bundle.path / "model.pt2")


@pytest.fixture
def fake(monkeypatch):
    fake = FakeCuda()
    monkeypatch.setattr(cuda, "_runtime", lambda: fake)
    return fake


@pytest.mark.parametrize(
    ("precision", "dtype", "allowed"), [("fp16", torch.half, 5e-3), ("bf16", torch.bfloat16, 4e-2)]
)
def test_lowered_program_equals_the_network_on_clips_that_are_not_the_reference(program, precision, dtype, allowed):
    clips = random_clips(4, seed=31)
    clips[1], clips[2] = 1.0, clips[0, ::-1]
    lowered = torch_cuda.lower(torch, program, "cpu", precision)
    with torch.inference_mode():
        probabilities, heatmaps = WithHeatmap(small_model())(torch.from_numpy(clips))
        got = [lowered(torch.from_numpy(clip[np.newaxis])) for clip in clips]
    tensors = [*lowered.parameters(), *lowered.buffers()]
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {dtype}
    assert {tensor.dtype for pair in got for tensor in pair} == {torch.float32}
    torch.testing.assert_close(torch.cat([pair[0] for pair in got]), probabilities, atol=allowed, rtol=0)
    peak = heatmaps.max().item()
    torch.testing.assert_close(torch.cat([pair[1] for pair in got]), heatmaps, atol=2 * allowed * peak, rtol=0)


def test_lowered_convolutions_lie_channels_last(program):
    lowered = torch_cuda.lower(torch, program, "cpu", "fp16")
    weights = [tensor for tensor in lowered.parameters() if tensor.dim() == 4]
    assert weights
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


@pytest.mark.slow
@pytest.mark.parametrize("make", [ResNet3D, R2Plus1D])
def test_lowered_3d_network_equals_itself_and_lies_channels_last(make):
    network = WithHeatmap(randomised(make(18, num_frames=NUM_FRAMES), seed=2))
    clip = torch.from_numpy(random_clips(1, seed=32))
    with torch.inference_mode():
        wanted, heatmap = network(clip)
    lowered = torch_cuda.lower(torch, torch.export.export(network, (clip,)), "cpu", "fp16")
    weights = [tensor for tensor in lowered.parameters() if tensor.dim() == 5]
    assert weights
    assert all(weight.is_contiguous(memory_format=torch.channels_last_3d) for weight in weights)
    with torch.inference_mode():
        got, lowered_heatmap = lowered(clip)
    torch.testing.assert_close(got, wanted, atol=5e-3, rtol=0)
    torch.testing.assert_close(lowered_heatmap, heatmap, atol=1e-2 * heatmap.max().item(), rtol=0)


def test_program_for_torch_tensorrt_is_fp16_through_and_through_with_fp32_ends(program):
    clip = torch.from_numpy(random_clips(1, seed=1))
    lowered = torch_tensorrt_build.half_program(torch, program, clip, "fp16")
    types = {
        node.meta["val"].dtype
        for node in lowered.graph.nodes
        if any(word in str(node.target) for word in ("conv", "matmul"))
    }
    assert types == {torch.float16}
    with torch.inference_mode():
        probabilities, heatmap = lowered.module()(clip)
        wanted, _ = WithHeatmap(small_model())(clip)
    assert (probabilities.dtype, heatmap.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(probabilities, wanted, atol=5e-3, rtol=0)


def test_program_that_stays_fp32_is_refused_before_it_is_compiled(program, monkeypatch):
    monkeypatch.setattr(torch_tensorrt_build, "lower", lambda torch, program, device, precision: program.module())
    clip = torch.from_numpy(random_clips(1, seed=1))
    with pytest.raises(EngineError, match=r"\d+ layers of the program stay in FP32 \(conv2d, "):
        torch_tensorrt_build.half_program(torch, program, clip, "fp16")


class _Part(torch.nn.Module):
    """What torch-tensorrt 2.13 puts in the place of what it compiled, as far as it is asked."""

    def __init__(self, layer_type: str, num_bytes: int) -> None:
        super().__init__()
        self._layer_type, self.serialized_engine = layer_type, bytes(num_bytes)

    def get_layer_info(self) -> str:
        return json.dumps({"Layers": [{"Inputs": [{"Format/Datatype": self._layer_type}]}]})


def _parts(*parts: torch.nn.Module) -> torch.nn.Module:
    return torch.nn.Sequential(*parts)


def test_program_that_torch_tensorrt_left_in_fp32_is_refused_after_it_was_compiled():
    check = torch_tensorrt_build.require_half_parts
    num_weights = 12_000_000
    half, opaque = _Part("Half", 4 * num_weights), _Part("Float", 2 * num_weights)
    assert check(_parts(half, opaque), Path("model.pt2"), num_weights).num_half == 1
    assert check(_parts(opaque), Path("model.pt2"), num_weights).num_half == 0  # fused into one layer, but small enough
    with pytest.raises(EngineError, match=r"model\.pt2 is refused: none of its 2 layers is in FP16"):
        check(_parts(opaque, _Part("Float", 3 * num_weights)), Path("model.pt2"), num_weights)
    with pytest.raises(EngineError, match="compiled no part of"):
        check(_parts(torch.nn.ReLU()), Path("model.pt2"), num_weights)


def test_program_of_a_small_network_is_not_refused_for_the_code_beside_its_weights():
    """torch-tensorrt has the layers' names kept alone, and a small network's plan holds more code than weights."""
    counts = torch_tensorrt_build.require_half_parts(_parts(_Part("", 4_000_000)), Path("model.pt2"), 780_000)
    assert (counts.num_layers, counts.num_half, counts.num_float) == (1, 0, 0)


def test_torch_tensorrt_keeps_its_timings_where_plans_have_theirs(tmp_path):
    library = SimpleNamespace(Device=lambda name: name)
    settings = torch_tensorrt_build._settings(library, PlanOptions(), "cuda:0", tmp_path / "x.timing")
    assert settings["timing_cache_path"] == str(tmp_path / "x.timing")


def test_missing_gpu_is_refused_with_the_reason(bundle, fake):
    fake.failures["cudaGetDeviceCount"] = Error.cudaErrorInsufficientDriver
    with pytest.raises(BackendError, match=r"cannot run on cuda: .*there is no NVIDIA driver"):
        load_engine(bundle, "torch", "cuda")


def test_precision_that_a_gpu_does_not_run_is_refused_with_the_allowed(bundle):
    with pytest.raises(BackendError, match="on a GPU in fp16 or bf16; got int8"):
        load_engine(bundle, "torch", "cuda", "int8")


@pytest.fixture
def compiled(bundle):
    """The bundle as if torch-tensorrt had compiled it for the second GPU."""
    file = dataclasses.replace(bundle.file("torch-export"), kind="torch-tensorrt", precision="fp16")
    file = dataclasses.replace(file, build={"builder": "torch-tensorrt", "device": "cuda:1"})
    return dataclasses.replace(bundle, files=(*bundle.files, file))


def test_precisions_are_those_of_the_device(bundle, compiled):
    assert torch_engine.precisions(bundle) == torch_engine.precisions(compiled, "cpu") == ("fp32",)
    assert torch_engine.precisions(bundle, "cuda:0") == ("fp16", "bf16")
    assert torch_engine.precisions(compiled) == ("fp32", "fp16")


def test_compiled_program_runs_on_the_device_that_it_was_built_for(compiled, fake):
    fake.failures["cudaGetDeviceCount"] = Error.cudaErrorInsufficientDriver
    with pytest.raises(BackendError, match="cannot run on cuda:1: there is no NVIDIA driver"):
        load_engine(compiled, "torch", precision="fp16")


def test_check_and_bench_on_a_gpu_take_the_precisions_that_it_has(bundle, fake):
    fake.failures["cudaGetDeviceCount"] = Error.cudaErrorInsufficientDriver
    checks = list(check_all(bundle, "torch", "cuda", check_here))
    assert [(check.precision, check.is_refused) for check in checks] == [("fp16", True), ("bf16", True)]
    options = argparse.Namespace(backend=["torch"], precision=None, device="cuda", throughput=False, tune=None)
    assert [choice.name for choice in _choices(bundle, options)] == [
        "torch cuda fp16",
        "torch cuda fp16 without graphs",
        "torch cuda bf16",
    ]


def test_bench_of_a_machine_with_a_gpu_has_its_engines_beside_the_processors(bundle, monkeypatch):
    monkeypatch.setattr(host, "cuda_trouble", lambda: None)
    options = argparse.Namespace(backend=["torch"], precision=None, device=None, throughput=False, tune=None)
    choices = ["torch cuda fp16", "torch cuda fp16 without graphs", "torch cuda bf16", "torch cpu fp32"]
    assert [choice.name for choice in _choices(bundle, options)] == choices
    options.precision = ["fp16"]
    assert [choice.name for choice in _choices(bundle, options)] == choices[:2]


def test_bench_takes_no_program_of_torch_tensorrt_for_eager_pytorch(compiled):
    options = argparse.Namespace(backend=["torch"], precision=["fp16"], device="cuda", throughput=False, tune=None)
    assert [choice.name for choice in _choices(compiled, options)] == ["torch cuda fp16"]


@pytest.mark.slow
def test_check_of_what_this_machine_lacks_refuses_nothing_that_was_not_named(compiled, fake):
    fake.failures["cudaGetDeviceCount"] = Error.cudaErrorInsufficientDriver
    checks = {(check.backend, check.precision): check for check in check_all(compiled, None, None, check_here)}
    assert not checks["torch", "fp16"].is_refused
    assert "there is no NVIDIA driver" in checks["torch", "fp16"].trouble
    assert checks["torch", "fp32"].result.is_within


@pytest.mark.skipif(torch.cuda.is_available(), reason="this torch has CUDA")
def test_torch_without_cuda_is_refused_with_the_cure(bundle, fake):
    with pytest.raises(BackendError, match=r"torch .* cannot use CUDA: install a build that fits the driver"):
        load_engine(bundle, "torch", "cuda:0")


@pytest.mark.parametrize("is_compiled", [False, True])
def test_program_of_torch_tensorrt_has_one_graph_as_it_has_one_context(monkeypatch, is_compiled):
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    program = torch_cuda.TorchProgram(torch, lambda clip: clip, "cpu", (1,), {}, is_compiled=is_compiled)
    assert program.has_many_graphs == (not is_compiled)


def test_missing_torch_tensorrt_is_refused_with_the_pair(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    with pytest.raises(BackendError, match=r"install the pair with `pip install torch-tensorrt==2\.13\.0`"):
        torch_cuda.import_torch_tensorrt()


# on a real GPU


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", ["window", "fixed", "none"])
@pytest.mark.parametrize(("precision", "allowed"), [("fp16", 1e-2), ("bf16", 4e-2)])
def test_stream_on_a_real_gpu_equals_the_cpu(bundle, precision, allowed, graphs):
    reference = load_engine(bundle, "torch")
    engine = torch_cuda.create(bundle, EngineOptions(device="cuda", precision=precision))
    engine.use_graphs(graphs)
    frames = random_clips(3, seed=8).reshape(-1, *bundle.clip_tchw[1:])
    try:
        for index, frame in enumerate(frames):
            engine.push(frame)
            reference.push(frame)
            if index < bundle.num_frames - 1:
                continue
            wanted, got = reference.infer(), engine.infer()
            np.testing.assert_allclose(got.probabilities, wanted.probabilities, atol=allowed)
            np.testing.assert_allclose(got.heatmap, wanted.heatmap, atol=2 * allowed * wanted.heatmap.max())
    finally:
        engine.close()
        reference.close()


@pytest.mark.gpu
def test_warmup_on_a_real_gpu_measures_both_kinds_of_graphs(bundle):
    engine = load_engine(bundle, "torch", "cuda")
    try:
        assert set(engine.graph_ms) == {"window", "fixed"}
        assert min(engine.graph_ms.values()) > 0
    finally:
        engine.close()


@pytest.mark.gpu
def test_memory_that_a_real_gpu_does_not_have_is_told():
    gpu = cuda.Gpu(0)
    try:
        with pytest.raises(cuda.CudaError, match="memory is full"):
            gpu.allocate(2 * cuda.describe_gpu(0).memory_bytes)
    finally:
        gpu.close()


@pytest.mark.gpu
@pytest.mark.tensorrt
def test_torch_tensorrt_program_on_a_real_gpu_passes_the_gate(bundle, tmp_path):
    shutil.copytree(bundle.path, tmp_path / "bundle")
    copy = load_bundle(tmp_path / "bundle")
    built, file, result = build_engine(copy, "torch-tensorrt", "fp16", BuildOptions(), lambda what, share: None)
    assert result.is_within
    assert file.kind == "torch-tensorrt"
    load_engine(built, "torch", "cuda").close()


def test_bundle_without_a_program_is_refused(trivial_bundle, fake, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(BundleError, match="has no fp32 torch-export file"):
        torch_cuda.create(load_bundle(trivial_bundle), EngineOptions(device="cuda"))
