"""The bundle that export writes: exact Grad-CAM, a clean graph, the same outputs on every backend."""

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from small_bundle import NUM_FRAMES, SIZE_PX, export_small_bundle, random_clips, randomised, small_bundle, small_model

from engines.load import BACKENDS, load_engine
from trainer.export import WithHeatmap, fold_batch_norms
from trainer.models.tin import TIN


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return small_bundle(tmp_path_factory)


@pytest.fixture(scope="module")
def graph(bundle):
    return onnx.load(bundle.path / "model.onnx", load_external_data=False)


def autograd_grad_cam(model: torch.nn.Module, clip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities, and Grad-CAM of the last class by its definition: from the gradient of the logit."""
    kept = []
    hook = model.backbone.register_forward_hook(lambda module, args, output: kept.append(output))
    logits = model(clip)
    hook.remove()
    (features,) = kept  # (T, F, h, w)
    (gradient,) = torch.autograd.grad(logits[0, -1], features)
    num_frames, _, height, width = features.shape
    alpha = gradient.mean((0, 2, 3)) * num_frames * height * width
    return logits.softmax(1), torch.einsum("f,tfhw->thw", alpha, features).relu()


@torch.no_grad()
def balance_evidence(model: torch.nn.Module, clip: torch.Tensor) -> None:
    """Turn the last layer so that each class has evidence of both signs in this clip."""
    mean = model.features(clip).mean((0, 2, 3))
    model.fc.weight -= torch.outer(model.fc.weight @ mean, mean) / mean.dot(mean)


@pytest.mark.parametrize(("depth", "strides"), [(18, (1, 2, 2, 1)), (50, (1, 2, 2, 2))])
@pytest.mark.parametrize("seed", [0, 1])
def test_heatmap_of_the_positive_class_equals_autograd_grad_cam(depth, strides, seed):
    model = randomised(TIN(depth, num_classes=3, num_frames=NUM_FRAMES, width=16, strides=strides), seed)
    clip = torch.from_numpy(random_clips(1, seed))
    balance_evidence(model, clip)
    probabilities, expected = autograd_grad_cam(model, clip)
    with torch.inference_mode():
        got_probabilities, heatmap = WithHeatmap(model)(clip)
    assert expected.max() > 0
    assert (heatmap[0] - expected).abs().max() <= 2e-6 * expected.max()
    torch.testing.assert_close(got_probabilities, probabilities, atol=1e-6, rtol=0)


def test_folded_batch_norms_leave_the_outputs_equal(model):
    folded = fold_batch_norms(model)
    clip = torch.from_numpy(random_clips(2, seed=1))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules()), "the original was changed"
    with torch.inference_mode():
        torch.testing.assert_close(folded(clip), model(clip), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", sorted(set(BACKENDS) - {"tensorrt"}))  # it runs what edge-build compiles
def test_backend_on_clips_that_are_not_the_reference_equals_pytorch(bundle, model, backend):
    clips = random_clips(4, seed=99)
    clips[1], clips[2, : NUM_FRAMES // 2], clips[3] = 1.0, 0.0, clips[0, ::-1]
    engine = load_engine(bundle, backend)
    try:
        outputs = [engine.run_clip(clip) for clip in clips]
    finally:
        engine.close()
    with torch.inference_mode():
        probabilities, heatmaps = WithHeatmap(model)(torch.from_numpy(clips))
    assert probabilities[:, 1].std() > 1e-3, "outputs that hardly vary prove nothing"
    got = np.stack([output.probabilities for output in outputs])
    np.testing.assert_allclose(got, probabilities, atol=1e-5, rtol=0)
    got = np.stack([output.heatmap for output in outputs])
    np.testing.assert_allclose(got, heatmaps, atol=1e-5 * heatmaps.max().item(), rtol=0)


def shape_of(value: onnx.ValueInfoProto) -> list[int]:
    return [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]


def test_onnx_graph_has_the_documented_inputs_and_outputs(graph):
    assert {value.name: shape_of(value) for value in graph.graph.input} == {
        "clip": [1, NUM_FRAMES, 1, SIZE_PX, SIZE_PX]
    }
    assert {value.name: shape_of(value) for value in graph.graph.output} == {
        "probabilities": [1, 2],
        "heatmap": [1, NUM_FRAMES, 2, 2],
    }
    (opset,) = graph.opset_import
    assert (opset.domain, opset.version >= 20) == ("", True)


def test_onnx_graph_is_small_and_of_standard_operators(graph):
    operators = [node.op_type for node in graph.graph.node]
    assert {node.domain for node in graph.graph.node} == {""}
    assert not {"BatchNormalization", "ScatterND", "ScatterElements"} & set(operators)
    assert len(operators) <= 45 * 8, "about forty nodes a block"


def test_onnx_file_is_self_contained(bundle, graph):
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in graph.graph.initializer)
    assert {path.name for path in bundle.path.iterdir()} == {
        "manifest.json",
        "model.fp16.onnx",
        "model.onnx",
        "model.pt2",
        "reference.npz",
    }


def test_bundle_files_name_no_path_of_the_machine(bundle):
    places = [Path(torch.__file__).parents[1], Path(__file__).parents[1], Path(sys.prefix), Path.home()]
    needles = [str(place).encode() for place in places if len(place.parts) > 1]
    with zipfile.ZipFile(bundle.path / "model.pt2") as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    contents |= {path.name: path.read_bytes() for path in bundle.path.iterdir() if path.suffix != ".pt2"}
    assert [(name, needle) for name, data in contents.items() for needle in needles if needle in data] == []


def test_pytorch_program_holds_no_example_clip(bundle):
    with zipfile.ZipFile(bundle.path / "model.pt2") as archive:
        largest = max((info.file_size for info in archive.infolist() if "sample_inputs" in info.filename), default=0)
    assert largest < 4 * NUM_FRAMES * SIZE_PX**2


def test_manifest_carries_what_the_model_is_for(bundle):
    assert (bundle.name, bundle.classes, bundle.threshold) == ("small", ("benign", "suspicious"), 0.25)
    assert bundle.clip_tchw == (NUM_FRAMES, 1, SIZE_PX, SIZE_PX)
    assert (bundle.frame_interval_ms, bundle.intended_use, bundle.training) == (40.0, "tests", {"data": "none"})
    assert {(file.kind, file.precision) for file in bundle.files} == {
        ("onnx", "fp32"),
        ("onnx", "fp16"),
        ("torch-export", "fp32"),
        ("reference", None),
    }


def test_reference_holds_the_clips_and_the_outputs_of_the_trained_network(bundle, model):
    reference = bundle.reference()
    np.testing.assert_array_equal(reference.clips, random_clips(2, seed=7))
    with torch.inference_mode():
        probabilities, heatmaps = WithHeatmap(model)(torch.from_numpy(reference.clips))
    np.testing.assert_allclose(reference.probabilities, probabilities, atol=1e-6)
    np.testing.assert_allclose(reference.heatmaps, heatmaps, atol=1e-5 * heatmaps.max().item())


@pytest.mark.slow
def test_export_says_nothing_on_the_terminal(model, tmp_path, capfd):
    export_small_bundle(model, tmp_path)
    assert capfd.readouterr() == ("", "")


def test_bundle_runs_where_the_trainer_is_not_imported(bundle):
    program = (
        "import sys; from engines.bundle import load_bundle; from engines.load import load_engine;"
        f"load_engine(load_bundle({str(bundle.path)!r}), 'torch').close();"
        "assert not [name for name in sys.modules if name.startswith(('trainer', 'edge'))]"
    )
    result = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
