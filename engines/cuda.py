"""The CUDA runtime by cuda-python: every call checked, everything that was allocated freed in one place."""

import contextlib
import ctypes
import dataclasses
import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.errors import BackendError, EngineError

INSTALL = "pip install cuda-bindings"

NO_DRIVER = "there is no NVIDIA driver, or it is too old for cuda-python: update it"

ALIGNMENT_BYTES = 256
"""What cudaMalloc gives, and what TensorRT asks of an address."""


class CudaError(EngineError):
    """A CUDA call failed; `name` is CUDA's own, such as cudaErrorMemoryAllocation."""

    def __init__(self, call: str, name: str, words: str) -> None:
        super().__init__(f"CUDA {call} failed: {name}: {words}{_CURES.get(name, _CURE)}")
        self.name = name


_CURE = "; look at `nvidia-smi` and at the system's log, then start again"
"""A device that is lost is told by many names."""

_CURES = {
    "cudaErrorMemoryAllocation": "; the GPU's memory is full: end what else runs on it, or take another --device",
    "cudaErrorInsufficientDriver": "; there is no NVIDIA driver, or it is too old: update it",
    "cudaErrorNoDevice": "; this machine has no CUDA device: take another --backend",
    "cudaErrorDevicesUnavailable": "; the device is gone or taken: look at `nvidia-smi`, then start again",
}


@dataclasses.dataclass(frozen=True, slots=True)
class GpuInfo:
    """What of a GPU a compiled engine depends on."""

    index: int
    name: str
    compute_capability: str
    """Major and minor version, such as "8.9"."""
    driver_cuda: str
    """The newest CUDA version that the driver knows, such as "13.0"."""
    memory_bytes: int


def probe() -> str | None:
    """Return why CUDA cannot be used on this machine; None: it can."""
    try:
        if importlib.util.find_spec("cuda.bindings") is None:
            return f"cuda-python is not installed: `{INSTALL}`"
    except ModuleNotFoundError:
        return f"cuda-python is not installed: `{INSTALL}`"
    try:
        return None if _call("cudaGetDeviceCount") else "this machine has no CUDA device"
    except EngineError as exc:
        return NO_DRIVER if isinstance(exc, CudaError) and exc.name == "cudaErrorInsufficientDriver" else str(exc)


def device_index(device: str | None) -> int:
    """Return N of "cuda:N"; "cuda" and None are the first one.

    Raises:
        BackendError: Another name.
    """
    match = re.fullmatch(r"cuda(?::(\d+))?", device or "cuda")
    if match is None:
        raise BackendError(f"device {device!r} is not a CUDA device; allowed are cuda, cuda:0, cuda:1, ...")
    return int(match[1] or 0)


def describe_gpu(index: int) -> GpuInfo:
    """Return what the GPU is.

    Raises:
        BackendError: There is no such device.
        CudaError: CUDA cannot be used.
    """
    num_devices = _call("cudaGetDeviceCount")
    if index >= num_devices:
        raise BackendError(f"there is no device cuda:{index}; this machine has cuda:0 to cuda:{num_devices - 1}")
    properties = _call("cudaGetDeviceProperties", index)
    name = properties.name
    return GpuInfo(
        index=index,
        name=(name.decode() if isinstance(name, bytes) else str(name)).rstrip("\0"),
        compute_capability=f"{properties.major}.{properties.minor}",
        driver_cuda=_version(_call("cudaDriverGetVersion")),
        memory_bytes=int(properties.totalGlobalMem),
    )


def select(index: int) -> None:
    """Make this the calling thread's device: libraries that are told of none work there.

    Raises:
        CudaError: There is none, or it is lost.
    """
    _call("cudaSetDevice", index)


@contextlib.contextmanager
def running(path: Path, index: int) -> Iterator["Gpu"]:
    """Give a GPU to what is to run a file; closed again where that fails.

    Raises:
        EngineError: It cannot run, such as for want of memory; names the file.
    """
    gpu = None
    try:
        gpu = Gpu(index)
        yield gpu
    except BaseException as exc:
        if gpu is not None:
            gpu.close()
        if isinstance(exc, EngineError) and str(path) not in str(exc):
            raise EngineError(f"{path} cannot run on cuda:{index}: {exc}") from exc
        raise


class Gpu:
    """One device, one stream, and all memory, events and graphs made here; `close` gives them back.

    Used from one thread at a time, which need not be the one that made it.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self._is_closed = False
        self._resources = contextlib.ExitStack()
        self.select()
        flags = _enum("cudaStreamNonBlocking")
        self._stream = self._own(_call("cudaStreamCreateWithFlags", flags), "cudaStreamDestroy")

    @property
    def stream(self) -> int:
        """The stream's handle, for other libraries."""
        return int(self._stream)

    def select(self) -> None:
        """Make this the calling thread's device."""
        select(self.index)

    def allocate(self, num_bytes: int) -> int:
        """Return the address of new device memory."""
        return int(self._own(_call("cudaMalloc", num_bytes), "cudaFree"))

    def pinned(self, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """Return a float32 array in host memory that the device copies from and to by itself; valid until `close`."""
        num_bytes = 4 * int(np.prod(shape))
        address = self._own(_call("cudaHostAlloc", num_bytes, _enum("cudaHostAllocDefault")), "cudaFreeHost")
        raw = (ctypes.c_byte * num_bytes).from_address(int(address))
        return np.ctypeslib.as_array(raw).view(np.float32).reshape(shape)

    def upload(self, address: int, array: npt.NDArray[np.float32]) -> None:
        """Start copying a pinned array to the device."""
        self._copy(address, array.ctypes.data, array.nbytes, "cudaMemcpyHostToDevice")

    def download(self, array: npt.NDArray[np.float32], address: int) -> None:
        """Start copying from the device into a pinned array."""
        self._copy(array.ctypes.data, address, array.nbytes, "cudaMemcpyDeviceToHost")

    def copy(self, address: int, source: int, num_bytes: int) -> None:
        """Start copying on the device."""
        self._copy(address, source, num_bytes, "cudaMemcpyDeviceToDevice")

    def _copy(self, target: int, source: int, num_bytes: int, kind: str) -> None:
        _call("cudaMemcpyAsync", target, source, num_bytes, _kind(kind), self._stream)

    def capture(self, work: Callable[[], None]) -> Any:
        """Record what `work` enqueues on the stream as a graph, without running it; `launch` runs it."""
        _call("cudaStreamBeginCapture", self._stream, _capture_mode())
        try:
            work()
        except BaseException:
            with contextlib.suppress(CudaError):  # the capture is void, which is known
                _call("cudaStreamEndCapture", self._stream)
            raise
        graph = _call("cudaStreamEndCapture", self._stream)
        try:
            return self._own(_call("cudaGraphInstantiate", graph, 0), "cudaGraphExecDestroy")
        finally:
            _call("cudaGraphDestroy", graph)

    def launch(self, graph: Any) -> None:
        """Start a captured graph."""
        _call("cudaGraphLaunch", graph, self._stream)

    def event(self) -> Any:
        """Return a new event; it counts as reached until it is recorded."""
        return self._own(_call("cudaEventCreateWithFlags", _enum("cudaEventDefault")), "cudaEventDestroy")

    def record(self, event: Any) -> None:
        """Have the event reached when all that was started so far is done."""
        _call("cudaEventRecord", event, self._stream)

    def wait_for(self, event: Any) -> None:
        """Wait until the event is reached."""
        _call("cudaEventSynchronize", event)

    def elapsed_ms(self, first: Any, second: Any) -> float:
        """Return the device's own time between two reached events."""
        return float(_call("cudaEventElapsedTime", first, second))

    def wait(self) -> None:
        """Wait until all that was started is done."""
        _call("cudaStreamSynchronize", self._stream)

    def close(self) -> None:
        """Free everything; idempotent, and quiet where the device is lost, for then nothing is left to free."""
        if self._is_closed:
            return
        self._is_closed = True
        with contextlib.suppress(CudaError):
            self.select()  # another thread may be on another device
            self.wait()  # a window in flight still reads and writes what is freed next
        self._resources.close()

    def _own(self, handle: Any, release: str) -> Any:
        self._resources.callback(getattr(_runtime(), release), handle)
        return handle


def _runtime() -> Any:
    try:
        from cuda.bindings import runtime
    except ImportError as exc:
        raise BackendError(f"cuda-python does not load ({exc}); install it with `{INSTALL}`") from exc
    return runtime


def _call(name: str, *args: Any) -> Any:
    runtime = _runtime()
    error, *results = getattr(runtime, name)(*args)
    if int(error) != 0:
        raise CudaError(name, _text(runtime.cudaGetErrorName(error)), _text(runtime.cudaGetErrorString(error)))
    return results[0] if results else None


def _text(answer: tuple[Any, bytes]) -> str:
    return answer[1].decode()


def _enum(name: str) -> int:
    return int(getattr(_runtime(), name))


def _kind(name: str) -> Any:
    return getattr(_runtime().cudaMemcpyKind, name)


def _capture_mode() -> Any:
    """Other threads may go on using CUDA while this one captures."""
    return _runtime().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
