"""The `openvino` backend: FP32 on the CPU by default, where there is no GPU."""

from typing import Any

import numpy as np

from engines.bundle import Bundle
from engines.engine import EngineOutput, EngineSpec, HostEngine
from engines.errors import BackendError, EngineError


def create(bundle: Bundle, device: str | None = None) -> "OpenVinoEngine":
    """Load the bundle's FP32 ONNX file on an OpenVINO device ("CPU" by default)."""
    return OpenVinoEngine(bundle, device or "CPU")


class OpenVinoEngine(HostEngine):
    """Runs the ring's windows without a copy: one input tensor for each of the T places where a window can start."""

    def __init__(self, bundle: Bundle, device: str) -> None:
        file = bundle.file("onnx", "fp32")
        super().__init__(
            EngineSpec(bundle.name, file.sha256, "openvino", "fp32", device, bundle.clip_tchw, bundle.classes)
        )
        openvino = _import_openvino()
        path = bundle.path / file.name
        core = openvino.Core()
        _check_device(core, device)
        try:
            model = core.read_model(path)
            model.reshape([1, *bundle.clip_tchw])
            # the precision is asked for by name: left alone, OpenVINO takes BF16 where the processor has it
            hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
            compiled = core.compile_model(model, device, hints)
            self._request: Any = compiled.create_infer_request()
            self._outputs = [compiled.output(name) for name in ("probabilities", "heatmap")]
        except RuntimeError as exc:
            raise EngineError(f"OpenVINO cannot load {path} on {device}: {_last_line(exc)}") from exc
        self._inputs = [
            openvino.Tensor(self._ring.window(slot), shared_memory=True) for slot in range(self._ring.num_frames)
        ]

    def _run(self, start_slot: int) -> EngineOutput:
        try:
            self._request.set_input_tensor(self._inputs[start_slot])
            self._request.infer()
        except RuntimeError as exc:
            raise EngineError(f"OpenVINO failed to run {self.spec.name}: {_last_line(exc)}") from exc
        probabilities, heatmap = (self._request.get_tensor(port).data for port in self._outputs)
        return EngineOutput(np.array(probabilities[0]), np.array(heatmap[0]))

    def close(self) -> None:
        self._request = None
        self._inputs = []


def _import_openvino() -> Any:
    try:
        import openvino
    except ImportError as exc:
        raise BackendError(f"backend openvino: {exc}; install it with `pip install openvino`") from exc
    return openvino


def _check_device(core: Any, device: str) -> None:
    available = core.available_devices
    if device.split(".")[0] not in {name.split(".")[0] for name in available}:
        raise BackendError(f"OpenVINO has no device {device!r} here; it has {', '.join(available)}")


def _last_line(exc: Exception) -> str:
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return lines[-1] if lines else type(exc).__name__
