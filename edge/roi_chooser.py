"""Holds a stream's ROI, and finds it again when the image has become another one."""

import logging

from edge.frame import Frame, StoredObject
from edge.roi import RoiFinder, check_inside, clip_to
from edge.sources.base import Rect

_log = logging.getLogger(__name__)

MIN_SAME_OVERLAP = 0.85
"""Share of both that two rectangles must have in common to be taken for the same place."""


ADVICE = "no pictures are published or recorded, for names may stand in it: give --roi"
"""What a full frame, for want of a moving image, means to the daemon's user, and what helps."""


class RoiChooser:
    """Holds the stream's ROI: the user's, the source's own, or the moving image area."""

    def __init__(self, wanted: Rect | str, region: Rect | None, advice: str = ADVICE) -> None:
        self._wanted = wanted
        self._advice = advice
        self._region = region
        self._finder: RoiFinder | None = None
        self._size_wh: tuple[int, int] | None = None
        self._object: StoredObject | None = None
        self._frame_region: Rect | None = None
        self._before: Rect | None = None
        self.roi: Rect | None = None
        self.may_publish = True
        """False where the ROI is the full frame for want of a better one: names may stand in it."""

    def add(self, frame: Frame) -> Rect | None:
        """Look at the next frame; return the ROI, or None while more frames are needed.

        Raises:
            ConfigError: The user's ROI is not inside the image.
        """
        if self._is_other(frame):
            self._restart(frame)
        if self.roi is None and self._finder is not None:
            self.roi = self._finder.add(frame)
            self._tell()
        return self.roi

    def finish(self) -> Rect | None:
        """Choose from what was seen, at the end of a stream too short for a full look."""
        if self.roi is None and self._finder is not None:
            self.roi = self._finder.finish()
            self._tell()
        return self.roi

    def search_again(self, *, only_if_not_found: bool = False) -> bool:
        """Look for the moving image anew, where nobody has said where it is.

        Args:
            only_if_not_found: Do so only if nothing moved when it was looked for.

        Returns:
            Whether it is looked for: `add` returns None for a while.
        """
        if self._finder is None or (only_if_not_found and self.may_publish):
            return False
        self._before, self._finder = self.roi, RoiFinder()
        self.roi = None
        return True

    def _is_other(self, frame: Frame) -> bool:
        return (frame.size_wh, frame.object, frame.region) != (self._size_wh, self._object, self._frame_region)

    def _restart(self, frame: Frame) -> None:
        is_first = self._size_wh is None or frame.object != self._object or frame.region is not None
        region = frame.region or (self._region if frame.object is None else frame.object.region)
        size_wh = self._size_wh = frame.size_wh
        self._object, self._frame_region = frame.object, frame.region
        self.roi, self._finder, self._before, self.may_publish = None, None, None, True
        if not isinstance(self._wanted, str):
            check_inside(self._wanted, size_wh)
            self.roi = self._wanted
        elif self._wanted == "full":
            self.roi = (0, 0, *size_wh)
        elif region is not None and is_first and (inside := clip_to(region, size_wh)) is not None:
            self.roi = inside  # a video in a DICOM file may be smaller than its header says
            _log.info("ROI: %dx%d at %d,%d, what the file's region leaves of the image", *self.roi[2:], *self.roi[:2])
        else:
            self._finder = RoiFinder()

    def _tell(self) -> None:
        if self.roi is None or self._finder is None:
            return
        self.may_publish = self._finder.is_found
        if self._before is not None and self.may_publish and overlap(self._before, self.roi) >= MIN_SAME_OVERLAP:
            self.roi = self._before  # the same place, as well as motion shows it: the clip's scale stays
            return
        if self.may_publish:
            _log.info("ROI: %s", self._finder.reason)
        else:
            _log.warning("ROI: %s; %s", self._finder.reason, self._advice)


def overlap(one: Rect, other: Rect) -> float:
    """Return the area that two rectangles share over the area that they cover: 0 to 1."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    shared = max(0, width) * max(0, height)
    return shared / (one[2] * one[3] + other[2] * other[3] - shared)
