"""A GPU of host memory behind the functions of `cuda.bindings.runtime` that the project calls.

It is as lazy as a real one may be: what was started runs only when someone waits for it, so that whoever reuses memory
too early gets wrong numbers. Captured work is recorded, not run. Addresses are real and are checked.
"""

import ctypes
import dataclasses
import enum
import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

GUARD_BYTE = 0x4B  # as float32: 1.3e7, far beyond all that tests compute
ALIGNMENT_BYTES = 256


class Error(enum.IntEnum):
    cudaSuccess = 0  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorInsufficientDriver = 35  # noqa: N815
    cudaErrorDevicesUnavailable = 46  # noqa: N815
    cudaErrorInvalidValue = 1  # noqa: N815


@dataclasses.dataclass
class Event:
    time_ms: float | None = None
    """None: not reached, or never recorded."""
    is_pending: bool = False


class FakeCuda:
    """Stands where `cuda.bindings.runtime` stands."""

    cudaStreamNonBlocking = 1  # noqa: N815
    cudaHostAllocDefault = 0  # noqa: N815
    cudaEventDefault = 0  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(  # noqa: N815
        cudaMemcpyHostToDevice="host to device",
        cudaMemcpyDeviceToHost="device to host",
        cudaMemcpyDeviceToDevice="on device",
    )
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815

    def __init__(self, num_devices: int = 1, memory_bytes: int = 1 << 30) -> None:
        self.num_devices = num_devices
        self.device = 0
        """The one that was last selected."""
        self.memory_bytes = memory_bytes
        self.failures: dict[str, Error] = {}
        """Name of a function to the error that it returns from now on."""
        self.now_ms = 0.0
        self.kernel_ms = 1.0
        self.num_copied_bytes: dict[str, int] = {}
        self._device: dict[int, ctypes.Array] = {}
        self._host: dict[int, ctypes.Array] = {}
        self._raw: list[ctypes.Array] = []
        self._queue: list[Callable[[], None]] = []
        self._captured: list[Callable[[], None]] | None = None
        self._handles = itertools.count(1)
        self.open_handles: set[int] = set()

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if name.startswith("cuda") and callable(value) and name in self.failures:
            return lambda *args: (self.failures[name],)
        return value

    # what it is

    def cudaGetDeviceCount(self) -> Any:  # noqa: N802
        return Error.cudaSuccess, self.num_devices

    def cudaGetDeviceProperties(self, index: int) -> Any:  # noqa: N802
        properties = SimpleNamespace(name=b"Fake GPU\0\0", major=8, minor=9, totalGlobalMem=self.memory_bytes)
        return Error.cudaSuccess, properties

    def cudaDriverGetVersion(self) -> Any:  # noqa: N802
        return Error.cudaSuccess, 13020

    def cudaGetErrorName(self, error: Error) -> Any:  # noqa: N802
        return Error.cudaSuccess, error.name.encode()

    def cudaGetErrorString(self, error: Error) -> Any:  # noqa: N802
        return Error.cudaSuccess, b"words for " + error.name.encode()

    def cudaSetDevice(self, index: int) -> Any:  # noqa: N802
        self.device = index
        return (Error.cudaSuccess,)

    # memory

    def cudaMalloc(self, num_bytes: int) -> Any:  # noqa: N802
        if sum(map(len, self._device.values())) + num_bytes > self.memory_bytes:
            return Error.cudaErrorMemoryAllocation, 0
        return Error.cudaSuccess, self._allocate(self._device, num_bytes)

    def cudaHostAlloc(self, num_bytes: int, flags: int) -> Any:  # noqa: N802
        return Error.cudaSuccess, self._allocate(self._host, num_bytes)

    def _allocate(self, memory: dict[int, ctypes.Array], num_bytes: int) -> int:
        raw = (ctypes.c_byte * (num_bytes + ALIGNMENT_BYTES))()
        ctypes.memset(raw, GUARD_BYTE, len(raw))
        self._raw.append(raw)
        address = -(-ctypes.addressof(raw) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        memory[address] = (ctypes.c_byte * num_bytes).from_address(address)
        return address

    def cudaFree(self, address: int) -> Any:  # noqa: N802
        del self._device[address]
        return (Error.cudaSuccess,)

    def cudaFreeHost(self, address: int) -> Any:  # noqa: N802
        del self._host[address]
        return (Error.cudaSuccess,)

    @property
    def num_allocations(self) -> int:
        return len(self._device) + len(self._host)

    def require_inside(self, memory: str, address: int, num_bytes: int) -> None:
        blocks = self._device if memory == "device" else self._host
        assert any(start <= address and address + num_bytes <= start + len(block) for start, block in blocks.items()), (
            f"{num_bytes} bytes at {address} do not lie in {memory} memory"
        )

    def cudaMemcpyAsync(self, target: int, source: int, num_bytes: int, kind: str, stream: Any) -> Any:  # noqa: N802
        self.num_copied_bytes[kind] = self.num_copied_bytes.get(kind, 0) + num_bytes
        self.require_inside("host" if kind == "device to host" else "device", target, num_bytes)
        self.require_inside("host" if kind == "host to device" else "device", source, num_bytes)
        self.enqueue(lambda: ctypes.memmove(target, source, num_bytes) and None)
        return (Error.cudaSuccess,)

    # the stream

    def enqueue(self, work: Callable[[], None]) -> None:
        """Start work on the stream: it runs when someone waits, or with the graph that is being captured."""
        (self._queue if self._captured is None else self._captured).append(work)

    def kernel(self, work: Callable[[], None]) -> None:
        """Start work that takes `kernel_ms` of the device's clock."""

        def run() -> None:
            self.now_ms += self.kernel_ms
            work()

        self.enqueue(run)

    def _run_queue(self) -> None:
        queue, self._queue = self._queue, []
        for work in queue:
            work()

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:  # noqa: N802
        return Error.cudaSuccess, self._open()

    def _open(self) -> int:
        handle = next(self._handles)
        self.open_handles.add(handle)
        return handle

    def _close(self, handle: int) -> Any:
        self.open_handles.remove(handle)
        return (Error.cudaSuccess,)

    cudaStreamDestroy = _close  # noqa: N815

    def cudaStreamSynchronize(self, stream: Any) -> Any:  # noqa: N802
        assert self._captured is None, "waiting during capture"
        self._run_queue()
        return (Error.cudaSuccess,)

    # graphs

    @property
    def is_capturing(self) -> bool:
        return self._captured is not None

    def cudaStreamBeginCapture(self, stream: Any, mode: Any) -> Any:  # noqa: N802
        self._captured = []
        return (Error.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: Any) -> Any:  # noqa: N802
        captured, self._captured = self._captured, None
        return Error.cudaSuccess, captured

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> Any:  # noqa: N802
        handle = self._open()
        executable = _Executable(handle, tuple(graph))
        return Error.cudaSuccess, executable

    def cudaGraphDestroy(self, graph: Any) -> Any:  # noqa: N802
        return (Error.cudaSuccess,)

    def cudaGraphExecDestroy(self, executable: "_Executable") -> Any:  # noqa: N802
        return self._close(executable.handle)

    def cudaGraphLaunch(self, executable: "_Executable", stream: Any) -> Any:  # noqa: N802
        for work in executable.work:
            self.enqueue(work)
        return (Error.cudaSuccess,)

    # events

    def cudaEventCreateWithFlags(self, flags: int) -> Any:  # noqa: N802
        return Error.cudaSuccess, Event()

    def cudaEventDestroy(self, event: Event) -> Any:  # noqa: N802
        return (Error.cudaSuccess,)

    def cudaEventRecord(self, event: Event, stream: Any) -> Any:  # noqa: N802
        event.is_pending = True

        def reach() -> None:
            event.time_ms, event.is_pending = self.now_ms, False

        self.enqueue(reach)
        return (Error.cudaSuccess,)

    def cudaEventSynchronize(self, event: Event) -> Any:  # noqa: N802
        """Run the stream just until the event is reached."""
        while event.is_pending:
            self._queue.pop(0)()
        return (Error.cudaSuccess,)

    def cudaEventElapsedTime(self, first: Event, second: Event) -> Any:  # noqa: N802
        assert first.time_ms is not None
        assert second.time_ms is not None
        return Error.cudaSuccess, second.time_ms - first.time_ms


@dataclasses.dataclass
class _Executable:
    handle: int
    work: tuple[Callable[[], None], ...]
