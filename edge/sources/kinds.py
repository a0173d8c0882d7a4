"""How files show of what kind they are."""

from pathlib import Path

from edge.recording.layout import MARKER_NAME

# fmt: off
VIDEO_SUFFIXES = frozenset((
    ".mp4", ".m4v", ".mov", ".mpeg", ".mpg", ".m2v", ".vob", ".ts", ".m2ts", ".mts", ".avi", ".mkv", ".webm", ".wmv",
    ".asf", ".flv", ".ogv", ".gif",
))
# fmt: on
IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"))
DICOM_SUFFIXES = frozenset((".dcm", ".dicom", ".ima"))


def is_video(path: Path) -> bool:
    """Return whether the suffix is one of a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def is_image(path: Path) -> bool:
    """Return whether the suffix is one of a picture."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def is_recording(path: Path) -> bool:
    """Return whether a folder is what `edge-infer --record` wrote."""
    return (path / MARKER_NAME).is_file()


def is_dicom(path: Path) -> bool:
    """Return whether the suffix or the preamble is DICOM's; scanners often write files without a suffix."""
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"
