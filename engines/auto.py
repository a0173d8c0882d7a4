"""Chooses the best engine that a bundle has for this machine, and says why each better one was passed over."""

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

from engines import host
from engines.bundle import Bundle, BundleFile
from engines.engine import Engine, EngineOptions
from engines.errors import BackendError, EngineError
from engines.load import BACKENDS, backend_module, load_proven
from engines.openvino_engine import DEFAULT_DEVICE, hardware

_log = logging.getLogger("edge.engines")

_GPU = "cuda"
_MIN_GAIN = 1.05
"""A lower precision must be faster than FP32 by more than the noise of a measurement."""


class _Candidate(NamedTuple):
    backend: str
    device: str | None
    precision: str | None
    trouble: str | None
    """Why it is out of the question; None: it is worth trying."""

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.backend, self.device, self.precision)))


def load_best(bundle: Bundle, options: EngineOptions) -> Engine:
    """Load the first engine, best first, that runs here and passes the parity gate.

    Raises:
        BackendError: None runs here; the message names the reason for each.
        EngineError: The bundle itself is at fault: one in FP32 fails for another reason than what this machine lacks.
    """
    passed_over: list[str] = []
    for candidate in _candidates(bundle):
        trouble = _mismatch(candidate, options) or candidate.trouble
        if trouble is None:
            wanted = dataclasses.replace(
                options,
                device=options.device or candidate.device,
                precision=options.precision or candidate.precision,
            )
            try:
                engine = load_proven(bundle, candidate.backend, wanted)
            except EngineError as exc:
                if candidate.precision == "fp32" and not isinstance(exc, BackendError):
                    raise
                trouble = str(exc)
            else:
                for reason in passed_over:
                    _log.info("auto: passed over %s", reason)
                return engine
        passed_over.append(f"{candidate.name}: {trouble}")
    wanted_in = f" in {options.precision}" if options.precision else ""
    raise BackendError(
        f"no engine of {bundle.path} runs here{wanted_in}; edge-build makes more; {'; '.join(passed_over)}"
    )


def _mismatch(candidate: _Candidate, options: EngineOptions) -> str | None:
    if options.precision is not None and candidate.precision not in (None, options.precision):
        return f"{options.precision} is asked for"
    if candidate.device == _GPU and options.device is not None and not options.device.startswith(_GPU):
        return f"{options.device} is asked for"  # torch has that as well, as the slowest of all
    return None


def _candidates(bundle: Bundle) -> Iterator[_Candidate]:
    """Yield what there might be, best first."""
    yield from _with_files(bundle, "tensorrt")
    yield _Candidate("torch", _GPU, None, backend_module("torch").probe() or host.cuda_trouble())
    yield from _openvino(bundle)
    yield from _with_files(bundle, "onnxruntime")
    yield from _with_files(bundle, "torch", "cpu")


def _with_files(bundle: Bundle, backend: str, device: str | None = None) -> Iterator[_Candidate]:
    if backend not in BACKENDS:
        return
    module = backend_module(backend)
    trouble = module.probe()
    precisions = module.precisions(bundle, device)
    for precision in precisions:
        yield _Candidate(backend, device, precision, trouble)
    if not precisions:
        yield _Candidate(backend, device, None, trouble or "the bundle has no file for it")


def _openvino(bundle: Bundle) -> Iterator[_Candidate]:
    """Yield what was built and measured faster than FP32 on this machine, the fastest first; then FP32."""
    trouble = backend_module("openvino").probe()
    built = [file for file in bundle.files if file.kind == "openvino" and file.precision != "fp32"]
    for file in sorted(built, key=_gain, reverse=True):
        yield _Candidate("openvino", None, file.precision, trouble or _not_measured_faster(file))
    yield _Candidate("openvino", None, "fp32", trouble)


def _not_measured_faster(file: BundleFile) -> str | None:
    build: Any = file.build or {}
    if (there := build.get("hardware")) != (here := hardware(str(build.get("device", DEFAULT_DEVICE)))):
        return f"it was measured on {there}, this is {here}; edge-build measures it anew"
    if (gain := _gain(file)) < _MIN_GAIN:
        return f"it is {gain:.2f} times as fast as FP32 on this machine"
    return None


def _gain(file: BundleFile) -> float:
    """Return how many times as fast as FP32 it was, measured side by side when it was built."""
    gain = (file.build or {}).get("gain_over_fp32")
    return float(gain) if isinstance(gain, int | float) else 0.0
