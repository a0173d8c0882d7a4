"""The frame: what every source yields and the whole pipeline starts from."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

UInt8Image = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class StoredObject:
    """What a frame is a part of where it was stored as one thing, such as a DICOM object: it has results of its own.

    Equal to itself alone: what is sent twice is played twice.
    """

    id: str
    """Published in place of its SOPInstanceUID or name, of which it is a salted hash."""
    region: tuple[int, int, int, int] | None = None
    """x, y, width, height in pixels: where it says that the ultrasound image lies; None where it does not say."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One image from a source.

    The pixels belong to the frame: a source never writes to them again, a reader never changes them.
    """

    pixels: UInt8Image
    """(H, W) gray or (H, W, 3) RGB, uint8. Of coded colour video the luma alone: see `rgb`."""
    index: int
    """Position in the stream, from 0; goes on through loops and reconnects."""
    t_media_ns: int
    """Time on the source's own clock, strictly increasing: what clips are sampled by.

    A live source's is its capture time.
    """
    t_capture_ns: int
    """Capture time on this host's monotonic clock (`time.monotonic_ns`); latency is measured from here."""
    t_wall_ns: int
    """Wall-clock time of capture, for records only."""
    colour: Callable[[], UInt8Image] | None = None
    """Makes (H, W, 3) RGB where `pixels` is the luma of coded colour video: most frames are never shown."""
    chroma: Callable[[], UInt8Image] | None = None
    """Makes (h, w, 2) Cb and Cr, around 128, of a thinned-out image: cheap, to see whether `colour` is worth making."""
    object: StoredObject | None = None
    """The stored object that it belongs to; None where the source has none."""
    is_seam: bool = False
    """It begins a further round of a looped recording: how it differs from the last frame says nothing."""
    region: tuple[int, int, int, int] | None = None
    """x, y, width, height in pixels: where the ultrasound image lies, where the source knows it of this very frame."""

    def __post_init__(self) -> None:
        shape = self.pixels.shape
        if self.pixels.dtype != np.uint8 or not (self.pixels.ndim == 2 or (self.pixels.ndim == 3 and shape[2] == 3)):
            raise ValueError(f"a frame holds (H, W) or (H, W, 3) uint8; got {shape} {self.pixels.dtype}")

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]

    def rgb(self) -> UInt8Image:
        """Return (H, W, 3) RGB, or (H, W) where the image has no colour."""
        return self.pixels if self.colour is None else self.colour()

    def __repr__(self) -> str:
        width, height = self.size_wh
        return f"Frame(index={self.index}, {width}x{height}, t_media_ns={self.t_media_ns})"

    def replace(self, **changes: Any) -> "Frame":
        """Return a copy of the header with changes; the pixels are shared."""
        return dataclasses.replace(self, **changes)
