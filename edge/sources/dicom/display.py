"""Turns stored DICOM values into the 8-bit picture that a viewer shows (PS3.3, sections C.7.6.3, C.11.1 and C.11.2)."""

import logging
import math
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi

from edge.frame import UInt8Image
from edge.sources.dicom.header import READ_ERRORS

log = logging.getLogger(__name__)

Stored = npt.NDArray[np.integer[Any]]
Values = npt.NDArray[np.float64]


class Display:
    """The way of one file's stored values to the screen: the same for all its frames, and built once.

    Stored values are looked up by their bits, `stored & (2**bits - 1)`, which serves signed and unsigned ones alike.
    """

    def __init__(self, header: Dataset, name: str) -> None:
        self._num_bits = int(header.BitsStored)
        self._table = _table(header, _levels(header), name)

    def __call__(self, stored: Stored, photometric: str) -> UInt8Image:
        """Return (H, W) or (H, W, 3) RGB uint8 for the stored values of the same height and width.

        Raises:
            ValueError: The photometric interpretation of colour values is not known.
        """
        if stored.ndim == 3 and self._num_bits == 8:
            picture = np.ascontiguousarray(stored, dtype=np.uint8)
        else:
            bits = stored.astype(f"u{stored.itemsize}", copy=False)
            picture = np.take(self._table, bits & (2**self._num_bits - 1), axis=0)
        is_ybr = photometric in ("YBR_FULL", "YBR_FULL_422") and picture.ndim == 3  # some call their gray images so
        return _ybr_to_rgb(picture) if is_ybr else picture


def _levels(header: Dataset) -> npt.NDArray[np.int64]:
    """Return the value that each pattern of bits stands for: (2**bits,) int64."""
    num_levels = 2 ** int(header.BitsStored)
    levels = np.arange(num_levels)
    is_negative = (levels >= num_levels // 2) & (header.get("PixelRepresentation") == 1)
    return np.asarray(levels - num_levels * is_negative)


def _table(header: Dataset, levels: npt.NDArray[np.int64], name: str) -> UInt8Image:
    """Return what each level is shown as: (2**bits,) gray or (2**bits, 3) RGB, uint8."""
    photometric = header.PhotometricInterpretation
    if photometric == "PALETTE COLOR":
        return _palette(header, levels)
    if header.SamplesPerPixel == 3:
        return _to_8_bit(_spread(levels))
    shades = _shades(header, _rescaled(header, levels, name), name)
    return _to_8_bit(1 - shades if photometric == "MONOCHROME1" else shades)


def _rescaled(header: Dataset, levels: npt.NDArray[np.int64], name: str) -> Values:
    """Return each level's value after the modality transformation, or the level where that leaves no image."""
    try:
        values = np.asarray(apply_modality_lut(levels, header), np.float64)
        if values.min() < values.max() < math.inf:
            return values
    except READ_ERRORS:
        pass
    log.warning("%r: its RescaleSlope or modality table is damaged or makes all values one and is not used", name)
    return levels.astype(np.float64)


def _palette(header: Dataset, levels: npt.NDArray[np.int64]) -> UInt8Image:
    if "RedPaletteColorLookupTableData" in header:
        colors = np.stack([_primary(header, name, levels) for name in ("Red", "Green", "Blue")], axis=-1)
    else:  # in segments
        colors = apply_color_lut(levels[np.newaxis], header)[0, :, :3]
    # Some writers put 8-bit entries into a table that claims 16.
    return np.asarray(colors >> 8 if colors.max() > 255 else colors, np.uint8)


def _primary(header: Dataset, name: str, levels: npt.NDArray[np.int64]) -> npt.NDArray[np.integer[Any]]:
    """Return what each level has of a primary colour (PS3.3, section C.7.6.3.1.5)."""
    num_entries, first, _ = header[f"{name}PaletteColorLookupTableDescriptor"].value
    data = header[f"{name}PaletteColorLookupTableData"].value
    num_entries = num_entries or 2**16
    _, is_little_endian = header.original_encoding
    kind = ("<u2" if is_little_endian else ">u2") if len(data) >= 2 * num_entries else "u1"  # whatever it claims
    entries = np.frombuffer(data, kind, num_entries)  # and not the byte that makes the length even
    return np.asarray(entries[np.clip(levels - first, 0, num_entries - 1)])


def _shades(header: Dataset, values: Values, name: str) -> Values:
    """Return the brightness, 0 to 1, of values after the modality transformation: VOI table, window or full range."""
    if header.get("VOILUTSequence"):
        try:
            num_bits = header.VOILUTSequence[0].LUTDescriptor[2]
            return np.asarray(apply_voi(values.astype(np.int64), header) / (2**num_bits - 1), np.float64)
        except READ_ERRORS:
            log.warning("%r: its VOILUTSequence is damaged and is not used", name)
    center, width = _first(header.get("WindowCenter")), _first(header.get("WindowWidth"))
    function = header.get("VOILUTFunction", "LINEAR")
    if center is None or width is None:
        return _spread(values)
    if not math.isfinite(center) or not 0 < width < math.inf or (function == "LINEAR" and width < 1):
        log.warning("%r: its WindowCenter and WindowWidth are no window and are not used", name)
        return _spread(values)
    return _windowed(values, center, width, function)


def _windowed(values: Values, center: float, width: float, function: str) -> Values:
    """Return the brightness, 0 to 1, by PS3.3 sections C.11.2.1.2.1 and C.11.2.1.3."""
    if function == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -50, 50))))
    if function == "LINEAR_EXACT":
        return np.asarray(np.clip((values - center) / width + 0.5, 0, 1))
    return np.asarray(np.clip((values - (center - 0.5)) / max(width - 1, 1e-9) + 0.5, 0, 1))


def _spread(values: npt.NDArray[Any]) -> Values:
    """Return the brightness, 0 to 1, when all that the bits can hold is shown."""
    lowest, highest = values.min(), values.max()
    return np.asarray((values - lowest) / max(highest - lowest, 1), np.float64)


def _to_8_bit(shades: Values) -> UInt8Image:
    return np.rint(np.clip(shades, 0, 1) * 255).astype(np.uint8)


def _first(value: Any) -> float | None:
    if isinstance(value, MultiValue):
        value = value[0] if value else None
    return None if value in (None, "") else float(value)


def _ybr_to_rgb(ybr: UInt8Image) -> UInt8Image:
    # OpenCV has the two colour differences the other way round.
    return np.asarray(cv2.cvtColor(ybr[..., [0, 2, 1]], cv2.COLOR_YCrCb2RGB), np.uint8)
