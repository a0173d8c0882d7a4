"""Interlaced video: an image whose even rows show one moment and whose odd rows the next, a comb wherever it moves.

One field is kept, for the other half of the image is older or newer. It needs no frame after it, so it costs no
latency; of 480 rows 240 are left, no fewer than networks look at.
"""

import cv2
import numpy as np

from edge.frame import UInt8Image
from edge.sources.stored import AnyImage, ColourImage

TOLD = "the video is interlaced: of each frame the even rows are kept, and the odd ones made from them"


def without_comb(image: AnyImage) -> AnyImage:
    """Return an image of the same size that shows one moment alone; colours are made when they are asked for."""
    if isinstance(image, ColourImage):
        return ColourImage(_even_rows(image.luma), lambda: _even_rows(image.rgb()), image.chroma)
    return _even_rows(image)


def _even_rows(image: UInt8Image) -> UInt8Image:
    """Return a copy whose odd rows are the mean of the even ones above and below, the last one that above it."""
    kept = image[::2]
    made = np.repeat(kept, 2, axis=0)[: len(image)]
    if len(kept) > 1:
        made[1 : 2 * len(kept) - 1 : 2] = cv2.addWeighted(kept[:-1], 0.5, kept[1:], 0.5, 0)
    return made
