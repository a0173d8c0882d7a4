"""The mirrored ring's arithmetic for memory that Python cannot see: slots and addresses, no bytes."""

import dataclasses


@dataclasses.dataclass(slots=True)
class DeviceRing:
    """Where in device memory the last `num_frames` frames lie, each twice, `num_frames` slots apart.

    With T = 3 and frames a, b, c, d pushed, the six slots hold `d b c d b c` and the window is slots 1 to 3, `b c d`
    (as `engines.ring.MirroredRing`, which owns its memory).
    """

    num_frames: int
    frame_bytes: int
    address: int
    """Of the first slot."""
    num_pushed: int = 0

    @property
    def num_bytes(self) -> int:
        """Size of all slots."""
        return 2 * self.clip_bytes

    @property
    def clip_bytes(self) -> int:
        """Size of one window."""
        return self.num_frames * self.frame_bytes

    @property
    def is_full(self) -> bool:
        """Whether T frames have come since the start or the last reset."""
        return self.num_pushed >= self.num_frames

    @property
    def start_slot(self) -> int:
        """First slot of the current window, and the slot that the next frame takes, 0 to T - 1."""
        return self.num_pushed % self.num_frames

    @property
    def next_addresses(self) -> tuple[int, int]:
        """Where the next frame goes: its slot, and the mirror's."""
        first = self.window_address(self.start_slot)
        return first, first + self.clip_bytes

    def window_address(self, start_slot: int) -> int:
        """Return the address of the window that starts at a slot."""
        return self.address + start_slot * self.frame_bytes

    def is_aligned(self, alignment_bytes: int) -> bool:
        """Whether every window's address is a multiple of this."""
        return self.address % alignment_bytes == 0 and self.frame_bytes % alignment_bytes == 0
