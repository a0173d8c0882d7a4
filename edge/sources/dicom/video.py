"""DICOM objects whose pixel data is one MPEG-2, H.264 or HEVC stream (PS3.5, sections 8.2.5 to 8.2.12)."""

import io
from collections.abc import Iterator

from pydicom.uid import UID

from edge.sources.dicom.header import DicomImage
from edge.sources.dicom.items import fragments
from edge.sources.stored import Damage, Picture
from edge.sources.video import decode_video, open_video

VIDEO_ROOT = "1.2.840.10008.1.2.4.10"
"""MPEG-2 is .100 and .101, H.264 .102 to .106, HEVC .107 and .108; the fragmentable ones end in .1."""


def is_video(transfer_syntax: UID) -> bool:
    """Return whether all images are one video stream."""
    return transfer_syntax.startswith(VIDEO_ROOT)


def video_pictures(image: DicomImage, damage: Damage) -> Iterator[Picture]:
    """Yield the images of the stream, which is held in memory as it is encoded."""
    stream = io.BytesIO()
    with image.open_pixels() as file:
        for fragment, is_whole in fragments(file):
            stream.write(fragment)
            if not is_whole:
                damage.notes.append("its pixel data is cut off")
    stream.seek(0)
    with open_video(stream, image.path.name) as container:
        yield from decode_video(container, damage, image.path.name)
