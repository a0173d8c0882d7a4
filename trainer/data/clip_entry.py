"""One decoded video on disk: a folder with the frames as one array, and what else is known of them."""

import dataclasses
import json
import os
import shutil
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.errors import ConfigError
from edge.frame import UInt8Image
from edge.preprocess import centre_crop
from trainer.data.decode import ClipSpec, Decoded

FORMAT = 3
"""Takes a new number when what lies in an entry changes."""
TEMPORARY = ".tmp-"
"""Prefix of an entry that is being written."""

_FRAMES, _META = "frames.u8", "meta.npz"


class ClipCacheError(ConfigError):
    """The cache's folder cannot be written to."""


class VideoFrames:
    """A decoded video as the network's clips need it. Reads from disk; another process that is sent it does so too."""

    def __init__(self, folder: Path, spec: ClipSpec) -> None:
        with (folder / _META).open("rb") as file, np.load(file, allow_pickle=False) as meta:
            facts = json.loads(str(meta["facts"]))
            self.frame_indices: npt.NDArray[np.int64] = meta["frame_indices"]
            """(F,) position in the source of each frame."""
            self.window_starts = _window_starts(meta["run_starts"], len(self.frame_indices), spec.num_frames)
            """(n,) int64 place, 0 to F - T, of the oldest frame of each window at hop 1; none in a video too short."""
            self.rois: npt.NDArray[np.int64] = meta["rois"]
            """(F, 4) x, y, width, height in source pixels of what each frame was cut to."""
        self.num_source_frames: int = facts["num_source_frames"]
        self.size_wh: tuple[int, int] = tuple(facts["size_wh"])
        """Of the source's first frame, in pixels."""
        self.source_interval_ms: float = facts["source_interval_ms"]
        """The source's nominal time between two frames."""
        self.warnings: tuple[str, ...] = tuple(facts["warnings"])
        """What was found wrong while the video played: damage, gaps, an image that does not move."""
        self.num_frames = spec.num_frames
        """T, the clip's length."""
        shape = (len(self.frame_indices), *spec.preprocess.resize_hw) + (3,) * (spec.preprocess.channels == 3)
        self.frames: UInt8Image = np.memmap(folder / _FRAMES, np.uint8, "r", shape=shape)
        """(F, H, W) or (F, H, W, 3) uint8 of `resize_hw`, before the centre crop; read-only, on disk."""
        self._folder, self._spec = folder, spec

    def clip(self, start: int) -> UInt8Image:
        """Return the clip that begins at place `start`, (T, C, H', W') uint8, as the daemon's network gets it."""
        part = self.frames[start : start + self.num_frames]
        return np.stack([centre_crop(image, self._spec.preprocess) for image in part])

    def __reduce__(self) -> tuple[Any, ...]:
        return VideoFrames, (self._folder, self._spec)


def _window_starts(run_starts: npt.NDArray[np.int64], num_in_clip: int, num_frames: int) -> npt.NDArray[np.int64]:
    """Return where windows begin: at each frame that `num_frames` - 1 others follow in the same run.

    For example runs that start at 0 and 5, of 8 frames in all, and windows of 3: 0, 1, 2, 5.
    """
    ends = [*run_starts[1:], num_in_clip]
    return np.concatenate(
        [np.arange(start, end - num_frames + 1) for start, end in zip(run_starts, ends, strict=True)]
    ).astype(np.int64)


def open_entry(folder: Path, spec: ClipSpec) -> VideoFrames | None:
    """Return what the folder holds, or None where it is not there or damaged."""
    try:
        return VideoFrames(folder, spec)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def write_entry(folder: Path, spec: ClipSpec, play: Callable[[Callable[[UInt8Image], None]], Decoded]) -> None:
    """Write an entry under a temporary name and rename it once it is whole.

    Args:
        folder: The entry's; one that is whole already stays.
        spec: What it is decoded for.
        play: Decodes: gives each frame to the function that it is given, and returns the rest.

    Raises:
        ClipCacheError: The disk is full, or the folder may not be written to.
    """
    try:
        temporary = folder.with_name(TEMPORARY + uuid.uuid4().hex)
        temporary.mkdir(parents=True)
    except OSError as exc:
        raise _cache_error(folder.parent, exc) from exc
    try:
        _fill(temporary, play)
        _rename(temporary, folder, spec)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fill(temporary: Path, play: Callable[[Callable[[UInt8Image], None]], Decoded]) -> None:
    with _Writer(temporary / _FRAMES) as frames:
        decoded = play(frames.put)
    arrays = {name: getattr(decoded, name) for name in ("frame_indices", "run_starts", "rois")}
    facts = {name: value for name, value in dataclasses.asdict(decoded).items() if name not in arrays}
    try:
        with (temporary / _META).open("wb") as file:
            np.savez(file, facts=json.dumps(facts), **arrays)
            file.flush()
            os.fsync(file.fileno())
    except OSError as exc:
        raise _cache_error(temporary.parent, exc) from exc


class _Writer:
    """Appends frames to a file. Its errors are the cache's, not the video's."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> "_Writer":
        self._file = self._path.open("wb")
        return self

    def put(self, pixels: UInt8Image) -> None:
        try:
            self._file.write(pixels.tobytes())
        except OSError as exc:
            raise _cache_error(self._path.parent.parent, exc) from exc

    def __exit__(self, *_: object) -> None:
        try:
            with self._file:
                self._file.flush()
                os.fsync(self._file.fileno())
        except OSError as exc:
            raise _cache_error(self._path.parent.parent, exc) from exc


def _rename(temporary: Path, folder: Path, spec: ClipSpec) -> None:
    if open_entry(folder, spec) is not None:  # another process was faster
        return
    try:
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        temporary.rename(folder)
    except OSError as exc:
        if open_entry(folder, spec) is None:
            raise _cache_error(folder.parent, exc) from exc


def _cache_error(cache_dir: Path, exc: OSError) -> ClipCacheError:
    return ClipCacheError(
        f"the clip cache {cache_dir} cannot be written ({exc.strerror}); what was decoded before is kept: "
        "make room there, or give another folder with --cache"
    )
