"""Resizing by area, the way FFmpeg does it: five to ten times as fast as OpenCV where the ratio is not whole."""

import numpy as np

from edge.frame import UInt8Image


class AreaResizer:
    """Resizes image after image, to two pixels or more a side; for one thread, and best for one pair of sizes."""

    def __init__(self) -> None:
        from av import VideoFrame
        from av.video.reformatter import Interpolation, VideoReformatter

        self._new_frame = VideoFrame
        self._frame = VideoFrame(1, 1, "gray")
        self._reformatter = VideoReformatter()
        # The same bits on every processor: the network must see live what it would have been trained on.
        self._how = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.BITEXACT

    def __call__(self, image: UInt8Image, width: int, height: int) -> UInt8Image:
        """Return the mean over the area of each new pixel; along an axis that grows, what lies between two pixels.

        Args:
            image: (H, W) or (H, W, C) uint8, from 1 x 1 on.
            width: Of the new image, in pixels.
            height: Likewise.

        Returns:
            (height, width) or (height, width, C) uint8, a new array.
        """
        if image.ndim == 3:
            return np.stack([self(plane, width, height) for plane in np.moveaxis(image, 2, 0)], axis=2)
        self._hold(image)
        resized = self._reformatter.reformat(self._frame, width, height, interpolation=self._how, threads=1)
        return np.asarray(resized.to_ndarray(), np.uint8)

    def _hold(self, image: UInt8Image) -> None:
        """Copy the image into memory of FFmpeg's own, which is kept: it reads beyond the ends of rows."""
        height, width = image.shape
        if (self._frame.width, self._frame.height) != (width, height):
            self._frame = self._new_frame(width, height, "gray")
        plane = self._frame.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        rows[:height, :width] = image
