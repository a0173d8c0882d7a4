"""Times and endings that all stored sources share."""

from collections.abc import Generator

import numpy as np
import pytest

from edge.errors import SourceError
from edge.sources import SourceInfo
from edge.sources.stored import Damage, MediaClock, Picture, StoredSource

MS = 10**6


@pytest.mark.parametrize(
    ("given_ms", "repaired_ms"),
    [
        ([0, 40, 80], [0, 40, 80]),
        ([540, 580, 620], [0, 40, 80]),
        ([-80, -40, 0], [0, 40, 80]),
        ([None, None, None], [0, 40, 80]),
        ([0, None, 80, 120], [0, 40, 80, 120]),
        ([0, 0, 0], [0, 40, 80]),
        ([0, 40, 0, 20, 40], [0, 40, 80, 100, 120]),
        ([0, 40, 400, 440], [0, 40, 400, 440]),
    ],
)
def test_media_clock_given_times_increase_strictly(given_ms: list[int | None], repaired_ms: list[int]) -> None:
    clock = MediaClock(40)
    times_ns = [clock.tick(None if time_ms is None else time_ms * MS) for time_ms in given_ms]
    assert times_ns == [time_ms * MS for time_ms in repaired_ms]


class Scripted(StoredSource):
    """Gives some pictures and reports some damage."""

    def __init__(self, num_pictures: int, damage: str = "") -> None:
        super().__init__(SourceInfo("scripted", 40.0, is_live=False))
        self._num_pictures = num_pictures
        self._damage = damage
        self.num_freed = 0

    def pictures(self, damage: Damage) -> Generator[Picture, None, None]:
        try:
            for _ in range(self._num_pictures):
                yield np.zeros((2, 2), np.uint8), None
            if self._damage:
                damage.notes.append(self._damage)
        finally:
            self.num_freed += 1


def test_frames_second_call_starts_again() -> None:
    source = Scripted(3)
    assert [frame.index for _ in range(2) for frame in source.frames()] == [0, 1, 2, 0, 1, 2]


def test_frames_damage_ends_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert len(list(Scripted(3, "the tape is torn").frames())) == 3
    assert [record.getMessage() for record in caplog.records] == [
        "'scripted' is damaged: the tape is torn; 3 frames played"
    ]


def test_frames_none_is_an_error() -> None:
    with pytest.raises(SourceError, match="'scripted' gives no frame: the tape is torn; check the file"):
        list(Scripted(0, "the tape is torn").frames())


def test_frames_left_early_frees_the_file() -> None:
    source = Scripted(3)
    frames = source.frames()
    next(frames)
    source.close()
    assert list(frames) == []
    assert source.num_freed == 1
