"""What this machine is, as far as compiled engines depend on it. Cheap, and never crashes the interpreter."""

import ctypes
import functools
import os
import platform
from pathlib import Path


@functools.cache
def processor_name() -> str:
    """Return the processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return next(names, platform.machine())


def num_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


@functools.cache
def cuda_trouble() -> str | None:
    """Return why no CUDA device can be used, by the driver's own count of them; None where there is one."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver (libcuda.so.1 is not there)"
    if (code := driver.cuInit(0)) != 0:
        return f"the NVIDIA driver does not start (CUDA error {code})"
    count = ctypes.c_int(0)
    driver.cuDeviceGetCount(ctypes.byref(count))
    return None if count.value > 0 else "no CUDA device"
