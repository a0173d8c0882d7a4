"""What identifies a video's content, and the software that makes frames of it."""

import hashlib
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

import edge

DECODERS = ("av", "opencv-python-headless", "pydicom", "pillow", "pylibjpeg-openjpeg", "pyjpegls", "python-gdcm")
"""Another version of one of these may give other pixels."""
FRAME_CODE = (
    *("capture.py", "frame.py", "image_state.py", "inference.py", "window.py"),
    *("area_resize.py", "preprocess.py", "roi*.py"),
    *("phantom/*.py", "recording/*.py", "sources/**/*.py"),
)
"""What in `edge` decides on frames, clips and pixels."""


def content_sha256(path: Path) -> str:
    """Return the hash of a file, or of the names and contents of a folder's files.

    Raises:
        OSError: It cannot be read.
    """
    if path.is_dir():
        return hashlib.sha256("".join(_lines(path)).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _lines(folder: Path) -> Iterator[str]:
    for path in sorted(folder.iterdir()):
        if path.is_file():
            yield f"{path.name}\0{content_sha256(path)}\n"


def software() -> tuple[str, ...]:
    """Return each decoder's version, and the hash of our own code from file to frame.

    A cache that outlived a change of the daemon would train on other pixels than it will see.
    """
    folder = Path(edge.__file__).parent
    paths = sorted(path for pattern in FRAME_CODE for path in folder.glob(pattern))
    code = hashlib.sha256("".join(content_sha256(path) for path in paths).encode()).hexdigest()
    return (*(f"{name} {importlib.metadata.version(name)}" for name in DECODERS), code)
