"""Small media files for tests: every frame's brightness tells its index."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image


def coded_frame(index: int, size_wh: tuple[int, int] = (320, 240)) -> np.ndarray:
    """Return an (H, W) uint8 image: a bright square that walks with the index on a background that grows brighter."""
    width, height = size_wh
    image = np.full((height, width), 20 + 2 * (index % 100), np.uint8)
    left = (index * 7) % (width - 40)
    image[height // 3 : height // 3 + 40, left : left + 40] = 255
    return image


def write_video(
    path: Path,
    num_frames: int,
    *,
    size_wh: tuple[int, int] = (320, 240),
    fps: int = 30,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
) -> Path:
    """Encode coded frames; the container follows the suffix."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=Fraction(fps))
        stream.width, stream.height = size_wh
        stream.pix_fmt = "yuv420p"
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(coded_frame(index, size_wh), format="gray")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_images(folder: Path, sizes_wh: list[tuple[int, int]]) -> Path:
    """Write one PNG for each size."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, size_wh in enumerate(sizes_wh):
        Image.fromarray(coded_frame(index, size_wh)).save(folder / f"frame_{index}.png")
    return folder
