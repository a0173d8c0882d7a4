"""The lookup tables of DICOM files: palettes of every width and length, and tables that are empty or damaged."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom.uid as uids
import pytest
from pydicom.dataset import Dataset
from source_files import dataset, noise, play, write_dicom

from edge.errors import SourceError
from edge.sources.dicom.file import DicomFile

GRAY = noise(3, 40, 48)


def _pictures(path: Path) -> np.ndarray:
    return np.array([frame.pixels for frame in play(DicomFile(path))])


def test_empty_rescale_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_dicom(tmp_path / "a.dcm", dataset(GRAY, RescaleSlope=None, RescaleIntercept=None))
    np.testing.assert_array_equal(_pictures(path), GRAY)
    assert caplog.records == []


@pytest.mark.parametrize("keyword", ["VOILUTSequence", "ModalityLUTSequence"])
def test_table_that_is_damaged_is_told_and_not_used(
    tmp_path: Path, keyword: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_dicom(tmp_path / "a.dcm", dataset(GRAY, **{keyword: [Dataset()]}))
    np.testing.assert_array_equal(_pictures(path), GRAY)
    [record] = caplog.records
    assert "is damaged" in record.getMessage()
    assert record.getMessage().endswith("is not used")


RAMP = np.arange(256)
TABLES = (RAMP, 255 - RAMP, RAMP // 2)


def _palette(pixels: np.ndarray, descriptor: list[int], tables: Any, kind: str) -> Dataset:
    ds = dataset(pixels, "PALETTE COLOR")
    for name, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        data = np.asarray(table).astype(kind).tobytes()
        setattr(ds, f"{name}PaletteColorLookupTableDescriptor", descriptor)
        setattr(ds, f"{name}PaletteColorLookupTableData", data + b"\0" * (len(data) % 2))
    return ds


@pytest.mark.parametrize(
    ("num_bits", "kind", "factor"), [(16, "<u2", 257), (16, "<u2", 256), (16, "<u2", 1), (8, "<u2", 1), (8, "u1", 1)]
)
def test_palette_of_every_width_gives_its_colours(tmp_path: Path, num_bits: int, kind: str, factor: int) -> None:
    ds = _palette(GRAY, [256, 0, num_bits], [table * factor for table in TABLES], kind)
    expected = np.stack([table[GRAY] for table in TABLES], axis=-1)
    np.testing.assert_array_equal(_pictures(write_dicom(tmp_path / "a.dcm", ds)), expected)


def test_palette_in_big_endian_gives_its_colours(tmp_path: Path) -> None:
    ds = _palette(GRAY, [256, 0, 16], [(table << 8) + 255 - table for table in TABLES], ">u2")
    ds.file_meta.TransferSyntaxUID = uids.ExplicitVRBigEndian
    expected = np.stack([table[GRAY] for table in TABLES], axis=-1)
    np.testing.assert_array_equal(_pictures(write_dicom(tmp_path / "a.dcm", ds)), expected)


@pytest.mark.parametrize("num_entries", [100, 101])
@pytest.mark.parametrize(("num_bits", "kind", "factor"), [(16, "<u2", 257), (8, "u1", 1)])
def test_palette_goes_on_beyond_its_ends(
    tmp_path: Path, num_entries: int, num_bits: int, kind: str, factor: int
) -> None:
    entries = RAMP[10 : 10 + num_entries]
    ds = _palette(GRAY, [num_entries, 10, num_bits], [entries * factor] * 3, kind)
    expected = np.clip(GRAY, 10, 9 + num_entries)
    np.testing.assert_array_equal(_pictures(write_dicom(tmp_path / "a.dcm", ds))[..., 0], expected)


def test_palette_of_more_than_256_entries_of_a_byte(tmp_path: Path) -> None:
    pixels = np.arange(4096, dtype=np.uint16).reshape(1, 64, 64)
    ds = _palette(pixels, [4096, 0, 8], [np.arange(4096) // 16] * 3, "u1")
    np.testing.assert_array_equal(_pictures(write_dicom(tmp_path / "a.dcm", ds))[..., 1], pixels // 16)


def test_palette_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    ds = _palette(GRAY, [256, 0, 8], [RAMP[:100]] * 3, "u1")
    with pytest.raises(SourceError, match="its lookup tables are damaged"):
        DicomFile(write_dicom(tmp_path / "a.dcm", ds))
