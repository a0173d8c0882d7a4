"""Frame grabbers and cameras: V4L2 devices."""

import contextlib
import dataclasses
import errno
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from edge.errors import ConfigError, EdgeError, SourceError, SourceLost
from edge.frame import Frame
from edge.sources import fields
from edge.sources.base import LiveItem, Pause, SourceInfo, Trouble
from edge.sources.options import SourceOptions
from edge.sources.stored import ColourImage
from edge.sources.v4l2.device import Identity, V4l2Device, capture_nodes
from edge.sources.v4l2.modes import choose_mode, ffmpeg_options
from edge.sources.v4l2.stream import Captured, V4l2Stream

_log = logging.getLogger(__name__)

_WAIT_S = 0.1
_MIN_STALL_S, _STALL_INTERVALS = 0.75, 2.5
"""Without a frame for so long a device stalls; slow ones get more time."""
_GIVE_UP_S = 3.0
"""Of a stall, until the device is opened anew: some go on by themselves, others need that."""
_SIGNAL_CHECK_S = 0.25
_DEFAULT_INTERVAL_MS = 40.0


class V4l2Source:
    """A device, found again under another number if need be."""

    def __init__(self, path: Path, options: SourceOptions) -> None:
        """Look at the device and choose its mode; streaming starts with `frames`.

        Raises:
            ConfigError: It has no such mode.
            SourceError: There is no such device, or it may not be opened, and it is not awaited.
        """
        self._path = path
        self._options = options
        self._closed = threading.Event()
        self._is_expected = options.is_awaited  # then, and once it has worked, what goes wrong is a loss
        self._identity: Identity | None = None
        self._mode = ""
        self._info = SourceInfo(str(path), _DEFAULT_INTERVAL_MS, is_live=True)
        try:
            with _opened(path) as device:
                choose_mode(device.modes(), options, str(path))
                self._know(device)
        except SourceError:
            if not options.is_awaited:
                raise

    @property
    def info(self) -> SourceInfo:
        return self._info

    def frames(self) -> Iterator[LiveItem]:
        """Yield the newest frame each time; see `Source.frames`."""
        try:
            with self._find() as device:
                yield from self._play(device)
        except SourceLost as loss:
            if not self._is_expected:
                raise SourceError(str(loss)) from loss
            raise
        except (ConfigError, OSError) as exc:
            if not self._is_expected:
                raise
            # a plug that is not in yet, or a signal that is not the usual one: it may be right again at the next try
            reason = (
                str(exc) if isinstance(exc, EdgeError) else f"{self._path} failed ({exc.strerror}): plug it in again"
            )
            raise SourceLost(reason, is_fault=True) from exc

    def close(self) -> None:
        """End a running `frames()` soon."""
        self._closed.set()

    def _play(self, device: V4l2Device) -> Iterator[LiveItem]:
        if trouble := device.trouble():
            self._is_expected = True  # the device works; what is plugged into it does not yet
            raise SourceLost(trouble)
        device.follow_signal()
        mode, rate_hz = choose_mode(device.modes(), self._options, str(device.path))
        stream = V4l2Stream(device, ffmpeg_options(mode, rate_hz, self._options))
        try:
            self._tell_mode(device, stream, rate_hz)
            yield from self._read(device, stream)
        finally:
            stream.close()

    def _read(self, device: V4l2Device, stream: V4l2Stream) -> Iterator[LiveItem]:
        stall_s = max(_MIN_STALL_S, _STALL_INTERVALS * self.info.frame_interval_ms / 1e3)
        index, t_last_s = 0, time.monotonic()
        t_check_s = t_last_s
        while not self._closed.is_set():
            captured = stream.read(_WAIT_S)
            now_s = time.monotonic()
            if now_s - t_check_s >= _SIGNAL_CHECK_S:
                t_check_s = now_s
                _check_signal(device)
            if captured is not None:
                yield from _troubles(captured)
            if captured is not None and captured.image is not None:
                self._is_expected = True
                t_last_s = now_s
                yield _frame(captured, index)
                index += 1
            elif now_s - t_last_s >= stall_s:
                yield from self._stalled(device, now_s - t_last_s)

    def _stalled(self, device: V4l2Device, silent_s: float) -> Iterator[Pause]:
        reason = f"{device.path} gives no frames: check its cable and its signal"
        if silent_s >= max(_GIVE_UP_S, _STALL_INTERVALS * self.info.frame_interval_ms / 1e3):
            raise SourceLost(reason)
        yield Pause(reason)

    def _find(self) -> V4l2Device:
        """Open the device under its own path, or where else it is now.

        Raises:
            SourceLost: It is not there, or may not be opened.
        """
        for path in (self._path, *(capture_nodes() if self._identity else ())):
            with contextlib.suppress(OSError, SourceError):
                device = V4l2Device(path)
                if self._is_same(device):
                    self._know(device)
                    return device
                device.close()
        if not self._path.exists():
            what = "is gone: plug it in again" if self._identity else "is not there: plug it in"
            raise SourceLost(f"{self._path} {what}")
        try:
            with _opened(self._path) as device:
                raise SourceLost(f"{self._path} is another device now ({device.identity.card}); plug in the first one")
        except SourceLost:
            raise
        except SourceError as exc:
            raise SourceLost(str(exc)) from exc

    def _is_same(self, device: V4l2Device) -> bool:
        """Whether it is our device; under a name that udev gives it may be plugged in somewhere else."""
        ours, its = self._identity, device.identity
        if ours is None:  # awaited: it is known by its path alone
            return True
        is_named = device.path == self._path and self._path.is_symlink()
        return its == ours or (is_named and (its.driver, its.card) == (ours.driver, ours.card))

    def _know(self, device: V4l2Device) -> None:
        self._identity = device.identity
        name = f"{self._path} ({device.identity.card})"
        self._info = SourceInfo(name, device.interval_ms() or _DEFAULT_INTERVAL_MS, is_live=True)

    def _tell_mode(self, device: V4l2Device, stream: V4l2Stream, wanted_hz: float | None) -> None:
        """Say which mode was really set; refuse one that is not what the user asked for."""
        layout, interval_ms = stream.layout, device.interval_ms() or self._info.frame_interval_ms
        size_wh = self._options.video_size
        if size_wh is not None and layout.size_wh != size_wh:
            raise ConfigError(
                f"{device.path} gives {layout.size_wh[0]}x{layout.size_wh[1]} in place of --video-size "
                f"{size_wh[0]}x{size_wh[1]}; choose a size of edge-infer --list-sources"
            )
        rate_hz = 1000 / interval_ms
        told = f"{layout.pixel_format} {layout.size_wh[0]}x{layout.size_wh[1]} at {rate_hz:.4g} frames/s"
        if told != self._mode:
            self._mode = told
            _log.info("mode: %s", told)
            if layout.is_interlaced:
                _log.info(fields.TOLD)
            wanted_hz = self._options.frame_rate or wanted_hz
            if wanted_hz is not None and abs(rate_hz - wanted_hz) > 0.02 * wanted_hz:
                _log.warning("%s gives %.4g frames/s in place of the %.4g asked for", device.path, rate_hz, wanted_hz)
        self._info = dataclasses.replace(self._info, frame_interval_ms=interval_ms)


def _opened(path: Path) -> V4l2Device:
    """Open a device that the user named.

    Raises:
        SourceError: There is none such, or it may not be opened.
    """
    try:
        return V4l2Device(path)
    except SourceError:
        raise
    except FileNotFoundError as exc:
        raise SourceError(f"there is no device {path}; plug it in, or see edge-infer --list-sources") from exc
    except PermissionError as exc:
        raise SourceError(
            f"{path} may not be opened by this user; add the user to the group 'video' and log in again"
        ) from exc
    except OSError as exc:
        raise SourceError(f"{path} cannot be opened ({os.strerror(exc.errno or errno.EIO)}); plug it in again") from exc


def _check_signal(device: V4l2Device) -> None:
    """Raise SourceLost where the input has lost its signal, or has another one: its frames no longer show it."""
    if trouble := device.trouble():
        raise SourceLost(trouble)
    if device.has_other_signal():
        raise SourceLost("the signal has another size or rate now")


def _troubles(captured: Captured) -> Iterator[Trouble]:
    yield from [Trouble("bad_frames", "the device gives damaged frames; they are left out")] * captured.num_bad
    yield from [Trouble("late_frames", "older frames were left out, for newer ones waited")] * captured.num_late


def _frame(captured: Captured, index: int) -> Frame:
    image = captured.image
    assert image is not None
    if not isinstance(image, ColourImage):
        return Frame(image, index, captured.t_ns, captured.t_ns, time.time_ns())
    t_ns = captured.t_ns
    return Frame(image.luma, index, t_ns, t_ns, time.time_ns(), image.rgb, chroma=image.chroma)
