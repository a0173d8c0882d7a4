"""The engine in device memory: windows, graphs, memory and errors, on a GPU of host memory that is as lazy as may be.

The arithmetic, the order of work and the errors are the product's own; only the device is not real.
"""

import ctypes
import gc
import re
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from fake_cuda import Error, FakeCuda

from engines import cuda
from engines.cuda import CudaError, Gpu
from engines.cuda_engine import GRAPHS, NUM_OUTPUTS, CudaEngine
from engines.device_ring import DeviceRing
from engines.engine import EngineSpec
from engines.errors import BackendError, EngineError
from engines.ring import MirroredRing
from tools.gpu_graphs import measure

NUM_FRAMES = 5
CLIP_TCHW = (NUM_FRAMES, 1, 8, 16)  # 512 bytes a frame: every window is aligned
UNALIGNED_TCHW = (NUM_FRAMES, 1, 6, 10)


class MeanProgram:
    """A network whose outputs tell which frames it saw, and in which order: block means, and a weighted mean."""

    has_many_graphs = True

    def __init__(self, fake, clip_tchw=CLIP_TCHW, num_classes=2):
        self.inputs = {"clip": (1, *clip_tchw)}
        self.outputs = {"probabilities": (1, num_classes), "heatmap": (1, clip_tchw[0], 2, 2)}
        self._fake, self._addresses = fake, {}
        self.num_enqueued = 0
        self.trouble = None

    def bind(self, name, address):
        self._fake.require_inside("device", address, 4)
        assert name != "clip" or address % cuda.ALIGNMENT_BYTES == 0
        self._addresses[name] = address

    def enqueue(self, stream):
        if self.trouble:
            raise self.trouble
        self.num_enqueued += 1
        bound = {name: self._array(name, shape) for name, shape in (self.inputs | self.outputs).items()}
        self._fake.kernel(lambda: self._compute(**bound))

    def capture(self, gpu):
        graph = gpu.capture(lambda: self.enqueue(gpu.stream))
        return lambda: gpu.launch(graph)

    def _array(self, name, shape):
        raw = (ctypes.c_float * int(np.prod(shape))).from_address(self._addresses[name])
        return np.ctypeslib.as_array(raw).reshape(shape)

    @staticmethod
    def _compute(clip, probabilities, heatmap):
        expected = expected_output(clip[0])
        probabilities[0], heatmap[0] = expected


def expected_output(clip_tchw):
    num_frames, _, height, width = clip_tchw.shape
    heatmap = clip_tchw.mean(1).reshape(num_frames, 2, height // 2, 2, width // 2).mean((2, 4))
    positive = np.average(heatmap.mean((1, 2)), weights=np.arange(1, num_frames + 1))
    return np.array([1 - positive, positive], np.float32), heatmap.astype(np.float32)


def make_spec(clip_tchw=CLIP_TCHW):
    return EngineSpec("mean", "0" * 64, "tensorrt", "fp16", "cuda:0", clip_tchw, ("no", "yes"))


@pytest.fixture
def fake(monkeypatch):
    fake = FakeCuda()
    monkeypatch.setattr(cuda, "_runtime", lambda: fake)
    return fake


def make_engine(fake, graphs=None, clip_tchw=CLIP_TCHW):
    return CudaEngine(make_spec(clip_tchw), Gpu(0), MeanProgram(fake, clip_tchw), graphs)


def random_frames(number, clip_tchw=CLIP_TCHW, seed=0):
    return np.random.default_rng(seed).random((number, *clip_tchw[1:]), np.float32)


def assert_output(output, clip):
    probabilities, heatmap = expected_output(clip)
    np.testing.assert_allclose(output.probabilities, probabilities, rtol=1e-6)
    np.testing.assert_allclose(output.heatmap, heatmap, rtol=1e-6)


def test_fake_has_only_what_the_real_bindings_have():
    runtime = pytest.importorskip("cuda.bindings.runtime")
    names = [name for name in dir(FakeCuda) if name.startswith("cuda")]
    assert len(names) > 20
    assert [name for name in names if not hasattr(runtime, name)] == []
    for group in ("cudaMemcpyKind", "cudaStreamCaptureMode"):
        assert [name for name in vars(getattr(FakeCuda, group)) if not hasattr(getattr(runtime, group), name)] == []


@pytest.mark.parametrize("graphs", GRAPHS)
def test_every_window_of_a_stream_is_its_last_frames_in_order(fake, graphs):
    engine = make_engine(fake, graphs)
    frames = random_frames(4 * NUM_FRAMES)
    for index, frame in enumerate(frames):
        engine.push(frame)
        if index >= NUM_FRAMES - 1:
            assert_output(engine.infer(), frames[index - NUM_FRAMES + 1 : index + 1])


@pytest.mark.parametrize("graphs", GRAPHS)
def test_frames_pushed_faster_than_the_device_works_are_not_lost(fake, graphs):
    engine = make_engine(fake, graphs)
    frames = random_frames(7 * NUM_FRAMES + 3)
    staging = np.empty(CLIP_TCHW[1:], np.float32)
    for frame in frames:  # nobody waits for the device, and the caller's buffer is used again at once
        staging[...] = frame
        engine.push(staging)
    staging[...] = -1
    assert_output(engine.infer(), frames[-NUM_FRAMES:])


@pytest.mark.parametrize("graphs", GRAPHS)
def test_window_in_flight_keeps_its_frames_while_the_ring_goes_on(fake, graphs):
    engine = make_engine(fake, graphs)
    frames = random_frames(NUM_FRAMES + NUM_OUTPUTS)
    for frame in frames[:NUM_FRAMES]:
        engine.push(frame)
    waiting = []
    for frame in frames[NUM_FRAMES:]:
        waiting.append(engine.submit())
        engine.push(frame)
    assert engine.max_in_flight == len(waiting) == NUM_OUTPUTS
    for start, wait in enumerate(waiting):
        assert_output(wait(), frames[start : start + NUM_FRAMES])


def test_outputs_stay_the_callers_after_the_next_windows(fake):
    engine = make_engine(fake)
    first, *others = random_frames(4 * NUM_FRAMES).reshape(4, *CLIP_TCHW)
    output = engine.run_clip(first)
    for clip in others:
        engine.run_clip(clip)
    assert_output(output, first)


def test_frame_is_uploaded_once_and_a_window_not_at_all(fake):
    engine = make_engine(fake, "window")
    fake.num_copied_bytes.clear()
    frames = random_frames(3 * NUM_FRAMES)
    for frame in frames:
        engine.push(frame)
    num_windows = 6
    for _ in range(num_windows):
        engine.infer()
    assert fake.num_copied_bytes["host to device"] == frames.nbytes
    assert fake.num_copied_bytes["on device"] == frames.nbytes, "the mirror alone"
    assert fake.num_copied_bytes["device to host"] == num_windows * 4 * (2 + NUM_FRAMES * 4)


def test_network_is_enqueued_for_capture_alone(fake):
    engine = make_engine(fake, "window")
    program = engine._program
    num_enqueued = program.num_enqueued
    assert num_enqueued == 2 * NUM_FRAMES, "once to warm up and once to capture, for each window address"
    for clip in random_frames(4 * NUM_FRAMES).reshape(4, *CLIP_TCHW):
        engine.run_clip(clip)
    assert program.num_enqueued == num_enqueued


def test_warmup_keeps_the_kind_of_graphs_that_is_faster_and_empties_the_ring(fake):
    engine = make_engine(fake)
    engine.warmup()
    assert set(engine.graph_ms) == {"window", "fixed"}
    assert engine.graphs == min(engine.graph_ms, key=engine.graph_ms.get)
    with pytest.raises(EngineError, match="a window needs 5 frames"):
        engine.infer()
    clip = random_frames(NUM_FRAMES)
    assert_output(engine.run_clip(clip), clip)


@pytest.mark.parametrize("slow", ["window", "fixed"])
def test_warmup_measures_each_kind_on_the_device(fake, monkeypatch, slow):
    copy, launch = Gpu.copy, Gpu.launch
    costs = {"fixed": 0.0, "window": 0.0} | {slow: 5.0}

    def slow_copy(gpu, address, source, num_bytes):
        fake.enqueue(lambda: setattr(fake, "now_ms", fake.now_ms + (costs["fixed"] if num_bytes > 512 else 0)))
        copy(gpu, address, source, num_bytes)

    def slow_launch(gpu, graph):
        fake.enqueue(lambda: setattr(fake, "now_ms", fake.now_ms + costs["window"] / 2))
        launch(gpu, graph)

    monkeypatch.setattr(Gpu, "copy", slow_copy)
    monkeypatch.setattr(Gpu, "launch", slow_launch)
    engine = make_engine(fake)
    engine.warmup()
    if slow == "fixed":
        assert engine.graphs == "window"
        assert engine.graph_ms["fixed"] == pytest.approx(engine.graph_ms["window"] + 5)
    else:
        assert engine.graph_ms["window"] == pytest.approx(1 + 2.5)


def test_graphs_asked_for_by_name_are_kept(fake):
    engine = make_engine(fake, "fixed")
    engine.warmup()
    assert (engine.graphs, engine.graph_ms) == ("fixed", {})


def test_device_time_of_a_window_is_the_events_difference(fake):
    engine = make_engine(fake)
    fake.kernel_ms = 2.5
    engine.run_clip(random_frames(NUM_FRAMES))
    assert engine.device_ms == pytest.approx(2.5)


def test_windows_that_are_not_aligned_go_through_the_buffer(fake):
    engine = make_engine(fake, clip_tchw=UNALIGNED_TCHW)
    engine.warmup()
    assert engine.graphs == "fixed"
    clip = random_frames(NUM_FRAMES, UNALIGNED_TCHW)
    assert_output(engine.run_clip(clip), clip)
    with pytest.raises(
        EngineError,
        match="graphs 'window' cannot be used; allowed are fixed, none for this network and 5 frames of 240",
    ):
        make_engine(fake, "window", UNALIGNED_TCHW)


def test_network_with_one_graph_alone_goes_through_the_buffer(fake):
    program = MeanProgram(fake)
    program.has_many_graphs = False
    engine = CudaEngine(make_spec(), Gpu(0), program)
    engine.warmup()
    assert (engine.graphs, [*engine.graph_ms], program.num_enqueued) == ("fixed", ["fixed"], 2)
    clip = random_frames(NUM_FRAMES)
    assert_output(engine.run_clip(clip), clip)


@pytest.mark.parametrize(("num_frames", "kinds"), [(64, ("window", "fixed")), (65, ("fixed",))])
def test_very_long_clips_go_through_the_buffer(fake, num_frames, kinds):
    shape = (num_frames, *CLIP_TCHW[1:])
    assert make_engine(fake, "fixed", shape).possible_graphs() == kinds


def test_close_gives_everything_back_and_twice_is_fine(fake):
    engine = make_engine(fake)
    engine.warmup()
    assert fake.num_allocations > 5
    assert fake.open_handles
    engine.close()
    engine.close()
    assert (fake.num_allocations, fake.open_handles) == (0, set())


def test_close_waits_for_the_window_in_flight_before_it_frees_what_that_uses(fake, monkeypatch):
    computed, freed = [], []
    for name in ("cudaFree", "cudaFreeHost", "cudaGraphExecDestroy"):
        function = getattr(fake, name)
        monkeypatch.setattr(fake, name, lambda handle, function=function: freed.append(handle) or function(handle))
    monkeypatch.setattr(MeanProgram, "_compute", lambda self, **arrays: computed.append(len(freed)))
    engine = make_engine(fake)
    for frame in random_frames(NUM_FRAMES):
        engine.push(frame)
    engine.submit()
    engine.close()
    assert computed[-1] == 0
    assert len(computed) == NUM_FRAMES + 1, "each graph's warm run, and the window"
    assert freed


def test_close_lets_go_of_the_program_whose_library_holds_the_weights(fake):
    program = MeanProgram(fake)
    engine = CudaEngine(make_spec(), Gpu(0), program)
    engine.warmup()
    alive = weakref.ref(program)
    del program
    engine.close()
    gc.collect()
    assert alive() is None


def test_close_by_a_thread_on_another_device_frees_what_lies_on_its_own(fake, monkeypatch):
    fake.num_devices = 2
    free, selected = fake.cudaFree, []
    monkeypatch.setattr(fake, "cudaFree", lambda address: selected.append(fake.device) or free(address))
    gpu = Gpu(1)
    gpu.allocate(8)
    fake.cudaSetDevice(0)  # as each new thread has it
    gpu.close()
    assert selected == [1]


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ({"clip": (1, 4, 1, 8, 16)}, {}),
        ({"clip": (1, *CLIP_TCHW), "more": (1,)}, {}),
        ({}, {"probabilities": (1, 3)}),
        ({}, {"heatmap": (1, 4, 2, 2)}),
        ({}, {"heatmap": (NUM_FRAMES, 2, 2)}),
    ],
)
def test_program_of_other_shapes_is_refused_before_memory_is_taken(fake, inputs, outputs):
    program = MeanProgram(fake)
    program.inputs, program.outputs = inputs or program.inputs, program.outputs | outputs
    with pytest.raises(EngineError, match=r"the engine of mean takes .* the bundle asks for .*: build it again"):
        CudaEngine(make_spec(), Gpu(0), program)
    assert fake.num_allocations == 0


def test_memory_that_does_not_suffice_is_told_with_the_cure(fake):
    fake.memory_bytes = 2000
    with pytest.raises(CudaError, match=r"cudaMalloc failed: cudaErrorMemoryAllocation: words for .*memory is full"):
        make_engine(fake)


def test_file_that_does_not_fit_into_memory_is_named_and_the_gpu_freed(fake):
    fake.memory_bytes = 2000
    with (
        pytest.raises(EngineError, match=r"a/x\.plan cannot run on cuda:0: CUDA cudaMalloc .*memory is full") as caught,
        cuda.running(Path("a/x.plan"), 0) as gpu,
    ):
        CudaEngine(make_spec(), gpu, MeanProgram(fake))
    assert (caught.value.exit_code, fake.num_allocations, fake.open_handles) == (4, 0, set())


def test_error_that_names_the_file_is_left_as_it_is(fake):
    error = EngineError("TensorRT cannot load a/x.plan: own words")
    with pytest.raises(EngineError) as caught, cuda.running(Path("a/x.plan"), 0):
        raise error
    assert caught.value is error
    assert fake.open_handles == set()


@pytest.mark.parametrize("function", ["cudaEventSynchronize", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaSetDevice"])
def test_device_that_vanishes_in_the_middle_is_an_engine_error_and_can_be_closed(fake, function):
    engine = make_engine(fake)
    clip = random_frames(NUM_FRAMES)
    engine.run_clip(clip)
    fake.failures[function] = Error.cudaErrorDevicesUnavailable
    with pytest.raises(
        EngineError, match=rf"CUDA {function} failed: cudaErrorDevicesUnavailable.*nvidia-smi"
    ) as caught:
        engine.run_clip(clip)
    assert caught.value.exit_code == 4
    for name in ("cudaFree", "cudaFreeHost", "cudaStreamDestroy", "cudaEventDestroy", "cudaGraphExecDestroy"):
        fake.failures[name] = Error.cudaErrorDevicesUnavailable
    engine.close()


def test_network_that_fails_in_capture_is_told_with_its_own_words(fake):
    gpu, program = Gpu(0), MeanProgram(fake)

    def first_works(stream):
        program.trouble = None if program.num_enqueued == 0 else EngineError("TensorRT cannot run x.plan: own words")
        MeanProgram.enqueue(program, stream)

    program.enqueue = first_works
    with pytest.raises(EngineError, match=r"TensorRT cannot run x\.plan: own words"):
        CudaEngine(make_spec(), gpu, program)
    gpu.wait()  # the capture was ended


@pytest.mark.parametrize(("device", "index"), [(None, 0), ("cuda", 0), ("cuda:0", 0), ("cuda:12", 12)])
def test_device_names_are_numbers(device, index):
    assert cuda.device_index(device) == index


@pytest.mark.parametrize("device", ["cpu", "CUDA:0", "cuda:", "cuda:-1", "cuda:0 ", "0"])
def test_device_name_of_another_form_is_refused_with_the_allowed(device):
    with pytest.raises(BackendError, match="is not a CUDA device; allowed are cuda, cuda:0"):
        cuda.device_index(device)


def test_describe_gpu_tells_what_plans_depend_on(fake):
    info = cuda.describe_gpu(0)
    assert (info.name, info.compute_capability, info.driver_cuda) == ("Fake GPU", "8.9", "13.2")
    with pytest.raises(BackendError, match="there is no device cuda:1; this machine has cuda:0 to cuda:0"):
        cuda.describe_gpu(1)


def test_probe_tells_what_is_missing(fake, monkeypatch):
    assert cuda.probe() is None
    fake.num_devices = 0
    assert cuda.probe() == "this machine has no CUDA device"
    fake.failures["cudaGetDeviceCount"] = Error.cudaErrorInsufficientDriver
    assert "there is no NVIDIA driver, or it is too old" in cuda.probe()


def test_probe_tells_what_keeps_cuda_python_from_loading(monkeypatch):
    bindings = pytest.importorskip("cuda.bindings")
    monkeypatch.delattr(bindings, "runtime", raising=False)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    assert re.fullmatch(r"cuda-python does not load \(.*runtime.*\); install it with `pip install .*`", cuda.probe())


@pytest.mark.parametrize("num_pushed", range(3 * NUM_FRAMES))
def test_device_ring_has_the_slots_of_the_ring_in_host_memory(num_pushed):
    host, device = MirroredRing(NUM_FRAMES, CLIP_TCHW[1:]), DeviceRing(NUM_FRAMES, 512, 4096)
    for _ in range(num_pushed):
        host.push(np.zeros(CLIP_TCHW[1:], np.float32))
        device.num_pushed += 1
    assert (device.start_slot, device.is_full) == (host.start_slot, host.is_full)
    offset = host.window().ctypes.data - host.window(0).ctypes.data
    assert device.window_address(device.start_slot) - device.address == offset
    first, mirror = device.next_addresses
    assert device.address <= first < mirror < device.address + device.num_bytes
    assert mirror - first == NUM_FRAMES * 512


def test_graphs_are_measured_side_by_side_on_the_same_frames(fake):
    engine = make_engine(fake)
    fake.kernel_ms = 3.0
    results = measure(engine, random_frames(NUM_FRAMES), GRAPHS, num_windows=7)
    assert [result["graphs"] for result in results] == list(GRAPHS)
    assert [result["device_ms"]["p50"] for result in results] == [3.0] * 3
    assert all(result["total_ms"]["max"] >= result["total_ms"]["p50"] > 0 for result in results)
