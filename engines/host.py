"""What this machine is, as far as compiled engines depend on it. Cheap, and never crashes the interpreter."""

import contextlib
import ctypes
import functools
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

_ARITHMETIC = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx_vnni", "asimddp", "bf16", "i8mm")
"""Processor flags that decide how fast a precision is; a virtual machine's processor has a name that tells little."""
_FAST = {
    "int8": ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"),
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
}
"""Precision to the processor flags of which one makes it faster than FP32; the fastest first."""

_NO_DEVICE = 100
"""CUDA_ERROR_NO_DEVICE: a driver without a GPU, or one that CUDA_VISIBLE_DEVICES hides."""
_GPUS = Path("/proc/driver/nvidia/gpus")
"""Where the NVIDIA driver tells of each GPU in a folder of its own."""
_LIBRARIES = (
    "openvino",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "torch",
    "torch-tensorrt",
    "tensorrt",
)
"""The packages that compute, by the names under which they are installed."""


def describe() -> dict[str, Any]:
    """Return what of this machine's processor decides an engine's speed, as JSON."""
    return {"processor": processor_name(), "num_cores": num_cores(), "arithmetic": list(_arithmetic())}


def differences(there: object, here: Mapping[str, Any]) -> str:
    """Say what of other hardware, as `describe` gave it or anybody wrote it, differs from what is here."""
    was = there if isinstance(there, Mapping) else {}
    names = sorted(name for name in {*was, *here} if was.get(name) != here.get(name))
    return "; ".join(f"{name} here {_words(here.get(name))}, there {_words(was.get(name))}" for name in names)


def _words(value: object) -> str:
    words = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return "not told" if value is None else words or "none"


@functools.cache
def processor_name() -> str:
    """Return the processor's name as the system tells it."""
    return _cpuinfo(("model name", "Model")) or platform.machine()


def gpu_names() -> list[str]:
    """Return the models of the NVIDIA GPUs, by the driver's own files; none where it has no such files."""
    told = [file for folder in sorted(_GPUS.glob("*")) if (file := _text(folder / "information"))]
    return [name for text in told if (name := _value(text, ("Model",)))]


def fast_precisions() -> tuple[str, ...]:
    """Return the precisions for which the processor has instructions that make them faster than FP32, best first."""
    flags = _arithmetic()
    return tuple(name for name, marks in _FAST.items() if any(flag in marks for flag in flags))


def library_versions() -> dict[str, str]:
    """Return the version of each library that computes, as it was installed: none is imported for it."""
    versions = {}
    for name in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = str(metadata.version(name))
    return versions


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
    if (code := driver.cuInit(0)) == _NO_DEVICE:
        return "no CUDA device"
    if code != 0:
        return f"the NVIDIA driver does not start (CUDA error {code})"
    count = ctypes.c_int(0)
    driver.cuDeviceGetCount(ctypes.byref(count))
    return None if count.value > 0 else "no CUDA device"


@functools.cache
def _arithmetic() -> tuple[str, ...]:
    flags = _cpuinfo(("flags", "Features")).split()
    return tuple(sorted(flag for flag in flags if flag in _ARITHMETIC or flag.startswith("amx")))


def _cpuinfo(keys: tuple[str, ...]) -> str:
    return _value(_text(Path("/proc/cpuinfo")), keys)


def _text(path: Path) -> str:
    """Return what a file of the system says; nothing where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _value(text: str, keys: tuple[str, ...]) -> str:
    """Return what stands behind the colon of the first line that begins with one of the keys."""
    return next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith(keys)), "")
