"""Clips that stand for what a network will see: from any source that edge-infer plays, or from a manifest's videos."""

import collections
import csv
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from edge.capture import CaptureLoop, CaptureSettings
from edge.errors import ConfigError
from edge.health.meters import Meters
from edge.inference import ClipFrame
from edge.roi import parse_roi
from edge.sources import open_source
from engines import Bundle

_TRAINING = ("", "train")
_Thing = TypeVar("_Thing")


def read_clips(bundle: Bundle, source: str, num_clips: int) -> npt.NDArray[np.float32]:
    """Return clips as the daemon would cut them, without overlap.

    Args:
        bundle: Says how clips are made.
        source: As `edge-infer --source` takes it; or a manifest (.csv), of which the training videos are used.
        num_clips: How many at most; of a manifest, from as many videos as there are, from its start to its end.

    Returns:
        (n, T, C, H, W) float32 in [0, 1].

    Raises:
        EdgeError: The source cannot be read.
        ConfigError: It gives no clip.
    """
    videos = list(_videos(Path(source))) if source.endswith(".csv") else [(source, "auto")]
    chosen = _evenly(videos, num_clips)
    per_video = -(-num_clips // len(chosen))
    clips = [clip for uri, roi in chosen for clip in _clips_of(bundle, uri, roi, per_video)]
    if not clips:
        raise ConfigError(f"{source} gives no clip of {bundle.num_frames} frames; name a longer one")
    return np.stack(_evenly(clips, num_clips))


def _evenly(things: Sequence[_Thing], number: int) -> list[_Thing]:
    """Return so many of them at most, from all along: a manifest may be in the order of its classes."""
    places = np.linspace(0, len(things) - 1, min(number, len(things))).round().astype(int)
    return [things[place] for place in places]


def _videos(manifest: Path) -> Iterator[tuple[str, str]]:
    """Yield path and ROI of each training video."""
    try:
        with manifest.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as exc:
        raise ConfigError(f"{manifest} cannot be read ({exc}); name a manifest with a column path") from exc
    used = [row for row in rows if row.get("path") and (row.get("split") or "") in _TRAINING]
    if not used:
        raise ConfigError(f"{manifest} lists no training video; it needs a column path, and split train or none")
    for row in used:
        yield str(manifest.parent / row["path"]), row.get("roi") or "auto"


def _clips_of(bundle: Bundle, uri: str, roi: str, num_clips: int) -> list[npt.NDArray[np.float32]]:
    source = open_source(uri)
    if source.info.is_live:
        source.close()
        raise ConfigError(f"{uri} is a live source; name a recording")
    stop = threading.Event()
    collector = _Collector(bundle.num_frames, num_clips, stop)
    settings = CaptureSettings(
        roi=parse_roi(roi),
        preprocess=bundle.preprocess,
        num_frames=bundle.num_frames,
        frame_interval_ms=bundle.frame_interval_ms,
        hop=bundle.num_frames,
        is_realtime=False,
    )
    try:
        CaptureLoop(source, collector, Meters(), settings, stop=stop, on_frame=lambda *_: None).run()
    finally:
        source.close()
    return collector.clips


class _Collector:
    """Stands where the daemon's clip queue does, and keeps whole clips."""

    def __init__(self, num_frames: int, num_clips: int, stop: threading.Event) -> None:
        self.clips: list[npt.NDArray[np.float32]] = []
        self._frames: collections.deque[npt.NDArray[np.float32]] = collections.deque(maxlen=num_frames)
        self._num_clips = num_clips
        self._stop = stop

    def put(self, frame: ClipFrame) -> None:
        if frame.reset_reason is not None:
            self._frames.clear()
        self._frames.append(frame.frame_chw)
        if frame.window is not None and len(self.clips) < self._num_clips:
            self.clips.append(np.stack(self._frames))
        if len(self.clips) >= self._num_clips:
            self._stop.set()
