"""A folder of images, or one image: PNG, JPEG, BMP, TIFF (of one page or many) and DICOM."""

import logging
import re
import warnings
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from edge.errors import SourceError
from edge.frame import StoredObject, UInt8Image
from edge.sources.base import SourceInfo
from edge.sources.dicom.file import DicomFile
from edge.sources.kinds import is_dicom, is_image
from edge.sources.quiet import quiet_c_stderr
from edge.sources.stored import DEFAULT_INTERVAL_MS, Damage, Picture, StoredSource

READ_ERRORS = (OSError, ValueError, TypeError, KeyError, SyntaxError, EOFError, Image.DecompressionBombError)
"""What Pillow raises on damaged files; SourceError, of a DICOM file, is an OSError."""

MAX_NAMES = 3

# What Pillow says of metadata and damage, edge.sources says in its own words.
warnings.filterwarnings("ignore", module="PIL")
logging.getLogger("PIL").setLevel(logging.CRITICAL)


class ImageFiles(StoredSource):
    """Images in the natural order of their names, 30 a second.

    A DICOM cine among them is an object of its own, with its own times and region: no window spans two of them.
    """

    def __init__(self, path: Path) -> None:
        self._paths = _image_paths(path) if path.is_dir() else [path]
        if not self._paths:
            raise SourceError(
                f"the folder {str(path)!r} holds no image; allowed are .png .jpg .bmp .tif and .dcm files"
            )
        info = SourceInfo(
            name=path.resolve().name,
            frame_interval_ms=DEFAULT_INTERVAL_MS,
            is_live=False,
            num_frames=len(self._paths),
            kind="images",
        )
        super().__init__(info)

    def pictures(self, damage: Damage) -> Generator[Picture, None, None]:
        """Yield the images; one that cannot be read is left out. See `StoredSource.pictures`."""
        unreadable: list[str] = []
        t_next_ms = 0.0
        for path in self._paths:
            try:
                self._object, interval_ms, pictures = _read(path, damage)
                t_start_ms = t_next_ms
                for pixels, t_ns in pictures:
                    t_ms = t_next_ms if t_ns is None else t_start_ms + t_ns / 1e6
                    yield pixels, round(t_ms * 1e6)
                    t_next_ms = t_ms + interval_ms
            except READ_ERRORS:
                unreadable.append(path.name)
                t_next_ms += DEFAULT_INTERVAL_MS  # the gap stays visible in the times
        if unreadable:
            more = f" and {len(unreadable) - MAX_NAMES} more" if len(unreadable) > MAX_NAMES else ""
            damage.notes.append(f"{', '.join(map(repr, unreadable[:MAX_NAMES]))}{more} could not be read")


def _image_paths(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if _is_readable(path)), key=_natural_key)


def _is_readable(path: Path) -> bool:
    return not path.name.startswith(".") and path.is_file() and (is_image(path) or is_dicom(path))


def _natural_key(path: Path) -> tuple[list[tuple[bool, int, str]], str]:
    """Return a key that puts frame_2 before frame_10, and numbers before words."""
    parts = re.findall(r"[0-9]+|[^0-9]+", path.name.casefold())
    is_word = [part[0] not in "0123456789" for part in parts]
    keys = [(True, 0, part) if word else (False, int(part), "") for part, word in zip(parts, is_word, strict=True)]
    return keys, path.name


def _read(path: Path, damage: Damage) -> tuple[StoredObject | None, float, Iterator[Picture]]:
    """Return which object a file is, the ms between its pictures, and these, each with its time in the file."""
    if is_image(path):
        return None, DEFAULT_INTERVAL_MS, ((pixels, None) for pixels in _pages(path))
    dicom = DicomFile(path)
    if dicom.info.num_frames == 1:
        return None, DEFAULT_INTERVAL_MS, dicom.pictures(damage)
    return dicom.object, dicom.info.frame_interval_ms, dicom.pictures(damage)


def _pages(path: Path) -> Iterator[UInt8Image]:
    with path.open("rb") as file:
        with quiet_c_stderr():  # libtiff tells stderr of every damaged strip
            image = Image.open(file)
            pixels = _to_array(image)
        yield pixels
        while image.format == "TIFF":
            with quiet_c_stderr():
                try:
                    image.seek(image.tell() + 1)
                except EOFError:  # that was the last page
                    return
                pixels = _to_array(image)
            yield pixels


def _to_array(image: Image.Image) -> UInt8Image:
    """Return (H, W) gray or (H, W, 3) RGB uint8, as stored: no EXIF rotation, alpha dropped."""
    if image.mode.startswith("I"):  # 16 bits a pixel, for which Pillow has several names
        return np.asarray(np.clip(np.asarray(image), 0, 65535) >> 8, np.uint8)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no range")
    return np.array(image.convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB"))
