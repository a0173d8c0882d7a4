"""What a network says of every window of a video, as `edge-infer --pace max --hop 1` would play it."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edge.preprocess import centre_crop
from engines import PreprocessSpec

if TYPE_CHECKING:
    from trainer.clips import VideoFrames

DEFAULT_BATCH_SIZE = 4


@torch.inference_mode()
def window_logits(
    network: nn.Module,
    video: "VideoFrames",
    spec: PreprocessSpec,
    num_frames: int,
    batch_size: int = DEFAULT_BATCH_SIZE,
) -> npt.NDArray[np.float64]:
    """Run every window of a video at hop 1.

    Args:
        network: Clips (N, T, C, H, W) float32 in 0..1 to logits (N, K); is put into evaluation mode, and back.
        video: A decoded video with at least one window.
        spec: How the video was preprocessed.
        num_frames: T, frames a window.
        batch_size: Windows at a time.

    Returns:
        (windows, K) float64.
    """
    frames = cropped(video.frames, spec)
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    try:
        batches = [
            network(clips_at(frames, starts, num_frames, device)).double().cpu().numpy()
            for starts in _batches(video.window_starts, batch_size)
        ]
    finally:
        network.train(was_training)
    return np.concatenate(batches)


def cropped(frames: npt.NDArray[np.uint8], spec: PreprocessSpec) -> npt.NDArray[np.uint8]:
    """Cut the centre out of resized frames (F, H, W) or (F, H, W, 3): (F, C, H', W') uint8, a copy."""
    return np.stack([centre_crop(frame, spec) for frame in frames])


def clips_at(
    frames_fchw: npt.NDArray[np.uint8],
    starts: npt.NDArray[np.int64],
    num_frames: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return the clips that start at these frames, (len(starts), T, C, H, W) float32 in 0..1."""
    clips = np.stack([frames_fchw[start : start + num_frames] for start in starts])
    # the daemon's own scaling, so that pixels are equal to the last bit
    return torch.from_numpy(np.multiply(clips, np.float32(1 / 255), dtype=np.float32)).to(device)


def _batches(starts: npt.NDArray[np.int64], size: int) -> list[npt.NDArray[np.int64]]:
    return [starts[first : first + size] for first in range(0, len(starts), size)]
