"""Where a DICOM ultrasound image says that its B-mode picture lies (PS3.3, section C.8.5.5 US Region Calibration)."""

from pydicom.dataset import Dataset

from edge.sources.base import Rect
from edge.sources.dicom_header import READ_ERRORS

SPATIAL_FORMAT_2D, DATA_TYPE_TISSUE = 1, 1
BOUNDS = ("RegionLocationMinX0", "RegionLocationMinY0", "RegionLocationMaxX1", "RegionLocationMaxY1")


def ultrasound_region(header: Dataset, size_wh: tuple[int, int]) -> Rect | None:
    """Return the largest 2D region, tissue before all others, clipped to the image; None where there is none."""
    candidates = []
    for region in header.get("SequenceOfUltrasoundRegions") or ():
        rect = _clipped(region, size_wh)
        if rect and region.get("RegionSpatialFormat") == SPATIAL_FORMAT_2D:
            candidates.append((region.get("RegionDataType") == DATA_TYPE_TISSUE, rect[2] * rect[3], rect))
    return max(candidates)[2] if candidates else None


def _clipped(region: Dataset, size_wh: tuple[int, int]) -> Rect | None:
    try:
        bounds = [region.get(keyword) for keyword in BOUNDS]
    except READ_ERRORS:
        return None
    if not all(isinstance(bound, int) for bound in bounds):
        return None
    left, top, right, bottom = bounds
    # Both corners belong to the region.
    width = min(right + 1, size_wh[0]) - left
    height = min(bottom + 1, size_wh[1]) - top
    return (left, top, width, height) if width > 0 and height > 0 and left >= 0 and top >= 0 else None
