"""The `onnxruntime` backend: every processor and accelerator for which ONNX Runtime has an execution provider."""

import importlib.util
from pathlib import Path
from typing import Any

from engines.bundle import Bundle, BundleFile
from engines.engine import EngineOptions, EngineOutput, EngineSpec, HostEngine
from engines.errors import BackendError, BundleError, EngineError, last_line
from engines.parity import cure

DEFAULT_DEVICE = "CPU"
OUTPUT_NAMES = ("probabilities", "heatmap")

_PRECISIONS = ("fp32", "fp16")
_SUFFIX = "ExecutionProvider"
_CPU = DEFAULT_DEVICE + _SUFFIX
_REMEDY = "install what this provider needs, or use CPU"
_ONLY_BY_NAME = ("Azure", "Tensorrt", "NvTensorRTRTX")
"""The first sends what it is given to a computer elsewhere; the others compile for minutes at each start."""
_ONLY_FATAL = 4
_CRASHING_OPTIMIZERS = {"fp16": ["NchwcTransformer"]}
"""It ends the process when the CPU provider creates a session for some FP16 networks (seen with 1.30 to 1.32)."""
_PROVIDER_OPTIONS = {"CUDAExecutionProvider": {"use_tf32": "0"}}
"""Left alone, it rounds FP32 as FP16 is rounded, without a word."""


def create(bundle: Bundle, options: EngineOptions = EngineOptions()) -> "OnnxRuntimeEngine":  # noqa: B008  frozen
    """Load the bundle's ONNX file with the execution provider that `options.device` names.

    Raises:
        BackendError: ONNX Runtime is not installed, or has not this provider, or the provider does not start.
        BundleError: The bundle has no ONNX file of this precision.
        EngineError: ONNX Runtime cannot load the file.
    """
    return OnnxRuntimeEngine(bundle, options)


def probe() -> str | None:
    """Return why ONNX Runtime cannot run here."""
    return None if importlib.util.find_spec("onnxruntime") else "it is not installed: `pip install onnxruntime`"


def has_accelerators() -> bool:
    """Whether it was made for more than the processor, as told by its files: to import it costs 20 MB."""
    spec = importlib.util.find_spec("onnxruntime")
    folder = None if spec is None or spec.origin is None else Path(spec.origin).parent / "capi"
    libraries = [] if folder is None else folder.glob("libonnxruntime_providers_*.so")
    return any(library.stem != "libonnxruntime_providers_shared" for library in libraries)


def devices() -> tuple[str, ...]:
    """Return the execution providers that may be chosen unasked, by their short names, the best first."""
    return tuple(name for name in _providers(_import_onnxruntime()) if name not in _ONLY_BY_NAME)


def precisions(bundle: Bundle, device: str | None = None) -> tuple[str, ...]:
    """Return the precisions in which the bundle has the network as ONNX."""
    return tuple(precision for precision in _PRECISIONS if bundle.has("onnx", precision))


class OnnxRuntimeEngine(HostEngine):
    """Runs the ring's windows where they lie; a provider with memory of its own copies them there."""

    def __init__(self, bundle: Bundle, options: EngineOptions) -> None:
        device, precision = options.device or DEFAULT_DEVICE, options.precision or "fp32"
        file = _file(bundle, precision)
        super().__init__(
            EngineSpec(bundle.name, file.sha256, "onnxruntime", precision, device, bundle.clip_tchw, bundle.classes)
        )
        runtime = _import_onnxruntime()
        provider = _provider(runtime, device)
        path = bundle.path / file.name
        try:
            session = runtime.InferenceSession(
                str(path),
                _session_options(runtime, options, provider),
                providers=[(provider, _PROVIDER_OPTIONS.get(provider, {}))],
                disabled_optimizers=_CRASHING_OPTIMIZERS.get(precision),
                # on an error it would print to stdout and go on with the processor, at the start or any time later
                enable_fallback=False,
            )
            self._input_name = session.get_inputs()[0].name
        except Exception as exc:  # its errors have no common class but this
            remedy = cure(bundle, file) if provider == _CPU else _REMEDY
            raise EngineError(f"ONNX Runtime cannot load {path} on {device}: {last_line(exc)}; {remedy}") from exc
        # a provider whose libraries are missing is left out without an error
        if provider not in session.get_providers():
            raise BackendError(f"ONNX Runtime's {provider} does not start here; {_REMEDY}")
        self._session: Any = session

    def _run(self, start_slot: int) -> EngineOutput:
        try:
            outputs = self._session.run(OUTPUT_NAMES, {self._input_name: self._ring.window(start_slot)})
        except Exception as exc:  # its errors have no common class but this
            raise EngineError(f"ONNX Runtime failed to run {self.spec.name}: {last_line(exc)}") from exc
        return self._output(*outputs)

    def close(self) -> None:
        self._session = None


def _file(bundle: Bundle, precision: str) -> BundleFile:
    if precision not in _PRECISIONS:
        raise BackendError(f"onnxruntime does not compute in {precision!r}; it does in {', '.join(_PRECISIONS)}")
    if precision == "fp16" and not bundle.has("onnx", precision):
        raise BundleError(
            f"bundle {bundle.path} has nothing built for onnxruntime fp16; build it: "
            f"edge-build {bundle.shell_path} --backend onnx --precision fp16"
        )
    return bundle.file("onnx", precision)


def _session_options(runtime: Any, options: EngineOptions, provider: str) -> Any:
    session_options = runtime.SessionOptions()
    session_options.log_severity_level = _ONLY_FATAL
    if provider != _CPU:  # what the provider cannot do would go to the processor unasked, and there be FP32
        session_options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if options.num_threads is not None:
        session_options.intra_op_num_threads = options.num_threads
    return session_options


def _provider(runtime: Any, device: str) -> str:
    """Return the full name of a provider: "CUDA" is "CUDAExecutionProvider"; case does not matter."""
    available = _providers(runtime)
    for short, name in available.items():
        if device.lower() in (short.lower(), name.lower()):
            return str(name)
    raise BackendError(f"ONNX Runtime has no provider {device!r} here; it has {', '.join(available)}")


def _providers(runtime: Any) -> dict[str, str]:
    """Return short name to full name."""
    return {name.removesuffix(_SUFFIX): name for name in runtime.get_available_providers()}


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as exc:
        raise BackendError(f"backend onnxruntime: {exc}; install it with `pip install onnxruntime`") from exc
    return onnxruntime
