"""What an engine is: a loaded bundle that runs on one backend."""

import abc
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.errors import EngineError
from engines.ring import Float32Array, MirroredRing


@dataclasses.dataclass(frozen=True, slots=True)
class EngineSpec:
    """What runs, on what, and the shapes that go in and come out."""

    name: str
    """The bundle's name."""
    sha256: str
    """Hash of the model file that runs."""
    backend: str
    precision: str
    """Arithmetic: "fp32", "fp16", "bf16" or "int8"."""
    device: str
    clip_tchw: tuple[int, int, int, int]
    """Shape of a clip: frames, channels, height, width."""
    classes: tuple[str, ...]
    """Class names; the last one is the positive class."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class EngineOutput:
    """What the network says of one window. The arrays belong to the caller."""

    probabilities: Float32Array
    """(K,) float32, in the order of `EngineSpec.classes`."""
    heatmap: Float32Array
    """(T, h, w) float32 >= 0: Grad-CAM of the positive class for each frame of the clip."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How a bundle is run, where there is a choice."""

    device: str | None = None
    """The backend's own name of a device; None: its default."""
    precision: str | None = None
    """Arithmetic, as in `EngineSpec`; None: the backend's default."""
    is_for_throughput: bool = False
    """Have several windows in flight: more windows a second, each of them later."""
    num_threads: int | None = None
    """Processor threads for the network; None: the backend's choice."""
    is_pinned: bool | None = None
    """Whether each of them stays on one core; None: the backend's choice."""
    cache_dir: Path | None = None
    """Where compiled models are kept for the next start; None: nowhere."""


class Engine(abc.ABC):
    """Owns the ring of the last T frames where its compute is. Used from one thread at a time."""

    spec: EngineSpec
    max_in_flight: int = 1
    """How many windows may be submitted before the output of the first is asked for."""

    @abc.abstractmethod
    def push(self, frame_chw: Float32Array) -> None:
        """Take the next frame (C, H, W) float32 into the ring, over the oldest."""

    @abc.abstractmethod
    def infer(self) -> EngineOutput:
        """Run the network on the ring's T frames, oldest first.

        Raises:
            EngineError: Fewer than T frames since the last reset, or the backend failed.
        """

    def submit(self) -> Callable[[], EngineOutput]:
        """Start the network on the ring's T frames, of which the engine keeps a copy: the ring may go on.

        Returns:
            A function to be called once, in the order of the submissions: it waits for the output, or raises.

        Raises:
            EngineError: As `infer`.
        """
        output = self.infer()
        return lambda: output

    @abc.abstractmethod
    def reset(self) -> None:
        """Forget the frames in the ring; windows in flight stay."""

    @abc.abstractmethod
    def close(self) -> None:
        """Free what the engine holds; idempotent."""

    def warmup(self) -> None:
        """Run once on black frames, so that the first real window is not slow; leaves the ring empty."""
        black = np.zeros(self.spec.clip_tchw[1:], np.float32)
        for _ in range(self.spec.clip_tchw[0]):
            self.push(black)
        self.infer()
        self.reset()

    def run_clip(self, clip_tchw: npt.NDArray[np.float32], num_before: int = 0) -> EngineOutput:
        """Run one whole clip (T, C, H, W) through the ring; leaves the ring empty.

        Args:
            clip_tchw: The clip.
            num_before: How many of its frames are pushed before it: the slot, 0 to T - 1, at which its window starts.
        """
        self.reset()
        for frame_chw in (*clip_tchw[:num_before], *clip_tchw):
            self.push(frame_chw)
        output = self.infer()
        self.reset()
        return output


class HostEngine(Engine):
    """An engine whose backend reads host memory: all but `_run` is the same for each."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self._ring = MirroredRing(spec.clip_tchw[0], spec.clip_tchw[1:])

    def push(self, frame_chw: Float32Array) -> None:
        self._ring.push(frame_chw)

    def reset(self) -> None:
        self._ring.reset()

    def infer(self) -> EngineOutput:
        self._require_full()
        return self._run(self._ring.start_slot)

    def _require_full(self) -> None:
        if not self._ring.is_full:
            raise EngineError(f"a window needs {self._ring.num_frames} frames since the last reset; push more first")

    def _output(self, probabilities: Any, heatmap: Any) -> EngineOutput:
        """Return what a network made of the one window in its batch.

        Args:
            probabilities: (1, K) float32, if the network is what its bundle says.
            heatmap: (1, T, h, w) float32, likewise.

        Raises:
            EngineError: One is no batch of one, or holds no numbers: a stranger's network may give anything.
        """
        for name, array in (("probabilities", probabilities), ("heatmap", heatmap)):
            is_array = isinstance(array, np.ndarray)
            if not is_array or array.shape[:1] != (1,) or array.dtype.kind != "f":
                given = f"{array.dtype} {array.shape}" if is_array else type(array).__name__
                raise EngineError(
                    f"{self.spec.name} on {self.spec.backend} gave {given} as {name} of one window; "
                    "export the bundle again"
                )
        return EngineOutput(probabilities[0], heatmap[0])

    @abc.abstractmethod
    def _run(self, start_slot: int) -> EngineOutput:
        """Run the network on the ring's window that starts at `start_slot`."""
