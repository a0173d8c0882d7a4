"""Writes a phantom's frames as H.264 in mp4 or as a DICOM US Multi-frame object; both say that they are synthetic."""

from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import PYDICOM_ROOT_UID, JPEGLSLossless, UltrasoundMultiFrameImageStorage, generate_uid

from edge import __version__
from edge.phantom import Phantom
from edge.phantom.node import CLASSES

NOTICE = (
    "Synthetic ultrasound from a simulated phantom; no patient was imaged. Research software, not a medical device."
)
FRAME_RATE_HZ = 30
_CRF = "18"

Frames = npt.NDArray[np.uint8]


def write_mp4(path: Path, frames_thw: Frames, phantom: Phantom) -> None:
    """Write frames (T, H, W) uint8, H and W even, as H.264 of high quality (lossy, CRF 18)."""
    with av.open(str(path), "w") as container:
        container.metadata.update(title=_title(phantom), comment=NOTICE)
        stream = container.add_stream("libx264", rate=FRAME_RATE_HZ, options={"crf": _CRF, "threads": "1"})
        stream.width, stream.height = frames_thw.shape[2], frames_thw.shape[1]
        stream.pix_fmt = "yuv420p"
        for frame_hw in frames_thw:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_hw, format="gray")))
        container.mux(stream.encode())


def write_dicom(path: Path, frames_thw: Frames, phantom: Phantom) -> None:
    """Write frames (T, H, W) uint8 as US Multi-frame Image Storage, JPEG-LS lossless.

    Source: DICOM PS3.3, A.7 (US Multi-frame IOD), C.7.6.5 (Cine), C.8.5.5 (US Region Calibration), C.8.5.6 (US Image).
    """
    dataset = Dataset()
    _add_identity(dataset, frames_thw, phantom)
    _add_image(dataset, frames_thw)
    _add_acquisition(dataset, phantom)
    dataset.SequenceOfUltrasoundRegions = [_region(phantom)]
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.compress(JPEGLSLossless, frames_thw, generate_instance_uid=False)
    dataset.save_as(path, enforce_file_format=True)


def _title(phantom: Phantom) -> str:
    return f"Synthetic ultrasound phantom {phantom.seed}"


def _add_identity(dataset: Dataset, frames_thw: Frames, phantom: Phantom) -> None:
    """Add the patient, study, series, equipment and SOP common modules."""
    study = ["edge-phantom", str(phantom.seed), str(phantom.label)]
    instance = [*study, str(frames_thw.shape), __version__]
    dataset.SOPClassUID = UltrasoundMultiFrameImageStorage
    dataset.SOPInstanceUID = _uid("instance", instance)
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = _uid("study", study), _uid("series", instance)
    dataset.SyntheticData = "YES"
    dataset.PatientName, dataset.PatientID = "Synthetic^Phantom", f"SYNTHETIC-{phantom.seed}"
    dataset.PatientBirthDate = dataset.PatientSex = dataset.AccessionNumber = dataset.ReferringPhysicianName = ""
    dataset.StudyDate = dataset.StudyTime = dataset.StudyID = dataset.Laterality = ""
    dataset.StudyDescription = "Synthetic ultrasound"
    dataset.Modality, dataset.SeriesNumber, dataset.InstanceNumber = "US", 1, 1
    dataset.SeriesDescription = _title(phantom)
    dataset.Manufacturer, dataset.ManufacturerModelName = "edge-ultrasound (synthetic)", "edge-phantom"
    dataset.SoftwareVersions = __version__


def _uid(kind: str, parts: list[str]) -> str:
    """Return a UID that the same parts always give."""
    return generate_uid(PYDICOM_ROOT_UID, [kind, *parts])


def _add_image(dataset: Dataset, frames_thw: Frames) -> None:
    """Add the image pixel, multi-frame and cine modules."""
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = frames_thw.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.FrameTime = f"{1000 / FRAME_RATE_HZ:.3f}"
    dataset.FrameIncrementPointer = 0x00181063
    dataset.CineRate = dataset.RecommendedDisplayFrameRate = FRAME_RATE_HZ
    dataset.LossyImageCompression = "00"


def _add_acquisition(dataset: Dataset, phantom: Phantom) -> None:
    """Add the general image and US image modules."""
    dataset.ImageType = ["DERIVED", "PRIMARY", "SMALL PARTS", "0001"]
    dataset.DerivationDescription = "Synthetic: computed from simulated scatterers"
    dataset.ImageComments = f"{NOTICE} Class: {CLASSES[phantom.label]}."
    dataset.PatientOrientation, dataset.BurnedInAnnotation = "", "NO"
    dataset.UltrasoundColorDataPresent = 0
    dataset.TransducerType = "LINEAR" if phantom.probe.kind == "linear" else "CURVED LINEAR"
    dataset.DepthOfScanField = round(phantom.probe.depth_mm)


def _region(phantom: Phantom) -> Dataset:
    """Return the item of the ultrasound region: 2D tissue, axes in cm."""
    x, y, width, height = phantom.region
    region = Dataset()
    region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = 1, 1, 0
    region.RegionLocationMinX0, region.RegionLocationMinY0 = x, y
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = x + width - 1, y + height - 1
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX = region.PhysicalDeltaY = phantom.mm_per_px / 10
    region.TransducerFrequency = round(phantom.probe.frequency_mhz * 1000)
    return region
