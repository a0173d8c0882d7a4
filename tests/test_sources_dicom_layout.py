"""How DICOM's pixels lie: high bits, planes, odd lengths, and what writers leave out or leave over of it."""

from pathlib import Path

import gdcm
import numpy as np
import pydicom
import pydicom.uid as uids
import pytest
from pydicom.dataset import Dataset
from source_files import as_jpeg, dataset, noise, play, write_dicom

from edge.sources.dicom.file import DicomFile

COLOR = noise(3, 40, 48, 3)
VALUES = np.array([[[0, 1, 1000, 2048, 4095]]])
SHADES = [0, 0, 62, 128, 255]


def _pictures(path: Path) -> np.ndarray:
    return np.array([frame.pixels for frame in play(DicomFile(path))])


def _placed(values: np.ndarray, high_bit: int, *, is_signed: bool = False) -> Dataset:
    """Put values of 12 bits into 16 so that they end at `high_bit`, with all other bits set, as an overlay may be."""
    num_below = high_bit - 11
    above = ~((1 << (high_bit + 1)) - 1)
    placed = (((values & 4095) << num_below) | ((1 << num_below) - 1) | above) & 0xFFFF
    pixels = placed.astype(np.uint16)
    return dataset(pixels.view(np.int16) if is_signed else pixels, BitsStored=12, HighBit=high_bit)


@pytest.mark.parametrize("syntax", [uids.ExplicitVRLittleEndian, uids.RLELossless])
@pytest.mark.parametrize("high_bit", [11, 12, 15])
def test_high_bit_above_the_stored_bits_is_heeded(tmp_path: Path, high_bit: int, syntax: uids.UID) -> None:
    ds = _placed(VALUES, high_bit)
    if syntax.is_encapsulated:
        ds.BitsStored, ds.HighBit = 16, 15  # for the encoder
        ds.compress(syntax, generate_instance_uid=False)
        ds.BitsStored, ds.HighBit = 12, high_bit
    assert _pictures(write_dicom(tmp_path / "a.dcm", ds))[0, 0].tolist() == SHADES


@pytest.mark.parametrize("high_bit", [11, 14, 15])
def test_high_bit_above_signed_bits_is_heeded(tmp_path: Path, high_bit: int) -> None:
    ds = _placed(VALUES - 2048, high_bit, is_signed=True)
    assert _pictures(write_dicom(tmp_path / "a.dcm", ds))[0, 0].tolist() == SHADES


def test_high_bit_of_a_codec_that_encodes_values_alone_is_not_heeded(tmp_path: Path) -> None:
    ds = dataset(VALUES.astype(np.uint16).repeat(40, axis=1).repeat(8, axis=2), BitsStored=12, HighBit=11)
    ds.compress(uids.JPEG2000Lossless, generate_instance_uid=False)
    ds.HighBit = 15
    assert _pictures(write_dicom(tmp_path / "a.dcm", ds))[0, 0, ::8].tolist() == SHADES


@pytest.mark.parametrize("high_bit", [3, 16])
def test_high_bit_that_cannot_be_is_told(tmp_path: Path, high_bit: int, caplog: pytest.LogCaptureFixture) -> None:
    ds = dataset(VALUES.astype(np.uint16), BitsStored=12, HighBit=high_bit)
    assert _pictures(write_dicom(tmp_path / "a.dcm", ds))[0, 0].tolist() == SHADES
    told = [record.getMessage() for record in caplog.records]
    assert told == ["'a.dcm': its HighBit leaves no room for BitsStored and is not used"]


@pytest.mark.parametrize("syntax", [uids.JPEG2000Lossless, uids.JPEGLSLossless, uids.RLELossless])
def test_planar_configuration_of_an_encoded_image_changes_nothing(tmp_path: Path, syntax: uids.UID) -> None:
    ds = dataset(COLOR, "RGB")
    ds.compress(syntax, generate_instance_uid=False)
    for planar in (0, 1, None):
        ds.PlanarConfiguration = planar
        np.testing.assert_array_equal(_pictures(write_dicom(tmp_path / "a.dcm", ds)), COLOR)


def test_planar_configuration_of_a_baseline_jpeg_changes_nothing(tmp_path: Path) -> None:
    ds = as_jpeg(dataset(COLOR, "YBR_FULL_422"), COLOR, "RGB")
    expected = _pictures(write_dicom(tmp_path / "a.dcm", ds))
    ds.PlanarConfiguration = 1
    np.testing.assert_array_equal(_pictures(write_dicom(tmp_path / "b.dcm", ds)), expected)


def test_planar_configuration_of_a_lossless_jpeg_changes_nothing(tmp_path: Path) -> None:
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(write_dicom(tmp_path / "plain.dcm", dataset(COLOR, "RGB"))))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(tmp_path / "lossless.dcm"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    ds = pydicom.dcmread(tmp_path / "lossless.dcm")
    ds.PlanarConfiguration = 1
    np.testing.assert_array_equal(_pictures(write_dicom(tmp_path / "a.dcm", ds)), COLOR)


@pytest.mark.parametrize("keyword", ["PlanarConfiguration", "PixelRepresentation", "HighBit", "NumberOfFrames"])
@pytest.mark.parametrize("is_empty", [False, True])
def test_attribute_that_goes_without_saying_may_be_missing(tmp_path: Path, keyword: str, is_empty: bool) -> None:
    ds = dataset(COLOR[:1], "RGB")
    delattr(ds, keyword)
    if is_empty:
        setattr(ds, keyword, None)
    np.testing.assert_array_equal(_pictures(write_dicom(tmp_path / "a.dcm", ds)), COLOR[:1])


@pytest.mark.parametrize("is_right", [False, True])
def test_extended_offset_table_is_passed_over(tmp_path: Path, is_right: bool) -> None:
    ds = dataset(COLOR, "RGB")
    ds.compress(uids.JPEG2000Lossless, generate_instance_uid=False, encapsulate_ext=True)
    if not is_right:
        ds.ExtendedOffsetTable = ds.ExtendedOffsetTable[::-1]
    np.testing.assert_array_equal(_pictures(write_dicom(tmp_path / "a.dcm", ds)), COLOR)


def test_frames_of_an_odd_number_of_bytes_follow_each_other(tmp_path: Path) -> None:
    pixels = noise(3, 5, 7)
    for syntax in (uids.ImplicitVRLittleEndian, uids.ExplicitVRLittleEndian, uids.ExplicitVRBigEndian):
        ds = dataset(pixels)
        ds.file_meta.TransferSyntaxUID = syntax
        np.testing.assert_array_equal(_pictures(write_dicom(tmp_path / "a.dcm", ds)), pixels)
