"""Writes videos and DICOM files whose pixels are known, for the tests of the sources."""

import io
import itertools
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGBaseline8Bit, UltrasoundMultiFrameImageStorage

from edge.frame import Frame
from edge.sources import Source


def play(source: Source) -> list[Frame]:
    """Return all frames, after the checks that hold for every source."""
    frames = list(source.frames())
    assert [frame.index for frame in frames] == list(range(len(frames)))
    times_ns = [frame.t_media_ns for frame in frames]
    assert times_ns[0] == 0
    assert all(earlier < later for earlier, later in itertools.pairwise(times_ns))
    return frames


def noise(num_frames: int, *shape: int, seed: int = 0) -> np.ndarray:
    """Return (num_frames, *shape) uint8 that no codec can foretell."""
    return np.random.default_rng(seed).integers(0, 256, (num_frames, *shape), dtype=np.uint8)


def write_movie(
    path: Path,
    pictures: np.ndarray,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    movflags: str = "",
    times: Sequence[int] | None = None,
) -> Path:
    """Encode pictures, (n, H, W) or (n, H, W, 3) uint8, at 25 frames/s, or at given times in 1/100 s."""
    container_options = {"movflags": movflags} if movflags else {}
    with av.open(str(path), "w", options=container_options) as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = pix_fmt
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 100)
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="gray" if picture.ndim == 2 else "rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[index], Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def dataset(pixels: np.ndarray, photometric: str = "MONOCHROME2", **tags: Any) -> Dataset:
    """Return an uncompressed ultrasound cine of pixels (n, H, W) or (n, H, W, 3), uint8, uint16 or int16."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = UltrasoundMultiFrameImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = UID("1.2.3.4")
    ds.PatientName, ds.PatientID = "Secret^Name", "SECRET-ID"
    ds.NumberOfFrames, ds.Rows, ds.Columns = pixels.shape[:3]
    ds.SamplesPerPixel = 3 if pixels.ndim == 4 else 1
    if pixels.ndim == 4:
        ds.PlanarConfiguration = 0
    ds.PhotometricInterpretation = photometric
    ds.BitsAllocated = ds.BitsStored = pixels.dtype.itemsize * 8
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    _set_pixels(ds, pixels.tobytes())
    for keyword, value in tags.items():
        setattr(ds, keyword, value)
    return ds


def encapsulated(ds: Dataset, transfer_syntax: UID, images: list[bytes], *, has_bot: bool = True) -> Dataset:
    """Replace the pixel data by encoded images."""
    ds.file_meta.TransferSyntaxUID = transfer_syntax
    ds.PixelData = encapsulate(images, has_bot=has_bot)
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    return ds


def as_jpeg(ds: Dataset, pixels: np.ndarray, mode: str) -> Dataset:
    """Replace the pixel data by baseline JPEG in the colours of a Pillow mode; `pixels` is what mode says."""
    images = []
    for picture in pixels:
        buffer = io.BytesIO()
        Image.fromarray(picture, mode).save(buffer, "jpeg", quality=95, subsampling=0)
        images.append(buffer.getvalue())
    return encapsulated(ds, JPEGBaseline8Bit, images)


def write_dicom(path: Path, ds: Dataset) -> Path:
    """Write the file."""
    pydicom.dcmwrite(path, ds, enforce_file_format=True)
    return path


def _set_pixels(ds: Dataset, data: bytes) -> None:
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OB" if ds.BitsAllocated == 8 else "OW"
