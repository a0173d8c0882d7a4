"""Draws a stream's pictures into a video: each with its own heatmap, the probability, the state and the time."""

import contextlib
import datetime
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.stream import VideoStream
from PIL import Image, ImageDraw, ImageFont

from edge.display.views import Pairing, View
from edge.errors import ConfigError
from edge.messages import FrameMessage, PredictionMessage
from edge.picture import RgbImage, decode_picture, overlay

_TIME_BASE_HZ = 1000
_MIN_WIDTH_PX, _STRIP_PX = 480, 84
_MAX_SIDE_PX = 16_000
"""H.264 has no larger pictures, and no source an image of one row."""
_MAX_GAP_MS = 3_600_000
"""Between two pictures: a longer one is no time of a clock that goes, and MP4 holds none of weeks."""
_INK, _FAINT, _WARNING, _BACK = (238, 242, 246), (163, 174, 187), (255, 194, 77), (16, 20, 26)
_NOTICE = "Research use only, not for diagnosis"


class Film:
    """One stream's video while it is drawn. Used from one thread."""

    def __init__(self, path: Path) -> None:
        """Prepare; the file is made with the first picture."""
        self._path = path
        self._pairing = Pairing(is_patient=True)
        self._prediction: PredictionMessage | None = None
        self._state = ""
        self._states: dict[int, str] = {}
        """By index of the pictures that wait for their predictions."""
        self._resources = contextlib.ExitStack()
        self._stream: VideoStream | None = None
        self._container: av.container.OutputContainer | None = None
        self._first_ns = 0
        self._last_pts = -1

    def add(self, message: FrameMessage | PredictionMessage, state: str) -> None:
        """Take a message in, and draw what can be drawn now.

        Args:
            message: A picture or a prediction, in the order in which they came.
            state: What was told when it came.

        Raises:
            ConfigError: The file cannot be made.
            OSError: The disk refuses; `av.error.FFmpegError` for a full one is an OSError, too.
        """
        self._state = state
        if isinstance(message, FrameMessage):
            views = self._pairing.add_frame(message)
            self._states[message.index] = state
        else:
            views = self._pairing.add_prediction(message)
            self._prediction = message
        self._write_all(views)

    def close(self) -> bool:
        """Draw what waits and finish the file; return whether there is one.

        Raises:
            ConfigError: The file cannot be made.
            OSError: The disk refuses.
        """
        self._write_all(self._pairing.rest())
        if self._container is None or self._stream is None:
            return False
        with self._resources:
            for packet in self._stream.encode(None):
                self._container.mux(packet)
        return True

    def _write_all(self, views: list[View]) -> None:
        for view in views:
            image = self._draw(view)
            if image is not None:
                self._write(image, view.frame.t_capture_ns)

    def _draw(self, view: View) -> RgbImage | None:
        state = self._states.pop(view.frame.index, self._state)
        image = decode_picture(view.frame)
        if image is None:
            return None
        roi = view.frame.roi_px
        if view.heat is not None and roi is not None:
            x, y, width, height = view.heat.roi_px
            image = overlay(image, (view.heat.map_hw / 255).astype(np.float32), (x - roi[0], y - roi[1], width, height))
        scale = max(1.0, _MIN_WIDTH_PX / image.shape[1])
        size = [max(2, 2 * round(side * scale / 2)) for side in (image.shape[1], image.shape[0])]
        if max(size) > _MAX_SIDE_PX:
            return None
        enlarged = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC).astype(np.uint8, copy=False)
        return np.concatenate([enlarged, self._strip(enlarged.shape[1], view, state)])

    def _strip(self, width: int, view: View, state: str) -> RgbImage:
        strip = Image.new("RGB", (width, _STRIP_PX), _BACK)
        pen = ImageDraw.Draw(strip)
        prediction = self._prediction if view.heat is not None else None
        big = "no result for this picture"
        if prediction is not None:
            side = "at or above" if prediction.positive else "below"
            big = f"{prediction.classes[-1]} {prediction.probability:.1%}, {side} {prediction.threshold:.1%}"
        wall = datetime.datetime.fromtimestamp(view.frame.t_wall_ns / 1e9).astimezone()
        small = f"{state}   frame {view.frame.index}   {wall:%Y-%m-%d %H:%M:%S}.{wall.microsecond // 1000:03d}"
        pen.text((10, 4), big, _INK, ImageFont.load_default(24))
        pen.text((10, 36), small, _FAINT, ImageFont.load_default(15))
        pen.text((10, 58), _NOTICE, _WARNING, ImageFont.load_default(16))
        return np.asarray(strip)

    def _write(self, image: RgbImage, t_capture_ns: int) -> None:
        if self._stream is None:
            self._open(image, t_capture_ns)
        stream, container = self._stream, self._container
        if stream is None or container is None or image.shape[:2] != (stream.height, stream.width):
            return  # the source changed its size: the video keeps the first
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        pts = (t_capture_ns - self._first_ns) * _TIME_BASE_HZ // 10**9
        if abs(pts - self._last_pts) > _MAX_GAP_MS:
            pts = self._last_pts + 1
            self._first_ns = t_capture_ns - pts * 10**9 // _TIME_BASE_HZ
        frame.pts = self._last_pts = max(self._last_pts + 1, pts)
        frame.time_base = Fraction(1, _TIME_BASE_HZ)
        for packet in stream.encode(frame):
            container.mux(packet)

    def _open(self, image: RgbImage, t_capture_ns: int) -> None:
        try:
            container = av.open(str(self._path), "w")
        except OSError as exc:
            raise ConfigError(f"--overlay {self._path} cannot be written ({exc.strerror}); choose another") from exc
        self._container = self._resources.enter_context(container)
        stream = container.add_stream("libx264", rate=_TIME_BASE_HZ, options={"crf": "20"})
        stream.height, stream.width = image.shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # the cores are the engine's
        self._stream, self._first_ns = stream, t_capture_ns
