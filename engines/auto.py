"""Chooses the best engine that a bundle has for this machine, and says why each better one was passed over."""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from engines import host
from engines.bundle import Bundle, BundleFile
from engines.engine import Engine, EngineOptions
from engines.errors import BackendError, EngineError
from engines.load import BACKENDS, backend_module, load_proven
from engines.onnxruntime_engine import has_accelerators
from engines.openvino.engine import DEFAULT_DEVICE, check_device, device_of, hardware, shared_core
from engines.parity import rebuild_command
from engines.ranking import MIN_GAIN, Ranked, ranked_here

_log = logging.getLogger("edge.engines")

_GPU = "cuda"


class _Candidate(NamedTuple):
    backend: str
    device: str | None
    precision: str | None
    trouble: str | None
    """Why it is out of the question; None: it is worth trying."""

    @property
    def is_plain(self) -> bool:
        """Whether it is the network as it is on the processor: where that fails, the bundle is at fault."""
        return self.precision == "fp32" and (self.device or DEFAULT_DEVICE).upper() == DEFAULT_DEVICE

    @property
    def engine(self) -> tuple[str, str, str | None]:
        """What makes it the same engine as another, which may name the backend's own choice of device."""
        return self.backend, (self.device or DEFAULT_DEVICE).lower(), self.precision

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.backend, self.device, self.precision)))


def load_best(bundle: Bundle, options: EngineOptions) -> Engine:
    """Load the first engine, best first, that runs here and passes the parity gate.

    Raises:
        BackendError: None runs here; the message names the reason for each.
        EngineError: The bundle itself is at fault: one in FP32 on the processor fails for another reason than what
            this machine lacks.
    """
    ranked = () if options.device or options.is_for_throughput else ranked_here(bundle)
    first = [_Candidate(*one[:3], None) for one in ranked]
    known = {candidate.engine for candidate in first}
    others = [candidate for candidate in _candidates(bundle, options.precision) if candidate.engine not in known]
    passed_over = _passed_over_by_rank(ranked, others)
    for candidate in (*first, *others):
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
                if candidate.is_plain and not isinstance(exc, BackendError):
                    raise
                trouble = str(exc)
            else:
                for reason in passed_over:
                    _log.info("auto: passed over %s", reason)
                return engine
        if (reason := f"{candidate.name}: {trouble}") not in passed_over:
            passed_over.append(reason)
    wanted_in = f" in {options.precision}" if options.precision else ""
    raise BackendError(
        f"no engine of {bundle.path} runs here{wanted_in}; edge-build makes more; {'; '.join(passed_over)}"
    )


def _passed_over_by_rank(ranked: Sequence[Ranked], others: Sequence[_Candidate]) -> list[str]:
    """Say what was measured on this machine, and return why what might be better was not."""
    if not ranked:
        return []
    _log.info("auto: by rank, as measured on this machine: %s", ", ".join(map(str, ranked)))
    return [f"{candidate.name}: {candidate.trouble}" for candidate in others if candidate.trouble]


def _mismatch(candidate: _Candidate, options: EngineOptions) -> str | None:
    if options.precision is not None and candidate.precision not in (None, options.precision):
        return f"{options.precision} is asked for"
    if candidate.device is None or options.device is None:
        return None
    if _kind_of(options.device) != _kind_of(candidate.device):
        return f"{options.device} is asked for"  # which the backend may have as well, but then as a later candidate
    return None


def _kind_of(device: str) -> str:
    """Return "cuda" for "cuda:1", "gpu" for "GPU.1"."""
    return device.lower().partition(":")[0].partition(".")[0]


def _candidates(bundle: Bundle, precision: str | None) -> Iterator[_Candidate]:
    """Yield what there might be, best first; what is asked for by its precision need not be a gain."""
    # without a GPU no library for one is missing
    yield from _with_files(bundle, "tensorrt", trouble=host.cuda_trouble())
    trouble = host.cuda_trouble() or backend_module("torch").probe()
    yield _Candidate("torch", _GPU, None, trouble)
    if trouble is None:
        yield _Candidate("torch", _GPU, "bf16", None)  # for a network that does not hold in FP16, which is first
    yield from _accelerated_onnxruntime(bundle)
    yield from _openvino(bundle, precision)
    yield from _with_files(bundle, "onnxruntime")
    yield from _with_files(bundle, "torch", "cpu")


def _with_files(
    bundle: Bundle, backend: str, device: str | None = None, trouble: str | None = None
) -> Iterator[_Candidate]:
    if backend not in BACKENDS:
        return
    module = backend_module(backend)
    trouble = trouble or module.probe()
    precisions = module.precisions(bundle, device)
    for precision in precisions:
        yield _Candidate(backend, device, precision, trouble)
    if not precisions:
        yield _Candidate(backend, device, None, trouble or "the bundle has no file for it")


def _accelerated_onnxruntime(bundle: Bundle) -> Iterator[_Candidate]:
    """Yield the providers that compute elsewhere than on the processor, in ONNX Runtime's own order."""
    module = backend_module("onnxruntime")
    if module.probe() is not None or not has_accelerators():
        return
    for device in module.devices():
        if device != DEFAULT_DEVICE:
            precisions = reversed(module.precisions(bundle, device))  # FP16 is why one has such a device
            yield from (_Candidate("onnxruntime", device, precision, None) for precision in precisions)


def _openvino(bundle: Bundle, precision: str | None) -> Iterator[_Candidate]:
    """Yield what was built and measured faster than FP32 on this machine, the fastest first; then FP32.

    Before them, as out of the question, what is faster on this processor, and the bundle has not.
    """
    trouble = backend_module("openvino").probe()
    built = [file for file in bundle.files if file.kind == "openvino" and file.precision != "fp32"]
    for fast in () if trouble else host.fast_precisions():
        if any(file.precision == fast for file in built):
            break
        command = f"edge-build {bundle.shell_path} --backend openvino --precision {fast}"
        reason = f"it is not built, and this processor is made for it; `{command}` builds and measures it"
        yield _Candidate("openvino", None, fast, reason)
    for file in sorted(built, key=_gain, reverse=True):
        device = None if device_of(file) == DEFAULT_DEVICE else device_of(file)
        is_asked = file.precision == precision
        why_not = trouble or (None if is_asked else _not_measured_faster(bundle, file))
        yield _Candidate("openvino", device, file.precision, why_not)
    yield _Candidate("openvino", None, "fp32", trouble)


def _not_measured_faster(bundle: Bundle, file: BundleFile) -> str | None:
    build: Any = file.build or {}
    if (there := build.get("hardware")) != (here := hardware(device_of(file))):
        if device_of(file) == DEFAULT_DEVICE:
            try:  # where the processor has not this arithmetic, a build would be refused
                check_device(shared_core(), DEFAULT_DEVICE, str(file.precision))
            except BackendError as exc:
                return str(exc)
        return f"it was measured on other hardware ({host.differences(there, here)}); {rebuild_command(bundle, file)}"
    if (gain := _gain(file)) < MIN_GAIN:
        return f"it is {gain:.2f} times as fast as FP32 on this machine"
    return None


def _gain(file: BundleFile) -> float:
    """Return how many times as fast as FP32 it was, measured side by side when it was built."""
    gain = (file.build or {}).get("gain_over_fp32")
    return float(gain) if isinstance(gain, int | float) else 0.0
