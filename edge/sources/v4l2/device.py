"""What a V4L2 device says of itself: names, modes, signal. Numbers are those of `linux/videodev2.h`, kernel 6.1.

Source: https://docs.kernel.org/userspace-api/media/v4l/user-func.html
"""

import contextlib
import dataclasses
import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edge.errors import SourceError

_CAPTURE = 1  # V4L2_BUF_TYPE_VIDEO_CAPTURE
_CAP_VIDEO_CAPTURE, _CAP_MPLANE, _CAP_STREAMING = 0x1, 0x1000, 0x04000000
_DISCRETE = 1
_FULL_RANGE = 1  # V4L2_QUANTIZATION_FULL_RANGE
_WOVEN_FIELDS = (4, 8, 9)  # V4L2_FIELD_INTERLACED, _TB, _BT: two moments' rows by turns
_APART_FIELDS = (5, 6, 7)  # V4L2_FIELD_SEQ_TB, SEQ_BT, ALTERNATE: one field below or after the other
_MAX_ENTRIES = 256
"""Of a list that a driver gives: one that never ends is its mistake."""
_INPUT_TROUBLE = {0x1: "has no power", 0x2: "has no signal", 0x10000: "has no sync"}
_SIGNAL_TROUBLE = {
    errno.ENOLINK: "has no signal",
    errno.ENOLCK: "has a signal that is not stable",
    errno.ERANGE: "has a signal beyond what the device can take",
}


def _request(direction: int, number: int, size: int) -> int:
    """Return an ioctl's code (asm-generic/ioctl.h): direction 1 writes, 2 reads, 3 both."""
    return direction << 30 | size << 16 | ord("V") << 8 | number


_QUERYCAP = _request(2, 0, 104), "16s32s32s6I"
_ENUM_FMT = _request(3, 2, 64), "3I32sI16x"
_G_FMT = _request(3, 4, 208), "2I12I152x"
_G_PARM = _request(3, 21, 204), "I2I2I184x"
_ENUMINPUT = _request(3, 26, 80), "I32s3IQ2I16x"
_G_INPUT = _request(2, 38, 4), "I"
_ENUM_FRAMESIZES = _request(3, 74, 44), "3I2I24x"
_ENUM_FRAMEINTERVALS = _request(3, 75, 52), "5I2I24x"
_S_DV_TIMINGS, _G_DV_TIMINGS, _QUERY_DV_TIMINGS = (
    (_request(direction, number, 132), "132s") for direction, number in ((3, 87), (3, 88), (2, 99))
)


@dataclasses.dataclass(frozen=True, slots=True)
class Mode:
    """One way in which a device can give frames."""

    pixel_format: str
    """Its four letters: YUYV, NV12, MJPG, GREY, RGB3 ..."""
    size_wh: tuple[int, int] | None
    """None where the device takes any size in steps, or only that of its signal."""
    rates_hz: tuple[float, ...] = ()
    """Frames a second; empty where the device does not say."""

    def __str__(self) -> str:
        size = "the signal's own size" if self.size_wh is None else "{}x{}".format(*self.size_wh)
        rates = ", ".join(f"{rate:g}" for rate in sorted(self.rates_hz, reverse=True))
        return f"{self.pixel_format} {size}" + (f" at {rates} frames/s" if rates else "")


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """By what a device is known again when it comes back under another number."""

    driver: str
    card: str
    bus: str


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """How the frames lie in memory, as the driver has set it."""

    pixel_format: str
    size_wh: tuple[int, int]
    row_bytes: int
    is_full_range: bool
    is_interlaced: bool = False


class V4l2Device:
    """An open device node, beside the one that streams: the kernel lets several ask."""

    def __init__(self, path: Path) -> None:
        """Open.

        Raises:
            OSError: There is no such node, or it may not be opened.
            SourceError: It is no device that captures video.
        """
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self.identity = self._read_identity()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "V4l2Device":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close; idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    @property
    def number(self) -> int:
        """The device's number in the kernel, by which an open descriptor is known."""
        return os.fstat(self.fd).st_rdev

    def modes(self) -> list[Mode]:
        """Return all modes, in the driver's order."""
        return [mode for name in self._pixel_formats() for mode in self._modes_of(name)]

    def layout(self) -> Layout:
        """Return how frames lie in memory now.

        Raises:
            SourceError: They are no whole images.
        """
        values = self._ask(_G_FMT, _CAPTURE, *[0] * 13)
        width, height, pixel_format, field, row_bytes = values[2:7]
        if field in _APART_FIELDS:
            raise SourceError(
                f"{self.path} gives the two fields of its video apart, which is not read; set another input or norm"
            )
        is_full_range, is_interlaced = values[12] == _FULL_RANGE, field in _WOVEN_FIELDS
        return Layout(_name_of(pixel_format), (width, height), row_bytes, is_full_range, is_interlaced)

    def interval_ms(self) -> float | None:
        """Return the time between frames as it is set now; None where the driver does not say."""
        with contextlib.suppress(OSError):
            *_, numerator, denominator = self._ask(_G_PARM, _CAPTURE, 0, 0, 0, 0)
            if numerator and denominator:
                return float(1000 * numerator / denominator)
        return None

    def inputs(self) -> dict[int, str]:
        """Return number and name of each input: an analogue grabber has several, of which one is in use."""
        entries = self._entries(_ENUMINPUT, lambda i: (i, b"", 0, 0, 0, 0, 0, 0))
        return {number: _text(name) for number, name, *_ in entries}

    def input_in_use(self) -> int | None:
        """Return the number of the input in use; None where the driver does not say."""
        with contextlib.suppress(OSError):
            return int(self._ask(_G_INPUT, 0)[0])
        return None

    def trouble(self) -> str | None:
        """Return what is wrong with the signal at the input, in words; None where there is one or nobody knows."""
        name, status = "the video input", 0
        with contextlib.suppress(OSError):
            (index,) = self._ask(_G_INPUT, 0)
            _, raw_name, *_, status, _ = self._ask(_ENUMINPUT, index, b"", 0, 0, 0, 0, 0, 0)
            name = f"the input {_text(raw_name)!r}"
        for bit, words in _INPUT_TROUBLE.items():
            if status & bit:
                return f"{name} {words}"
        words = _SIGNAL_TROUBLE.get(self._signal()[1], "")
        return f"{name} {words}" if words else None

    def follow_signal(self) -> None:
        """Set a digital input to the size and rate of its signal: many HDMI grabbers do not do so by themselves."""
        timings, _ = self._signal()
        if timings is not None and timings != self._timings():
            with contextlib.suppress(OSError):  # busy: another program streams
                self._ask(_S_DV_TIMINGS, timings)

    def has_other_signal(self) -> bool:
        """Whether a digital input's signal is another one than the device is set to."""
        timings, _ = self._signal()
        return timings is not None and timings != self._timings()

    def _signal(self) -> tuple[bytes | None, int]:
        """Return a digital input's timings, or the error that says why there are none."""
        try:
            return self._ask(_QUERY_DV_TIMINGS, b"")[0], 0
        except OSError as exc:
            return None, exc.errno or 0

    def _timings(self) -> bytes | None:
        with contextlib.suppress(OSError):
            timings: bytes = self._ask(_G_DV_TIMINGS, b"")[0]
            return timings
        return None

    def _read_identity(self) -> Identity:
        try:
            driver, card, bus, _, of_all, of_node, *_ = self._ask(_QUERYCAP, b"", b"", b"", *[0] * 6)
        except OSError as exc:
            if exc.errno == errno.ENODEV:
                raise
            raise SourceError(f"{self.path} is no V4L2 device; see edge-infer --list-sources") from exc
        capabilities = of_node or of_all
        if capabilities & _CAP_MPLANE:
            raise SourceError(f"{self.path} gives multi-planar frames only, which are not read; use a USB grabber")
        if not (capabilities & _CAP_VIDEO_CAPTURE and capabilities & _CAP_STREAMING):
            raise SourceError(f"{self.path} does not capture video; see edge-infer --list-sources")
        return Identity(_text(driver), _text(card), _text(bus))

    def _pixel_formats(self) -> Iterator[str]:
        for _, _, _, _, pixel_format in self._entries(_ENUM_FMT, lambda i: (i, _CAPTURE, 0, b"", 0)):
            yield _name_of(pixel_format)

    def _modes_of(self, name: str) -> Iterator[Mode]:
        code = _code_of(name)
        sizes = list(self._entries(_ENUM_FRAMESIZES, lambda i: (i, code, 0, 0, 0)))
        for _, _, kind, width, height in sizes:
            if kind == _DISCRETE:
                yield Mode(name, (width, height), tuple(self._rates_hz(code, width, height)))
        if not any(kind == _DISCRETE for _, _, kind, *_ in sizes):
            yield Mode(name, None)

    def _rates_hz(self, code: int, width: int, height: int) -> Iterator[float]:
        entries = self._entries(_ENUM_FRAMEINTERVALS, lambda i: (i, code, width, height, 0, 0, 0))
        for *_, kind, numerator, denominator in entries:
            if kind == _DISCRETE and numerator:
                yield denominator / numerator

    def _entries(
        self, request: tuple[int, str], values: Callable[[int], tuple[int | bytes, ...]]
    ) -> Iterator[tuple[Any, ...]]:
        with contextlib.suppress(OSError):  # EINVAL ends every list
            for index in range(_MAX_ENTRIES):
                yield self._ask(request, *values(index))

    def _ask(self, request: tuple[int, str], *values: int | bytes) -> tuple:  # type: ignore[type-arg]
        code, layout = request
        buffer = bytearray(struct.pack(f"={layout}", *values))
        fcntl.ioctl(self.fd, code, buffer)
        return struct.unpack(f"={layout}", buffer)


def capture_nodes() -> list[Path]:
    """Return the nodes of all video devices, by number."""
    nodes = (path for path in Path("/dev").glob("video*") if path.name.removeprefix("video").isdecimal())
    return sorted(nodes, key=lambda path: int(path.name.removeprefix("video")))


def _text(raw: bytes) -> str:
    text = raw.split(b"\0", 1)[0].decode("utf-8", "replace")
    return "".join(character if character.isprintable() else "?" for character in text)


def _name_of(pixel_format: int) -> str:
    return _text(struct.pack("<I", pixel_format & 0x7FFFFFFF)).rstrip()


def _code_of(name: str) -> int:
    return int.from_bytes(name.ljust(4).encode()[:4], "little")
