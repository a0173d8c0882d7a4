"""What a network does with each frame by itself is found, cut off, and gives the same outputs."""

import dataclasses
from typing import Any

import numpy as np
import openvino
import openvino.opset13 as ops
import pytest
from small_bundle import NUM_FRAMES, SIZE_PX, random_clips, small_bundle

from engines.openvino.engine import OUTPUT_NAMES, OpenVinoEngine, create, shared_core
from engines.openvino.stem import fold_constants, measure_gain, split

SHAPE = (1, 4, 1, 8, 8)


def _constant(*shape: int) -> Any:
    return ops.constant(np.random.default_rng(0).random(shape, np.float32))


def _network(*, per_frame: bool = False, num_frames: int = 4, mixes_first: bool = False) -> openvino.Model:
    """Return frames plus a constant, convolved; then each frame times the clip's mean."""
    clip = ops.parameter([1, num_frames, *SHAPE[2:]], np.float32)
    value = ops.transpose(clip, ops.constant(np.array([0, 2, 1, 3, 4]))) if mixes_first else clip
    value = ops.add(value, _constant(1, num_frames if per_frame else 1, 1, 1, 1))
    value = ops.reshape(value, ops.constant(np.array([num_frames, *SHAPE[2:]])), False)
    convolved = ops.relu(ops.convolution(value, _constant(3, 1, 3, 3), [2, 2], [1, 1], [1, 1], [1, 1]))
    mean = ops.reduce_mean(convolved, ops.constant(np.array([0, 1, 2, 3])), False)
    return openvino.Model([ops.result(ops.multiply(convolved, mean))], [clip], "network")


def _run(model: openvino.Model, value: np.ndarray) -> np.ndarray:
    return shared_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([value])[0]


def test_split_network_gives_the_whole_networks_output() -> None:
    clip = np.random.default_rng(1).random(SHAPE, np.float32)
    parts = split(_network())
    assert parts is not None
    stem, rest = parts
    assert list(stem.input().get_shape()) == [1, 1, 1, 8, 8]
    assert list(rest.input().get_shape()) == [4, 3, 4, 4]
    features = np.concatenate([_run(stem, clip[:, [place]]) for place in range(4)])
    np.testing.assert_allclose(_run(rest, features), _run(_network(), clip), rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"per_frame": True}, {"mixes_first": True}, {"num_frames": 1}],
    ids=["a constant of its own for each frame", "another order of axes", "one frame"],
)
def test_network_without_a_part_for_each_frame_is_left_whole(options: dict[str, Any]) -> None:
    assert split(_network(**options)) is None


def test_engine_ring_holds_features_and_every_window_is_that_of_the_whole_network(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    bundle = small_bundle(tmp_path_factory)
    engine = create(bundle)
    assert isinstance(engine, OpenVinoEngine)
    assert engine._stem is not None  # otherwise this test shows nothing
    model = shared_core().read_model(bundle.path / "model.onnx")
    model.reshape([1, *bundle.clip_tchw])
    whole = shared_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    stream = random_clips(3, seed=3).reshape(-1, 1, SIZE_PX, SIZE_PX)
    for number, frame in enumerate(stream):
        engine.push(frame)
        if number + 1 < NUM_FRAMES:
            continue
        output = engine.infer()
        expected = whole([stream[number + 1 - NUM_FRAMES : number + 1][np.newaxis]])
        np.testing.assert_allclose(output.probabilities, expected[OUTPUT_NAMES[0]][0], atol=1e-5)
        np.testing.assert_allclose(output.heatmap, expected[OUTPUT_NAMES[1]][0], atol=1e-5 * output.heatmap.max())
    engine.close()


def test_gain_of_a_cut_is_measured_where_there_is_one() -> None:
    properties = {"INFERENCE_PRECISION_HINT": "f32"}
    gain = measure_gain(shared_core(), "CPU", _network, properties)
    assert gain is not None
    assert 0.05 < gain < 20
    assert measure_gain(shared_core(), "CPU", lambda: _network(num_frames=1), properties) is None


def test_engine_of_which_the_build_measured_a_loss_is_left_whole(tmp_path_factory: pytest.TempPathFactory) -> None:
    bundle = small_bundle(tmp_path_factory)
    files = [
        dataclasses.replace(file, build={"options": {"is_stem_cut": False}}) if file.kind == "onnx" else file
        for file in bundle.files
    ]
    (clip,) = random_clips(1, seed=4)
    whole, cut = create(dataclasses.replace(bundle, files=tuple(files))), create(bundle)
    assert isinstance(whole, OpenVinoEngine)
    assert whole._stem is None
    np.testing.assert_allclose(whole.run_clip(clip).heatmap, cut.run_clip(clip).heatmap, rtol=1e-3, atol=1e-4)
    whole.close()
    cut.close()


def test_folded_constants_leave_the_output_as_it_was() -> None:
    clip = np.random.default_rng(2).random(SHAPE, np.float32)
    model = _network()
    before = _run(model, clip)
    fold_constants(model)
    np.testing.assert_array_equal(_run(model, clip), before)
