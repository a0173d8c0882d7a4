"""This machine's own matrix-multiply rates, a precision each: what an engine's arithmetic is compared with."""

import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from edge.commandline import Parser, print_line, run_command
from edge.errors import EdgeError
from engines.torch.gpu import import_torch
from tools.children import Child, running

_SIZES = (1024, 2048)
_MAX_TURN_S = 0.25
_LIMIT_S = 120.0
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}

Peaks = dict[str, float]
Product = Callable[[], Any]


class _Way(NamedTuple):
    """One way to multiply square matrices."""

    precision: str
    size: int
    product: Product


class PeakMeter:
    """Measures a device's rates in a child process, by turns with whatever is compared with them."""

    def __init__(self, child: Child, device: str) -> None:
        child.ask(None, _LIMIT_S)  # it has loaded what it multiplies with
        self._child, self._device = child, device
        self._is_alive = True
        self._turns: list[list[tuple[str, float]]] = []

    def take_turn(self, seconds: float) -> None:
        """Measure once more, each way for so long, or a quarter of a second, if that is less."""
        if not self._is_alive:
            return
        try:
            self._turns.append(self._child.ask(f"{min(seconds, _MAX_TURN_S)}", _LIMIT_S)["rates"])
        except EdgeError as exc:  # the engines are measured all the same
            _tell_unmeasured(self._device, exc)
            self._is_alive = False

    def rates(self) -> Peaks:
        """Return precision to GFLOP/s: the fastest way's median over the turns; nothing if its process has died."""
        if not self._is_alive:
            return {}
        peaks: Peaks = {}
        for way in zip(*self._turns, strict=True):
            precision, rate = way[0][0], statistics.median(rate for _, rate in way)
            peaks[precision] = max(rate, peaks.get(precision, 0.0))
        return peaks


@contextlib.contextmanager
def peak_meter(device: str) -> Iterator[PeakMeter | None]:
    """Make ready to measure a processor ("cpu") or a device of torch ("cuda...").

    Another device: None; one that cannot be measured, as a GPU without torch: None, and a warning.
    """
    device = device.lower()
    if device != "cpu" and not device.startswith("cuda"):
        yield None
        return
    with running("tools.bench.peaks", "--device", device) as child:
        try:
            meter = PeakMeter(child, device)
        except EdgeError as exc:  # the engines are measured all the same
            _tell_unmeasured(device, exc)
            meter = None
        yield meter


def _tell_unmeasured(device: str, exc: EdgeError) -> None:
    print_line("warning", f"the matrix-multiply peak of {device} is not measured: {exc}")


def main() -> int:
    """Run the child's side: one JSON line when all is loaded, then one for each line on stdin."""
    return run_command(_run)


def _run() -> int:
    parser = Parser("peaks", "Measure matrix-multiply rates; what edge-bench starts.", "edge-bench engine engines/demo")
    parser.add_argument("--device", default="cpu")
    device = parser.parse_args().device
    ways = _on_cpu() if device == "cpu" else _on_cuda(device)
    for way in ways:
        way.product()
    print(json.dumps({"ways": len(ways)}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"rates": [(way.precision, _rate(way, float(line))) for way in ways]}), flush=True)
    return 0


def _on_cpu() -> list[_Way]:
    """Multiply with OpenVINO, which has every precision; in FP32 with NumPy as well, whichever is faster."""
    import openvino

    core = openvino.Core()
    known = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    precisions = [precision for precision in _HINTS if precision.upper() in known]
    ways = [_Way(kind, size, _openvino_product(core, kind, size)) for kind in precisions for size in _SIZES]
    return ways + [_Way("fp32", size, _numpy_product(size)) for size in _SIZES]


def _numpy_product(size: int) -> Product:
    left, right = np.random.default_rng(0).random((2, size, size), np.float32)
    product = left @ right
    return lambda: np.matmul(left, right, out=product)


def _openvino_product(core: Any, precision: str, size: int) -> Product:
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


def _on_cuda(device: str) -> list[_Way]:
    torch = import_torch()
    types = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    return [_Way(name, 4 * s, _torch_product(device, kind, 4 * s)) for name, kind in types.items() for s in _SIZES]


def _torch_product(device: str, kind: Any, size: int) -> Product:
    import torch

    left, right = torch.rand((2, size, size), device=device, dtype=torch.float32).to(kind)

    def product() -> None:
        torch.mm(left, right)
        torch.cuda.synchronize(device)

    return product


def _rate(way: _Way, seconds: float) -> float:
    """Return GFLOP/s over a turn, of one product or more."""
    num_products, elapsed_s, start_s = 0, 0.0, time.perf_counter()
    while elapsed_s < seconds or num_products == 0:
        way.product()
        num_products, elapsed_s = num_products + 1, time.perf_counter() - start_s
    return num_products * 2 * way.size**3 / elapsed_s / 1e9


if __name__ == "__main__":
    raise SystemExit(main())
