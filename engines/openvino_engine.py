"""The `openvino` backend: FP32 on the CPU by default, where there is no GPU."""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from engines.bundle import Bundle
from engines.engine import EngineOptions, EngineOutput, EngineSpec, HostEngine
from engines.errors import BackendError, EngineError


def create(bundle: Bundle, options: EngineOptions = EngineOptions()) -> "OpenVinoEngine":  # noqa: B008  frozen
    """Load the bundle's FP32 ONNX file on an OpenVINO device ("CPU" by default)."""
    return (OpenVinoThroughputEngine if options.is_for_throughput else OpenVinoEngine)(bundle, options)


def probe() -> str | None:
    """Return why OpenVINO cannot run here."""
    return None if importlib.util.find_spec("openvino") else "it is not installed: `pip install openvino`"


def precisions(bundle: Bundle) -> tuple[str, ...]:
    """Return FP32, and what edge-build added."""
    built = tuple(file.precision for file in bundle.files if file.kind == "openvino" and file.precision)
    return ("fp32", *(precision for precision in built if precision != "fp32"))


class OpenVinoEngine(HostEngine):
    """Runs the ring's windows without a copy: one input tensor for each of the T places where a window can start."""

    _performance_hint = "LATENCY"

    def __init__(self, bundle: Bundle, options: EngineOptions) -> None:
        device = options.device or "CPU"
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
            hints = {"PERFORMANCE_HINT": self._performance_hint, "INFERENCE_PRECISION_HINT": "f32"}
            compiled = core.compile_model(model, device, hints)
            self._outputs = [compiled.output(name) for name in ("probabilities", "heatmap")]
            self._create_requests(openvino, compiled)
        except RuntimeError as exc:
            raise EngineError(f"OpenVINO cannot load {path} on {device}: {_last_line(exc)}") from exc

    def _create_requests(self, openvino: Any, compiled: Any) -> None:
        self._requests: list[Any] = [compiled.create_infer_request()]
        self._inputs = [
            openvino.Tensor(self._ring.window(slot), shared_memory=True) for slot in range(self._ring.num_frames)
        ]

    def _run(self, start_slot: int) -> EngineOutput:
        (request,) = self._requests
        try:
            request.set_input_tensor(self._inputs[start_slot])
            request.infer()
        except RuntimeError as exc:
            raise EngineError(f"OpenVINO failed to run {self.spec.name}: {_last_line(exc)}") from exc
        return self._output_of(request)

    def _output_of(self, request: Any) -> EngineOutput:
        probabilities, heatmap = (request.get_tensor(port).data for port in self._outputs)
        return EngineOutput(np.array(probabilities[0]), np.array(heatmap[0]))

    def close(self) -> None:
        self._requests = []
        self._inputs = []


class OpenVinoThroughputEngine(OpenVinoEngine):
    """Runs several windows at once, each on threads of its own that wait for no other window's.

    On a processor that also decodes and publishes, this keeps all cores busy: threads that share one window wait for
    the slowest at the end of every layer. One request more than there are streams, so that a stream that is done finds
    the next window waiting.
    """

    _performance_hint = "THROUGHPUT"

    def _create_requests(self, openvino: Any, compiled: Any) -> None:
        self.max_in_flight = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")) + 1
        self._requests = [compiled.create_infer_request() for _ in range(self.max_in_flight)]
        self._num_submitted = 0

    def _run(self, start_slot: int) -> EngineOutput:
        return self.submit()()

    def submit(self) -> Callable[[], EngineOutput]:
        self._require_full()
        request = self._requests[self._num_submitted % self.max_in_flight]
        self._num_submitted += 1
        try:
            np.copyto(request.get_input_tensor().data, self._ring.window())
            request.start_async()
        except RuntimeError as exc:
            raise EngineError(f"OpenVINO failed to run {self.spec.name}: {_last_line(exc)}") from exc
        return functools.partial(self._wait_for, request)

    def _wait_for(self, request: Any) -> EngineOutput:
        try:
            request.wait()
        except RuntimeError as exc:
            raise EngineError(f"OpenVINO failed to run {self.spec.name}: {_last_line(exc)}") from exc
        return self._output_of(request)

    def close(self) -> None:
        for request in self._requests:
            request.cancel()
            request.wait()
        super().close()


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
