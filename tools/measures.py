"""What both benches use: percentiles, the machine, where figures go."""

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edge import __version__
from edge.errors import ConfigError
from engines.host import num_cores, processor_name

_LIBRARIES = ("openvino", "onnxruntime", "tensorrt", "torch", "numpy", "av", "pyzmq")


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    """Return p50, p95, p99 and max; None of nothing."""
    if not len(values):
        return None
    return dict(zip(("p50", "p95", "p99", "max"), np.percentile(values, (50, 95, 99, 100)).tolist(), strict=True))


def check_output(option: str, path: Path) -> None:
    """Refuse, before anything is measured, a file that could not be written in the end.

    Raises:
        ConfigError: Its folder is not there, or it cannot be written.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"{option} {path}: there is no folder {path.parent}")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"{option} {path} cannot be written; choose another file")


def describe_hardware() -> str:
    """Name the processor, the cores that we may use, the memory and the libraries."""
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    versions = " ".join(f"{name} {version}" for name in _LIBRARIES if (version := _version(name)))
    machine = f"{processor_name()}, {num_cores()} cores, {memory_gb:.0f} GB, {platform.system()} {platform.release()}"
    return f"{machine}; edge {__version__}, Python {platform.python_version()}, {versions}"


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None
