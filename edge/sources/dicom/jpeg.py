"""JPEG's marker segments, and what the components of a JPEG colour image are.

DICOM's header says so (PS3.5, section 8.2.1), but scanners from before its correction 156 (2001) say RGB of what is
YCbCr, and decoders go by markers that may say something else again. Here all three are put together, once.
"""

import struct
from collections.abc import Iterator

_START_OF_SCAN, _APP0, _APP14 = 0xDA, 0xE0, 0xEE
_WITHOUT_LENGTH = (0x00, 0x01, *range(0xD0, 0xD8))
"""No marker, TEM and RST0 to RST7."""
_NO_TRANSFORM = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
"""Adobe's marker segment that keeps decoders from converting colours."""
_RGB_IDS = (b"RGB", b"rgb")


def segments(encoded: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of each marker segment before the first scan, as far as they are whole.

    Bytes between two segments are passed over, as decoders do.
    """
    position = 2
    while 0 <= (position := encoded.find(b"\xff", position)) <= len(encoded) - 4:
        marker = encoded[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker in _WITHOUT_LENGTH:
            position += 2
            continue
        end = position + 2 + struct.unpack_from(">H", encoded, position + 2)[0]
        if marker == _START_OF_SCAN or end > len(encoded):
            return
        yield marker, position, end
        position = end


def is_frame_header(marker: int) -> bool:
    """Whether it is SOF0 to SOF15, without DHT, JPG and DAC (ITU-T T.81, table B.1), or JPEG-LS's SOF55."""
    return (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7


def as_components(encoded: bytes, stated: str) -> tuple[bytes, str]:
    """Return an image that decoders give the components of, unconverted, and what these are.

    Args:
        encoded: One JPEG image.
        stated: PhotometricInterpretation, which holds where the image does not say otherwise.

    Returns:
        The image, and a PhotometricInterpretation; both as they were where it is no colour image.
    """
    kept, ids, sampling, has_jfif, transform = [encoded[:2], _NO_TRANSFORM], b"", b"", False, None
    last_end = 2
    for marker, start, end in segments(encoded):
        content = encoded[start + 4 : end]
        if marker == _APP0 and content.startswith(b"JFIF\0"):
            has_jfif = True
        elif marker == _APP14 and content.startswith(b"Adobe") and len(content) >= 12:
            transform = content[11]
        else:
            kept.append(encoded[last_end:end])
        if is_frame_header(marker):
            ids, sampling = content[6::3], content[7::3]
        last_end = end
    if len(ids) != 3:
        return encoded, stated
    is_ybr = has_jfif or transform == 1
    is_probably_ybr = is_ybr or (transform is None and len(set(sampling)) > 1)  # nobody subsamples green and blue
    if not is_ybr and ids in _RGB_IDS:
        stated = "RGB"
    elif is_probably_ybr and not stated.startswith("YBR"):
        stated = "YBR_FULL"
    return b"".join([*kept, encoded[last_end:]]), stated
