"""The `openvino` backend: processors, Intel GPUs and NPUs, in FP32, BF16, FP16 or INT8; the default without a GPU."""

import contextlib
import functools
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engines import host
from engines.bundle import Bundle, BundleFile
from engines.engine import EngineOptions, EngineOutput, EngineSpec, HostEngine
from engines.errors import BackendError, BundleError, EngineError, last_line
from engines.openvino.stem import fold_constants, split
from engines.parity import cure
from engines.ring import Float32Array, MirroredRing

DEFAULT_DEVICE = "CPU"
KIND = "openvino"
OUTPUT_NAMES = ("probabilities", "heatmap")

_ARITHMETIC = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}
"""Precision to what the layers in floating point compute in: left alone, OpenVINO takes BF16 where there is any. An NPU
has no FP32: there an INT8 network's other layers compute in FP16."""
_CAPABILITIES = {"fp32": "FP32", "bf16": "BF16", "fp16": "FP16", "int8": "INT8"}


def create(bundle: Bundle, options: EngineOptions = EngineOptions()) -> "OpenVinoEngine":  # noqa: B008  frozen
    """Load what edge-build compiled for the precision, or for FP32 the ONNX file, on an OpenVINO device.

    Raises:
        BackendError: OpenVINO is not installed, or has not this device, or the device not this arithmetic.
        BundleError: The bundle was not built for this precision.
        EngineError: OpenVINO cannot load the file.
    """
    return (OpenVinoThroughputEngine if options.is_for_throughput else OpenVinoEngine)(bundle, options)


def probe() -> str | None:
    """Return why OpenVINO cannot run here."""
    return None if importlib.util.find_spec("openvino") else "it is not installed: `pip install openvino`"


def devices() -> tuple[str, ...]:
    """Return the devices that OpenVINO has here."""
    return tuple(shared_core().available_devices)


def precisions(bundle: Bundle, device: str | None = None) -> tuple[str, ...]:
    """Return FP32, and what edge-build added, each once."""
    built = (file.precision for file in bundle.files if file.kind == KIND and file.precision)
    return tuple(dict.fromkeys(("fp32", *built)))


def file_for(bundle: Bundle, precision: str, device: str | None = None) -> BundleFile:
    """Return the file that is run: what was built for the device, or else for another; or for FP32 the network itself.

    Raises:
        BackendError: There is no such precision.
        BundleError: It was not built.
    """
    if precision not in _ARITHMETIC:
        raise BackendError(f"openvino does not compute in {precision!r}; it does in {', '.join(_ARITHMETIC)}")
    if built := [file for file in bundle.files if (file.kind, file.precision) == (KIND, precision)]:
        wanted = (device or DEFAULT_DEVICE).upper()
        return max(built, key=lambda file: (device_of(file) == wanted, _base(device_of(file)) == _base(wanted)))
    if precision == "fp32":
        return bundle.file("onnx", "fp32")
    raise BundleError(
        f"bundle {bundle.path} has nothing built for openvino {precision}; build it: "
        f"edge-build {bundle.shell_path} --backend openvino --precision {precision}"
    )


def device_of(file: BundleFile) -> str:
    """Return the device that a file was built for."""
    return str((file.build or {}).get("device", DEFAULT_DEVICE)).upper()


def is_stem_cut(file: BundleFile) -> bool:
    """Whether what is done to each frame by itself is done once a frame: yes, unless the build measured a loss."""
    return bool((file.build or {}).get("options", {}).get("is_stem_cut", True))


class OpenVinoEngine(HostEngine):
    """Runs the ring's windows without a copy: one input tensor for each of the T places where a window can start."""

    _performance_hint = "LATENCY"

    def __init__(self, bundle: Bundle, options: EngineOptions) -> None:
        precision = options.precision or "fp32"
        openvino, core = import_openvino(), shared_core()
        if precision in _ARITHMETIC and precision not in precisions(bundle):  # to build it must not be the advice then
            check_device(core, (options.device or DEFAULT_DEVICE).upper(), precision)
        file = file_for(bundle, precision, options.device)
        device = options.device.upper() if options.device else device_of(file)
        super().__init__(
            EngineSpec(bundle.name, file.sha256, "openvino", precision, device, bundle.clip_tchw, bundle.classes)
        )
        self._stem: Any = None
        capabilities = check_device(core, device, precision)
        path = bundle.path / file.name
        if options.cache_dir is not None:
            _make_cache(options.cache_dir)
        try:
            model = read_network(path)
            model.reshape([1, *bundle.clip_tchw])
            if file.kind != KIND:
                fold_constants(model)
            properties = self._properties(latency_properties(precision, capabilities), options)
            if device == DEFAULT_DEVICE and is_stem_cut(file):
                model = self._cut_stem(core, model, properties)
            compiled = core.compile_model(model, device, properties)
            self._outputs = [compiled.output(name) for name in OUTPUT_NAMES]
            self._create_requests(openvino, compiled)
        except Exception as exc:  # its errors have no common class but this
            raise EngineError(
                f"OpenVINO cannot load {path} on {device}: {last_line(exc)}; {cure(bundle, file)}"
            ) from exc

    def _properties(self, properties: dict[str, Any], options: EngineOptions) -> dict[str, Any]:
        properties = {**properties, "PERFORMANCE_HINT": self._performance_hint}
        if options.num_threads is not None:
            properties["INFERENCE_NUM_THREADS"] = options.num_threads
        if options.is_pinned is not None:
            properties["ENABLE_CPU_PINNING"] = options.is_pinned
        if options.cache_dir is not None:
            properties["CACHE_DIR"] = str(options.cache_dir)
        return properties

    def _cut_stem(self, core: Any, model: Any, properties: dict[str, Any]) -> Any:
        """Let the ring hold what the network makes of each frame by itself, and return the rest of the network."""
        if (parts := split(model)) is None:
            return model
        stem, rest = parts
        self._stem = core.compile_model(stem, DEFAULT_DEVICE, properties).create_infer_request()
        self._ring = MirroredRing(self._ring.num_frames, tuple(rest.input().get_shape())[1:])
        return rest

    def push(self, frame_chw: Float32Array) -> None:
        if self._stem is None:
            super().push(frame_chw)
            return
        try:
            self._stem.get_input_tensor().data[0, 0] = frame_chw
            self._stem.infer()
        except RuntimeError as exc:
            raise self._failure(exc) from exc
        super().push(self._stem.get_output_tensor().data[0])

    def _create_requests(self, openvino: Any, compiled: Any) -> None:
        self._requests: list[Any] = [compiled.create_infer_request()]
        shape = compiled.input().get_shape()
        windows = (self._ring.window(slot).reshape(shape) for slot in range(self._ring.num_frames))
        self._inputs = [openvino.Tensor(window, shared_memory=True) for window in windows]

    def _run(self, start_slot: int) -> EngineOutput:
        (request,) = self._requests
        try:
            request.set_input_tensor(self._inputs[start_slot])
            request.infer()
        except RuntimeError as exc:
            raise self._failure(exc) from exc
        return self._output_of(request)

    def _output_of(self, request: Any) -> EngineOutput:
        return self._output(*(np.array(request.get_tensor(port).data) for port in self._outputs))

    def _failure(self, exc: RuntimeError) -> EngineError:
        return EngineError(f"OpenVINO failed to run {self.spec.name}: {last_line(exc)}")

    def close(self) -> None:
        self._stem = None
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

    def warmup(self) -> None:
        """Run each request once."""
        for _ in range(self.max_in_flight):
            super().warmup()

    def submit(self) -> Callable[[], EngineOutput]:
        self._require_full()
        request = self._requests[self._num_submitted % self.max_in_flight]
        self._num_submitted += 1
        try:
            np.copyto(request.get_input_tensor().data.reshape(self._ring.window().shape), self._ring.window())
            request.start_async()
        except RuntimeError as exc:
            raise self._failure(exc) from exc
        return functools.partial(self._wait_for, request)

    def _wait_for(self, request: Any) -> EngineOutput:
        try:
            request.wait()
        except RuntimeError as exc:
            raise self._failure(exc) from exc
        return self._output_of(request)

    def close(self) -> None:
        for request in self._requests:
            request.cancel()
            with contextlib.suppress(RuntimeError):  # that it was cancelled
                request.wait()
        super().close()


def _make_cache(folder: Path) -> None:
    """Refuse a folder that is not there and cannot be made: OpenVINO's error would be laid at the network's door."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise EngineError(
            f"the cache {folder} of compiled networks cannot be made ({exc.strerror}); name another folder"
        ) from exc


def import_openvino() -> Any:
    """Import the library.

    Raises:
        BackendError: It is not installed.
    """
    try:
        import openvino
    except ImportError as exc:
        raise BackendError(f"backend openvino: {exc}; install it with `pip install openvino`") from exc
    return openvino


@functools.cache
def shared_core() -> Any:
    """Return the one `openvino.Core` of this process, which is never let go.

    Each further one would put the calling thread's signals on a stack of its own, and take that memory away with it:
    after two that ended in the order in which they began, the next signal ends the process (OpenVINO 2026.4).

    Raises:
        BackendError: OpenVINO is not installed.
    """
    return import_openvino().Core()


def read_network(path: Path) -> Any:
    """Read an ONNX file, or one that edge-build wrote.

    Raises:
        RuntimeError: It is none.
    """
    if path.suffix != ".onnx":
        return shared_core().read_model(path)
    from openvino.frontend import FrontEndManager

    # `read_model` would try the readers of all formats on a damaged file, and each complains on stderr
    reader = FrontEndManager().load_by_framework("onnx")
    return reader.convert(reader.load(str(path)))


def check_device(core: Any, device: str, precision: str) -> list[str]:
    """Refuse a device that is not there, and one without this arithmetic: it would silently compute in another.

    Returns:
        What it can do, in OpenVINO's words.

    Raises:
        BackendError: It is so.
    """
    if not _is_there(core, device):
        raise BackendError(f"OpenVINO has no device {device!r} here; it has {', '.join(core.available_devices)}")
    capabilities = list(core.get_property(device, "OPTIMIZATION_CAPABILITIES"))
    if _CAPABILITIES.get(precision) not in capabilities:
        known = [name for name, capability in _CAPABILITIES.items() if capability in capabilities]
        raise BackendError(f"device {device} here does not compute in {precision}; it does in {', '.join(known)}")
    return capabilities


def _is_there(core: Any, device: str) -> bool:
    return _base(device) in set(map(_base, core.available_devices))


def _base(device: str) -> str:
    """Return a device's kind: "GPU" for "GPU.1"."""
    return device.partition(".")[0]


def arithmetic(precision: str, capabilities: Sequence[str]) -> str:
    """Return what the layers in floating point are to compute in on a device that can do this."""
    return "f16" if precision == "int8" and "FP32" not in capabilities else _ARITHMETIC[precision]


def latency_properties(precision: str, capabilities: Sequence[str]) -> dict[str, Any]:
    """Return what a network is compiled with that is to give one window after the other as soon as possible."""
    return {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": arithmetic(precision, capabilities)}


def hardware(device: str) -> dict[str, Any]:
    """Return what of this machine decides an engine's speed on a device, as JSON; without a name where it is not there.

    Raises:
        BackendError: OpenVINO is not installed.
    """
    if device == DEFAULT_DEVICE or not _is_there(shared_core(), device):
        return host.describe()
    return {**host.describe(), "device": str(shared_core().get_property(device, "FULL_DEVICE_NAME"))}
