"""A video whose every frame carries its index as a bar code, to be read back from the pixels of a screen."""

from pathlib import Path

import numpy as np

from edge.phantom import Phantom
from tools.phantom_video import write_mp4

SIZE_WH = (640, 480)
NUM_BITS = 7
NUM_FRAMES = 1 << NUM_BITS
CODE_WIDTH_PX = 24
"""At the left edge: the network, and so the heatmap, leaves out 1/16 of the image there."""


def write_coded_movie(path: Path) -> None:
    """Write a phantom's frames at 30 frames/s; bit k of a frame's index is the k-th field from the top."""
    phantom = Phantom(1, size_wh=SIZE_WH)
    frames_thw = np.stack([phantom.frame(index) for index in range(NUM_FRAMES)])
    height = SIZE_WH[1] // NUM_BITS
    for index, frame_hw in enumerate(frames_thw):
        for bit in range(NUM_BITS):
            frame_hw[bit * height : (bit + 1) * height, :CODE_WIDTH_PX] = 255 * (index >> bit & 1)
    write_mp4(path, frames_thw, phantom)
