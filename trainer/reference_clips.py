"""Clips against which every engine of a bundle is checked."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge.phantom import Phantom
from edge.preprocess import preprocess
from trainer.data.clips import ClipStore, default_cache_dir
from trainer.data.manifest import read_manifest
from trainer.data.video import ManifestError
from trainer.runs import Run

NUM_CLIPS = 4


def phantom_clips(run: Run) -> npt.NDArray[np.float32]:
    """Render sweeps over synthetic lymph nodes, so that a bundle carries no patient's images.

    Returns:
        (4, T, C, H, W) float32 in 0..1.
    """
    clips = []
    for seed in range(NUM_CLIPS):
        phantom = Phantom(seed, frame_interval_ms=run.frame_interval_ms)
        frames = [phantom.frame(index) for index in range(run.num_frames)]
        clips.append(np.stack([preprocess(frame, phantom.region, run.preprocess) for frame in frames]))
    return np.stack(clips)


def manifest_clips(run: Run, path: Path) -> npt.NDArray[np.float32]:
    """Take the middle window of a manifest's videos, each class in turn.

    Returns:
        (up to 4, T, C, H, W) float32 in 0..1.

    Raises:
        ManifestError: The manifest cannot be read, or none of its videos is long enough.
    """
    store = ClipStore(default_cache_dir(), run.preprocess, run.num_frames, run.frame_interval_ms, run.roi)
    videos = read_manifest(path).videos
    by_class = [[video for video in videos if video.label == label] for label in sorted({v.label for v in videos})]
    chosen = [video for group in by_class for video in group[: -(-NUM_CLIPS // len(by_class))]][:NUM_CLIPS]
    left_out = store.prepare(chosen).left_out
    usable = [store.get(video) for video in chosen if video.id not in left_out]
    if not usable:
        raise ManifestError(f"{path}: none of the first videos gives a clip ({'; '.join(left_out.values())})")
    clips = [video.clip(int(video.window_starts[len(video.window_starts) // 2])) for video in usable]
    return np.multiply(np.stack(clips), np.float32(1 / 255), dtype=np.float32)
