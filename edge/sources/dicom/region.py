"""Where a DICOM ultrasound image says that its B-mode picture lies (PS3.3, section C.8.5.5 US Region Calibration)."""

import logging
from typing import Any

from pydicom.dataset import Dataset

from edge.sources.base import Rect
from edge.sources.dicom.header import READ_ERRORS

_log = logging.getLogger(__name__)

SPATIAL_FORMAT_2D, DATA_TYPE_TISSUE = 1, 1
BOUNDS = ("RegionLocationMinX0", "RegionLocationMinY0", "RegionLocationMaxX1", "RegionLocationMaxY1")


def ultrasound_region(header: Dataset, size_wh: tuple[int, int]) -> Rect | None:
    """Return the largest 2D region, tissue before all others, clipped to the image; None where there is none.

    Of equal ones the first: where scanners show two images side by side, colour flow is in the second.
    """
    candidates = []
    for region in header.get("SequenceOfUltrasoundRegions") or ():
        try:
            is_2d = region.get("RegionSpatialFormat") == SPATIAL_FORMAT_2D
            is_tissue = region.get("RegionDataType") == DATA_TYPE_TISSUE
            stated = _stated([region.get(keyword) for keyword in BOUNDS])
        except READ_ERRORS:
            continue
        rect = _clipped(stated, size_wh) if stated else None
        if is_2d and stated and rect:
            candidates.append((is_tissue, rect[2] * rect[3], rect, stated))
    if not candidates:
        return None
    _, _, rect, stated = max(candidates, key=lambda candidate: candidate[:2])
    if rect != stated:
        _warn(stated, size_wh)
    return rect


def _stated(bounds: list[Any]) -> Rect | None:
    if not all(isinstance(bound, int) for bound in bounds):
        return None
    left, top, right, bottom = bounds
    return left, top, right + 1 - left, bottom + 1 - top  # both corners belong to the region


def _clipped(rect: Rect, size_wh: tuple[int, int]) -> Rect | None:
    left, top = rect[:2]
    width, height = min(rect[2], size_wh[0] - left), min(rect[3], size_wh[1] - top)
    return (left, top, width, height) if width > 0 and height > 0 and left >= 0 and top >= 0 else None


def _warn(stated: Rect, size_wh: tuple[int, int]) -> None:
    """A region that does not fit was often written for another size of the image: what is left may cut it badly."""
    _log.warning(
        "the file's region of %dx%d at %d,%d does not fit into its image of %dx%d and is clipped; "
        "check what it leaves, or name another ROI",
        *(*stated[2:], *stated[:2], *size_wh),
    )
