"""The tensorrt backend: what it refuses, and why, without a GPU; and on a real one all that it is for.

Where TensorRT is not installed TensorRT-RTX stands in its place: its runtime refuses what is no plan by the same calls.
"""

import dataclasses
import importlib
import shutil
import sys

import numpy as np
import pytest
from fake_cuda import FakeCuda
from fake_plan import FakeRuntime
from hardware import missing
from small_bundle import NUM_FRAMES, random_clips, small_bundle
from test_cuda_engine import CLIP_TCHW, MeanProgram, assert_output, make_spec, random_frames

from engines import cuda
from engines.build import BuildOptions, build_engine
from engines.bundle import add_files, describe_file, load_bundle
from engines.cuda_engine import GRAPHS, CudaEngine
from engines.engine import EngineOptions
from engines.errors import BackendError, BundleError, EngineError
from engines.load import load_engine
from engines.tensorrt import engine as tensorrt_engine
from engines.tensorrt.plan_check import PlanHost

MODULES = ("engines.tensorrt.words", "engines.tensorrt.plan")
loaded = []
"""Modules whose logger TensorRT keeps for good."""


@pytest.fixture
def stand_in(monkeypatch):
    try:
        import tensorrt_rtx_bindings
    except ImportError as exc:
        missing(
            ["REQUIRE_TENSORRT"], f"NVIDIA's runtime is not installed ({exc}): pip install tensorrt-rtx-cu13-bindings"
        )
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt_rtx_bindings)
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield tensorrt_rtx_bindings
    loaded.extend(filter(None, (sys.modules.pop(name, None) for name in MODULES)))


@pytest.fixture
def fake(monkeypatch):
    fake = FakeCuda()
    monkeypatch.setattr(cuda, "_runtime", lambda: fake)
    return fake


@pytest.fixture
def bundle_with(tmp_path_factory, tmp_path):
    """Makes a copy of the small bundle that lists a plan of this content, built on this host."""

    def copy(content: bytes, host: PlanHost, options=None):
        shutil.copytree(small_bundle(tmp_path_factory).path, tmp_path / "bundle")
        (tmp_path / "bundle" / "x.plan").write_bytes(content)
        build = {"builder": "tensorrt", "software": host.software, "hardware": host.hardware, "options": options or {}}
        file = describe_file(tmp_path / "bundle" / "x.plan", "tensorrt", "fp16", build)
        return add_files(load_bundle(tmp_path / "bundle"), file)

    return copy


def this_host(stand_in):
    return PlanHost.here(stand_in.__version__, cuda.describe_gpu(0))


def test_bundle_without_a_plan_is_refused(tmp_path_factory):
    with pytest.raises(BundleError, match="has no tensorrt file"):
        tensorrt_engine.create(small_bundle(tmp_path_factory))


def test_missing_tensorrt_is_told_with_the_cure(monkeypatch, fake):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert tensorrt_engine.probe() == "TensorRT is not installed: `pip install tensorrt`"


def test_missing_gpu_is_told_before_tensorrt_is_touched(monkeypatch, fake):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    fake.num_devices = 0
    assert tensorrt_engine.probe() == "this machine has no CUDA device"


def test_bindings_without_libraries_are_told_with_the_cure(monkeypatch, fake):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "TensorRT does not load" in tensorrt_engine.probe()


def test_backend_that_cannot_run_here_is_refused_by_load(bundle_with, monkeypatch):
    monkeypatch.setattr(tensorrt_engine, "probe", lambda: "this machine has no CUDA device")
    bundle = bundle_with(b"", PlanHost("1", "x", "1.0", "1.0"))
    with pytest.raises(BackendError, match="backend tensorrt cannot run here: this machine has no CUDA device"):
        load_engine(bundle, "tensorrt")


def test_plan_of_another_version_is_refused_before_it_is_loaded(stand_in, fake, bundle_with):
    bundle = bundle_with(b"no plan", PlanHost("10.9.0.1", "Fake GPU", "8.9", "13.0"))
    with pytest.raises(EngineError, match=r"x\.plan was built by TensorRT 10\.9\.0\.1, this is .*edge-build"):
        tensorrt_engine.create(bundle)
    assert "engines.tensorrt.plan" not in sys.modules
    assert (fake.num_allocations, fake.open_handles) == (0, set())


@pytest.mark.parametrize("content", [b"", b"no plan at all", b"\x00" * 4096], ids=["empty", "text", "zeros"])
def test_file_that_is_no_plan_is_refused_by_name_and_frees_the_gpu(stand_in, fake, bundle_with, content):
    bundle = bundle_with(content, this_host(stand_in))
    with pytest.raises(EngineError, match=r"TensorRT cannot load .*x\.plan: .+") as caught:
        tensorrt_engine.create(bundle)
    assert (caught.value.exit_code, "\n" in str(caught.value)) == (4, False)
    assert str(caught.value).endswith(f"edge-build {bundle.path} --backend tensorrt --precision fp16")
    assert (fake.num_allocations, fake.open_handles) == (0, set())


@pytest.mark.parametrize("options", [{}, {"version_compatible": False}, {"version_compatible": True}])
def test_code_within_a_plan_is_run_only_where_it_was_built_with_some_and_told(
    stand_in, fake, bundle_with, monkeypatch, caplog, options
):
    start, runtimes = stand_in.Runtime, []

    def keep(logger):
        runtimes.append(start(logger))
        return runtimes[-1]

    monkeypatch.setattr(stand_in, "Runtime", keep)
    bundle = bundle_with(b"no plan", this_host(stand_in), options)
    with pytest.raises(EngineError, match="TensorRT cannot load"):
        tensorrt_engine.create(bundle)
    has_code = options.get("version_compatible", False)
    assert [runtime.engine_host_code_allowed for runtime in runtimes] == [has_code]
    assert ("take it only from those you trust" in caplog.text) == has_code


def test_runtime_that_does_not_start_is_told_and_frees_the_gpu(stand_in, fake, bundle_with, monkeypatch):
    def give_none(logger):
        logger.log(stand_in.ILogger.Severity.ERROR, "CUDA initialization failure with error: 2")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(stand_in, "Runtime", give_none)
    bundle = bundle_with(b"no plan", this_host(stand_in))
    with pytest.raises(EngineError, match="TensorRT cannot start its runtime: CUDA initialization failure"):
        tensorrt_engine.create(bundle)
    assert (fake.num_allocations, fake.open_handles) == (0, set())


def test_every_graph_of_a_plan_has_a_context_that_nothing_changes_afterwards(stand_in, fake, tmp_path, monkeypatch):
    """TensorRT leaves open what a graph does whose context was changed; all of them share one scratch memory."""
    runtime = FakeRuntime(stand_in, fake, lambda: MeanProgram(fake))
    monkeypatch.setattr(stand_in, "Runtime", lambda logger: runtime)
    from engines.tensorrt.plan import Plan

    (tmp_path / "x.plan").write_bytes(b"a plan")
    gpu = cuda.Gpu(0)
    engine = CudaEngine(make_spec(), gpu, Plan(tmp_path / "x.plan", gpu))
    engine.warmup()
    num_frames, frames = CLIP_TCHW[0], random_frames(4 * CLIP_TCHW[0])
    for graphs in GRAPHS:
        engine.use_graphs(graphs)
        engine.reset()
        for index, frame in enumerate(frames):
            engine.push(frame)
            if index >= num_frames - 1:
                assert_output(engine.infer(), frames[index - num_frames + 1 : index + 1])
    contexts = runtime.engine.contexts
    assert {context.num_captured for context in contexts} == {0, 1}
    assert sum(context.num_captured for context in contexts) == 2 * (num_frames + 1), "each kind of graphs twice"
    assert len({context.scratch for context in contexts}) == 1
    engine.close()
    assert (fake.num_allocations, fake.open_handles) == (0, set())


def test_device_that_is_not_there_is_refused(stand_in, fake, bundle_with):
    bundle = bundle_with(b"", this_host(stand_in))
    with pytest.raises(BackendError, match=r"there is no device cuda:3; this machine has cuda:0 to cuda:0"):
        tensorrt_engine.create(bundle, EngineOptions(device="cuda:3"))


def test_precisions_are_those_of_the_plans(bundle_with, tmp_path_factory):
    assert tensorrt_engine.precisions(small_bundle(tmp_path_factory)) == ()
    assert tensorrt_engine.precisions(bundle_with(b"", PlanHost("1", "x", "1.0", "1.0"))) == ("fp16",)


# on a real GPU


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built") / "bundle"
    shutil.copytree(small_bundle(tmp_path_factory).path, folder)
    bundle, file, result = build_engine(
        load_bundle(folder), "tensorrt", "fp16", BuildOptions(), lambda what, share: None
    )
    assert result.is_within
    return bundle, file


@pytest.mark.gpu
@pytest.mark.tensorrt
@pytest.mark.parametrize("graphs", ["window", "fixed"])
def test_plan_on_a_stream_equals_the_reference_backend_on_a_real_gpu(built, graphs):
    bundle, file = built
    reference = load_engine(bundle, "openvino")
    engine = load_engine(bundle, "tensorrt")
    engine.use_graphs(graphs)
    try:
        for clip in random_clips(4, seed=99):
            wanted = reference.run_clip(clip)
            for frame in clip:
                engine.push(frame)
            got = engine.infer()
            np.testing.assert_allclose(got.probabilities, wanted.probabilities, atol=1e-2)
            np.testing.assert_allclose(got.heatmap, wanted.heatmap, atol=2e-2 * wanted.heatmap.max())
            assert engine.device_ms > 0
    finally:
        engine.close()
        reference.close()
    assert file.build["options"]["layers"]["num_layers"] > 0


@pytest.mark.gpu
@pytest.mark.tensorrt
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_truncated_plan_is_refused_by_name_on_a_real_gpu(built, tmp_path, share):
    bundle, file = built
    shutil.copytree(bundle.path, tmp_path / "bundle")
    path = tmp_path / "bundle" / file.name
    path.write_bytes(path.read_bytes()[: int(share * file.size_bytes)])
    cut = add_files(load_bundle_of(bundle, tmp_path), describe_file(path, "tensorrt", "fp16", file.build))
    with pytest.raises(EngineError, match="TensorRT cannot load"):
        load_engine(cut, "tensorrt")


def load_bundle_of(bundle, tmp_path):
    """The copy's manifest with the old hash, which `add_files` mends."""
    return dataclasses.replace(bundle, path=tmp_path / "bundle")


@pytest.mark.gpu
@pytest.mark.tensorrt
def test_windows_in_flight_equal_one_after_the_other_on_a_real_gpu(built):
    bundle, _ = built
    engine = load_engine(bundle, "tensorrt")
    frames = random_clips(3, seed=5).reshape(3 * NUM_FRAMES, *bundle.clip_tchw[1:])
    try:
        alone = []
        for index, frame in enumerate(frames):
            engine.push(frame)
            if index >= NUM_FRAMES - 1:
                alone.append(engine.infer().probabilities)
        engine.reset()
        waiting, together = [], []
        for index, frame in enumerate(frames):
            engine.push(frame)
            if index >= NUM_FRAMES - 1:
                waiting.append(engine.submit())
                if len(waiting) == engine.max_in_flight:
                    together.append(waiting.pop(0)().probabilities)
        together.extend(wait().probabilities for wait in waiting)
    finally:
        engine.close()
    np.testing.assert_array_equal(alone, together)
