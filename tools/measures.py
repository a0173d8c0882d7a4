"""Figures that both benches use: percentiles, the machine, its peak."""

import importlib.metadata
import os
import platform
from collections.abc import Sequence

import numpy as np

from edge import __version__
from engines.host import num_cores, processor_name

_LIBRARIES = ("openvino", "onnxruntime", "tensorrt", "torch", "numpy", "av", "pyzmq")


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    """Return p50, p95, p99 and max; None of nothing."""
    if not len(values):
        return None
    return dict(zip(("p50", "p95", "p99", "max"), np.percentile(values, (50, 95, 99, 100)).tolist(), strict=True))


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
