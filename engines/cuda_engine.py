"""An engine whose ring, network and outputs live in a GPU's memory: one small upload a frame, one graph a window."""

import contextlib
import functools
import logging
import statistics
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from engines.cuda import ALIGNMENT_BYTES, Gpu
from engines.device_ring import DeviceRing
from engines.engine import Engine, EngineOutput, EngineSpec
from engines.errors import EngineError
from engines.ring import Float32Array

GRAPHS = ("window", "fixed", "none")
"""How a window reaches the network. "window": one CUDA graph for each of the T addresses at which a window can start,
no copy. "fixed": one graph that reads a buffer, into which the window is copied on the device first. "none": without
graphs, each kernel started by itself; only where asked for, to measure what graphs gain."""

NUM_OUTPUTS = 2
"""Output places, so that one window may run while the one before it is read."""
NUM_STAGED = 4
"""Frames that may be on their way to the device."""
MAX_WINDOW_GRAPHS = 64
"""Frames of a clip at most: a graph for each address of a longer one costs more, in time and memory, than the copy."""
_NUM_WARM, _NUM_TIMED = 3, 20

_log = logging.getLogger("edge.engines")


class Program(Protocol):
    """A network that reads and writes device memory."""

    @property
    def inputs(self) -> Mapping[str, tuple[int, ...]]:
        """Name to shape, float32."""

    @property
    def outputs(self) -> Mapping[str, tuple[int, ...]]:
        """Name to shape, float32."""

    @property
    def has_many_graphs(self) -> bool:
        """Whether graphs that were captured before stay valid when another address is bound and captured."""

    def bind(self, name: str, address: int) -> None:
        """Say where a tensor lies from the next `enqueue` on."""

    def enqueue(self, stream: int) -> None:
        """Start on a stream."""

    def capture(self, gpu: Gpu) -> Callable[[], None]:
        """Record as a CUDA graph what `enqueue` would start on the GPU's stream; return what starts the graph."""


class CudaEngine(Engine):
    """Runs a `Program`; everything is allocated once, on one stream."""

    max_in_flight = NUM_OUTPUTS

    def __init__(self, spec: EngineSpec, gpu: Gpu, program: Program, graphs: str | None = None) -> None:
        """Allocate and capture.

        Args:
            spec: What runs.
            gpu: Closed by the engine.
            program: The network, with one input `(1, T, C, H, W)`.
            graphs: One of `GRAPHS`; None: what `warmup` measures to be faster.

        Raises:
            EngineError: Shapes that do not fit the bundle, no device memory, or a graph that cannot be captured.
        """
        self.spec = spec
        self._gpu = gpu
        self._program = program
        self._input = _check_shapes(spec, program)
        frame_chw = spec.clip_tchw[1:]
        self._ring = DeviceRing(spec.clip_tchw[0], 4 * int(np.prod(frame_chw)), 0)
        self._ring.address = gpu.allocate(self._ring.num_bytes)
        self._staged = [(gpu.pinned(frame_chw), gpu.event()) for _ in range(NUM_STAGED)]
        self._on_device = {name: gpu.allocate(4 * int(np.prod(shape))) for name, shape in program.outputs.items()}
        for name, address in self._on_device.items():
            program.bind(name, address)
        self._places = [_Place(gpu, program.outputs) for _ in range(NUM_OUTPUTS)]
        self._num_pushed = 0
        self._num_submitted = 0
        self._is_chosen = graphs is not None
        self._graphs = self._capture(graphs or self.possible_graphs()[0])
        self.graph_ms: dict[str, float] = {}
        """What `warmup` measured: median device time of a window with each kind of graphs."""
        self.device_ms = 0.0
        """The device's own time for the last window that was read."""

    @property
    def graphs(self) -> str:
        """Which kind of graphs is in use."""
        return self._graphs.name

    def use_graphs(self, kind: str) -> None:
        """Have windows reach the network in this way, one of `GRAPHS`, from now on.

        Raises:
            EngineError: There is no such way, or the windows are not aligned for it.
        """
        self._graphs = self._capture(kind)
        self._is_chosen = True

    def push(self, frame_chw: Float32Array) -> None:
        self._gpu.select()
        staged, event = self._staged[self._num_pushed % NUM_STAGED]
        self._gpu.wait_for(event)  # the upload from this place NUM_STAGED frames ago
        staged[...] = frame_chw
        first, mirror = self._ring.next_addresses
        self._gpu.upload(first, staged)
        self._gpu.record(event)
        self._gpu.copy(mirror, first, self._ring.frame_bytes)
        self._num_pushed += 1
        self._ring.num_pushed += 1

    def submit(self) -> Callable[[], EngineOutput]:
        if not self._ring.is_full:
            raise EngineError(f"a window needs {self._ring.num_frames} frames since the last reset; push more first")
        self._gpu.select()
        place = self._places[self._num_submitted % NUM_OUTPUTS]
        self._num_submitted += 1
        self._gpu.record(place.started)
        self._graphs.start(self._ring.start_slot)
        self._gpu.record(place.computed)
        for name, array in place.arrays.items():
            self._gpu.download(array, self._on_device[name])
        self._gpu.record(place.read)
        return functools.partial(self._wait_for, place)

    def infer(self) -> EngineOutput:
        return self.submit()()

    def _wait_for(self, place: "_Place") -> EngineOutput:
        self._gpu.wait_for(place.read)
        self.device_ms = self._gpu.elapsed_ms(place.started, place.computed)
        return EngineOutput(place.arrays["probabilities"][0].copy(), place.arrays["heatmap"][0].copy())

    def reset(self) -> None:
        self._ring.num_pushed = 0

    def warmup(self) -> None:
        """Run on black frames; keep the kind of graphs that measures faster here, where none was asked for."""
        super().warmup()
        if self._is_chosen:
            return
        kinds = {name: self._graphs if name == self.graphs else self._capture(name) for name in self.possible_graphs()}
        self.graph_ms = {name: self._measure_ms(graphs) for name, graphs in kinds.items()}
        self._graphs = kinds[min(self.graph_ms, key=lambda name: self.graph_ms[name])]
        self._is_chosen = True
        times = ", ".join(f"{name} {time_ms:.3f} ms" for name, time_ms in self.graph_ms.items())
        _log.info("%s on %s: CUDA graphs %s; using %s", self.spec.name, self.spec.device, times, self.graphs)

    def possible_graphs(self) -> tuple[str, ...]:
        """Return the kinds that can be used: windows that are unaligned or many, or a single graph, need a buffer."""
        is_suited = self._ring.is_aligned(ALIGNMENT_BYTES) and self._ring.num_frames <= MAX_WINDOW_GRAPHS
        return ("window", "fixed") if is_suited and self._program.has_many_graphs else ("fixed",)

    def _capture(self, kind: str) -> "_Starter":
        made: dict[str, type[_WindowGraphs | _FixedGraph | _NoGraph]]
        made = {"window": _WindowGraphs, "fixed": _FixedGraph, "none": _NoGraph}
        if kind not in made or (kind == "window" and kind not in self.possible_graphs()):
            raise EngineError(
                f"graphs {kind!r} cannot be used; allowed are {', '.join((*self.possible_graphs(), 'none'))} for "
                f"this network and {self._ring.num_frames} frames of {self._ring.frame_bytes} bytes"
            )
        return made[kind](self._gpu, self._program, self._input, self._ring)

    def _measure_ms(self, graphs: "_Starter") -> float:
        started, done = self._gpu.event(), self._gpu.event()
        times_ms = []
        for turn in range(_NUM_WARM + _NUM_TIMED):
            self._gpu.record(started)
            graphs.start(turn % self._ring.num_frames)
            self._gpu.record(done)
            self._gpu.wait_for(done)
            times_ms.append(self._gpu.elapsed_ms(started, done))
        return statistics.median(times_ms[_NUM_WARM:])

    def close(self) -> None:
        self._places = []
        self._staged = []
        self._gpu.close()
        # what the library holds on the device, weights above all, goes with these
        with contextlib.suppress(AttributeError):  # a second time
            del self._graphs, self._program


class _Place:
    """Pinned memory for one window's outputs, and when they are there."""

    def __init__(self, gpu: Gpu, outputs: Mapping[str, tuple[int, ...]]) -> None:
        self.arrays = {name: gpu.pinned(shape) for name, shape in outputs.items()}
        self.started, self.computed, self.read = gpu.event(), gpu.event(), gpu.event()


class _Starter(Protocol):
    name: str

    def start(self, start_slot: int) -> None:
        """Start the network on the window that begins at this slot."""


class _WindowGraphs:
    """A graph for each place where a window can start."""

    name = "window"

    def __init__(self, gpu: Gpu, program: Program, input_name: str, ring: DeviceRing) -> None:
        self._captured = [
            _captured(gpu, program, input_name, ring.window_address(slot)) for slot in range(ring.num_frames)
        ]

    def start(self, start_slot: int) -> None:
        self._captured[start_slot]()


class _FixedGraph:
    """One graph that reads a buffer; a window is copied there first."""

    name = "fixed"

    def __init__(self, gpu: Gpu, program: Program, input_name: str, ring: DeviceRing) -> None:
        self._gpu = gpu
        self._ring = ring
        self._buffer = gpu.allocate(ring.clip_bytes)
        self._start = _captured(gpu, program, input_name, self._buffer)

    def start(self, start_slot: int) -> None:
        self._gpu.copy(self._buffer, self._ring.window_address(start_slot), self._ring.clip_bytes)
        self._start()


class _NoGraph:
    """The network as it is, on the buffer."""

    name = "none"

    def __init__(self, gpu: Gpu, program: Program, input_name: str, ring: DeviceRing) -> None:
        self._gpu = gpu
        self._program = program
        self._ring = ring
        self._buffer = gpu.allocate(ring.clip_bytes)
        program.bind(input_name, self._buffer)

    def start(self, start_slot: int) -> None:
        self._gpu.copy(self._buffer, self._ring.window_address(start_slot), self._ring.clip_bytes)
        self._program.enqueue(self._gpu.stream)


def _captured(gpu: Gpu, program: Program, input_name: str, address: int) -> Callable[[], None]:
    """Capture the network on an input; it runs once before, as it may set itself up then, which no graph can hold."""
    program.bind(input_name, address)
    program.enqueue(gpu.stream)
    gpu.wait()
    return program.capture(gpu)


def _check_shapes(spec: EngineSpec, program: Program) -> str:
    """Return the input's name."""
    num_frames, num_classes = spec.clip_tchw[0], len(spec.classes)
    heatmap, probabilities = program.outputs.get("heatmap", ()), program.outputs.get("probabilities", ())
    is_fit = probabilities == (1, num_classes) and len(heatmap) == 4 and heatmap[:2] == (1, num_frames)
    if [*program.inputs.values()] != [(1, *spec.clip_tchw)] or not is_fit:
        raise EngineError(
            f"the engine of {spec.name} takes {dict(program.inputs)} and gives {dict(program.outputs)}; the bundle "
            f"asks for {(1, *spec.clip_tchw)}, probabilities {(1, num_classes)} and heatmap "
            f"{(1, num_frames, 'h', 'w')}: build it again"
        )
    return next(iter(program.inputs))
