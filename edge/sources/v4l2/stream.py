"""A V4L2 device that streams, through FFmpeg: waits with an end, and the newest frame alone.

FFmpeg blocks for ever when a driver stalls, so it is opened without blocking, and its descriptor waited on. A packet
must be gone before its container is closed: after an unplug it points to memory that is no more.
"""

import contextlib
import dataclasses
import errno
import os
import select
import time
from pathlib import Path

import av

from edge.errors import SourceError, SourceLost
from edge.sources.fields import without_comb
from edge.sources.stored import AnyImage, ColourImage
from edge.sources.v4l2.device import Layout, V4l2Device
from edge.sources.v4l2.pixels import jpeg_colour, to_image
from edge.sources.video import FrameConverter

_NON_BLOCKING = "+4"  # AVFMT_FLAG_NONBLOCK: FFmpeg knows no word for it
_OPEN_TIMEOUT_S = 2.0
_MAX_CLOCK_ERROR_NS = 5 * 10**9
_COMPRESSED = ("MJPG", "JPEG")
_JPEG_END = b"\xff\xd9"
_GONE = (errno.ENODEV, errno.EINVAL, errno.ENOENT, errno.ENXIO)
"""What reads give after an unplug; at first it is EINVAL."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Captured:
    """What was read: the newest image, and what was left out on the way to it."""

    image: AnyImage | None
    """None where no whole one came."""
    t_ns: int
    """Monotonic capture time, the driver's where it makes sense."""
    num_bad: int
    """Buffers that the driver or the decoder calls damaged."""
    num_late: int
    """Older frames that waited behind the newest."""


class V4l2Stream:
    """One opening of a device."""

    def __init__(self, device: V4l2Device, words: dict[str, str]) -> None:
        """Start streaming.

        Args:
            device: The same device, for what FFmpeg does not tell.
            words: The mode, as FFmpeg's options.

        Raises:
            SourceLost: The device is gone, in use, or refuses.
        """
        self._name = str(device.path)
        options = {**words, "fflags": _NON_BLOCKING}
        try:
            node = str(Path(device.path).resolve())
            self._container = av.open(node, format="v4l2", options=options, timeout=_OPEN_TIMEOUT_S)
        except (av.FFmpegError, OSError) as exc:
            raise self._lost(exc) from exc
        self._stream = self._container.streams.video[0]
        self._stream.codec_context.thread_count = 1  # more of them would hold frames back
        self._to_array = FrameConverter()
        self._poll = select.poll()
        try:
            self.layout: Layout = device.layout()
            """How frames lie in memory: what was really set."""
            self._poll.register(_descriptor_of(device), select.POLLIN)
        except SourceError:
            self.close()
            raise
        except OSError as exc:  # unplugged since it was opened
            self.close()
            raise self._lost(exc) from exc

    def read(self, timeout_s: float) -> Captured | None:
        """Wait for a frame and take the newest; None where none came in time.

        Raises:
            SourceLost: The device is gone or broken.
        """
        ready = self._poll.poll(timeout_s * 1e3)
        if not ready:
            return None
        captured = self._newest()
        if captured is None and not ready[0][1] & select.POLLIN:
            time.sleep(0.01)  # an error that reading does not show yet must not be asked for without a pause
        return captured

    def close(self) -> None:
        """Stop streaming."""
        self._container.close()

    def _newest(self) -> Captured | None:
        packet, num_bad, num_late = None, 0, 0
        try:
            while True:
                following = next(self._container.demux(self._stream))
                num_bad += following.size == 0
                if following.size:
                    num_late += packet is not None
                    packet = following
                elif following.pts is None:
                    raise OSError(errno.ENODEV, "the stream ended")
                del following
        except BlockingIOError:
            pass  # all that was there is read
        except (av.FFmpegError, OSError) as exc:
            del packet
            raise self._lost(exc) from exc
        if packet is None:
            return Captured(None, 0, num_bad, num_late) if num_bad else None
        image = self._image(packet)
        if image is not None and self.layout.is_interlaced:
            image = without_comb(image)
        return Captured(image, self._time_ns(packet.pts), num_bad + (image is None), num_late)

    def _image(self, packet: "av.Packet[av.VideoStream]") -> AnyImage | None:
        """Return a copy of the packet's image; None where it is damaged."""
        if self.layout.pixel_format not in _COMPRESSED:
            return to_image(memoryview(packet), self.layout)
        jpeg = bytes(packet)
        if not jpeg.rstrip(b"\0").endswith(_JPEG_END):
            return None  # cut off: FFmpeg would make up the rest
        with contextlib.suppress(av.FFmpegError):
            for frame in self._stream.codec_context.decode(packet):
                if not frame.is_corrupt:
                    image = self._to_array(frame)
                    if isinstance(image, ColourImage):
                        if frame.interlaced_frame:
                            return image.luma  # two JPEG pictures in one: whoever reads colours would read the first
                        return ColourImage(image.luma, jpeg_colour(jpeg), image.chroma)
                    return image
        return None

    def _time_ns(self, pts: int | None) -> int:
        """Return the driver's time, or now where its clock is another one."""
        now_ns = time.monotonic_ns()
        if pts is None or self._stream.time_base is None:
            return now_ns
        t_ns = int(pts * self._stream.time_base * 10**9)
        return t_ns if abs(now_ns - t_ns) < _MAX_CLOCK_ERROR_NS else now_ns

    def _lost(self, exc: Exception) -> SourceLost:
        number = getattr(exc, "errno", None)
        if number in _GONE:
            return SourceLost(f"{self._name} is gone: plug it in again")
        if number == errno.EBUSY:
            return SourceLost(f"{self._name} is in use by another program: end that", is_fault=True)
        reason = getattr(exc, "strerror", None) or type(exc).__name__
        return SourceLost(f"{self._name} failed ({reason}): plug it out and in again", is_fault=True)


def _descriptor_of(device: V4l2Device) -> int:
    """Return FFmpeg's descriptor, the newest one of this device beside our own."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # that of the listing itself is closed by now
            fd = int(entry.name)
            if os.fstat(fd).st_rdev == device.number and fd != device.fd:
                found.append(fd)
    if not found:
        raise SourceError(f"FFmpeg's descriptor of {device.path} is not found; report this as a bug")
    return found[-1]
