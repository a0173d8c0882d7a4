"""The colours of baseline JPEG in DICOM: what the header, the markers and the components' names say of them."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import JPEGBaseline8Bit
from source_files import dataset, encapsulated, noise, play, write_dicom

from edge.sources.dicom.bombs import is_bomb
from edge.sources.dicom.file import DicomFile
from edge.sources.dicom.jpeg import as_components, segments

ROWS, COLUMNS = np.mgrid[:48, :64]
PICTURE = np.stack([ROWS * 5, COLUMNS * 4, 255 - ROWS * 2], axis=-1).astype(np.uint8)
JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
ADOBE_RGB, ADOBE_YCC = (b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([number]) for number in (0, 1))
SUBSAMPLED, FULL = 1, 0


def _plain(image: Image.Image, mode: str, subsampling: int) -> bytes:
    """Encode without any conversion and with neither of the two markers."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "jpeg", quality=95, subsampling=subsampling, keep_rgb=mode == "RGB")
    encoded = buffer.getvalue()
    cut = [(start, end) for marker, start, end in segments(encoded) if marker in (0xE0, 0xEE)]
    for start, end in reversed(cut):
        encoded = encoded[:start] + encoded[end:]
    return encoded


def _named(encoded: bytes, names: bytes) -> bytes:
    """Give the three components other identifiers, in the frame's header and in the only scan's."""
    changed = bytearray(encoded)
    frame = next(start for marker, start, _ in segments(encoded) if marker == 0xC0)
    scan = encoded.index(b"\xff\xda")
    changed[frame + 10 : frame + 19 : 3] = names
    changed[scan + 5 : scan + 11 : 2] = names
    return bytes(changed)


def _jpeg(components: str, marker: bytes = b"", names: bytes = b"\1\2\3", subsampling: int = FULL) -> bytes:
    encoded = _named(_plain(Image.fromarray(PICTURE), components, subsampling), names)
    return encoded[:2] + marker + encoded[2:]


def _difference(tmp_path: Path, encoded: bytes, photometric: str) -> float:
    ds = encapsulated(dataset(PICTURE[np.newaxis], photometric), JPEGBaseline8Bit, [encoded])
    [frame] = play(DicomFile(write_dicom(tmp_path / "a.dcm", ds)))
    return float(np.abs(frame.pixels.astype(int) - PICTURE).mean())


@pytest.mark.parametrize(
    ("encoded", "photometric"),
    [
        # nothing but the header says what they are
        (_jpeg("RGB"), "RGB"),
        (_jpeg("RGB", names=b"\0\1\2"), "RGB"),
        (_jpeg("YCbCr"), "YBR_FULL"),
        (_jpeg("YCbCr"), "YBR_FULL_422"),
        (_jpeg("YCbCr", subsampling=SUBSAMPLED), "YBR_FULL_422"),
        # the components are called so
        (_jpeg("RGB", names=b"RGB"), "RGB"),
        (_jpeg("RGB", names=b"RGB"), "YBR_FULL_422"),
        (_jpeg("RGB", ADOBE_RGB, b"RGB"), "YBR_FULL_422"),
        # before 2001 the header said what they had been before they were encoded
        (_jpeg("YCbCr", subsampling=SUBSAMPLED), "RGB"),
        (_jpeg("YCbCr", JFIF), "RGB"),
        (_jpeg("YCbCr", ADOBE_YCC), "RGB"),
        # the marker and the header say the same, or the marker says both
        (_jpeg("YCbCr", JFIF), "YBR_FULL_422"),
        (_jpeg("YCbCr", ADOBE_YCC), "YBR_FULL"),
        (_jpeg("YCbCr", ADOBE_YCC, subsampling=SUBSAMPLED), "YBR_FULL_422"),
        (_jpeg("YCbCr", JFIF + ADOBE_YCC), "YBR_FULL_422"),
        (_jpeg("YCbCr", JFIF + ADOBE_YCC), "RGB"),
        (_jpeg("RGB", ADOBE_RGB), "RGB"),
        (_jpeg("RGB", ADOBE_RGB, b"RGB"), "RGB"),
    ],
)
def test_jpeg_colours_come_out(tmp_path: Path, encoded: bytes, photometric: str) -> None:
    assert _difference(tmp_path, encoded, photometric) < 3


def test_jpeg_colours_that_the_header_alone_names_follow_it(tmp_path: Path) -> None:
    assert _difference(tmp_path, _jpeg("YCbCr"), "RGB") > 30


def test_jpeg_components_do_not_change_with_the_markers() -> None:
    encoded = _jpeg("YCbCr", subsampling=SUBSAMPLED)
    as_decoded = Image.open(io.BytesIO(encoded))
    as_decoded.draft("YCbCr", None)
    kept, colours = as_components(encoded[:2] + JFIF + encoded[2:], "YBR_FULL_422")
    assert colours == "YBR_FULL_422"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(kept))), np.asarray(as_decoded))


@pytest.mark.parametrize("content", [b"", b"\xff\xd8", noise(1, 300).tobytes(), b"\xff\xd8\xff\xee\x00\x03A"])
def test_jpeg_without_a_frame_header_is_left_as_it_is(content: bytes) -> None:
    assert as_components(content, "RGB") == (content, "RGB")


def test_jpeg_gray_is_left_as_it_is() -> None:
    buffer = io.BytesIO()
    Image.fromarray(PICTURE[..., 0]).save(buffer, "jpeg")
    assert as_components(buffer.getvalue(), "MONOCHROME2") == (buffer.getvalue(), "MONOCHROME2")


@pytest.mark.parametrize("between", [b"\0\0\0", b"\xff\x00", b"\xff\x01\xff\xd0", b"\xff\xff\xff"])
def test_is_bomb_sees_past_what_decoders_pass_over(between: bytes) -> None:
    encoded = _jpeg("YCbCr", JFIF)
    encoded = encoded[: 2 + len(JFIF)] + between + encoded[2 + len(JFIF) :]
    assert is_bomb(encoded, 100)
    assert not is_bomb(encoded, 64 * 48)
