"""What `--source` alone cannot say."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """The options that some kinds of sources need; the others leave them alone."""

    is_realtime: bool = True
    """Stored objects are played at their own speed as they come; otherwise as fast as they are fetched."""
    is_awaited: bool = False
    """A live source that is not there at the start is waited for, as one that was lost is."""
    video_size: tuple[int, int] | None = None
    """V4L2: width and height in pixels; None: the best that the device offers."""
    frame_rate: float | None = None
    """V4L2: frames a second."""
    pixel_format: str | None = None
    """V4L2: its four letters, or FFmpeg's name for it."""
    allow_aet: tuple[str, ...] = ()
    """DICOM listener: the calling AE titles that may send; empty: every one."""
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_ca: str | None = None
    """DICOM listener: PEM files of its certificate, its key, and the authority that signed its peers' certificates."""
