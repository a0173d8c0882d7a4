"""Small DICOM files that would fill the memory: refused, left out, or cut short, without doing so."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from edge.errors import SourceError
from edge.sources.base import MAX_IMAGE_PX
from edge.sources.dicom.bombs import MAX_INFLATED_BYTES, is_bomb
from edge.sources.dicom.file import DicomFile
from edge.sources.stored import Damage
from tests.source_files import as_jpeg, dataset, encapsulated, noise, play, write_dicom


def _jpeg(size_wh: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size_wh).save(buffer, "jpeg")
    return buffer.getvalue()


def _jpeg_2000(size_wh: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size_wh).save(buffer, "jpeg2000", no_jp2=True)
    return buffer.getvalue()


@pytest.mark.slow
def test_deflated_file_that_inflates_too_far_is_refused(tmp_path: Path) -> None:
    ds = dataset(noise(1, 8, 8))
    path = write_dicom(tmp_path / "plain.dcm", ds)
    meta_end = 144 + pydicom.filereader.read_file_meta_info(path).FileMetaInformationGroupLength
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    meta = write_dicom(tmp_path / "deflated.dcm", ds).read_bytes()
    meta_end = 144 + pydicom.filereader.read_file_meta_info(tmp_path / "deflated.dcm").FileMetaInformationGroupLength
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    zeros = bytes(2**24)
    bomb = b"".join(deflater.compress(zeros) for _ in range(MAX_INFLATED_BYTES // len(zeros) + 1)) + deflater.flush()
    assert len(bomb) < 2**20
    (tmp_path / "bomb.dcm").write_bytes(meta[:meta_end] + bomb)

    with pytest.raises(SourceError, match="would become larger than 512 MiB"):
        DicomFile(tmp_path / "bomb.dcm")
    assert len(play(DicomFile(tmp_path / "deflated.dcm"))) == 1


@pytest.mark.parametrize("num_bytes_behind", [0, 1, 100_000])
def test_deflated_file_ends_where_its_stream_ends(tmp_path: Path, num_bytes_behind: int) -> None:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    (tmp_path / "stream").write_bytes(deflater.compress(bytes(200_000)) + deflater.flush() + bytes(num_bytes_behind))
    program = (
        "import sys; from pathlib import Path; from edge.sources.dicom.bombs import inflates_too_far; "
        "sys.exit(inflates_too_far(Path(sys.argv[1]), 0))"
    )
    # More than one chunk, so that something stays unconsumed; in its own process, for it guards against a hang.
    assert subprocess.run([sys.executable, "-c", program, tmp_path / "stream"], timeout=30, check=False).returncode == 0


def test_image_that_is_too_large_is_refused(tmp_path: Path) -> None:
    ds = dataset(noise(1, 8, 8))
    ds.Rows = ds.Columns = 65535
    with pytest.raises(SourceError, match=f"65535 x 65535 pixels; allowed are {MAX_IMAGE_PX}"):
        DicomFile(write_dicom(tmp_path / "large.dcm", ds))


def test_image_that_is_too_long_is_refused(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "line.dcm", dataset(noise(1, 1, 16_385)))
    with pytest.raises(SourceError, match="16384 a side"):
        DicomFile(path)


def test_images_that_cannot_be_decoded_are_not_tried_without_end(tmp_path: Path) -> None:
    good, bad = _jpeg((8, 8)), b"\xff\xd8\xff\xdb" + bytes(60)
    ds = encapsulated(dataset(noise(1, 8, 8)), JPEGBaseline8Bit, [good, *[bad] * 99, good, *[bad] * 101, good])
    source = DicomFile(write_dicom(tmp_path / "many.dcm", ds))
    damage = Damage()
    assert len(list(source.pictures(damage))) == 2
    assert "after 100 images in a row" in str(damage)


@pytest.mark.parametrize(("syntax", "encode"), [(JPEGBaseline8Bit, _jpeg), (JPEG2000Lossless, _jpeg_2000)])
def test_image_larger_inside_than_its_header_says_is_left_out(tmp_path: Path, syntax, encode) -> None:  # type: ignore[no-untyped-def]
    pixels = np.zeros((2, 64, 64), np.uint8)
    ds = encapsulated(dataset(pixels), syntax, [encode((64, 64)), encode((2000, 2000))])

    assert len(play(DicomFile(write_dicom(tmp_path / "bomb.dcm", ds)))) == 1


PEAK = """
import resource, sys
from pathlib import Path
from edge.sources.dicom.file import DicomFile
number = sum(frame.pixels.shape == (300, 300) for frame in DicomFile(Path(sys.argv[1])).frames())
print(number, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
"""Plays a file and tells how many images it gave, and the process's largest memory in MiB."""


def _played(path: Path) -> tuple[int, int]:
    done = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True)
    number, peak_mib = done.stdout.split()
    return int(number), int(peak_mib)


def test_run_lengths_that_become_too_long_are_followed_to_the_images_end_alone(tmp_path: Path) -> None:
    pixels = np.zeros((2, 300, 300), np.uint8)
    header = struct.pack("<16L", 1, 64, *[0] * 14)
    runs = header + bytes((129, 0)) * (300 * 300 // 128) + bytes((257 - 300 * 300 % 128, 0))
    bomb = header + bytes((129, 0)) * 2**22  # half a GiB
    plain = write_dicom(tmp_path / "plain.dcm", encapsulated(dataset(pixels), RLELossless, [runs, runs]))
    bombed = write_dicom(tmp_path / "bomb.dcm", encapsulated(dataset(pixels), RLELossless, [runs, bomb]))

    number, peak_mib = _played(plain)
    number_bombed, peak_bombed_mib = _played(bombed)

    assert number == number_bombed == 2
    assert peak_bombed_mib < peak_mib + 128


def test_attribute_of_many_megabytes_is_not_read(tmp_path: Path) -> None:
    ds = dataset(noise(1, 8, 8))
    ds.add_new("WindowCenter", "DS", "1" * 16)
    path = write_dicom(tmp_path / "plain.dcm", ds)
    data = path.read_bytes()
    # WindowCenter becomes 8 MiB of text, in an element of VR UN, whose length has four bytes
    head = struct.pack("<HH2sH", 0x0028, 0x1050, b"DS", 16)
    assert data.count(head) == 1
    long_head = struct.pack("<HH2sHL", 0x0028, 0x1050, b"UN", 0, 2**23)
    path.write_bytes(data.replace(head + b"1" * 16, long_head + b"1" * 2**23))

    assert len(play(DicomFile(path))) == 1


@pytest.mark.parametrize("has_fill_bytes", [False, True])
def test_is_bomb_jpeg_of_the_stated_size_is_none(has_fill_bytes: bool) -> None:
    encoded = _jpeg((64, 48))
    if has_fill_bytes:
        encoded = encoded[:2] + b"\xff\xff" + encoded[2:]
    assert not is_bomb(encoded, 64 * 48)
    assert is_bomb(encoded, 16 * 16)


def test_is_bomb_bytes_without_a_marker_are_none() -> None:
    assert not is_bomb(noise(1, 100).tobytes(), 1)


def test_files_that_are_no_bombs_play_as_before(tmp_path: Path) -> None:
    pixels = noise(3, 32, 32)
    assert len(play(DicomFile(write_dicom(tmp_path / "a.dcm", as_jpeg(dataset(pixels), pixels, "L"))))) == 3
    ds = dataset(pixels)
    assert ds.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert len(play(DicomFile(write_dicom(tmp_path / "b.dcm", ds)))) == 3
