"""The OpenVINO engine with a network whose output tells which frames it saw, and in which order."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from engines import Bundle, Engine, EngineOutput, PreprocessSpec, load_bundle, load_engine
from engines.bundle import write_manifest
from engines.engine import EngineOptions
from engines.errors import BackendError, EngineError
from engines.openvino.engine import arithmetic, create
from tools.trivial import write_trivial_bundle

NUM_FRAMES = 4
SPEC = PreprocessSpec(resize_hw=(16, 16), crop_hw=(16, 16), channels=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trivial_bundle(tmp_path_factory.mktemp("bundles") / "rgb", num_frames=NUM_FRAMES, preprocess=SPEC)


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return load_bundle(folder)


@pytest.fixture
def engine(bundle: Bundle) -> Engine:
    return create(bundle)


def _push(engine: Engine, *values: float) -> None:
    for value in values:
        engine.push(np.full((3, 16, 16), value, np.float32))


def _seen(engine: Engine) -> list[float]:
    """Return the value of each frame that the network sees, oldest first."""
    return [round(float(value), 4) for value in engine.infer().heatmap.mean((1, 2))]


def test_engine_spec_says_what_runs(engine: Engine, bundle: Bundle) -> None:
    spec = engine.spec
    assert (spec.backend, spec.precision, spec.device, spec.name) == ("openvino", "fp32", "CPU", "trivial-mean")
    assert spec.sha256 == bundle.file("onnx").sha256
    assert spec.clip_tchw == (NUM_FRAMES, 3, 16, 16)
    assert spec.classes == ("dark", "bright")


def test_engine_sees_the_last_frames_oldest_first_after_every_push(engine: Engine) -> None:
    values = [round(0.01 * number, 4) for number in range(3 * NUM_FRAMES + 1)]
    for number, value in enumerate(values):
        _push(engine, value)
        if number + 1 >= NUM_FRAMES:
            assert _seen(engine) == values[number + 1 - NUM_FRAMES : number + 1]


def test_engine_output_shapes_and_values(engine: Engine) -> None:
    _push(engine, 0.1, 0.2, 0.3, 0.4)
    output = engine.infer()
    assert (output.probabilities.shape, output.heatmap.shape) == ((2,), (NUM_FRAMES, 4, 4))
    assert (output.probabilities.dtype, output.heatmap.dtype) == (np.float32, np.float32)
    np.testing.assert_allclose(output.probabilities, (0.75, 0.25), atol=1e-6)


def test_engine_output_is_the_callers_and_outlives_the_next_inference(engine: Engine) -> None:
    _push(engine, 0.1, 0.1, 0.1, 0.1)
    first = engine.infer()
    kept = first.heatmap.copy()
    _push(engine, 0.9)
    engine.infer()
    np.testing.assert_array_equal(first.heatmap, kept)
    first.heatmap[:] = 0  # writable


def test_engine_infers_the_same_window_twice_alike(engine: Engine) -> None:
    _push(engine, 0.1, 0.7, 0.3, 0.4)
    assert engine.infer().probabilities.tobytes() == engine.infer().probabilities.tobytes()


@pytest.mark.parametrize("num_pushed", [0, 1, NUM_FRAMES - 1])
def test_engine_with_too_few_frames_refuses_to_infer(engine: Engine, num_pushed: int) -> None:
    _push(engine, *[0.5] * num_pushed)
    with pytest.raises(EngineError, match="needs 4 frames since the last reset"):
        engine.infer()


def test_engine_reset_in_mid_stream_forgets_the_frames_before(engine: Engine) -> None:
    _push(engine, *[0.9] * (NUM_FRAMES + 1))
    engine.reset()
    _push(engine, 0.1, 0.2, 0.3)
    with pytest.raises(EngineError):
        engine.infer()
    _push(engine, 0.4)
    assert _seen(engine) == [0.1, 0.2, 0.3, 0.4]


def test_engine_run_clip_leaves_nothing_behind(engine: Engine) -> None:
    _push(engine, 0.9)
    clip = np.stack([np.full((3, 16, 16), value, np.float32) for value in (0.1, 0.2, 0.3, 0.4)])
    np.testing.assert_allclose(engine.run_clip(clip).heatmap.mean((1, 2)), (0.1, 0.2, 0.3, 0.4), atol=1e-6)
    with pytest.raises(EngineError):
        engine.infer()


def test_engine_warmup_leaves_an_empty_ring(engine: Engine) -> None:
    engine.warmup()
    with pytest.raises(EngineError):
        engine.infer()


@pytest.fixture
def busy(bundle: Bundle) -> Iterator[Engine]:
    """Return an engine that has several windows in flight."""
    engine = create(bundle, EngineOptions(is_for_throughput=True))
    yield engine
    engine.close()


def _stream(engine: Engine, num_windows: int) -> list[bytes]:
    """Play a stream with as many windows in flight as there may be; return each window's outputs, in order."""
    frames = np.random.default_rng(0).random((NUM_FRAMES - 1 + num_windows, 3, 16, 16), np.float32)
    in_flight: list[Callable[[], EngineOutput]] = []
    outputs: list[EngineOutput] = []
    for number, frame in enumerate(frames):
        engine.push(frame)
        if number >= NUM_FRAMES - 1:
            in_flight.append(engine.submit())
        if len(in_flight) == engine.max_in_flight:
            outputs.append(in_flight.pop(0)())
    outputs += [wait() for wait in in_flight]
    return [output.probabilities.tobytes() + output.heatmap.tobytes() for output in outputs]


def test_engine_with_windows_in_flight_gives_each_windows_own_output_in_order(busy: Engine, engine: Engine) -> None:
    assert busy.max_in_flight >= 2
    assert engine.max_in_flight == 1
    assert _stream(busy, 50) == _stream(engine, 50)


def test_engine_with_windows_in_flight_gives_the_same_bytes_again(bundle: Bundle, busy: Engine) -> None:
    again = create(bundle, EngineOptions(is_for_throughput=True))
    assert _stream(busy, 50) == _stream(again, 50)
    again.close()


def test_engine_reset_leaves_the_windows_in_flight_alone(busy: Engine) -> None:
    _push(busy, 0.1, 0.2, 0.3, 0.4)
    wait = busy.submit()
    busy.reset()
    _push(busy, 0.9)
    np.testing.assert_allclose(wait().heatmap.mean((1, 2)), (0.1, 0.2, 0.3, 0.4), atol=1e-6)
    with pytest.raises(EngineError, match="needs 4 frames"):
        busy.submit()


def test_engine_closes_with_windows_in_flight(bundle: Bundle) -> None:
    engine = create(bundle, EngineOptions(is_for_throughput=True))
    _push(engine, 0.1, 0.2, 0.3, 0.4)
    for _ in range(engine.max_in_flight):
        engine.submit()
    engine.close()
    engine.close()


def test_engine_threads_pinning_and_cache_are_its_users_choice(bundle: Bundle, tmp_path: Path) -> None:
    options = EngineOptions(num_threads=1, is_pinned=False, cache_dir=tmp_path / "cache")
    for _ in range(2):
        engine = create(bundle, options)
        _push(engine, 0.1, 0.2, 0.3, 0.4)
        assert _seen(engine) == [0.1, 0.2, 0.3, 0.4]
        engine.close()
    assert list((tmp_path / "cache").iterdir())


def test_engine_cache_that_cannot_be_made_is_refused_by_name(bundle: Bundle, tmp_path: Path) -> None:
    cache = tmp_path / "file" / "cache"
    cache.parent.touch()
    with pytest.raises(EngineError, match=rf"the cache {cache} .* cannot be made \(Not a directory\); name another"):
        create(bundle, EngineOptions(cache_dir=cache))


def test_engine_close_is_idempotent(engine: Engine) -> None:
    engine.close()
    engine.close()


def test_engine_unknown_device_is_refused_with_the_ones_there(bundle: Bundle) -> None:
    with pytest.raises(BackendError, match=r"OpenVINO has no device 'TPU' here; it has .*CPU"):
        create(bundle, EngineOptions(device="TPU"))


def test_engine_device_in_small_letters_is_the_device(bundle: Bundle) -> None:
    """As torch and ONNX Runtime take it: so that `--backend auto --device cpu` passes over none."""
    engine = create(bundle, EngineOptions(device="cpu"))
    assert engine.spec.device == "CPU"
    engine.close()


def test_engine_unknown_precision_is_refused_with_the_ones_there(bundle: Bundle) -> None:
    with pytest.raises(BackendError, match="does not compute in 'fp8'; it does in fp32, bf16, fp16, int8"):
        create(bundle, EngineOptions(precision="fp8"))


def _bundle_of(folder: Path, model: bytes) -> Bundle:
    """Return a bundle whose manifest is honest about a model file that is not what it should be."""
    folder.mkdir()
    (folder / "model.onnx").write_bytes(model)
    write_manifest(
        folder,
        name="odd",
        classes=("dark", "bright"),
        threshold=0.5,
        preprocess=SPEC,
        num_frames=NUM_FRAMES,
        frame_interval_ms=40.0,
        outputs={},
        intended_use="Tests.",
        training={},
        files=[("model.onnx", "onnx", "fp32")],
    )
    return load_bundle(folder)


def _renamed_output(model: onnx.ModelProto) -> onnx.ModelProto:
    for node in model.graph.node:
        names = [name.replace("heatmap", "map") if name == "heatmap" else name for name in node.output]
        node.output[:] = names
        node.input[:] = ["map" if name == "heatmap" else name for name in node.input]
    model.graph.output[1].name = "map"
    return model


def _unknown_operator(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.node[1].op_type = "Trombone"
    return model


@pytest.mark.parametrize(
    "kind", ["garbage", "empty", "cut", "other clip length", "no heatmap", "an operator that there is not"]
)
def test_engine_model_that_cannot_run_is_refused_by_file(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    whole = (folder / "model.onnx").read_bytes()
    models = {
        "garbage": lambda: b"this is no network",
        "empty": lambda: b"",
        "cut": lambda: whole[: len(whole) // 2],
        "other clip length": lambda: (
            write_trivial_bundle(tmp_path / "other", num_frames=NUM_FRAMES + 1, preprocess=SPEC) / "model.onnx"
        ).read_bytes(),
        "an operator that there is not": lambda: _unknown_operator(
            onnx.load(folder / "model.onnx")
        ).SerializeToString(),
        "no heatmap": lambda: _renamed_output(onnx.load(folder / "model.onnx")).SerializeToString(),
    }
    bundle = _bundle_of(tmp_path / "odd", models[kind]())
    with pytest.raises(EngineError, match=r"OpenVINO cannot load .*odd/model\.onnx on CPU: ") as caught:
        create(bundle)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""  # OpenVINO's own chatter


def test_engine_whose_clips_are_larger_than_memory_is_refused(folder: Path) -> None:
    endless = dataclasses.replace(load_bundle(folder), num_frames=10**12)

    with pytest.raises(EngineError, match="do not fit into this machine's memory"):
        load_engine(endless, "openvino")


SIGNALS_AFTER_TWO_ENGINES = """
import faulthandler, gc, signal, sys
from engines import load_bundle, load_engine
faulthandler.enable()  # gives signal handlers a stack of their own, as pytest does, and services that want a traceback
bundle = load_bundle(sys.argv[1])
engines = [load_engine(bundle, "openvino") for _ in range(2)]
while engines:
    engines.pop(0).close()
    gc.collect()
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
signal.raise_signal(signal.SIGUSR1)
"""


def test_process_that_closed_its_engines_in_turn_still_handles_signals(folder: Path) -> None:
    command = [sys.executable, "-c", SIGNALS_AFTER_TWO_ENGINES, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


@pytest.mark.parametrize(
    ("precision", "capabilities", "hint"),
    [
        ("int8", ["FP32", "INT8", "EXPORT_IMPORT"], "f32"),
        ("int8", ["FP16", "INT8", "EXPORT_IMPORT"], "f16"),  # an NPU refuses f32
        ("fp16", ["FP16", "INT8", "EXPORT_IMPORT"], "f16"),
        ("bf16", ["FP32", "BF16", "INT8"], "bf16"),
    ],
)
def test_layers_in_floating_point_compute_in_what_the_device_has(
    precision: str, capabilities: list[str], hint: str
) -> None:
    assert arithmetic(precision, capabilities) == hint
