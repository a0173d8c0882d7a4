"""The frame: what every source yields and the whole pipeline starts from."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

UInt8Image = npt.NDArray[np.uint8]

UNSEEN_CHROMA = 2
"""So far from 128 coding moves the chroma of gray images."""


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
    """(H, W) gray or (H, W, 3) RGB, uint8. Of coded colour video, and once captured, the luma alone: see `rgb`."""
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
    """Makes (H, W, 3) RGB where `pixels` is the luma of a coloured image: most frames are never shown."""
    chroma: Callable[[], tuple[UInt8Image, UInt8Image]] | None = None
    """Gives Cb and Cr as coded, each (h, w) uint8 around 128: cheap, to see whether `colour` is worth making."""
    object: StoredObject | None = None
    """The stored object that it belongs to; None where the source has none."""
    is_seam: bool = False
    """It begins a further round of a looped recording: how it differs from the last frame says nothing."""
    region: tuple[int, int, int, int] | None = None
    """x, y, width, height in pixels: where the ultrasound image lies, where the source knows it of this very frame."""
    had_flow: bool = False
    """It had colour flow when it was recorded, of which `pixels` hold the luma alone."""

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

    def with_luma(self) -> "Frame":
        """Return an RGB frame as its luma, its colours to be had: the image watch and most networks want the luma."""
        if self.pixels.ndim == 2:
            return self
        rgb = self.pixels
        return self.replace(pixels=cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), colour=lambda: rgb)

    def has_colour(self, roi: tuple[int, int, int, int]) -> bool:
        """Return whether a part (x, y, width, height) of the image is coloured so that one could see it."""
        if self.chroma is None:
            return self.colour is not None or self.pixels.ndim == 3
        return any(
            int(part.max()) > 128 + UNSEEN_CHROMA or int(part.min()) < 128 - UNSEEN_CHROMA
            for part in (self.part_of(plane, roi) for plane in self.chroma())
        )

    def part_of(self, plane: UInt8Image, roi: tuple[int, int, int, int]) -> UInt8Image:
        """Return what a part of the image covers of a plane with fewer pixels than the image, at least one."""
        (width, height), (x, y, roi_width, roi_height) = self.size_wh, roi
        rows, columns = plane.shape[0] / height, plane.shape[1] / width
        top, left = int(y * rows), int(x * columns)
        bottom, right = math.ceil((y + roi_height) * rows), math.ceil((x + roi_width) * columns)
        return plane[top : max(top + 1, bottom), left : max(left + 1, right)]

    def __repr__(self) -> str:
        width, height = self.size_wh
        return f"Frame(index={self.index}, {width}x{height}, t_media_ns={self.t_media_ns})"

    def replace(self, **changes: Any) -> "Frame":
        """Return a copy of the header with changes; the pixels are shared."""
        return dataclasses.replace(self, **changes)
