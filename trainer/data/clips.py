"""Decoded videos on disk: each is decoded once, by the daemon's own code, and read from then on as one array."""

import dataclasses
import functools
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edge.errors import SourceError
from engines import PreprocessSpec
from engines.host import num_cores
from trainer.data.clip_entry import FORMAT, TEMPORARY, ClipCacheError, VideoFrames, open_entry, write_entry
from trainer.data.clip_workers import decode_all
from trainer.data.content import content_sha256, software
from trainer.data.decode import ClipSpec, StopFlag, decode
from trainer.data.video import Video

__all__ = ["ClipCacheError", "ClipStore", "Prepared", "VideoFrames", "default_cache_dir"]

DEFAULT_NUM_FRAMES = 16
DEFAULT_FRAME_INTERVAL_MS = 1000 / 30

_STALE_S = 24 * 3600
"""From which age on a half-written entry is no longer being written."""


def default_cache_dir() -> Path:
    """Return where clips are cached unless the user says otherwise (XDG Base Directory Specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge-train"


@dataclasses.dataclass(frozen=True, slots=True)
class Prepared:
    """Which videos cannot give a clip, with the reason, by id."""

    short: dict[str, str]
    unreadable: dict[str, str]

    @property
    def left_out(self) -> dict[str, str]:
        """Both kinds."""
        return {**self.short, **self.unreadable}


class ClipStore:
    """A folder with one entry for each video's content; networks of any clip length and centre crop share it.

    An entry is written under a temporary name and renamed once it is whole: whoever interrupts decoding loses the
    video that was being written, and no reader sees half of one. A changed file is another content, and decoded anew.
    """

    def __init__(
        self,
        cache_dir: str | os.PathLike[str],
        spec: PreprocessSpec,
        num_frames: int = DEFAULT_NUM_FRAMES,
        frame_interval_ms: float = DEFAULT_FRAME_INTERVAL_MS,
        roi: str = "auto",
    ) -> None:
        """Name the folder; it is made when the first video is decoded.

        Args:
            cache_dir: The folder; several stores and processes may share it.
            spec: Preprocessing.
            num_frames: T, the clip's length.
            frame_interval_ms: The clip's time grid.
            roi: "auto" or "full", for videos whose ROI the manifest does not say.
        """
        self.cache_dir = Path(cache_dir).absolute()
        self.spec = ClipSpec(spec, num_frames, frame_interval_ms)
        self._roi = roi
        self._software = software()
        self._contents: dict[Path, str] = {}

    def get(self, video: Video, stop: StopFlag | None = None) -> VideoFrames:
        """Return a video's frames and windows; decode it where it is not in the cache.

        Args:
            video: Its file must not change while this store is in use.
            stop: Ends decoding early.

        Raises:
            SourceError: The video cannot be read, or decoding was stopped.
            ConfigError: Its kind is not known, or its ROI is not inside the image.
            ClipCacheError: The cache cannot be written.
        """
        folder = self._folder(video)
        if (frames := open_entry(folder, self.spec)) is not None:
            return frames
        stop = stop or threading.Event()
        play = functools.partial(decode, video.path, self.spec, video.roi or self._roi, stop=stop)
        write_entry(folder, self.spec, play)
        return VideoFrames(folder, self.spec)

    def content(self, video: Video) -> str:
        """Return the SHA-256 of a video's content; it is computed once.

        Raises:
            SourceError: The video cannot be read.
        """
        if video.path not in self._contents:
            try:
                self._contents[video.path] = content_sha256(video.path)
            except OSError as exc:
                raise SourceError(f"{video.id!r} cannot be read: {exc.strerror}; mend that or leave it out") from exc
        return self._contents[video.path]

    def prepare(self, videos: Sequence[Video], num_workers: int | None = None) -> Prepared:
        """Decode all videos that are not in the cache, in worker processes, with progress.

        Args:
            videos: Any; those in the cache cost a look at their content.
            num_workers: How many processes; by default one for each core.

        Raises:
            ClipCacheError: The cache cannot be written, or a worker was killed. What was decoded stays.
        """
        self._sweep()
        with ThreadPoolExecutor(num_cores()) as pool:
            missing = [
                video for video, is_there in zip(videos, pool.map(self._has, videos), strict=True) if not is_there
            ]
        found = decode_all(self.get, missing, num_workers or num_cores())  # as the workers ended
        unreadable = {video.id: found[video.id] for video in videos if video.id in found}
        short = {video.id: self._why_short(video) for video in videos if video.id not in unreadable}
        return Prepared({id: reason for id, reason in short.items() if reason}, unreadable)

    def _has(self, video: Video) -> bool:
        try:
            return open_entry(self._folder(video), self.spec) is not None
        except SourceError:
            return False

    def _why_short(self, video: Video) -> str:
        frames = self.get(video)
        if len(frames.window_starts):
            return ""
        num_frames, interval_ms = len(frames.frame_indices), self.spec.frame_interval_ms
        reason = f"no {self.spec.num_frames} frames in a row: {num_frames} lie on the time grid of {interval_ms:.4g} ms"
        return "; ".join([reason, *frames.warnings])

    def _folder(self, video: Video) -> Path:
        """Return the entry's folder, named by a hash of all that decides what it holds."""
        spec, roi = self.spec.preprocess, video.roi or self._roi
        how = [roi, spec.resize_hw, spec.channels, self.spec.frame_interval_ms]
        key = json.dumps([FORMAT, self.content(video), how, self._software])
        return self.cache_dir / hashlib.sha256(key.encode()).hexdigest()[:32]

    def _sweep(self) -> None:
        """Remove what was half-written when a process was killed."""
        for path in self.cache_dir.glob(f"{TEMPORARY}*"):
            try:
                is_stale = time.time() - path.stat().st_mtime > _STALE_S
            except OSError:  # its writer was faster
                continue
            if is_stale:
                shutil.rmtree(path, ignore_errors=True)
