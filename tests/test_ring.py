"""The mirrored ring against the obvious way: append, drop the oldest, stack."""

import numpy as np
import pytest

from engines.ring import MirroredRing

SHAPE = (1, 4, 8)


def _frame(number: int) -> np.ndarray:
    return np.full(SHAPE, number, np.float32) + np.arange(32, dtype=np.float32).reshape(SHAPE) / 100


@pytest.mark.parametrize("num_frames", [1, 2, 3, 16])
def test_ring_window_equals_the_last_frames_in_order(num_frames: int) -> None:
    ring = MirroredRing(num_frames, SHAPE)
    pushed: list[np.ndarray] = []
    for number in range(5 * num_frames + 3):
        ring.push(_frame(number))
        pushed = [*pushed, _frame(number)][-num_frames:]
        assert ring.is_full == (number + 1 >= num_frames)
        if ring.is_full:
            np.testing.assert_array_equal(ring.window(), np.stack(pushed)[np.newaxis])


def test_ring_docstring_example_holds_d_b_c_d_b_c() -> None:
    ring = MirroredRing(3, (1, 1, 1))
    for letter in "abcd":
        ring.push(np.full((1, 1, 1), ord(letter), np.float32))
    six_slots = np.concatenate([ring.window(0)[0], ring.window(3)[0]]).ravel()
    assert [chr(int(value)) for value in six_slots] == list("dbcdbc")
    assert ring.start_slot == 1
    assert [chr(int(value)) for value in ring.window().ravel()] == list("bcd")


def test_ring_window_is_a_contiguous_view_that_the_next_push_overwrites() -> None:
    ring = MirroredRing(4, SHAPE)
    for number in range(6):
        ring.push(_frame(number))
    window = ring.window()
    assert window.base is not None
    assert window.flags.c_contiguous
    assert np.shares_memory(window, ring.window(0))
    ring.push(_frame(6))
    np.testing.assert_array_equal(window[0, 0], _frame(6))  # it was frame 2: a view, not a copy


def test_ring_every_window_starts_on_a_cache_line_where_a_frame_is_whole_lines() -> None:
    ring = MirroredRing(16, (1, 224, 224))
    addresses = [ring.window(slot).ctypes.data for slot in range(16)]
    assert {address % 64 for address in addresses} == {0}


def test_ring_reset_needs_all_frames_anew() -> None:
    ring = MirroredRing(3, SHAPE)
    for number in range(5):
        ring.push(_frame(number))
    ring.reset()
    assert not ring.is_full
    for number in (10, 11):
        ring.push(_frame(number))
    assert not ring.is_full
    ring.push(_frame(12))
    np.testing.assert_array_equal(ring.window()[0], np.stack([_frame(10), _frame(11), _frame(12)]))


def test_ring_push_copies_so_that_the_caller_may_reuse_its_buffer() -> None:
    ring = MirroredRing(2, SHAPE)
    buffer = _frame(1)
    ring.push(buffer)
    buffer[:] = -1
    ring.push(_frame(2))
    np.testing.assert_array_equal(ring.window()[0, 0], _frame(1))
