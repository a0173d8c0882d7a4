"""One segment while it is written."""

import contextlib
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av

from edge.frame import UInt8Image
from edge.recording.codecs import CODINGS, TIME_BASE_HZ, add_video, to_video_frame
from edge.recording.layout import FrameTimes, SegmentPaths, pack_message, write_description

_MUXING = {"cluster_time_limit": "1000", "flush_packets": "1"}
"""A cut file loses a second at most."""


class SegmentWriter:
    """Writes the four files of a segment. Used from one thread."""

    def __init__(self, paths: SegmentPaths, about: dict[str, Any], codec: str) -> None:
        """Create the files.

        Raises:
            OSError: The disk refuses.
        """
        self._codec = codec
        self._paths = paths
        self._container: av.container.OutputContainer | None = None
        self._stream: av.VideoStream | None = None
        self._last_pts = -1
        self.num_frames = 0
        self.shape: tuple[int, ...] | None = None
        write_description(paths.about, about)
        self._frames = paths.frames.open("wb")
        self._messages = paths.messages.open("wb")

    def add_frame(self, pixels: UInt8Image, times: FrameTimes) -> None:
        """Append an image of the ROI.

        Raises:
            OSError: The disk refuses; `av.error.FFmpegError` for a full one is an OSError, too.
        """
        if self._container is None:
            self._open_video(pixels.shape)
        assert self._stream is not None
        assert self._container is not None
        frame = to_video_frame(pixels, self._stream.pix_fmt or "")
        self._last_pts = max(self._last_pts + 1, times.t_media_ns * TIME_BASE_HZ // 10**9)
        frame.pts, frame.time_base = self._last_pts, Fraction(1, TIME_BASE_HZ)
        for packet in self._stream.encode(frame):
            self._container.mux(packet)
        # after the video: a record without its image is left out when it is read
        self._frames.write(times.pack())
        self._frames.flush()
        self.num_frames += 1

    def add_message(self, parts: Sequence[bytes]) -> None:
        """Append a message as it was published."""
        self._messages.write(pack_message(parts))
        self._messages.flush()

    def size_bytes(self) -> int:
        """Return what was written so far."""
        return self._paths.size_bytes()

    def close(self) -> None:
        """Finish the files."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._messages.close)
            stack.callback(self._frames.close)
            if self._container is not None and self._stream is not None:
                stack.callback(self._container.close)
                for packet in self._stream.encode(None):
                    self._container.mux(packet)
        self._container = self._stream = None

    def _open_video(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self._container = av.open(str(self._paths.video), "w", format="matroska", options=_MUXING)
        self._stream = add_video(self._container, CODINGS[self._codec], shape)
