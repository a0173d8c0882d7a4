"""What a network says of every window of a video, as `edge-infer --pace max --hop 1` would play it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from trainer.data.clips import VideoFrames

_BATCH_FRAMES = 64
"""Frames at a time: four clips of 16."""


@torch.inference_mode()
def window_logits(network: nn.Module, video: "VideoFrames") -> npt.NDArray[np.float64]:
    """Run every window of a video at hop 1.

    Args:
        network: Clips (N, T, C, H, W) float32 in 0..1 to logits (N, K); is put into evaluation mode, and back.
        video: A decoded video with at least one window.

    Returns:
        (windows, K) float64.
    """
    was_training = network.training
    network.eval()
    try:
        return np.concatenate([network(clips).double().cpu().numpy() for clips in window_batches(network, video)])
    finally:
        network.train(was_training)


def window_batches(network: nn.Module, video: "VideoFrames") -> Iterator[Tensor]:
    """Yield all windows in order, some at a time: (N, T, C, H, W) float32 in 0..1 on the network's device."""
    device = next(network.parameters()).device
    size = max(1, _BATCH_FRAMES // video.num_frames)
    for first in range(0, len(video.window_starts), size):
        clips = np.stack([video.clip(int(start)) for start in video.window_starts[first : first + size]])
        # the daemon's own scaling, so that pixels are equal to the last bit
        yield torch.from_numpy(np.multiply(clips, np.float32(1 / 255), dtype=np.float32)).to(device)
