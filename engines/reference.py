"""The reference: clips and what the network gave for them in FP32 PyTorch, against which every engine proves itself."""

import dataclasses
import lzma
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.errors import BundleError

_MAX_BYTES = 1 << 30
"""Unpacked; a file of a few MB can hold more than any memory."""
_TROUBLES = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    MemoryError,  # its header asks for more than there is
    RuntimeError,  # encrypted, or packed in a way that is not known
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)
MAX_PROBABILITY = 1.001
"""Softmax in 16 bits may round above 1."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """Clips and the FP32 PyTorch outputs for them, all float32."""

    clips: npt.NDArray[np.float32]
    """(n, T, C, H, W)"""
    probabilities: npt.NDArray[np.float32]
    """(n, K)"""
    heatmaps: npt.NDArray[np.float32]
    """(n, T, h, w)"""


def read_reference(path: Path) -> Reference:
    """Read `reference.npz`; the shapes are not yet compared with the manifest's.

    Raises:
        BundleError: It is damaged, holds no finite floats or no probabilities, or more than 1 GiB.
    """
    try:
        # opened here, because np.load leaves a damaged file open
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            _require_bearable(arrays.zip)
            reference = Reference(*(_as_float32(arrays[key]) for key in ("clips", "probabilities", "heatmaps")))
            _require_probabilities(reference.probabilities)
            return reference
    except _TROUBLES as exc:
        raise BundleError(f"{path} is not a reference file ({exc}); export the bundle again") from exc


def _require_bearable(archive: zipfile.ZipFile) -> None:
    num_bytes = sum(member.file_size for member in archive.infolist())
    if num_bytes > _MAX_BYTES:
        raise ValueError(f"unpacked it has {num_bytes} bytes; {_MAX_BYTES} are allowed")


def _require_probabilities(values: npt.NDArray[np.float32]) -> None:
    if values.size and not 0 <= values.min() <= values.max() <= MAX_PROBABILITY:
        raise ValueError(f"its probabilities are {values.min():.3g} to {values.max():.3g}: the network ends in none")


def _as_float32(array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    if array.dtype.kind != "f":
        raise ValueError(f"it holds numbers of type {array.dtype}; they must be float32")
    with np.errstate(over="ignore"):  # what overflows is seen next
        converted = array.astype(np.float32)
    if not np.isfinite(converted).all():
        raise ValueError("it holds NaN or infinity")
    return converted
