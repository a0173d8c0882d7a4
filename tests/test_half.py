"""FP16 ONNX files: what stays FP32 and why, what FP16 storage does to the outputs, and the file's form."""

import dataclasses
import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from small_bundle import random_clips, small_bundle, small_model

from engines import half, half_graph
from engines.bundle import add_files, describe_file, load_bundle
from engines.errors import EngineError
from tools.trivial import write_trivial_bundle
from trainer.export import WithHeatmap


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A copy of the small bundle with an FP16 file written now."""
    folder = tmp_path_factory.mktemp("half") / "small"
    shutil.copytree(small_bundle(tmp_path_factory).path, folder)
    return half.add_half(load_bundle(folder))


@pytest.fixture(scope="module")
def graph(bundle):
    return onnx.load(bundle.path / half.HALF_NAME).graph


def by_type(graph, *op_types):
    return [node for node in graph.node if node.op_type in op_types]


def test_half_file_stands_in_the_manifest_with_what_was_chosen(bundle):
    file = load_bundle(bundle.path).file("onnx", "fp16")
    assert file.name == "model.fp16.onnx"
    assert file.build["options"]["kept_fp32"]["sum"]
    assert 0 < file.build["options"]["rounding"]["probability_difference"] < 5e-3
    assert json.loads((bundle.path / "manifest.json").read_text())["files"][-1]["name"] == file.name


def test_half_file_convolves_and_multiplies_in_fp16_alone(graph):
    constants = {tensor.name: tensor.data_type for tensor in graph.initializer}
    work = by_type(graph, "Conv", "Gemm", "MatMul")
    weights = [constants[name] for node in work for name in node.input if name in constants]
    assert weights
    assert set(weights) == {TensorProto.FLOAT16}


def test_half_file_keeps_sums_and_outputs_in_fp32(bundle, graph):
    types = half_graph.tensor_types(onnx.load(bundle.path / half.HALF_NAME))
    sums = by_type(graph, "ReduceMean", "Softmax")
    assert sums
    assert {types[node.output[0]] for node in sums} == {TensorProto.FLOAT}
    ends = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    assert ends == dict.fromkeys(("clip", "probabilities", "heatmap"), TensorProto.FLOAT)


def test_half_file_on_clips_that_are_not_the_reference_equals_pytorch(bundle):
    clips = random_clips(5, seed=123)
    clips[1], clips[2], clips[3] = 1.0, 0.0, clips[0, ::-1]
    with torch.inference_mode():
        probabilities, heatmaps = WithHeatmap(small_model())(torch.from_numpy(clips))
    session = half._Session(half_graph.emulated(onnx.load(bundle.path / half.HALF_NAME)))
    got = [session.run(clip) for clip in clips]
    assert probabilities[:, 1].std() > 1e-3, "outputs that hardly vary prove nothing"
    np.testing.assert_allclose(np.concatenate([each[0] for each in got]), probabilities, atol=5e-3)
    heatmap = np.concatenate([each[1] for each in got])
    np.testing.assert_allclose(heatmap, heatmaps, atol=1e-2 * heatmaps.max().item())


def test_check_half_of_an_honest_file_tells_its_difference(bundle):
    assert half.check_half(bundle).probability < 5e-3


def chain_bundle(folder, nodes, constants):
    """A bundle of the trivial network whose `means` go through more nodes, from `x` to `y`."""
    write_trivial_bundle(folder, num_frames=2)
    model = onnx.load(folder / "model.onnx")
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    conv.output[0] = "x"
    reshape = next(node for node in model.graph.node if "means" in node.input)
    reshape.input[0] = "y"
    place = list(model.graph.node).index(conv) + 1
    model.graph.node.extend(nodes)
    ordered = [*model.graph.node[:place], *nodes, *model.graph.node[place : -len(nodes)]]
    model.graph.ClearField("node")
    model.graph.node.extend(ordered)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.float32(value), name) for name, value in constants.items()
    )
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / "model.onnx")
    return load_bundle_again(folder)


def load_bundle_again(folder):
    """List the ONNX file as it lies there now."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = [
        dataclasses.asdict(describe_file(folder / file["name"], file["kind"], file.get("precision")))
        for file in manifest["files"]
    ]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return load_bundle(folder)


OVERFLOW = (
    [
        helper.make_node("Mul", ["x", "big"], ["large"], "enlarge"),
        helper.make_node("Div", ["large", "big"], ["y"], "shrink"),
    ],
    {"big": 1e6},
)
CANCELLATION = (
    [
        helper.make_node("Add", ["x", "much"], ["sum"], "raise"),
        helper.make_node("Sub", ["sum", "much"], ["y"], "lower"),
    ],
    {"much": 2000.0},
)


def test_half_values_beyond_the_range_stay_fp32_by_measurement(tmp_path):
    bundle = chain_bundle(tmp_path / "bundle", *OVERFLOW)
    report = half.write_half(bundle, bundle.path)
    assert report.kept["range"] == ("enlarge", "shrink")
    assert report.largest_value == pytest.approx(1e6, rel=0.01)
    assert report.difference.is_within(half.TARGET_SHARE)


def test_half_values_near_the_range_stay_fp32_with_headroom(tmp_path):
    nodes, _ = OVERFLOW
    near = half_graph.HALF_MAX / half.HEADROOM
    above = chain_bundle(tmp_path / "above", nodes, {"big": near * 2.5})
    below = chain_bundle(tmp_path / "below", nodes, {"big": near / 2.5})
    assert "range" in half.write_half(above, tmp_path).kept
    assert "range" not in half.write_half(below, tmp_path).kept


def test_half_nodes_that_cost_accuracy_stay_fp32_by_measurement(tmp_path):
    bundle = chain_bundle(tmp_path / "bundle", *CANCELLATION)
    report = half.write_half(bundle, bundle.path)
    assert {"raise", "lower"} <= set(report.kept["accuracy"])
    assert report.difference.is_within(half.TARGET_SHARE)


@pytest.mark.parametrize(
    ("chain", "said"),
    [(OVERFLOW, "overflows in FP16 on the reference clips"), (CANCELLATION, "differs from the reference by")],
)
def test_check_half_of_a_file_that_does_not_hold_is_refused_with_the_cure(tmp_path, chain, said):
    bundle = chain_bundle(tmp_path / "bundle", *chain)
    model = half._named(onnx.load(bundle.path / "model.onnx"))
    onnx.save(half_graph.to_half(model, frozenset()), bundle.path / half.HALF_NAME)
    bundle = add_files(bundle, describe_file(bundle.path / half.HALF_NAME, "onnx", "fp16"))
    with pytest.raises(EngineError) as caught:
        half.check_half(bundle)
    text = str(caught.value)
    assert str(bundle.path / half.HALF_NAME) in text
    assert said in text
    assert text.endswith("--backend onnx --precision fp16")


@pytest.mark.parametrize(
    ("write", "name", "cure"),
    [
        (lambda bundle: half.write_half(bundle, bundle.path), "model.onnx", "export the bundle again"),
        (half.check_half, half.HALF_NAME, "--backend onnx --precision fp16"),
    ],
)
def test_half_of_a_damaged_file_is_refused_by_name_with_the_cure(tmp_path, write, name, cure):
    folder = write_trivial_bundle(tmp_path / "bundle", num_frames=2)
    bundle = half.add_half(load_bundle(folder))
    (folder / name).write_bytes((folder / name).read_bytes()[:100])
    with pytest.raises(EngineError, match=rf"onnx cannot read .*/{name}: .*{cure}$"):
        write(bundle)


@pytest.mark.parametrize("damage", ["operator", "input"])
def test_half_of_a_network_that_cannot_run_is_refused_by_name(tmp_path, capfd, damage):
    bundle = load_bundle(write_trivial_bundle(tmp_path / "bundle", num_frames=2))
    model = onnx.load(bundle.path / "model.onnx")
    if damage == "operator":
        model.graph.node[0].op_type = "Abacus"
    else:
        model.graph.node[0].input[0] = "nowhere"
    onnx.save(model, bundle.path / "model.onnx")
    with pytest.raises(EngineError, match=r"onnx cannot read .*/model\.onnx: .*; export the bundle again$") as caught:
        half.write_half(bundle, tmp_path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().out == ""


def test_half_of_a_network_that_never_holds_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(half, "MAX_ROUNDS", 1)
    with pytest.raises(EngineError, match=r"model\.onnx does not hold in FP16.*in FP32 or BF16"):
        half.write_half(chain_bundle(tmp_path / "bundle", *CANCELLATION), tmp_path)


def test_half_graph_shares_a_constant_between_both_precisions(tmp_path):
    nodes = [helper.make_node("Mul", ["x", "two"], ["a"], "low"), helper.make_node("Div", ["a", "two"], ["y"], "high")]
    bundle = chain_bundle(tmp_path / "bundle", nodes, {"two": 2.0})
    model = half_graph.to_half(onnx.load(bundle.path / "model.onnx"), {"high"})
    types = half_graph.tensor_types(model)
    assert types["two"] == TensorProto.FLOAT
    assert types["two.fp16"] == TensorProto.FLOAT16


def test_half_graph_keeps_what_its_operator_has_no_fp16_form_of():
    resize = helper.make_node("Resize", ["x", "", "scales"], ["y"], "resize")
    graph = helper.make_graph(
        [resize, helper.make_node("Relu", ["y"], ["z"], "relu")],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 1, 8, 8])],
        [numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    assert half_graph.only_float(model) == {"resize"}
    onnx.checker.check_model(half_graph.to_half(model, {"resize"}), full_check=True)


def test_emulated_half_graph_casts_to_integers_as_the_graph_does():
    nodes = [
        helper.make_node("Cast", ["x"], ["whole"], "truncate", to=TensorProto.INT64),
        helper.make_node("Cast", ["whole"], ["low"], "back", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["low", "third"], ["y"], "divide"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in ("x", "y")]
    third = numpy_helper.from_array(np.float32(1 / 3), "third")
    graph = helper.make_graph(nodes, "graph", values[:1], values[1:], [third])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    stored = half_graph.emulated(half_graph.to_half(model, half_graph.only_float(model)))
    (got,) = half._Session(stored).run(np.array([2.9, -3.9], np.float32))
    rounded = np.float16([2, -3]).astype(np.float32) * np.float32(np.float16(1 / 3))
    np.testing.assert_array_equal(got, [rounded.astype(np.float16)])
