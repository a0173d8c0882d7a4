"""Figures that both benches use: percentiles, the machine, its peak."""

import importlib.metadata
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edge import __version__

_LIBRARIES = ("openvino", "torch", "numpy", "av", "pyzmq")
_PEAK_SIZE = 2048
_PEAK_S = 1.0


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    """Return p50, p95, p99 and max; None of nothing."""
    if not len(values):
        return None
    return dict(zip(("p50", "p95", "p99", "max"), np.percentile(values, (50, 95, 99, 100)).tolist(), strict=True))


def describe_hardware() -> str:
    """Name the processor, the cores that we may use, the memory and the libraries."""
    cores = len(os.sched_getaffinity(0))
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    versions = " ".join(f"{name} {version}" for name in _LIBRARIES if (version := _version(name)))
    machine = f"{_processor()}, {cores} cores, {memory_gb:.0f} GB, {platform.system()} {platform.release()}"
    return f"{machine}; edge {__version__}, Python {platform.python_version()}, {versions}"


def measure_peak_gflops() -> float:
    """Return this machine's FP32 matrix-multiply rate in GFLOP/s, the best within a second of 2048 x 2048."""
    left, right = np.random.default_rng(0).random((2, _PEAK_SIZE, _PEAK_SIZE), np.float32)
    product = left @ right
    best_s, end_s = np.inf, time.perf_counter() + _PEAK_S
    while time.perf_counter() < end_s:
        start_s = time.perf_counter()
        np.matmul(left, right, out=product)
        best_s = min(best_s, time.perf_counter() - start_s)
    return 2 * _PEAK_SIZE**3 / best_s / 1e9


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None
