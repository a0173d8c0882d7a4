"""Decodes the images of a DICOM file one by one: what is not asked for is not in memory."""

import contextlib
import logging
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import cv2
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import as_pixel_options, get_expected_length
from pydicom.uid import UID, JPEGBaseline8Bit, JPEGExtended12Bit, RLELossless

from edge.errors import SourceError
from edge.frame import UInt8Image
from edge.sources.base import MAX_IMAGE_PX
from edge.sources.dicom.bombs import MAX_SIDE_PX, is_bomb
from edge.sources.dicom.display import Display
from edge.sources.dicom.header import READ_ERRORS, DicomImage
from edge.sources.dicom.items import encoded_images
from edge.sources.dicom.jpeg import as_components
from edge.sources.quiet import quiet_c_stderr
from edge.sources.stored import Damage

log = logging.getLogger(__name__)

DECODE_ERRORS = (*READ_ERRORS, RuntimeError, MemoryError, ArithmeticError, cv2.error)

PLUGINS = ("pylibjpeg", "pyjpegls", "pillow", "gdcm")
"""The decoder that is asked: the first of these that knows the transfer syntax.

Always the same one, so that equal files give equal pixels. GDCM, the only one for lossless JPEG, is last because it is
the slower one and writes to stderr by itself. pydicom's own for RLE is left out: it takes ten times as long as
pylibjpeg's, and fills the memory with whatever the runs become.
"""

ALLOWED: dict[str, tuple[Any, ...]] = {
    "SamplesPerPixel": (1, 3),
    "BitsAllocated": (8, 16),
    "BitsStored": tuple(range(1, 17)),
    "PhotometricInterpretation": (
        "MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT",
    ),
}  # fmt: skip


class PixelReader:
    """Reads the pictures of one DICOM file.

    Raises:
        SourceError: Its transfer syntax or kind of pixel is not one that can be read.
    """

    def __init__(self, image: DicomImage) -> None:
        check_attributes(image.header, image.path.name, ALLOWED)
        self._num_pixels = image.header.Rows * image.header.Columns
        if self._num_pixels > MAX_IMAGE_PX or max(image.header.Rows, image.header.Columns) > MAX_SIDE_PX:
            raise SourceError(
                f"{image.path.name!r} has images of {image.header.Columns} x {image.header.Rows} pixels; allowed are "
                f"{MAX_IMAGE_PX} in all and {MAX_SIDE_PX} a side; give another file"
            )
        if image.header.BitsStored > image.header.BitsAllocated:
            raise SourceError(
                f"{image.path.name!r} has BitsStored {image.header.BitsStored} and BitsAllocated "
                f"{image.header.BitsAllocated}; no more can be stored than is allocated; give another file"
            )
        self._image = image
        self._decoder = _decoder(image)
        self._options = _options(image, self._decoder)
        self._num_bits_below = _num_bits_below(image)
        if self._num_bits_below:
            self._options["bits_stored"] = image.header.BitsAllocated  # pydicom would clear the upper ones
        self._bytes_per_image = get_expected_length(_single(image.header, self._options))
        try:
            self._display = Display(image.header, image.path.name)
        except READ_ERRORS as exc:
            raise SourceError(f"{image.path.name!r}: its lookup tables are damaged; give another file") from exc

    def pictures(self, damage: Damage) -> Iterator[tuple[int, UInt8Image | None]]:
        """Yield index and pixels of each image, with None for one that cannot be decoded, or should better not be."""
        with self._image.open_pixels() as file:
            is_native = self._image.length_bytes is not None
            images = self._native(file, damage) if is_native else self._encoded(file, damage)
            yield from enumerate(images)

    def _native(self, file: BinaryIO, damage: Damage) -> Iterator[UInt8Image | None]:
        num_images, num_bytes_over = divmod(self._image.length_bytes or 0, self._bytes_per_image)
        # More than was stated, and less than an image: padding.
        if num_bytes_over and num_images < (num_frames_stated(self._image.header) or 1):
            damage.notes.append(f"its pixel data is cut off after {num_images} whole images")
        options = {**self._options, "number_of_frames": num_images}
        yield from (self._decode(file, index, options) for index in range(num_images))

    def _encoded(self, file: BinaryIO, damage: Damage) -> Iterator[UInt8Image | None]:
        syntax = self._image.transfer_syntax
        for encoded in encoded_images(file, is_rle=syntax == RLELossless, damage=damage):
            if syntax != RLELossless and is_bomb(encoded, self._num_pixels):
                yield None
                continue
            options, colours = self._options, None
            if syntax in (JPEGBaseline8Bit, JPEGExtended12Bit):
                encoded, colours = as_components(encoded, self._image.header.PhotometricInterpretation)
                options = {**options, "photometric_interpretation": colours}
            yield self._decode(encapsulate([encoded], has_bot=False), 0, options, colours)

    def _decode(
        self, source: BinaryIO | bytes, index: int, options: dict[str, Any], colours: str | None = None
    ) -> UInt8Image | None:
        is_noisy = options.get("decoding_plugin") == "gdcm"
        try:
            with quiet_c_stderr() if is_noisy else contextlib.nullcontext():
                stored, properties = self._decoder.as_array(source, index=index, raw=True, validate=False, **options)
            if self._num_bits_below:
                stored = stored >> self._num_bits_below
            return self._display(stored, colours or str(properties["photometric_interpretation"]))
        except DECODE_ERRORS:
            return None


def check_attributes(header: Dataset, name: str, keywords: Iterable[str]) -> None:
    """Check that attributes are there and have values that can be worked with.

    Raises:
        SourceError: One is missing or has a value that is not allowed.
    """
    for keyword in keywords:
        value = header.get(keyword)
        allowed = ALLOWED.get(keyword)
        is_allowed = value in allowed if allowed else isinstance(value, int) and value > 0
        if not is_allowed:
            # Text is not repeated: in a damaged header it runs over into the next element's, say the patient's name.
            got = value if value is None or isinstance(value, int) else "of another kind"
            expected = f"allowed are {', '.join(map(str, allowed))}" if allowed else "it must be 1 or more"
            raise SourceError(f"{name!r} has {keyword} {got}; {expected}; convert the file or give another one")


def find_decoder(uid: UID) -> Any:
    """Return pydicom's decoder of a transfer syntax, available or not; None where it is none of images, or unknown."""
    try:
        return get_decoder(uid)
    except NotImplementedError:
        return None


def find_plugin(decoder: Any) -> str | None:
    """Return which of `PLUGINS` decodes what is encoded; None where none that does is installed."""
    return next((plugin for plugin in PLUGINS if plugin in decoder.available_plugins), None)


def _decoder(image: DicomImage) -> Any:
    uid = image.transfer_syntax
    decoder = find_decoder(uid)
    if decoder is None or not (decoder.is_native or find_plugin(decoder)):
        raise SourceError(
            f"{image.path.name!r} has the transfer syntax {uid.name!r}, which cannot be decoded here; "
            "convert it to an uncompressed, RLE, JPEG, JPEG-LS or JPEG 2000 one"
        )
    if decoder.is_native != (image.length_bytes is not None):
        raise SourceError(f"{image.path.name!r}: its pixel data is not as its transfer syntax {uid.name!r} says")
    return decoder


def _options(image: DicomImage, decoder: Any) -> dict[str, Any]:
    options = as_pixel_options(image.header, number_of_frames=1, pixel_keyword="PixelData", pixel_vr=image.pixel_vr)
    num_bytes_full = image.header.Rows * image.header.Columns * 3 * max(1, num_frames_stated(image.header) or 1)
    if options["photometric_interpretation"] == "YBR_FULL_422" and image.length_bytes in (
        num_bytes_full, num_bytes_full + 1,
    ):  # fmt: skip
        # Some writers leave the tag as it was after they undid the subsampling.
        options["photometric_interpretation"] = "YBR_FULL"
    options["pixel_representation"] = options.get("pixel_representation") or 0  # left out by some
    options["planar_configuration"] = options.get("planar_configuration") or 0
    if not decoder.is_native:
        options["decoding_plugin"] = find_plugin(decoder)
        options["planar_configuration"] = 0  # whatever the header says of the image before it was encoded
    return options


def _num_bits_below(image: DicomImage) -> int:
    """Return how many bits lie below those of the value (PS3.5, section 8.1.1).

    HighBit is BitsStored - 1 since 2014 and was free before; codecs other than RLE encode the values alone.
    """
    header, is_rle = image.header, image.transfer_syntax == RLELossless
    lowest, high_bit = header.BitsStored - 1, header.get("HighBit", header.BitsStored - 1)
    if high_bit == lowest or (image.length_bytes is None and not is_rle):
        return 0
    if isinstance(high_bit, int) and lowest < high_bit < header.BitsAllocated:
        return int(high_bit - lowest)
    log.warning("%r: its HighBit leaves no room for BitsStored and is not used", image.path.name)
    return 0


def _single(header: Dataset, options: dict[str, Any]) -> Dataset:
    """Return what pydicom needs to tell the size of one image."""
    one = Dataset()
    for keyword in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated"):
        one[keyword] = header[keyword]
    one.PhotometricInterpretation = options["photometric_interpretation"]
    return one


def num_frames_stated(header: Dataset) -> int | None:
    """Return NumberOfFrames, 1 where a single image rightly has none, None where it is nonsense."""
    try:
        number = int(header.get("NumberOfFrames") or 1)
    except (ValueError, TypeError, OverflowError):
        return None
    return number if number > 0 else None
