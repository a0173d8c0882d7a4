"""Network video: RTSP, UDP, RTP, HTTP and what an SDP file describes, through PyAV."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

from edge.errors import SourceError, SourceLost
from edge.frame import Frame
from edge.sources.base import LiveItem, Pause, SourceInfo, Trouble
from edge.sources.network.address import SDP, NetworkAddress
from edge.sources.network.reader import OPEN_S, NetworkReader, Received
from edge.sources.options import SourceOptions
from edge.sources.stored import ColourImage

_WAIT_S = 0.25
_MIN_STALL_S, _STALL_INTERVALS = 0.75, 2.5
"""Without a frame for so long a stream stalls; slow ones get more time."""
_GIVE_UP_S = 3.0
"""Of a stall, until it is connected anew."""
_NO_IMAGE_S = OPEN_S + 10.0
"""While packets come that make no image: until a keyframe, if there ever is one."""
_DEFAULT_INTERVAL_MS = 40.0


class NetworkVideo:
    """A stream that is sent by another machine."""

    def __init__(self, address: NetworkAddress, options: SourceOptions) -> None:
        """Remember the address; it is connected with `frames`.

        Raises:
            SourceError: It is an SDP file that is not there.
        """
        if address.transport is SDP and not Path(address.url).is_file():
            raise SourceError(f"there is no file {address.url!r}; give the SDP file that describes the stream")
        self._address = address
        self._closed = threading.Event()
        self._reader: NetworkReader | None = None
        self._is_expected = options.is_awaited  # then, and once it has worked, what goes wrong is a loss
        kind = "SDP stream" if address.transport is SDP else ""
        self._info = SourceInfo(address.name, _DEFAULT_INTERVAL_MS, is_live=True, kind=kind)

    @property
    def info(self) -> SourceInfo:
        return self._info

    def frames(self) -> Iterator[LiveItem]:
        """Connect, and yield the newest frame each time; see `Source.frames`."""
        yield from self._leave_last()
        if self._closed.is_set():
            return
        self._reader = NetworkReader(self._address)
        try:
            yield from self._play(self._reader)
        except SourceLost as loss:
            is_patient = self._address.transport.listens and self._reader.is_silent
            if not self._is_expected and not is_patient:
                raise SourceError(str(loss)) from loss
            raise
        finally:
            self._reader.stop()

    def close(self) -> None:
        """End a running `frames()` soon."""
        self._closed.set()
        if self._reader is not None:
            self._reader.stop()

    def _leave_last(self) -> Iterator[Pause]:
        """Wait for the last connection to close: two at once may be one too many for the sender, or for a port."""
        while self._reader is not None and not self._closed.is_set() and not self._reader.join(_WAIT_S):
            yield Pause("")

    def _play(self, reader: NetworkReader) -> Iterator[LiveItem]:
        index, t_last_s, t_last_ns = 0, time.monotonic(), 0
        while not self._closed.is_set():
            received = reader.take(_WAIT_S)
            if received is not None:
                yield from _troubles(self._address.name, received)
            if received is not None and received.image is not None:
                self._is_expected = True
                t_last_s, t_last_ns = time.monotonic(), max(received.t_ns, t_last_ns + 1)
                yield _frame(received, index, t_last_ns)
                index += 1
            else:
                yield from self._silent(reader, index, time.monotonic() - t_last_s)

    def _silent(self, reader: NetworkReader, num_frames: int, silent_s: float) -> Iterator[Pause]:
        interval_s = (reader.interval_ms or _DEFAULT_INTERVAL_MS) / 1e3
        if silent_s < max(_MIN_STALL_S, _STALL_INTERVALS * interval_s):
            return
        no_packet_s = time.monotonic() - reader.t_packet_s
        name = self._address.name
        if no_packet_s < _MIN_STALL_S:
            if silent_s > _NO_IMAGE_S:
                raise SourceLost(f"{name} sends data that make no image: check its encoder", is_fault=True)
            yield Pause(f"{name} sends data, but no image yet")
        elif num_frames and no_packet_s > max(_GIVE_UP_S, _STALL_INTERVALS * interval_s):
            raise SourceLost(f"{name} sends nothing: check its sender and the network")
        else:
            yield Pause(f"{name} sends nothing: check its sender and the network")


def _troubles(name: str, received: Received) -> Iterator[Trouble]:
    yield from [Trouble("bad_frames", f"{name} sends damaged frames; they are left out")] * received.num_bad
    yield from [Trouble("late_frames", "older frames were left out, for newer ones waited")] * received.num_late


def _frame(received: Received, index: int, t_ns: int) -> Frame:
    image = received.image
    assert image is not None
    if not isinstance(image, ColourImage):
        return Frame(image, index, t_ns, t_ns, time.time_ns())
    return Frame(image.luma, index, t_ns, t_ns, time.time_ns(), image.rgb, chroma=image.chroma)
