"""What a source is."""

import dataclasses
from collections.abc import Iterator
from typing import Protocol

from edge.frame import Frame

Rect = tuple[int, int, int, int]
"""x, y, width, height in pixels."""
MAX_IMAGE_PX = 2**26
"""Of an image, 8192 x 8192: a small file or message must not fill the memory."""


@dataclasses.dataclass(frozen=True, slots=True)
class SourceInfo:
    """What a source knows of itself before its first frame."""

    name: str
    """For this host's log: no credentials. A file's name may hold a patient's."""
    frame_interval_ms: float
    """Nominal time between two frames."""
    is_live: bool
    """True where frames come by themselves; False where the source can be read as fast as one likes."""
    region: Rect | None = None
    """Where the source says that the ultrasound image lies, clipped to the frame; None where it does not say."""
    num_frames: int | None = None
    """Number of frames, where it is known."""
    kind: str = ""
    """What may be published in place of a name that may not."""
    note: str = ""
    """One more thing to tell the user at the start, for example that the images are synthetic."""
    plays_objects: bool = False
    """True where it plays stored objects as they are sent: it may be long until one comes, and its frames can wait."""

    @property
    def public_name(self) -> str:
        """For messages that leave the process: no credentials, no patient data."""
        return self.kind or self.name


@dataclasses.dataclass(frozen=True, slots=True)
class Pause:
    """A live source has no image for now and is well otherwise: NO_SIGNAL.

    Given at least every second while it lasts, so that nobody takes the source for stuck. No window spans one.
    """

    reason: str
    """Published: no credentials, no patient data. Empty: a short wait that is not worth a word."""
    is_end: bool = False
    """What came before is complete in itself: all its predictions are told first."""


@dataclasses.dataclass(frozen=True, slots=True)
class Trouble:
    """Something that a live source left out and went on: counted, and logged now and then."""

    counter: str
    """Name of the status counter, for example "bad_frames"."""
    message: str


LiveItem = Frame | Pause | Trouble


class Source(Protocol):
    """A blocking iterator of frames.

    `frames()` runs in one thread; `close()` may be called from another thread at any time, any number of times,
    and ends a running `frames()` soon.
    """

    @property
    def info(self) -> SourceInfo: ...

    def frames(self) -> Iterator[LiveItem]:
        """Yield frames until the source ends; a live source also yields what else it meets.

        `index` counts from 0 and `t_media_ns` from the first frame's own time. A source that is damaged part of the way
        yields what is readable, then ends with one warning. Where `info.is_live` is False, a further call starts again
        from the first frame.

        Where `info.is_live` is True, every wait is bounded: `Pause` or `SourceLost` comes within a second after the
        last frame. A further call connects again, once; indices and times may start anew, for the capture loop makes
        indices go on. `t_media_ns` is the capture time, but for a stored object's own times.

        Raises:
            SourceLost: A live source is gone for now.
            SourceError: The source gave no frame at all, or was lost for good.
        """
        ...

    def close(self) -> None: ...


class RecordedSource(Source, Protocol):
    """A source that is not live: frames alone, as often as one likes."""

    def frames(self) -> Iterator[Frame]:
        """Yield frames from the first one on; see `Source.frames`."""
        ...
