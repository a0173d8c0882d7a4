"""A TensorRT plan, loaded: its tensors, its contexts, and one way to start it. Every call's answer is checked."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorrt as trt

from engines.cuda import Gpu
from engines.errors import EngineError
from engines.tensorrt.plan_options import LayerCounts
from engines.tensorrt.words import WORDS


class Plan:
    """A deserialised plan with one input.

    The caller has made sure that CUDA works: without a driver TensorRT's objects end the process.
    """

    has_many_graphs = True

    def __init__(self, path: Path, gpu: Gpu | None = None, *, is_version_compatible: bool = False) -> None:
        """Load.

        Args:
            path: The plan.
            gpu: Where it is to run; None: it is only looked at.
            is_version_compatible: It carries a runtime of its own, code that is run; no other plan may.

        Raises:
            EngineError: It is no plan, is damaged, or does not fit this TensorRT or GPU; with TensorRT's own words.
        """
        self._path = path
        self._runtime = WORDS.make(trt.Runtime, "start its runtime")
        self._runtime.engine_host_code_allowed = is_version_compatible
        plan = self._runtime.deserialize_cuda_engine(path.read_bytes())
        self._engine = WORDS.require(plan, f"load {path}")
        names = [self._engine.get_tensor_name(place) for place in range(self._engine.num_io_tensors)]
        self.inputs = {name: self._shape(name) for name in names if self._is_input(name)}
        """Name to shape; float32."""
        self.outputs = {name: self._shape(name) for name in names if not self._is_input(name)}
        self._addresses: dict[str, int] = {}
        self._captured: list[trt.IExecutionContext] = []
        if gpu is not None:
            self._num_bytes = self._engine.device_memory_size_v2
            self._memory = gpu.allocate(max(1, self._num_bytes))
            self._context = self._new_context()

    def _new_context(self) -> trt.IExecutionContext:
        """Return a context that has its intermediate results where all others have them: no two run at once."""
        made = self._engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        context = WORDS.require(made, f"create a context for {self._path}")
        context.set_device_memory(self._memory, self._num_bytes)
        for name, address in self._addresses.items():
            self._set_address(context, name, address)
        return context

    def _set_address(self, context: trt.IExecutionContext, name: str, address: int) -> None:
        WORDS.require(context.set_tensor_address(name, address), f"bind {name!r} of {self._path}")

    def _is_input(self, name: str) -> bool:
        return self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT

    def _shape(self, name: str) -> tuple[int, ...]:
        if self._engine.get_tensor_dtype(name) != trt.DataType.FLOAT:
            raise EngineError(f"{self._path}: tensor {name!r} is not float32; build the plan again")
        dims: Any = self._engine.get_tensor_shape(name)  # a sequence, which the stubs do not tell
        shape = tuple(int(size) for size in dims)
        if any(size < 0 for size in shape):
            raise EngineError(f"{self._path}: tensor {name!r} has the open shape {shape}; build the plan again")
        return shape

    def bind(self, name: str, address: int) -> None:
        """Say where in device memory a tensor lies from the next `enqueue` on."""
        self._addresses[name] = address
        self._set_address(self._context, name, address)

    def enqueue(self, stream: int) -> None:
        """Start the network on a stream.

        Raises:
            EngineError: A tensor is not bound, or the device fails.
        """
        WORDS.require(self._context.execute_async_v3(stream), f"run {self._path}")

    def capture(self, gpu: Gpu) -> Callable[[], None]:
        """Record the network as a CUDA graph; return what starts it.

        The graph takes over the context: TensorRT does not say what a graph does whose context is changed afterwards,
        which to bind another address is.
        """
        graph = gpu.capture(lambda: self.enqueue(gpu.stream))
        self._captured.append(self._context)
        self._context = self._new_context()
        return lambda: gpu.launch(graph)

    def layer_counts(self) -> LayerCounts:
        """Return how many layers the engine inspector shows in which type."""
        inspector = WORDS.require(self._engine.create_engine_inspector(), "create an inspector")
        told = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        return LayerCounts.read(WORDS.require(told or None, f"tell the layers of {self._path}"))
