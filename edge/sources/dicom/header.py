"""Reads what a DICOM file says of its images, and finds its pixel data without reading them."""

import dataclasses
import io
import logging
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import pydicom
import pydicom.config
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from edge.errors import SourceError
from edge.sources.dicom.bombs import MAX_INFLATED_BYTES, MAX_VALUE_BYTES, inflates_too_far

# What the libraries say of a file may quote patient data; edge.sources says in its own words what matters.
warnings.filterwarnings("ignore", module="pydicom")
for _library in ("pydicom", "pylibjpeg", "openjpeg", "jpeg_ls"):
    logging.getLogger(_library).setLevel(logging.CRITICAL)
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

# Only these are read: what is never read is never shown, and a broken element elsewhere does no harm.
KEYWORDS = [
    "SOPClassUID", "SOPInstanceUID", "NumberOfFrames", "FrameIncrementPointer", "FrameTime", "FrameTimeVector",
    "CineRate", "RecommendedDisplayFrameRate", "SequenceOfUltrasoundRegions", "SamplesPerPixel",
    "PhotometricInterpretation", "PlanarConfiguration", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation",
    "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence", "RescaleIntercept", "RescaleSlope",
    "ModalityLUTSequence", "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData", "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData", "SegmentedBluePaletteColorLookupTableData",
]  # fmt: skip

PIXEL_DATA = (0x7FE0, 0x0010)
UNDEFINED_LENGTH = 0xFFFFFFFF

READ_ERRORS = (
    InvalidDicomError, BytesLengthException, EOFError, OSError, ValueError, TypeError, KeyError, AttributeError,
    IndexError, NotImplementedError, RecursionError, struct.error, zlib.error,
)  # fmt: skip
"""What pydicom raises on damaged input."""


@dataclasses.dataclass(frozen=True, slots=True)
class DicomImage:
    """The header of a DICOM image, and where its pixel data lies."""

    path: Path
    header: Dataset
    transfer_syntax: UID
    pixel_vr: str
    """OB or OW; empty where the transfer syntax does not say."""
    offset_bytes: int
    """Position of the pixel data's value in what `open_pixels` opens."""
    length_bytes: int | None
    """Length of the pixel data as far as it is there; None where it is encapsulated."""

    def open_pixels(self) -> BinaryIO:
        """Open the pixel data, positioned at the start of its value."""
        if self.transfer_syntax == DeflatedExplicitVRLittleEndian:
            file: BinaryIO = io.BytesIO(pydicom.dcmread(self.path).PixelData)
        else:
            file = self.path.open("rb")
        file.seek(self.offset_bytes)
        return file


def read_image(path: Path) -> DicomImage:
    """Read the header of a DICOM file that holds an image.

    Raises:
        SourceError: It is not DICOM, its header is damaged, or it holds no image.
        OSError: It cannot be opened.
    """
    _check_inflation(path)
    with path.open("rb") as file:
        header = _read_header(file, path.name)
        transfer_syntax = _transfer_syntax(header, path.name)
        if transfer_syntax == DeflatedExplicitVRLittleEndian:
            return _deflated_image(path, header)
        element = _pixel_element(file, transfer_syntax)
        if element is None:
            raise SourceError(f"{path.name!r} {_what_it_is(header)}; give a DICOM image or cine")
        num_bytes_left = path.stat().st_size - file.tell()
        vr, length = element
        return DicomImage(
            path,
            header,
            transfer_syntax,
            vr,
            offset_bytes=file.tell(),
            length_bytes=None if length == UNDEFINED_LENGTH else min(length, num_bytes_left),
        )


def _check_inflation(path: Path) -> None:
    try:
        meta = read_file_meta_info(path)
        if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
            return
        # preamble, prefix and the group length's own element stand before the rest of the group (PS3.10, section 7.1)
        offset_bytes = 128 + 4 + 12 + int(meta.get("FileMetaInformationGroupLength") or 0)
    except READ_ERRORS:  # which `_read_header` tells
        return
    if inflates_too_far(path, offset_bytes):
        raise SourceError(
            f"{path.name!r} is compressed and would become larger than {MAX_INFLATED_BYTES // 2**20} MiB; "
            "give it with another transfer syntax"
        )


def _read_header(file: BinaryIO, name: str) -> Dataset:
    try:
        try:
            header = _dcmread(file)
        except InvalidDicomError:
            # Written without the preamble, as before 1995 and by some tools since.
            file.seek(0)
            header = _dcmread(file, force=True)
        _drop_unreadable(header)
    except READ_ERRORS as exc:
        raise SourceError(f"{name!r} is no DICOM file, or its header is damaged or cut off; give another file") from exc
    if "Rows" not in header and not _sop_class(header):
        raise SourceError(f"{name!r} is no DICOM file: it has neither the preamble nor a SOP class; give another file")
    return header


def _dcmread(file: BinaryIO, *, force: bool = False) -> Dataset:
    return pydicom.dcmread(
        file, stop_before_pixels=True, specific_tags=KEYWORDS, defer_size=MAX_VALUE_BYTES, force=force
    )


def _drop_unreadable(header: Dataset) -> None:
    """Read the value of each element, which pydicom leaves to the first use, and drop what cannot be read or is empty.

    Values that were left in the file for their size are dropped too: none of these attributes has one.
    """
    for keyword in KEYWORDS:
        try:
            element: Any = header.get_item(keyword)
            is_left_out = isinstance(element, RawDataElement) and element.length and not element.value
            if is_left_out or header.get(keyword, "") in (None, ""):
                header.pop(keyword, None)
        except READ_ERRORS:
            del header[keyword]


def _transfer_syntax(header: Dataset, name: str) -> UID:
    is_implicit, _ = header.original_encoding
    written = header.file_meta.get("TransferSyntaxUID") if hasattr(header, "file_meta") else None
    uid = UID(str(written)) if written else ImplicitVRLittleEndian if is_implicit else ExplicitVRLittleEndian
    if not uid.is_valid or not uid.is_transfer_syntax:
        # Other text is not repeated: in a damaged header it runs over into the next element's, say the patient's name.
        got = f"the transfer syntax {uid}" if uid.is_valid else "a transfer syntax"
        raise SourceError(f"{name!r} has {got} that is private or not known; convert it to an uncompressed one")
    return uid


def _pixel_element(file: BinaryIO, transfer_syntax: UID) -> tuple[str, int] | None:
    """Read the head of the pixel data element: VR and length, or None where the file has none (PS3.5, section 7.1)."""
    order = "<" if transfer_syntax.is_little_endian else ">"
    size_bytes = 8 if transfer_syntax.is_implicit_VR else 12
    head = file.read(size_bytes)
    if len(head) < size_bytes or struct.unpack(f"{order}HH", head[:4]) != PIXEL_DATA:
        return None
    vr = "" if transfer_syntax.is_implicit_VR else head[4:6].decode("latin-1")
    length: int = struct.unpack(f"{order}L", head[-4:])[0]
    return vr, length


def _deflated_image(path: Path, header: Dataset) -> DicomImage:
    try:
        num_bytes = len(pydicom.dcmread(path).PixelData)
    except READ_ERRORS as exc:
        raise SourceError(f"{path.name!r} holds no image, or is damaged or cut off; give another file") from exc
    return DicomImage(path, header, DeflatedExplicitVRLittleEndian, "OW", offset_bytes=0, length_bytes=num_bytes)


def _sop_class(header: Dataset) -> str:
    file_meta = header.file_meta if hasattr(header, "file_meta") else Dataset()
    return str(header.get("SOPClassUID") or file_meta.get("MediaStorageSOPClassUID") or "")


def instance_uid(header: Dataset) -> str:
    """Return the SOPInstanceUID, for hashing alone, since it leads to the patient; "" where there is none."""
    file_meta = header.file_meta if hasattr(header, "file_meta") else Dataset()
    return str(header.get("SOPInstanceUID") or file_meta.get("MediaStorageSOPInstanceUID") or "")


def _what_it_is(header: Dataset) -> str:
    uid = UID(_sop_class(header))
    if uid.name == "Media Storage Directory Storage":
        return "is a DICOMDIR, a list of other files"
    kind = f" ({uid.name})" if uid.name != uid else ""
    return f"holds no pixel data{kind}, or was cut off before it"
