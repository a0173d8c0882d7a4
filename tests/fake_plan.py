"""A TensorRT plan on the GPU of host memory, as strict as TensorRT's documentation: a context whose work was captured
may not be changed, intermediate results lie in memory that the caller gave, addresses are aligned.
"""

import itertools
from typing import Any

from fake_cuda import ALIGNMENT_BYTES, FakeCuda

NUM_SCRATCH_BYTES = 1000


class FakeRuntime:
    """Stands where `tensorrt.Runtime` does; every file is a plan of one network."""

    def __init__(self, trt: Any, fake: FakeCuda, make_program: Any) -> None:
        self.engine = FakeEngine(trt, fake, make_program)

    def deserialize_cuda_engine(self, plan: bytes) -> "FakeEngine":
        return self.engine


class FakeEngine:
    """Has the tensors of a program, which each context makes for itself."""

    device_memory_size_v2 = NUM_SCRATCH_BYTES

    def __init__(self, trt: Any, fake: FakeCuda, make_program: Any) -> None:
        self._trt, self._fake, self._make_program = trt, fake, make_program
        program = make_program()
        self._inputs, self._shapes = program.inputs, program.inputs | program.outputs
        self.contexts: list[FakeContext] = []

    @property
    def num_io_tensors(self) -> int:
        return len(self._shapes)

    def get_tensor_name(self, place: int) -> str:
        return next(itertools.islice(self._shapes, place, None))

    def get_tensor_mode(self, name: str) -> Any:
        return self._trt.TensorIOMode.INPUT if name in self._inputs else self._trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self._trt.DataType.FLOAT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._shapes[name])

    def create_execution_context(self, strategy: Any) -> "FakeContext":
        assert strategy == self._trt.ExecutionContextAllocationStrategy.USER_MANAGED, (
            "each would take memory of its own"
        )
        self.contexts.append(FakeContext(self._fake, self._make_program()))
        return self.contexts[-1]


class FakeContext:
    """Runs the program."""

    def __init__(self, fake: FakeCuda, program: Any) -> None:
        self._fake, self._program = fake, program
        self._is_warm = False
        self.num_captured = 0
        self.scratch: int | None = None

    def set_device_memory(self, address: int, num_bytes: int) -> None:
        assert not self.num_captured, "a captured context was changed"
        self._fake.require_inside("device", address, num_bytes)
        assert num_bytes >= NUM_SCRATCH_BYTES
        self.scratch = address

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert not self.num_captured, "a captured context was changed"
        if address % ALIGNMENT_BYTES:
            return False
        self._program.bind(name, address)
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert self.scratch is not None, "there is no memory for intermediate results"
        if self._fake.is_capturing:
            assert self._is_warm, "what is set up at the first run cannot be captured"
            self.num_captured += 1
        self._is_warm = True
        self._program.enqueue(stream)
        return True
