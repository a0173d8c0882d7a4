"""The speed of a DICOM cine (PS3.3, sections C.7.6.5 Cine and C.7.6.6 Multi-frame)."""

import itertools
import logging
import math
import statistics
from collections.abc import Callable
from typing import Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import Tag

from edge.sources.stored import DEFAULT_INTERVAL_MS

log = logging.getLogger(__name__)


MIN_INTERVAL_MS, MAX_INTERVAL_MS = 0.1, 3_600_000
"""From the fastest plane-wave imaging to a time lapse; NaN and infinity are outside."""


def _after_first(value: Any) -> list[float]:
    # The vector's first number is the time before the first frame; a vector of one number is no MultiValue.
    return [float(number) for number in value][1:] if isinstance(value, MultiValue) else []


RULES: dict[str, Callable[[Any], list[float]]] = {
    "FrameTime": lambda value: [float(value)],
    "FrameTimeVector": _after_first,
    "CineRate": lambda value: [1000 / float(value)],
    "RecommendedDisplayFrameRate": lambda value: [1000 / float(value)],
}
"""How each attribute states the times between frames in ms, from the most to the least exact."""


class FrameTiming:
    """When each frame of a cine was taken."""

    def __init__(self, header: Dataset, name: str) -> None:
        intervals_ms = _intervals_ms(header, name)
        self.interval_ms = statistics.median(intervals_ms)
        """Nominal time between two frames."""
        self._times_ms = list(itertools.accumulate(intervals_ms, initial=0.0)) if len(intervals_ms) > 1 else []

    def time_ns(self, index: int) -> int | None:
        """Return the time of a frame after the first, or None where a vector of times is too short."""
        if not self._times_ms:
            return round(index * self.interval_ms * 1e6)
        return round(self._times_ms[index] * 1e6) if index < len(self._times_ms) else None


def _intervals_ms(header: Dataset, name: str) -> list[float]:
    for keyword in sorted(RULES, key=lambda keyword: not _is_pointed_at(header, keyword)):
        try:
            value = header.get(keyword)
            intervals_ms = [] if value in (None, "") else RULES[keyword](value)
        except (ValueError, TypeError, ArithmeticError):
            intervals_ms = [math.nan]
        if intervals_ms and all(MIN_INTERVAL_MS <= interval <= MAX_INTERVAL_MS for interval in intervals_ms):
            return intervals_ms
        if intervals_ms:
            log.warning("%r: its %s is no time or rate that a cine can have and is not used", name, keyword)
    return [DEFAULT_INTERVAL_MS]


def _is_pointed_at(header: Dataset, keyword: str) -> bool:
    pointer = header.get("FrameIncrementPointer")
    tags = pointer if isinstance(pointer, MultiValue) else [pointer]
    return Tag(keyword) in tags
