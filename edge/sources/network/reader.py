"""Reads one connection of a network stream in a thread of its own, and keeps its newest frame alone.

FFmpeg's calls may block for seconds, whatever is asked of it; whoever takes frames here never does.
"""

import collections
import contextlib
import dataclasses
import itertools
import threading
import time
from collections.abc import Iterator
from typing import BinaryIO, TypeVar, cast

import av

from edge.errors import SourceError, SourceLost
from edge.sources.base import MAX_IMAGE_PX
from edge.sources.network.address import NetworkAddress
from edge.sources.network.srt import SrtStream, SrtTimeoutError
from edge.sources.stored import AnyImage
from edge.sources.video import FrameConverter, video_stream

OPEN_S = 10.0
"""To connect, and to learn what is sent: up to the first keyframe."""
READ_S = 2.0
_GAP_S = 0.75
"""After so long without a packet some were lost."""
_MAX_REPAIR_S = 3.0
"""How long a keyframe is waited for after a loss; some encoders have none, and renew the image bit by bit."""
_MAX_TIMES = 64
_WAIT_S, _MAX_BACKLOG = 0.003, 32
"""A packet that was not waited for so long was there before; the first ones, up to so many, came while connecting."""
_MIN_STEPS, _NUM_STEPS = 5, 15
_ERRORS = (av.FFmpegError, OSError, ValueError, SourceError)
"""UnicodeDecodeError, for what a server calls itself, is a ValueError."""


_Packet = TypeVar("_Packet")


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Received:
    """What came since the last time."""

    image: AnyImage | None
    """The newest image."""
    t_ns: int
    """Monotonic time when the packet came that made it."""
    num_bad: int
    """Packets that could not be decoded, or only in part."""
    num_late: int
    """Images that came before the newest and were not taken."""


class NetworkReader:
    """One connection. The thread `network` opens it, reads it, decodes, and closes it."""

    def __init__(self, address: NetworkAddress) -> None:
        self._address = address
        self._changed = threading.Condition()
        self._newest: tuple[AnyImage, int] | None = None
        self._num_bad = self._num_late = 0
        self._loss: str | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="network")
        self.interval_ms: float | None = None
        """Nominal time between frames, as soon as it is known."""
        self.is_silent = False
        """The connection has ended because nothing came."""
        self.t_packet_s = time.monotonic()
        """When the last packet came, or this began."""
        self._thread.start()

    def take(self, timeout_s: float) -> Received | None:
        """Wait for a frame, and take the newest; None where nothing came in time.

        Raises:
            SourceLost: The connection has ended.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._newest or self._loss or self._num_bad, timeout_s)
            newest, self._newest = self._newest, None
            num_bad, num_late = self._num_bad, self._num_late
            self._num_bad = self._num_late = 0
            if newest is None and not num_bad:
                if self._loss is not None:
                    raise SourceLost(self._loss)
                return None
        image, t_ns = newest or (None, 0)
        return Received(image, t_ns, num_bad, num_late)

    def stop(self) -> None:
        """Ask the thread to end; it does so after the call that it is in."""
        self._stopped.set()

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread; return whether it has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        name = self._address.name
        try:
            self._read()
            loss = f"{name} ended: its sender stopped"
        except (av.error.ExitError, SrtTimeoutError):
            self.is_silent = True
            loss = f"nothing comes from {name}: is its sender running?"
        except _ERRORS as exc:
            reason = getattr(exc, "strerror", None) or type(exc).__name__  # FFmpeg's whole text would hold the URL
            reason = str(exc) if isinstance(exc, SourceError) else reason
            loss = f"{name} failed ({reason}): check its sender, address and password"
        with self._changed:
            self._loss = loss
            self._changed.notify_all()

    def _read(self) -> None:
        address = self._address
        with contextlib.ExitStack() as stack:
            file: str | BinaryIO = address.url
            if address.srt is not None:
                srt = SrtStream(address.srt, open_ms=round(OPEN_S * 1e3), read_ms=round(READ_S * 1e3))
                stack.callback(srt.close)
                file = cast(BinaryIO, srt)
            container: av.container.InputContainer = stack.enter_context(
                av.open(
                    file,
                    "r",
                    format=address.transport.format,
                    options=address.options,
                    timeout=(OPEN_S, READ_S),
                    metadata_errors="ignore",
                )
            )
            stream = video_stream(container, address.name)
            context = stream.codec_context
            context.thread_count = 1  # more of them would hold frames back
            context.flags |= av.codec.context.Flags.low_delay
            context.options = {"max_pixels": str(MAX_IMAGE_PX)}
            rate = stream.average_rate or stream.guessed_rate
            self.interval_ms = float(1000 / rate) if rate else None
            for image, t_ns in self._images(container, stream):
                with self._changed:
                    self._num_late += self._newest is not None
                    self._newest = image, t_ns
                    self._changed.notify_all()

    def _images(self, container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[tuple[AnyImage, int]]:
        to_array, repair = FrameConverter(), _Repair()
        times_ns: dict[int | None, int] = {}  # decoders may give frames later, and in another order, than packets came
        for packet, is_old in _without_backlog(container.demux(stream)):
            t_ns = time.monotonic_ns()
            if t_ns / 1e9 - self.t_packet_s > _GAP_S:
                repair.begin()
            self.t_packet_s = t_ns / 1e9
            if self._stopped.is_set():
                return
            repair.look(packet.pts)
            times_ns[packet.pts] = t_ns
            while len(times_ns) > _MAX_TIMES:
                del times_ns[next(iter(times_ns))]
            for frame in self._decoded(stream, packet, repair):
                if not is_old:
                    yield to_array(frame), times_ns.get(frame.pts, t_ns)

    def _decoded(
        self, stream: av.VideoStream, packet: "av.Packet[av.VideoStream]", repair: "_Repair"
    ) -> Iterator[av.VideoFrame]:
        """Yield the frames that are whole, and built upon whole ones."""
        try:
            frames = stream.codec_context.decode(packet)
            is_damaged = packet.is_corrupt
        except av.FFmpegError:
            frames, is_damaged = [], True
        if is_damaged or any(frame.is_corrupt for frame in frames):
            repair.begin()
        is_bad = is_damaged
        for frame in frames:
            if repair.is_whole(frame):
                yield frame
            else:
                is_bad = True
        if is_bad:
            with self._changed:
                self._num_bad += 1
                self._changed.notify_all()


def _without_backlog(packets: Iterator[_Packet]) -> Iterator[tuple[_Packet, bool]]:
    """Yield each packet, and whether it came while FFmpeg still learned what is sent.

    Such frames are decoded, for later ones build upon them, and not shown: nobody knows when they were captured.
    Without them the stream would begin only at the next keyframe, seconds later.
    """
    is_old = True
    for number in itertools.count():
        t_asked_s = time.monotonic()
        packet = next(packets, None)
        if packet is None:
            return
        is_old = is_old and number < _MAX_BACKLOG and time.monotonic() - t_asked_s < _WAIT_S
        yield packet, is_old


class _Repair:
    """After a loss, frames are built upon what is not there, up to the next keyframe."""

    def __init__(self) -> None:
        self._end_s = 0.0
        self._last_pts: int | None = None
        self._steps: collections.deque[int] = collections.deque(maxlen=_NUM_STEPS)

    def look(self, pts: int | None) -> None:
        """Look at a packet's time: where one is missing in a regular stream, a frame is, of which decoders say nothing.

        Frames may come in another order than they are shown in; such a stream is not regular here.
        """
        if pts is None:
            return
        if self._last_pts is not None and pts != self._last_pts:
            self._steps.append(pts - self._last_pts)
            if self._is_regular() and self._steps[-1] > 1.5 * min(self._steps):
                self.begin()
        self._last_pts = pts

    def _is_regular(self) -> bool:
        """Whether the steps are one step or a few of them: as of a camera's stream, some of whose frames are lost."""
        shortest = min(self._steps)
        if shortest <= 0 or len(self._steps) < _MIN_STEPS:
            return False
        num_single = sum(step < 1.1 * shortest for step in self._steps)
        are_multiples = all(abs(step / shortest - round(step / shortest)) < 0.1 for step in self._steps)
        return are_multiples and 2 * num_single > len(self._steps)

    def begin(self) -> None:
        """Something was lost."""
        self._end_s = time.monotonic() + _MAX_REPAIR_S

    def is_whole(self, frame: av.VideoFrame) -> bool:
        """Return whether the frame can be shown."""
        if frame.key_frame and not frame.is_corrupt:
            self._end_s = 0.0
        return time.monotonic() >= self._end_s and not frame.is_corrupt
