"""What all sources share that read stored images: numbering, times, damage and closing."""

import abc
import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator

from edge.errors import SourceError
from edge.frame import Frame, StoredObject, UInt8Image
from edge.sources.base import SourceInfo

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ColourImage:
    """A coded colour image, of which mostly the luma alone is needed."""

    luma: UInt8Image
    """(H, W) uint8 in full range."""
    rgb: Callable[[], UInt8Image]
    """Converts to (H, W, 3) uint8."""
    chroma: Callable[[], tuple[UInt8Image, UInt8Image]] | None = None
    """Gives Cb and Cr; see `Frame.chroma`."""


AnyImage = UInt8Image | ColourImage
Picture = tuple[AnyImage, int | None]
"""The image, and its time in ns on the file's own clock; None where the file does not say."""

DEFAULT_INTERVAL_MS = 1000 / 30
"""Where a file says nothing of its speed; what DICOM viewers and cameras use most."""


@dataclasses.dataclass
class Damage:
    """What was found broken while a source played."""

    notes: list[str] = dataclasses.field(default_factory=list)
    num_bad_frames: int = 0

    def __str__(self) -> str:
        notes = list(self.notes)
        if self.num_bad_frames:
            notes.append(f"{count_frames(self.num_bad_frames)} could not be decoded")
        return "; ".join(notes)


def count_frames(number: int) -> str:
    """Return "1 frame", "2 frames"."""
    return f"{number} frame" if number == 1 else f"{number} frames"


class MediaClock:
    """Makes the times of a file start at 0 and increase strictly.

    A missing time is the last one plus the nominal interval. After a jump back (two recordings in one file) all later
    times are shifted, so that the true distances within the second recording stay.
    """

    def __init__(self, interval_ms: float) -> None:
        self._interval_ns = max(1, round(interval_ms * 1e6))
        self._last_ns = -self._interval_ns
        self._shift_ns: int | None = None

    def tick(self, t_ns: int | None) -> int:
        """Return the repaired time in ns of the next frame, given the file's own."""
        earliest_ns = self._last_ns + self._interval_ns
        if t_ns is None:
            self._last_ns = earliest_ns
            return earliest_ns
        if self._shift_ns is None or t_ns + self._shift_ns <= self._last_ns:
            self._shift_ns = earliest_ns - t_ns
        self._last_ns = t_ns + self._shift_ns
        return self._last_ns


class StoredSource(abc.ABC):
    """A source whose images lie in files: read as fast as one likes, and again from the start as often as one likes."""

    def __init__(self, info: SourceInfo, stored_object: StoredObject | None = None) -> None:
        self._info = info
        self._object = stored_object  # of the next picture
        self._closed = threading.Event()
        self._has_warned = False

    @property
    def info(self) -> SourceInfo:
        return self._info

    @property
    def object(self) -> StoredObject | None:
        """The stored object that the images are, where they are one."""
        return self._object

    @abc.abstractmethod
    def pictures(self, damage: Damage) -> Generator[Picture, None, None]:
        """Yield the images from the first one on.

        What cannot be read is noted in `damage` and left out; reading goes on where that is possible.
        """

    def frames(self) -> Iterator[Frame]:
        """Yield the frames; see `Source.frames`."""
        damage = Damage()
        clock = MediaClock(self.info.frame_interval_ms)
        num_frames = 0
        # The generator's resources are freed by the thread that uses them, whoever calls close().
        with contextlib.closing(self.pictures(damage)) as pictures:
            for image, t_ns in pictures:
                if self._closed.is_set():
                    return
                yield _stamp(image, num_frames, clock.tick(t_ns), self._object)
                num_frames += 1
        self._report(damage, num_frames)

    def _report(self, damage: Damage, num_frames: int) -> None:
        text = str(damage)
        if num_frames == 0 and not self._closed.is_set():
            raise SourceError(
                f"{self.info.name!r} gives no frame{': ' if text else ''}{text}; check the file or give another one"
            )
        if text and not self._has_warned:
            self._has_warned = True
            log.warning("%r is damaged: %s; %s played", self.info.name, text, count_frames(num_frames))

    def close(self) -> None:
        """End a running `frames()` before its next frame."""
        self._closed.set()


def _stamp(image: AnyImage, index: int, t_media_ns: int, stored_object: StoredObject | None) -> Frame:
    t_ns, t_wall_ns = time.monotonic_ns(), time.time_ns()
    if not isinstance(image, ColourImage):
        return Frame(image, index, t_media_ns, t_ns, t_wall_ns, object=stored_object)
    return Frame(image.luma, index, t_media_ns, t_ns, t_wall_ns, image.rgb, chroma=image.chroma, object=stored_object)
