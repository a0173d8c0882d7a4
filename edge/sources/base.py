"""What a source is."""

import dataclasses
from collections.abc import Iterator
from typing import Protocol

from edge.frame import Frame

Rect = tuple[int, int, int, int]
"""x, y, width, height in pixels."""


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


class Source(Protocol):
    """A blocking iterator of frames.

    `frames()` runs in one thread; `close()` may be called from another thread at any time, any number of times,
    and ends a running `frames()` soon.
    """

    @property
    def info(self) -> SourceInfo: ...

    def frames(self) -> Iterator[Frame]:
        """Yield frames until the source ends.

        `index` counts from 0 and `t_media_ns` from the first frame's own time. A source that is damaged part of the way
        yields what is readable, then ends with one warning. Where `info.is_live` is False, a further call starts again
        from the first frame.

        Raises:
            SourceError: The source gave no frame at all, or was lost for good.
        """
        ...

    def close(self) -> None: ...
