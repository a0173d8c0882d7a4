"""Tells small DICOM files that would fill the memory when they are decoded, before they are."""

import struct
import zlib
from pathlib import Path

from edge.sources.dicom.jpeg import is_frame_header, segments

MAX_SIDE_PX = 2**14
"""FFmpeg does not resize all that is longer."""
MAX_INFLATED_BYTES = 2**29
MAX_VALUE_BYTES = 2**22
"""Of one attribute other than the pixel data; the largest ones in use are lookup tables of 128 KiB."""
_MAX_COMPONENTS = 4
_SLACK_BYTES = 2**16
_CHUNK_BYTES = 2**16


def inflates_too_far(path: Path, offset_bytes: int) -> bool:
    """Whether a deflated data set (PS3.5, section A.5) would become larger than `MAX_INFLATED_BYTES`."""
    inflater, num_bytes = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with path.open("rb") as file:
        file.seek(offset_bytes)
        pending = file.read(_CHUNK_BYTES)
        # After its end stands a null byte where the stream is odd (PS3.5, section A.5); it stays unconsumed for ever.
        while pending and not inflater.eof and num_bytes <= MAX_INFLATED_BYTES:
            try:
                num_bytes += len(inflater.decompress(pending, _CHUNK_BYTES))
            except zlib.error:
                return False
            pending = inflater.unconsumed_tail or file.read(_CHUNK_BYTES)
    return num_bytes > MAX_INFLATED_BYTES


def is_bomb(encoded: bytes, num_pixels: int) -> bool:
    """Whether an encoded image says that it is larger than the file's header.

    Args:
        encoded: One image, which begins with a JPEG or JPEG 2000 marker.
        num_pixels: Rows x Columns.
    """
    stated = _stated_size(encoded)
    if stated is None:
        return False
    height, width, num_components = stated
    return height * width > 2 * num_pixels or num_components > _MAX_COMPONENTS


def _stated_size(encoded: bytes) -> tuple[int, int, int] | None:
    """Return height, width and number of components of a JPEG, JPEG-LS or JPEG 2000 image, where it says so."""
    siz = encoded.find(b"\xff\x4f\xff\x51", 0, _SLACK_BYTES)
    if siz >= 0:
        return _size_of_codestream(encoded[siz + 4 : siz + 42])
    for marker, start, end in segments(encoded):
        if is_frame_header(marker) and end >= start + 10:
            height, width, num_components = struct.unpack_from(">xHHB", encoded, start + 4)
            return height, width, num_components
    return None


def _size_of_codestream(siz: bytes) -> tuple[int, int, int] | None:
    """Read the SIZ segment after its marker (ITU-T T.800, section A.5.1)."""
    if len(siz) < 38:
        return None
    right, bottom, left, top = struct.unpack_from(">4L", siz, 4)
    (num_components,) = struct.unpack_from(">H", siz, 36)
    return max(0, bottom - top), max(0, right - left), num_components
