"""DICOM files: every transfer syntax and kind of pixel, compared with what was written."""

import base64
import logging
import tracemalloc
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pydicom.uid as uids
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import apply_color_lut, convert_color_space, pixel_array
from source_files import as_jpeg, dataset, encapsulated, noise, play, write_dicom, write_movie

from edge.errors import SourceError
from edge.sources.dicom.file import DicomFile

GRAY, COLOR, WIDE = noise(3, 40, 48), noise(3, 40, 48, 3), noise(3, 40, 96).view(np.uint16)
LOSSLESS = {
    "RLE": uids.RLELossless,
    "JPEG-LS": uids.JPEGLSLossless,
    "JPEG 2000": uids.JPEG2000Lossless,
}
# 24 x 32 gray levels 5 * row + 4 * column, encoded by OpenJPH.
HTJ2K = base64.b64decode(
    "/0//UQApQAAAAAAgAAAAGAAAAAAAAAAAAAAAIAAAABgAAAAAAAAAAAABBwEB/1AACAACAAAAAv9SAAwAAgABAAUEBEAB/1wAEyBIUFBQUFBQUFBQ"
    "UFBQSEhI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAI0AAf+TwCXhAId0AMASwBKAkAEHdACqAQd0AMATQBIACPIAgnQA7QozAMAV"
    "EAVIQoigAjACdgAsy7LAAAG+tgDAFVAFaAAAAOeAp6fCdwCUiIiI/vpye/fJ7LgAwCtgFrCqqqr5/inp6enp4noACAAAAAAA/v9xgSe/ZJ79knv2"
    "Sey/AP/Z"
)


def _pictures(path: Path) -> np.ndarray:
    return np.array([frame.pixels for frame in play(DicomFile(path))])


@pytest.mark.parametrize("pixels", [GRAY, COLOR], ids=["gray", "colour"])
@pytest.mark.parametrize(
    "syntax",
    [
        uids.ImplicitVRLittleEndian,
        uids.ExplicitVRLittleEndian,
        uids.DeflatedExplicitVRLittleEndian,
        uids.ExplicitVRBigEndian,
    ],
)
def test_dicom_uncompressed_is_exact(tmp_path: Path, syntax: uids.UID, pixels: np.ndarray) -> None:
    ds = dataset(pixels, "MONOCHROME2" if pixels.ndim == 3 else "RGB")
    ds.file_meta.TransferSyntaxUID = syntax
    np.testing.assert_array_equal(_pictures(write_dicom(tmp_path / "a.dcm", ds)), pixels)


def test_dicom_colour_by_plane_is_exact(tmp_path: Path) -> None:
    ds = dataset(COLOR, "RGB", PlanarConfiguration=1)
    ds.PixelData = COLOR.transpose(0, 3, 1, 2).tobytes()
    np.testing.assert_array_equal(_pictures(write_dicom(tmp_path / "a.dcm", ds)), COLOR)


@pytest.mark.parametrize("syntax", LOSSLESS)
@pytest.mark.parametrize(("pixels", "photometric"), [(GRAY, "MONOCHROME2"), (COLOR, "RGB"), (WIDE, "MONOCHROME2")])
def test_dicom_lossless_is_exact(tmp_path: Path, syntax: str, pixels: np.ndarray, photometric: str) -> None:
    ds = dataset(pixels, photometric)
    ds.compress(LOSSLESS[syntax], generate_instance_uid=False)
    expected = np.rint(pixels * (255 / 65535)) if pixels.dtype == np.uint16 else pixels
    np.testing.assert_array_equal(_pictures(write_dicom(tmp_path / "a.dcm", ds)), expected)


def test_dicom_jpeg_2000_with_colour_transform_is_exact(tmp_path: Path) -> None:
    ds = dataset(COLOR, "RGB")
    ds.PhotometricInterpretation = "YBR_RCT"
    ds.compress(uids.JPEG2000Lossless, generate_instance_uid=False)
    assert ds.PhotometricInterpretation == "YBR_RCT"
    np.testing.assert_array_equal(_pictures(write_dicom(tmp_path / "a.dcm", ds)), COLOR)


@pytest.mark.parametrize("process", ["JPEGLosslessProcess14", "JPEGLosslessProcess14_1"])
def test_dicom_lossless_jpeg_is_exact(tmp_path: Path, process: str) -> None:
    plain = write_dicom(tmp_path / "plain.dcm", dataset(noise(3, 64, 48, 3), "RGB"))
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(plain))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, process)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(tmp_path / "lossless.dcm"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    np.testing.assert_array_equal(_pictures(tmp_path / "lossless.dcm"), _pictures(plain))


def test_dicom_htj2k_is_exact(tmp_path: Path) -> None:
    pytest.importorskip("pylibjpeg", reason="pydicom finds OpenJPEG's HTJ2K decoder through pylibjpeg")
    expected = np.add.outer(5 * np.arange(24), 4 * np.arange(32)).astype(np.uint8)
    ds = encapsulated(dataset(expected[np.newaxis]), uids.HTJ2KLossless, [HTJ2K])
    np.testing.assert_array_equal(_pictures(write_dicom(tmp_path / "a.dcm", ds)), expected[np.newaxis])


@pytest.mark.parametrize("photometric", ["YBR_FULL", "YBR_FULL_422"])
def test_dicom_baseline_jpeg_colours_are_near(tmp_path: Path, photometric: str) -> None:
    rows, columns = np.mgrid[:48, :64]
    picture = np.stack([rows * 5, columns * 4, 255 - rows * 2], axis=-1).astype(np.uint8)[np.newaxis]
    ds = as_jpeg(dataset(picture, photometric), picture, "RGB")
    difference = np.abs(_pictures(write_dicom(tmp_path / "a.dcm", ds)).astype(int) - picture)
    assert difference.mean() < 2
    assert difference.max() < 12


def test_dicom_uncompressed_ybr_is_what_pydicom_shows(tmp_path: Path) -> None:
    expected = convert_color_space(COLOR, "YBR_FULL", "RGB")
    path = write_dicom(tmp_path / "a.dcm", dataset(COLOR, "YBR_FULL"))
    assert np.abs(_pictures(path).astype(int) - expected).max() <= 1


def test_dicom_gray_image_that_calls_itself_ybr_is_shown_as_it_is(tmp_path: Path) -> None:
    pixels = noise(2, 8, 8)
    shown = play(DicomFile(write_dicom(tmp_path / "gray.dcm", dataset(pixels, "YBR_FULL"))))
    assert [frame.pixels.tolist() for frame in shown] == pixels.tolist()


def test_dicom_more_bits_stored_than_allocated_is_refused(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "bits.dcm", dataset(noise(2, 8, 8), BitsStored=12))
    with pytest.raises(SourceError, match="BitsStored 12 and BitsAllocated 8"):
        DicomFile(path)


def test_dicom_uncompressed_ybr_422_is_what_pydicom_shows(tmp_path: Path) -> None:
    path = Path(get_testdata_file("SC_ybr_full_422_uncompressed.dcm"))
    assert np.abs(_pictures(path)[0].astype(int) - pixel_array(path)).max() <= 1
    # The same tag over data of which the subsampling was undone.
    expected = convert_color_space(COLOR, "YBR_FULL", "RGB")
    undone = write_dicom(tmp_path / "a.dcm", dataset(COLOR, "YBR_FULL_422"))
    assert np.abs(_pictures(undone).astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    "name",
    [
        "examples_rgb_color.dcm",
        "examples_jpeg2k.dcm",
        "examples_ybr_color.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "SC_rgb_dcmtk_+eb+cr.dcm",
        "SC_rgb_dcmtk_+eb+cy+n2.dcm",
        "SC_rgb_dcmtk_+eb+cy+s4.dcm",
        "SC_rgb_gdcm_KY.dcm",
        "SC_rgb_jls_lossy_line.dcm",
        "SC_rgb_rle_2frame.dcm",
        "SC_rgb_small_odd_jpeg.dcm",
        "SC_rgb_small_odd_big_endian.dcm",
    ],
)
def test_dicom_colour_of_other_writers_is_what_pydicom_shows(name: str) -> None:
    path = Path(get_testdata_file(name))
    expected = pixel_array(path)
    pictures = _pictures(path)
    assert np.abs(pictures.astype(int) - expected.reshape(pictures.shape)).max() <= 1


@pytest.mark.parametrize(
    "variant", ["implicit", "bigendian", "expb", "RLE", "jp2klossless", "jpeg_ls_lossless", "padded"]
)
def test_dicom_16_bit_signed_variants_are_equal(variant: str, caplog: pytest.LogCaptureFixture) -> None:
    expected = _pictures(Path(get_testdata_file("MR_small.dcm")))
    assert len(np.unique(expected)) > 100
    np.testing.assert_array_equal(_pictures(Path(get_testdata_file(f"MR_small_{variant}.dcm"))), expected)
    assert caplog.records == []


def test_dicom_palette_is_what_pydicom_shows() -> None:
    path = Path(get_testdata_file("examples_palette.dcm"))
    expected = apply_color_lut(pixel_array(path), dcmread(path)) >> 8
    np.testing.assert_array_equal(_pictures(path)[0], expected)


STEPS = np.array([[[0, 64, 128, 191, 255]]], np.uint8)
SIGNED = np.array([[[-2048, -1024, 0, 1023, 2047]]], np.int16)


@pytest.mark.parametrize(
    ("pixels", "tags", "expected"),
    [
        (STEPS, {}, [0, 64, 128, 191, 255]),
        (STEPS, {"PhotometricInterpretation": "MONOCHROME1"}, [255, 191, 127, 64, 0]),
        (STEPS, {"WindowCenter": 128, "WindowWidth": 256}, [0, 64, 128, 191, 255]),
        (STEPS, {"WindowCenter": [96, 1], "WindowWidth": [65, 1]}, [0, 2, 255, 255, 255]),
        (STEPS, {"WindowCenter": 128, "WindowWidth": 128, "VOILUTFunction": "LINEAR_EXACT"}, [0, 0, 128, 253, 255]),
        (STEPS, {"WindowCenter": 128, "WindowWidth": 128, "VOILUTFunction": "SIGMOID"}, [5, 30, 128, 224, 250]),
        (STEPS // 16, {"BitsStored": 4, "HighBit": 3}, [0, 68, 136, 187, 255]),
        (SIGNED, {"BitsStored": 12, "HighBit": 11}, [0, 64, 128, 191, 255]),
        (SIGNED, {"WindowCenter": 0, "WindowWidth": 2049}, [0, 0, 128, 255, 255]),
        (SIGNED, {"BitsStored": 12, "HighBit": 11, "RescaleSlope": -1, "RescaleIntercept": 0}, [255, 191, 127, 64, 0]),
        ((SIGNED + 2048).astype(np.uint16), {"BitsStored": 12, "HighBit": 11}, [0, 64, 128, 191, 255]),
        (
            SIGNED,
            {"RescaleSlope": 2, "RescaleIntercept": 100, "WindowCenter": 100, "WindowWidth": 8193},
            [0, 64, 128, 191, 255],
        ),
    ],
)
def test_dicom_gray_levels_are_shown_by_the_standard(
    tmp_path: Path, pixels: np.ndarray, tags: dict[str, Any], expected: list[int]
) -> None:
    path = write_dicom(tmp_path / "a.dcm", dataset(pixels, **tags))
    np.testing.assert_allclose(_pictures(path)[0, 0], expected, atol=1)


def test_dicom_voi_table_is_applied(tmp_path: Path) -> None:
    item = Dataset()
    item.LUTDescriptor = [256, 0, 16]
    item.LUTData = np.arange(65535, -1, -257, np.uint16).tobytes()
    path = write_dicom(tmp_path / "a.dcm", dataset(STEPS, VOILUTSequence=[item], WindowCenter=1, WindowWidth=1))
    np.testing.assert_allclose(_pictures(path)[0, 0], [255, 191, 127, 64, 0], atol=1)


def test_dicom_window_without_width_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_dicom(tmp_path / "a.dcm", dataset(STEPS, WindowCenter=128, WindowWidth=0))
    np.testing.assert_array_equal(_pictures(path)[0, 0], STEPS[0, 0])
    assert "WindowCenter and WindowWidth are no window" in caplog.text


@pytest.mark.parametrize("slope", ["0", "nan"])
def test_dicom_rescale_that_leaves_no_image_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, slope: str
) -> None:
    ds = dataset(STEPS, RescaleIntercept="0")
    ds.add_new("RescaleSlope", "LO", slope)  # pydicom writes no decimal string that is no number
    ds["RescaleSlope"].VR = "DS"
    path = write_dicom(tmp_path / "a.dcm", ds)
    np.testing.assert_array_equal(_pictures(path)[0, 0], STEPS[0, 0])
    assert "RescaleSlope" in caplog.text


def test_dicom_frames_in_fragments_are_joined(tmp_path: Path) -> None:
    ds = dataset(COLOR, "RGB")
    ds.compress(uids.JPEG2000Lossless, generate_instance_uid=False)
    images = list(generate_frames(ds.PixelData, number_of_frames=3))
    for has_bot in (True, False):
        ds.PixelData = encapsulate(images, fragments_per_frame=4, has_bot=has_bot)
        np.testing.assert_array_equal(_pictures(write_dicom(tmp_path / "a.dcm", ds)), COLOR)


@pytest.mark.parametrize(
    ("codec", "suffix", "syntax"),
    [
        ("libx264", ".mp4", uids.MPEG4HP41),
        ("libx264", ".ts", uids.MPEG4HP41BD),
        ("mpeg2video", ".mpeg", uids.MPEG2MPML),
        ("mpeg2video", ".m2v", uids.MPEG2MPHL),
        ("libx265", ".ts", uids.HEVCMP51),
    ],
)
def test_dicom_video_stream_is_played(tmp_path: Path, codec: str, suffix: str, syntax: uids.UID) -> None:
    rows, columns = np.mgrid[:64, :96]
    pixels = np.array([np.stack([columns * 2, 0 * rows + 9 * n, rows * 3], axis=-1) for n in range(10)], np.uint8)
    stream = write_movie(tmp_path / f"a{suffix}", pixels, codec=codec).read_bytes()
    ds = encapsulated(dataset(pixels, "YBR_PARTIAL_420", FrameTime=50), syntax, [stream], has_bot=False)
    frames = play(DicomFile(write_dicom(tmp_path / "a.dcm", ds)))
    assert len(frames) == 10
    assert frames[9].t_media_ns == 450 * 10**6
    assert np.abs(np.array([frame.rgb() for frame in frames]).astype(int) - pixels).mean() < 8


def test_dicom_memory_does_not_grow_with_the_cine(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "long.dcm", dataset(noise(200, 200, 200)))
    tracemalloc.start()
    for _ in DicomFile(path).frames():
        pass
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 2_000_000  # of 8,000,000 in the file


def test_dicom_lossless_jpeg_damage_stays_off_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.dcm"
    content = bytearray(Path(get_testdata_file("SC_rgb_jpeg_gdcm.dcm")).read_bytes())
    content[len(content) - 900 : len(content) - 100] = noise(1, 800).tobytes()
    path.write_bytes(content)
    with pytest.raises(SourceError):
        play(DicomFile(path))
    assert capfd.readouterr().err == ""
    assert logging.getLogger("pydicom").level == logging.CRITICAL
