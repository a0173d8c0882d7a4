"""Plays one video through the daemon's own capture code, as `edge-infer --pace max --hop 1` does, without an engine."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt

from edge.capture import CaptureLoop, CaptureSettings
from edge.errors import SourceError
from edge.frame import Frame, UInt8Image
from edge.health.meters import Meters
from edge.inference import ClipFrame
from edge.prediction import State
from edge.preprocess import preprocess_uint8
from edge.sources import Rect, Source, SourceInfo, open_source
from engines import PreprocessSpec
from trainer.collected import collected_warnings

_ROI_ADVICE = "give the image's X,Y,W,H in the manifest's column roi"


class StopFlag(Protocol):
    """A `threading.Event`, or one of `multiprocessing`: set where decoding must end early."""

    def is_set(self) -> bool: ...


@dataclasses.dataclass(frozen=True, slots=True)
class ClipSpec:
    """All that decides which frames of a video make its clips, and how they look."""

    preprocess: PreprocessSpec
    num_frames: int
    """T, the clip's length."""
    frame_interval_ms: float
    """The clip's time grid."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """What was seen while a video played."""

    frame_indices: npt.NDArray[np.int64]
    """(F,) position in the source of each frame on the time grid."""
    run_starts: npt.NDArray[np.int64]
    """(n,) places, 0 to F - 1, from which on frames follow each other without a break: no window spans one."""
    rois: npt.NDArray[np.int64]
    """(F, 4) x, y, width, height in source pixels of what each frame was cut to."""
    num_source_frames: int
    size_wh: tuple[int, int]
    """Of the first frame, pixels."""
    source_interval_ms: float
    """Nominal time between two frames."""
    warnings: tuple[str, ...]
    """What the daemon would have warned of: damage, gaps, an image that does not move."""


def decode(
    path: Path, spec: ClipSpec, roi: Rect | str, put: Callable[[UInt8Image], None], stop: StopFlag | None = None
) -> Decoded:
    """Play a video.

    Args:
        path: A file or a folder of images.
        spec: Clip and preprocessing; its centre crop is left out here.
        roi: A rectangle, "auto" or "full".
        put: Is given each frame on the time grid, (H, W) or (H, W, 3) uint8 of `resize_hw`.
        stop: Ends decoding early.

    Raises:
        SourceError: The video cannot be opened, is a stream or gives no frame, or decoding was stopped.
        ConfigError: The suffix is not known, or the ROI is not inside the image.
    """
    cv2.setNumThreads(1)  # other processes share the cores, and an image is small
    collector, meters = _Collector(put), Meters()
    # absolute: a file named "demo" is a file
    with collected_warnings() as warnings, contextlib.closing(open_source(str(path.absolute()))) as source:
        if source.info.is_live:
            raise SourceError(f"{path.name!r} is a stream, not a recording; record it and give what was recorded")
        observed = _Observed(source)
        settings = _settings(spec, roi)
        stop = stop or threading.Event()
        CaptureLoop(
            observed,
            collector,
            meters,
            settings,
            stop=stop,
            on_frame=lambda *_: None,
            on_interruption=collector.interrupt,
            prepare=preprocess_uint8,  # scaling is left to whoever reads the cache: a quarter of the bytes
        ).run()
    if stop.is_set():
        raise SourceError(f"decoding of {path.name!r} was stopped")
    if not collector.frame_indices:
        raise SourceError(f"{path.name!r} gives no frame on the time grid; check the file or give another one")
    return Decoded(
        frame_indices=np.array(collector.frame_indices, np.int64),
        run_starts=np.array(collector.run_starts, np.int64),
        rois=np.array(collector.rois, np.int64),
        num_source_frames=meters.counters["captured"],
        size_wh=observed.size_wh,
        source_interval_ms=source.info.frame_interval_ms,
        warnings=_without_repetition(warnings, collector.interruptions),
    )


class _Collector:
    """Stands where the daemon has its clip queue."""

    def __init__(self, put: Callable[[UInt8Image], None]) -> None:
        self._put = put
        self.frame_indices: list[int] = []
        self.run_starts = [0]
        self.interruptions: list[str] = []
        self.rois: list[Rect] = []

    def interrupt(self, _state: State, reason: str, _is_end: bool) -> int:
        """Note why no window goes on beyond this place; the frames before are complete."""
        self.interruptions.append(reason)
        return 0

    def put(self, frame: ClipFrame) -> None:
        if frame.reset_reason is not None and self.frame_indices:
            self.run_starts.append(len(self.frame_indices))
        self.frame_indices.append(frame.index)
        self.rois.append(frame.visible_rect)
        image = frame.frame_chw[0] if len(frame.frame_chw) == 1 else frame.frame_chw.transpose(1, 2, 0)
        self._put(image)


class _Observed:
    """A source that remembers the size of its first frame."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.size_wh = (0, 0)

    @property
    def info(self) -> SourceInfo:
        return self._source.info

    def frames(self) -> Iterator[Frame]:
        for frame in self._source.frames():
            if frame.index == 0:
                self.size_wh = frame.size_wh
            yield frame

    def close(self) -> None:
        self._source.close()


def _settings(spec: ClipSpec, roi: Rect | str) -> CaptureSettings:
    return CaptureSettings(
        roi=roi,
        # without the centre crop: augmentation takes others
        preprocess=dataclasses.replace(spec.preprocess, crop_hw=spec.preprocess.resize_hw),
        num_frames=1,  # which frames are on the grid does not depend on it
        frame_interval_ms=spec.frame_interval_ms,
        hop=1,
        is_realtime=False,
        roi_advice=_ROI_ADVICE,
    )


def _without_repetition(warnings: Sequence[str], interruptions: Sequence[str]) -> tuple[str, ...]:
    """Return each warning once, and those interruptions that no warning speaks of."""
    untold = [reason for reason in interruptions if not any(reason in warning for warning in warnings)]
    return tuple(dict.fromkeys([*warnings, *untold]))
