"""The capture thread's work: pacing, the ROI, preprocessing, and the choice of clip frames."""

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

import cv2
import numpy.typing as npt

from edge.errors import ConfigError
from edge.frame import Frame, StoredObject, UInt8Image
from edge.health.heartbeat import Heart
from edge.health.meters import Meters
from edge.health.troubles import TroubleLog
from edge.image_state import ImageThresholds, ImageWatch
from edge.inference import ClipFrame, ClipQueue
from edge.pacing import Pacer
from edge.prediction import State
from edge.preprocess import preprocess, visible_rect
from edge.read_ahead import read_ahead
from edge.roi import clip_to
from edge.roi_chooser import ADVICE, RoiChooser
from edge.sources.base import LiveItem, Rect, Source, Trouble
from edge.window import NEW_OBJECT, WindowSampler
from engines import PreprocessSpec

_log = logging.getLogger(__name__)

_JPEG_QUALITY = 90

OnFrame = Callable[[Frame, Rect, bytes], None]
OnInterruption = Callable[[State, str, bool], int | None]
"""Is told a state, its reason, and whether what came before is complete in itself.

Returns the stream's new epoch, or None where the stream has ended before all that was complete could be told.
"""
Prepare = Callable[[UInt8Image, Rect, PreprocessSpec], npt.NDArray[Any]]
"""Makes (C, H', W') of an image and its ROI."""


class RateLimiter:
    """Thins a stream to a rate, keeping to a time grid so that the mean rate is right."""

    def __init__(self, rate_hz: float) -> None:
        self._interval_ns = 1e9 / rate_hz
        self._due_ns = -float("inf")

    def is_due(self, t_ns: int) -> bool:
        """Whether the frame at this time is let through; a quarter of an interval early is in time."""
        if t_ns < self._due_ns - self._interval_ns / 4:
            return False
        is_off_grid = t_ns >= self._due_ns + self._interval_ns
        self._due_ns = (t_ns if is_off_grid else self._due_ns) + self._interval_ns
        return True


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CaptureSettings:
    """What the capture thread needs to know."""

    roi: Rect | str
    """A rectangle, "auto" or "full"."""
    preprocess: PreprocessSpec
    num_frames: int
    frame_interval_ms: float
    hop: int
    is_realtime: bool
    """Play recordings at their own speed."""
    frames_hz: float = 0.0
    """How many JPEG frames to publish a second; 0: none."""
    masks: tuple[Rect, ...] = ()
    """Parts of the source image that are blanked before anything looks at them."""
    image: ImageThresholds = dataclasses.field(default_factory=ImageThresholds)
    """From when on the image counts as frozen, or as another one."""
    roi_advice: str = ADVICE
    """What the user is told to do where nothing moves."""


class CaptureLoop:
    """Takes frames from the source to the clip queue. Never waits for the inference, unless the queue is lossless."""

    def __init__(
        self,
        source: Source,
        queue: ClipQueue,
        meters: Meters,
        settings: CaptureSettings,
        *,
        stop: threading.Event,
        on_frame: OnFrame,
        on_interruption: OnInterruption = lambda *_: 0,
        on_roi_frame: Callable[[Frame, Rect], None] | None = None,
        heart: Heart | None = None,
        prepare: Prepare = preprocess,
    ) -> None:
        self._source = source
        self._queue = queue
        self._meters = meters
        self._settings = settings
        self._stop = stop
        self._on_frame = on_frame
        self._on_interruption = on_interruption
        self._on_roi_frame = on_roi_frame
        self._heart = heart or Heart("capture")
        self._prepare = prepare
        self._request: str | None = None
        self._epoch = 0
        self._num_frames = 0
        self._is_cut_short = False
        self._is_lost = False
        self._held: list[tuple[Frame, int]] = []
        """Frames that came before the ROI was known, each with the time at which it was in our hands."""
        self._unfit: StoredObject | None = None
        self._told: tuple[State, str] | None = None
        """The interruption that lasts; None once a frame has come."""
        self._masked_size_wh: tuple[int, int] | None = None
        self._troubles = TroubleLog(meters)
        self._roi = RoiChooser(settings.roi, source.info.region, settings.roi_advice)
        self._watch = ImageWatch(settings.image)
        self._stands: tuple[State, str] | None = None
        self._sampler = WindowSampler(settings.num_frames, settings.frame_interval_ms, settings.hop)
        self._jpegs = RateLimiter(settings.frames_hz) if settings.frames_hz > 0 else None

    def run(self) -> None:
        """Run until the source ends or `stop` is set. May run again after a loss: indices go on.

        Raises:
            SourceLost: A live source is gone for now.
            SourceError: The source gave no frame, or was lost for good.
            ConfigError: The user's ROI is not inside the image.
        """
        self._held.clear()
        self._heart.beat()
        with contextlib.closing(self._paced()) as items:
            for item in items:
                self._heart.beat()
                self._heed_request()
                if not self._is_over():
                    self._take(item)
                if self._is_over():
                    return
        self._release()

    def ask_interruption(self, reason: str) -> None:
        """Let the next frame start a new clip: for another thread, whose part of the work was lost."""
        self._request = reason

    def _heed_request(self) -> None:
        reason, self._request = self._request, None
        if reason is not None:
            self.interrupt(State.FAULT, reason)

    def interrupt(self, state: State, reason: str, *, is_end: bool = False) -> None:
        """End all windows so far, and tell a state; once, however often it is said."""
        if (state, reason) != self._told:
            self._told = state, reason
            epoch = self._on_interruption(state, reason, is_end)
            self._is_cut_short = epoch is None
            self._epoch = epoch or 0
            self._sampler.interrupt(reason if state is State.WARMUP else f"it begins anew after: {reason}")

    def _is_over(self) -> bool:
        return self._stop.is_set() or self._is_cut_short

    def lose(self, state: State, reason: str) -> None:
        """Interrupt; the next frame counts as a reconnect."""
        self._is_lost = True
        self.interrupt(state, reason)

    def _take(self, item: LiveItem) -> None:
        if isinstance(item, Frame):
            self._take_frame(*self._received(item))
        elif isinstance(item, Trouble):
            self._troubles.add(item)
        elif item.reason:
            if item.is_end:
                self._release()
            self._held.clear()
            self.interrupt(State.NO_SIGNAL, item.reason, is_end=item.is_end)

    def _received(self, frame: Frame) -> tuple[Frame, int]:
        """Count a frame; return it with its place in the stream, and the monotonic time now."""
        t_got_ns = time.monotonic_ns()
        self._meters.captured(t_got_ns)
        if self._is_lost:
            self._is_lost = False
            self._meters.count("reconnects")
            _log.info("the source is back")
        self._told = None
        index, self._num_frames = self._num_frames, self._num_frames + 1
        if frame.index != index:
            frame = frame.replace(index=index)
        self._tell_idle_masks(frame.size_wh)
        return masked(frame, self._settings.masks).with_luma(), t_got_ns

    def _tell_idle_masks(self, size_wh: tuple[int, int]) -> None:
        """Warn of a mask that covers nothing of the image: what it is meant to hide is seen."""
        if size_wh == self._masked_size_wh:
            return
        self._masked_size_wh = size_wh
        for mask in self._settings.masks:
            if clip_to(mask, size_wh) is None:
                _log.warning(
                    "the mask %d,%d,%d,%d lies outside the image of %dx%d pixels and hides nothing; see --mask",
                    *(*mask, *size_wh),
                )

    def _take_frame(self, frame: Frame, t_got_ns: int) -> None:
        if self._held and self._held[-1][0].size_wh != frame.size_wh:
            self._release()
        if frame.object is not None and frame.object is self._unfit:
            return
        self._held.append((frame, t_got_ns))
        try:
            roi = self._roi.add(frame)
        except ConfigError as exc:
            self._skip_object(frame, exc)
            return
        if roi is not None:
            self._process_held(roi)

    def _skip_object(self, frame: Frame, exc: ConfigError) -> None:
        """Leave out an object into which the user's ROI does not fit; where there is but one, that is wrong usage."""
        if not self._source.info.plays_objects:
            raise exc
        self._unfit = frame.object
        self._held.clear()
        self._troubles.add(Trouble("bad_objects", f"an object is skipped: {exc}"))

    def _release(self) -> None:
        """Choose the ROI from what was seen, for frames that wait for it: no more of their kind come."""
        self._process_held(self._roi.finish())

    def _paced(self) -> Generator[LiveItem, None, None]:
        frames = self._source.frames()
        if self._source.info.is_live:
            yield from frames
        elif self._settings.is_realtime:
            yield from Pacer(self._stop, self._source.info.frame_interval_ms).play(frames)
        else:
            yield from read_ahead(frames)

    def _process_held(self, roi: Rect | None) -> None:
        frames, self._held = self._held, []
        for place, (frame, t_got_ns) in enumerate(frames):
            if roi is None or self._is_over():
                return
            if not self._is_another_image(frame, roi):
                self._process(frame, t_got_ns, roi)
                continue
            for later in frames[place:]:
                self._take_frame(*later)
            return

    def _is_another_image(self, frame: Frame, roi: Rect) -> bool:
        """Look at the image; return whether it has become another one, whose ROI must be found first."""
        look = self._watch.look(frame, roi)
        stood, self._stands = self._stands, look.stands
        if look.stands is not None:
            if look.stands != stood:
                _log.info("%s", look.stands[1])
                self.interrupt(*look.stands)
            return False
        if look.change is None:
            return stood is not None and self._roi.search_again(only_if_not_found=True)
        _log.info("%s", look.change)
        self.interrupt(State.WARMUP, look.change)
        return self._roi.search_again()

    def _process(self, frame: Frame, t_got_ns: int, roi: Rect) -> None:
        if self._on_roi_frame is not None and self._roi.may_publish:
            self._on_roi_frame(frame, roi)
        if self._stands is None:
            self._put(frame, t_got_ns, roi)
        if self._jpegs is not None and self._roi.may_publish and self._jpegs.is_due(frame.t_media_ns):
            self._on_frame(frame, roi, encode_jpeg(frame, roi))

    def _put(self, frame: Frame, t_got_ns: int, roi: Rect) -> None:
        """Hand on what belongs into the clip."""
        object_id = None if frame.object is None else frame.object.id
        choice = self._sampler.add(frame.index, frame.t_media_ns, frame.size_wh, object_id)
        if choice.reset_reason is not None:
            self._meters.count("resets")
            level = logging.INFO if choice.reset_reason == NEW_OBJECT else logging.WARNING
            _log.log(level, "the clip starts again: %s", choice.reset_reason)
        if choice.is_in_clip:
            self._meters.count("in_clip")
            t_start_ns = time.monotonic_ns()
            spec = self._settings.preprocess
            frame_chw = self._prepare(frame.pixels if spec.channels == 1 else frame.rgb(), roi, spec)
            t_ready_ns = time.monotonic_ns()
            self._queue.put(
                ClipFrame(
                    index=frame.index,
                    frame_chw=frame_chw,
                    window=choice.window,
                    visible_rect=visible_rect(roi, self._settings.preprocess),
                    t_capture_ns=frame.t_capture_ns,
                    t_wall_ns=frame.t_wall_ns,
                    capture_ms=(t_start_ns - frame.t_capture_ns) / 1e6,
                    preprocess_ms=(t_ready_ns - t_start_ns) / 1e6,
                    t_ready_ns=t_ready_ns,
                    reset_reason=choice.reset_reason,
                    epoch=self._epoch,
                    object_id=object_id,
                )
            )


def masked(frame: Frame, masks: tuple[Rect, ...]) -> Frame:
    """Return the frame with these parts black; the same one where there are none."""
    if not masks:
        return frame
    colour, chroma = frame.colour, frame.chroma
    return frame.replace(
        pixels=_blanked(frame.pixels, masks),
        colour=None if colour is None else lambda: _blanked(colour(), masks),
        chroma=chroma,
    )


def _blanked(pixels: UInt8Image, masks: tuple[Rect, ...]) -> UInt8Image:
    pixels = pixels.copy()
    for x, y, width, height in masks:
        pixels[y : y + height, x : x + width] = 0
    return pixels


def encode_jpeg(frame: Frame, roi: Rect) -> bytes:
    """Return the ROI as a JPEG file: nothing outside it leaves the process."""
    x, y, width, height = roi
    pixels = frame.rgb() if frame.has_colour(roi) else frame.pixels
    image = pixels[y : y + height, x : x + width]
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)  # type: ignore[assignment]
    ok, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not ok:
        raise ConfigError(f"the ROI of {width}x{height} pixels cannot be written as JPEG; choose another --roi")
    return bytes(jpeg.data)
