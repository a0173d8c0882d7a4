"""Decoding ahead in a thread: order, errors, and who closes what."""

import itertools
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from edge.errors import SourceError
from edge.frame import Frame
from edge.read_ahead import read_ahead


class Recording:
    """Frames, the threads that made them, and the thread that closed them."""

    def __init__(self, number: int, error: Exception | None = None) -> None:
        self._number, self._error = number, error
        self.num_made = 0
        self.threads: set[str] = set()
        self.closed_by: str | None = None

    def frames(self) -> Iterator[Frame]:
        try:
            for index in range(self._number):
                self.num_made += 1
                self.threads.add(threading.current_thread().name)
                yield Frame(np.zeros((2, 2), np.uint8), index, index, 0, 0)
            if self._error:
                raise self._error
        finally:
            self.closed_by = threading.current_thread().name


@pytest.mark.parametrize("number", [0, 1, 3, 4, 5, 100])
def test_read_ahead_gives_all_frames_in_order(number: int) -> None:
    recording = Recording(number)
    assert [frame.index for frame in read_ahead(recording.frames())] == list(range(number))
    assert recording.threads <= {"decode_0"}


def test_read_ahead_raises_the_sources_error_after_its_frames() -> None:
    frames = read_ahead(Recording(7, SourceError("the cable is out")).frames())
    assert [frame.index for frame in itertools.islice(frames, 7)] == list(range(7))
    with pytest.raises(SourceError, match="cable"):
        next(frames)


def test_read_ahead_left_early_closes_the_source_in_its_own_thread() -> None:
    recording = Recording(1000)
    frames = read_ahead(recording.frames())
    next(frames)
    frames.close()
    assert recording.closed_by == "decode_0"
    assert recording.num_made <= 12  # three batches of four: one is played, one waits, one is being decoded
    assert "decode_0" not in {thread.name for thread in threading.enumerate()}
