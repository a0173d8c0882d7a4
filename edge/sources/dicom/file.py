"""DICOM files: single images and cines of every transfer syntax that pydicom's plug-ins or FFmpeg decode."""

import logging
from collections.abc import Generator, Iterator
from pathlib import Path

from pydicom.uid import EnhancedUSVolumeStorage

from edge.frame import StoredObject
from edge.sources.base import Rect, SourceInfo
from edge.sources.dicom.header import instance_uid, read_image
from edge.sources.dicom.pixels import PixelReader, check_attributes, num_frames_stated
from edge.sources.dicom.region import ultrasound_region
from edge.sources.dicom.timing import FrameTiming
from edge.sources.dicom.video import is_video, video_pictures
from edge.sources.object_id import salted_hash
from edge.sources.stored import AnyImage, Damage, Picture, StoredSource

_log = logging.getLogger(__name__)

_MAX_BAD_IN_A_ROW = 100
"""Images that cannot be decoded, after which nobody waits for one that can be: a small file may hold a million."""


class DicomFile(StoredSource):
    """A DICOM image or cine.

    Args:
        path: The file.
        kind: What may be published in place of its name.
        region: Where the ultrasound image lies, if that is known better than the file says.
    """

    def __init__(self, path: Path, kind: str = "DICOM file", region: Rect | None = None) -> None:
        self._image = read_image(path)
        header = self._image.header
        check_attributes(header, path.name, ("Rows", "Columns"))
        if header.get("SOPClassUID") == EnhancedUSVolumeStorage:
            _log.warning("%r is a volume: its frames are slices and no moments of a cine; give a cine", path.name)
        self._reader = None if is_video(self._image.transfer_syntax) else PixelReader(self._image)
        self._timing = FrameTiming(header, path.name)
        self._num_frames_stated = num_frames_stated(header)
        region = region or ultrasound_region(header, (header.Columns, header.Rows))
        info = SourceInfo(
            name=path.name,
            frame_interval_ms=self._timing.interval_ms,
            is_live=False,
            region=region,
            num_frames=self._num_frames_stated,
            kind=kind,
        )
        super().__init__(info, StoredObject(salted_hash(instance_uid(header) or path.name), region))

    def pictures(self, damage: Damage) -> Generator[Picture, None, None]:
        """Yield the images, each with its time; see `StoredSource.pictures`."""
        num_images = num_bad_in_a_row = 0
        for index, pixels in self._images(damage):
            num_images += 1
            if pixels is not None:
                num_bad_in_a_row = 0
                yield pixels, self._timing.time_ns(index)
                continue
            damage.num_bad_frames += 1
            num_bad_in_a_row += 1
            if num_bad_in_a_row == _MAX_BAD_IN_A_ROW:
                damage.notes.append(
                    f"after {num_bad_in_a_row} images in a row that cannot be decoded the rest is left out"
                )
                return
        if damage.num_bad_frames:
            damage.notes.append(f"its transfer syntax is {self._image.transfer_syntax.name}")
        if num_images != self._num_frames_stated:
            stated = self._num_frames_stated or "no number"
            damage.notes.append(f"NumberOfFrames says {stated}, {num_images} are there")

    def _images(self, damage: Damage) -> Iterator[tuple[int, AnyImage | None]]:
        if self._reader:
            return self._reader.pictures(damage)
        return ((index, pixels) for index, (pixels, _) in enumerate(video_pictures(self._image, damage)))
