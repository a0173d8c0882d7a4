"""The ONNX Runtime engine with a network whose output tells which frames it saw, and in which order."""

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnxruntime.capi.onnxruntime_pybind11_state import EPFail

from engines import Bundle, Engine, PreprocessSpec, load_bundle, load_engine
from engines.bundle import add_files, describe_file
from engines.engine import EngineOptions
from engines.errors import BackendError, BundleError, EngineError
from engines.onnxruntime_engine import create
from tools.trivial import write_trivial_bundle

NUM_FRAMES = 4
SPEC = PreprocessSpec(resize_hw=(16, 16), crop_hw=(16, 16))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundles") / "small"
    return load_bundle(write_trivial_bundle(folder, num_frames=NUM_FRAMES, preprocess=SPEC))


@pytest.fixture
def engine(bundle: Bundle) -> Engine:
    return create(bundle)


def _push(engine: Engine, *values: float) -> None:
    for value in values:
        engine.push(np.full((1, 16, 16), value, np.float32))


def test_engine_spec_says_what_runs(engine: Engine, bundle: Bundle) -> None:
    spec = engine.spec
    assert (spec.backend, spec.precision, spec.device) == ("onnxruntime", "fp32", "CPU")
    assert spec.sha256 == bundle.file("onnx").sha256


def test_engine_sees_the_last_frames_oldest_first_after_every_push(engine: Engine) -> None:
    values = [round(0.01 * number, 4) for number in range(3 * NUM_FRAMES + 1)]
    for number, value in enumerate(values):
        _push(engine, value)
        if number + 1 >= NUM_FRAMES:
            seen = engine.infer().heatmap.mean((1, 2))
            np.testing.assert_allclose(seen, values[number + 1 - NUM_FRAMES : number + 1], atol=1e-6)


def test_engine_output_is_the_callers_and_outlives_the_next_inference(engine: Engine) -> None:
    _push(engine, 0.1, 0.1, 0.1, 0.1)
    first = engine.infer()
    kept = first.heatmap.copy()
    _push(engine, 0.9)
    engine.infer()
    np.testing.assert_array_equal(first.heatmap, kept)
    assert (first.probabilities.dtype, first.heatmap.dtype) == (np.float32, np.float32)


def test_engine_passes_the_gate_and_agrees_with_openvino(bundle: Bundle) -> None:
    clip = bundle.reference().clips[0]
    outputs = []
    for backend in ("onnxruntime", "openvino"):
        engine = load_engine(bundle, backend)
        outputs.append(engine.run_clip(clip))
        engine.close()
    np.testing.assert_allclose(outputs[0].heatmap, outputs[1].heatmap, atol=1e-6)


@pytest.mark.parametrize("device", ["cpu", "CPU", "CPUExecutionProvider"])
def test_engine_device_is_a_providers_name(bundle: Bundle, device: str) -> None:
    create(bundle, EngineOptions(device=device, num_threads=1)).close()


def test_engine_provider_that_is_not_there_is_refused_with_those_that_are(bundle: Bundle) -> None:
    with pytest.raises(BackendError, match=r"ONNX Runtime has no provider 'Abacus' here; it has .*CPU"):
        create(bundle, EngineOptions(device="Abacus"))


def test_provider_that_would_leave_nodes_to_the_processor_is_refused(bundle: Bundle) -> None:
    """ONNX Runtime's Azure provider, which the package for the processor has, computes none of them."""
    assert "AzureExecutionProvider" in onnxruntime.get_available_providers()
    with pytest.raises(EngineError, match=r"on Azure: .*assigned to the default CPU EP.*; install what .*, or use CPU"):
        create(bundle, EngineOptions(device="Azure"))


def test_fp32_on_a_gpu_is_not_rounded_to_tf32(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def start(*_: Any, providers: Any, **__: Any) -> None:
        asked.extend(providers)
        raise RuntimeError("no GPU here")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", start)
    with pytest.raises(
        EngineError, match=r"model\.onnx on cuda: no GPU here; install what this provider needs, or use CPU"
    ):
        create(bundle, EngineOptions(device="cuda"))
    assert asked == [("CUDAExecutionProvider", {"use_tf32": "0"})]


def test_engine_precision_that_the_bundle_lacks_is_refused(bundle: Bundle) -> None:
    with pytest.raises(
        BundleError, match=r"nothing built for onnxruntime fp16; build it: edge-build .* --backend onnx"
    ):
        create(bundle, EngineOptions(precision="fp16"))


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_engine_precision_that_no_onnx_file_has_is_refused_with_those_there_are(bundle: Bundle, precision: str) -> None:
    with pytest.raises(BackendError, match=f"does not compute in '{precision}'; it does in fp32, fp16"):
        create(bundle, EngineOptions(precision=precision))


def test_engine_model_that_is_none_is_refused_by_file(tmp_path: Path) -> None:
    folder = write_trivial_bundle(tmp_path / "odd", num_frames=NUM_FRAMES, preprocess=SPEC)
    bundle = load_bundle(folder)
    (folder / "model.onnx").write_bytes(b"this is no network")
    with pytest.raises(EngineError, match=r"ONNX Runtime cannot load .*odd/model\.onnx on CPU: ") as caught:
        create(bundle)
    assert "\n" not in str(caught.value)


SCALAR = helper.make_node("ReduceMean", ["clip"], ["probabilities"], keepdims=0)
TEXT = helper.make_tensor("text", TensorProto.STRING, [1, 2], [b"dark", b"bright"])


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("node", "kind", "shape", "said"),
    [
        (SCALAR, TensorProto.FLOAT, [], r"gave float32 \(\) as probabilities of one window"),
        (
            helper.make_node("Constant", [], ["probabilities"], value=TEXT),
            TensorProto.STRING,
            [1, 2],
            r"gave .* \(1, 2\)",
        ),
    ],
    ids=["scalar", "text"],
)
@pytest.mark.filterwarnings("ignore:Data of string type:RuntimeWarning")
def test_network_that_gives_something_else_is_an_engine_error(
    bundle: Bundle, tmp_path: Path, backend: str, node: onnx.NodeProto, kind: int, shape: list[int], said: str
) -> None:
    clip = helper.make_tensor_value_info("clip", TensorProto.FLOAT, [1, *bundle.clip_tchw])
    heatmap = helper.make_tensor_value_info("heatmap", TensorProto.FLOAT, [1, *bundle.clip_tchw])
    outputs = [helper.make_tensor_value_info("probabilities", kind, shape), heatmap]
    nodes = [node, helper.make_node("Identity", ["clip"], ["heatmap"])]
    graph = helper.make_graph(nodes, "strange", [clip], outputs)
    shutil.copytree(bundle.path, tmp_path / "strange")
    path = tmp_path / "strange" / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    strange = add_files(dataclasses.replace(bundle, path=path.parent), describe_file(path, "onnx", "fp32"))
    with pytest.raises(EngineError, match=f"on {backend} {said}"):
        load_engine(strange, backend)


def test_engine_with_too_few_frames_refuses_to_infer(engine: Engine) -> None:
    _push(engine, 0.5)
    with pytest.raises(EngineError, match="needs 4 frames since the last reset"):
        engine.infer()


def test_provider_that_fails_is_an_error_and_not_the_processor_in_its_place(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    session = engine._session  # type: ignore[attr-defined]

    class Failing:
        within = session._sess

        def run(self, *_: object) -> None:
            raise EPFail("the device is gone")

        def __getattr__(self, name: str) -> Any:
            return getattr(self.within, name)

    _push(engine, 0.1, 0.2, 0.3, 0.4)
    engine.infer()
    monkeypatch.setattr(session, "_sess", Failing())
    with pytest.raises(EngineError, match=r"ONNX Runtime failed to run .*: the device is gone"):
        engine.infer()
    assert capsys.readouterr().out == ""


def test_engine_close_is_idempotent(engine: Engine) -> None:
    engine.close()
    engine.close()


def test_missing_onnxruntime_is_refused_with_the_cure(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match="install"):
        load_engine(bundle, "onnxruntime")
