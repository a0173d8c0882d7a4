"""This machine's own matrix-multiply rates, a precision each: what an engine's arithmetic is compared with."""

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from edge.commandline import Parser, print_line, run_command
from edge.errors import EdgeError
from engines.torch_cuda import import_torch
from tools.children import running

_SIZES = (1024, 2048)
_TIMED_S = 1.0
_LIMIT_S = 120.0
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}

Peaks = dict[str, float]


def measure_peaks(device: str) -> Peaks:
    """Return precision to GFLOP/s on a device of a processor ("cpu") or of torch ("cuda..."), in a child process.

    The best of a second of square products, each size for itself. Another device: nothing; one that cannot be
    measured, as a GPU without torch: nothing, and a warning.
    """
    if device.lower() != "cpu" and not device.startswith("cuda"):
        return {}
    with running("tools.bench.peaks", "--device", device.lower()) as child:
        try:
            return dict(json.loads(child.finish(_LIMIT_S)))
        except EdgeError as exc:  # the engines were measured all the same
            print_line("warning", f"the matrix-multiply peak of {device} is not measured: {exc}")
            return {}


def main() -> int:
    """Run the child's side."""
    return run_command(_run)


def _run() -> int:
    parser = Parser("peaks", "Measure matrix-multiply rates; what edge-bench starts.", "edge-bench engine engines/demo")
    parser.add_argument("--device", default="cpu")
    device = parser.parse_args().device
    print(json.dumps(_on_cpu() if device == "cpu" else _on_cuda(device)))
    return 0


def _on_cpu() -> Peaks:
    """Measure with OpenVINO, which has every precision; FP32 with NumPy as well, whichever is faster."""
    import openvino

    core = openvino.Core()
    known = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    peaks = {
        precision: max(_rate(_openvino_product(core, precision, size), size) for size in _SIZES)
        for precision in _HINTS
        if precision.upper() in known
    }
    return {**peaks, "fp32": max(peaks["fp32"], *(_rate(_numpy_product(size), size) for size in _SIZES))}


def _numpy_product(size: int) -> Callable[[], Any]:
    left, right = np.random.default_rng(0).random((2, size, size), np.float32)
    product = left @ right
    return lambda: np.matmul(left, right, out=product)


def _openvino_product(core: Any, precision: str, size: int) -> Callable[[], Any]:
    import openvino
    from openvino import opset13 as ops

    left = ops.parameter([size, size], np.float32)
    weights = np.random.default_rng(0).integers(-127, 128, (size, size), np.int8)
    if precision == "int8":
        right = ops.multiply(ops.convert(ops.constant(weights), np.float32), ops.constant(np.float32(1 / 127)))
        product = _in_256_levels(ops.matmul(_in_256_levels(left, 0, 1), right, False, True), -size, size)
    else:  # integers that are only stored so would be multiplied so as well
        product = ops.matmul(left, ops.constant(weights.astype(np.float32) / 127), False, True)
    model = openvino.Model([ops.result(product)], [left], "product")
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": _HINTS[precision]}
    request = core.compile_model(model, "CPU", hints).create_infer_request()
    request.set_input_tensor(openvino.Tensor(np.random.default_rng(1).random((size, size), np.float32)))
    return lambda: request.infer()


def _in_256_levels(value: Any, low: float, high: float) -> Any:
    from openvino import opset13 as ops

    bounds = np.float32(low), np.float32(high)
    return ops.fake_quantize(value, *bounds, *bounds, 256)


def _on_cuda(device: str) -> Peaks:
    torch = import_torch()
    types = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    return {
        name: max(_rate(_torch_product(device, kind, 4 * s), 4 * s) for s in _SIZES) for name, kind in types.items()
    }


def _torch_product(device: str, kind: Any, size: int) -> Callable[[], Any]:
    import torch

    left, right = torch.rand((2, size, size), device=device, dtype=torch.float32).to(kind)

    def product() -> None:
        torch.mm(left, right)
        torch.cuda.synchronize(device)

    return product


def _rate(product: Callable[[], Any], size: int) -> float:
    """Return GFLOP/s of the fastest product within a second."""
    product()
    best_s, end_s = np.inf, time.perf_counter() + _TIMED_S
    while time.perf_counter() < end_s:
        start_s = time.perf_counter()
        product()
        best_s = min(best_s, time.perf_counter() - start_s)
    return float(2 * size**3 / best_s / 1e9)


if __name__ == "__main__":
    raise SystemExit(main())
