"""What identifies a video's content and the software that decodes it."""

import functools
import hashlib
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

DECODERS = ("av", "opencv-python-headless", "pydicom", "pillow", "pylibjpeg-openjpeg", "python-gdcm")
"""Another version of one of these may give other pixels."""


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


@functools.cache
def software_versions() -> dict[str, str]:
    """Return the version of each decoder."""
    return {name: importlib.metadata.version(name) for name in DECODERS}
