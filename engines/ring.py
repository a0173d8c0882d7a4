"""A ring of frames in host memory whose every window is one contiguous view."""

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]

_ALIGNMENT_BYTES = 64  # a cache line; vector loads of a window's start never straddle one


class MirroredRing:
    """The last `num_frames` frames, each stored twice, `num_frames` slots apart.

    Because of the mirror, the window that ends at the newest frame is always one contiguous block: nothing is copied or
    rolled. With T = 3 and frames a, b, c, d pushed, the six slots hold `d b c d b c` and the window is slots 1 to 3,
    `b c d`.
    """

    def __init__(self, num_frames: int, frame_shape: tuple[int, int, int]) -> None:
        """Allocate once.

        Args:
            num_frames: T, the clip's length.
            frame_shape: (C, H, W) of one frame.
        """
        self.num_frames = num_frames
        self._slots = _aligned_zeros((2 * num_frames, *frame_shape))
        self._num_pushed = 0

    @property
    def is_full(self) -> bool:
        """Whether T frames have come since the start or the last reset."""
        return self._num_pushed >= self.num_frames

    @property
    def start_slot(self) -> int:
        """First slot of the current window, 0 to T - 1."""
        return self._num_pushed % self.num_frames

    def push(self, frame_chw: Float32Array) -> None:
        """Copy one frame (C, H, W) into its two slots, over the oldest."""
        slot = self.start_slot
        self._slots[slot] = frame_chw
        self._slots[slot + self.num_frames] = frame_chw
        self._num_pushed += 1

    def window(self, start_slot: int | None = None) -> Float32Array:
        """Return a view (1, T, C, H, W), oldest frame first, valid until the next push."""
        start = self.start_slot if start_slot is None else start_slot
        return self._slots[np.newaxis, start : start + self.num_frames]

    def reset(self) -> None:
        """Forget all frames; the memory stays."""
        self._num_pushed = 0


def _aligned_zeros(shape: tuple[int, ...]) -> Float32Array:
    num_bytes = 4 * int(np.prod(shape))
    raw = np.zeros(num_bytes + _ALIGNMENT_BYTES, np.uint8)
    offset = -raw.ctypes.data % _ALIGNMENT_BYTES
    return raw[offset : offset + num_bytes].view(np.float32).reshape(shape)
