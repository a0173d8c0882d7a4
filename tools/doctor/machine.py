"""What the machine itself has: processor, memory, room on disks, systemd."""

import contextlib
import os
import platform
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from engines import host
from tools.doctor.finding import Finding, Verdict, as_root

_MIB, _GB = 2**20, 10**9
_ENOUGH_MEMORY_BYTES, _LEAST_MEMORY_BYTES = 1000 * _MIB, 400 * _MIB
"""The daemon with the demo bundle stays below the lesser; larger networks and the page want room beside it."""
_RECORDED_BYTES_A_HOUR = 23_000 * 30 * 3600
"""23 kB a frame of 370 x 370 gray ultrasound without loss, 30 frames/s (docs/log.md)."""

_ENOUGH_CORES = 2

_WIDE = {"amx": "AMX", "avx512": "AVX-512", "avx2": "AVX2"}
"""Start of a processor flag to the name of what it says, the widest first."""


def check_system() -> Iterator[Finding]:
    """Name the system; only Linux will do."""
    if platform.system() != "Linux":
        yield Finding("system", Verdict.PROBLEM, f"{platform.system()}; this software runs on Linux alone")
        return
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        name = "Linux without /etc/os-release"
    container = ", in a container" if is_container() else ""
    yield Finding("system", Verdict.OK, f"{name}, Linux {platform.release()}, {platform.machine()}{container}")


def is_container() -> bool:
    """Whether devices and services are those that someone gave to a container."""
    return any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv"))


def check_processor() -> Iterator[Finding]:
    """Tell the cores that may be used, and which precisions the processor has instructions for."""
    flags, num_cores = host.describe()["arithmetic"], host.num_cores()
    wide = next((name for mark, name in _WIDE.items() if any(flag.startswith(mark) for flag in flags)), "")
    precisions = ["FP32", *(name.upper() for name in reversed(host.fast_precisions()))]
    told = ", ".join(filter(None, (host.processor_name(), f"{num_cores} cores", wide)))
    told += f"; made for {', '.join(precisions)}"
    told += "" if "INT8" in precisions else " (INT8 may gain little: edge-build measures it)"
    details = {"num_cores": num_cores, "arithmetic": flags, "precisions": precisions}
    if num_cores >= _ENOUGH_CORES:
        yield Finding("processor", Verdict.OK, told, "", details)
        return
    told += f"; {_ENOUGH_CORES} cores are needed, so that capture need not wait for the network"
    mend = "taskset -cp $$   # what is allowed; docker run --cpuset-cpus and systemd's AllowedCPUs= set it"
    yield Finding("processor", Verdict.WARNING, told, mend, details)


def check_memory() -> Iterator[Finding]:
    """See that the daemon fits into what is free, or into what its control group may have."""
    free_bytes = _meminfo_bytes("MemAvailable")
    limit_bytes = _group_limit_bytes()
    room_bytes = free_bytes if limit_bytes is None else min(free_bytes, limit_bytes)
    told = f"{room_bytes / _GB:.1f} GB free of {_meminfo_bytes('MemTotal') / _GB:.1f} GB"
    told += f"; limit of the control group {limit_bytes / _GB:.1f} GB" if limit_bytes is not None else ""
    details = {"free_bytes": room_bytes}
    if room_bytes >= _ENOUGH_MEMORY_BYTES:
        yield Finding("memory", Verdict.OK, told, "", details)
        return
    verdict = Verdict.WARNING if room_bytes >= _LEAST_MEMORY_BYTES else Verdict.PROBLEM
    told += f"; the daemon needs {_LEAST_MEMORY_BYTES / _MIB:.0f} MiB with the demo bundle, larger networks more"
    yield Finding("memory", verdict, told, "ps aux --sort=-rss | head   # names what holds it", details)


def _meminfo_bytes(key: str) -> int:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def _group_limit_bytes() -> int | None:
    """Return the memory limit of the control group that is the root of what we see: a container's."""
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def check_disk(
    name: str, folder: Path, enough_bytes: int, least_bytes: int, *, holds_recordings: bool
) -> Iterator[Finding]:
    """See that a folder can be written and has room.

    Args:
        name: What it is for.
        folder: It need not exist yet.
        enough_bytes: Less is a warning.
        least_bytes: Less is a problem.
        holds_recordings: Say how long the room lasts.
    """
    there = _nearest(folder)
    free_bytes = shutil.disk_usage(there).free
    told = f"{folder}: {free_bytes / _GB:.0f} GB free"
    told += f", some {free_bytes / _RECORDED_BYTES_A_HOUR:.0f} h of recording" if holds_recordings else ""
    details = {"folder": str(folder), "free_bytes": free_bytes}
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK, effective_ids=True):
        mend = as_root(f"install -d -m 700 -o {os.geteuid()} -g {os.getegid()} {shlex.quote(str(folder))}")
        yield Finding(name, Verdict.PROBLEM, f"{folder}: this user may not write to {there}", mend, details)
    elif free_bytes >= enough_bytes:
        yield Finding(name, Verdict.OK, told, "", details)
    else:
        verdict = Verdict.WARNING if free_bytes >= least_bytes else Verdict.PROBLEM
        told += f"; {enough_bytes / _GB:.0f} GB should be free"
        mend = f"du -xh --max-depth=1 {shlex.quote(str(there))} | sort -h | tail   # names what fills it"
        yield Finding(name, verdict, told, mend, details)


def _nearest(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that is there as far as this user may know."""
    for path in (folder, *folder.absolute().parents):
        with contextlib.suppress(OSError):
            path.stat()
            return path
    return Path("/")


def check_systemd() -> Iterator[Finding]:
    """See whether systemd can watch over the daemon, and does."""
    if not Path("/run/systemd/system").is_dir():  # as sd_booted(3) does
        told = "does not run here: a container's restart policy, or you, must start edge-infer again after a crash"
        yield Finding("systemd", Verdict.NOTE, told)
    elif not Path("/etc/systemd/system/edge-infer.service").exists():
        mend = as_root("cp deploy/edge-infer.service /etc/systemd/system/   # then as its first lines say")
        yield Finding("systemd", Verdict.NOTE, "runs, but does not know edge-infer: it does not start by itself", mend)
    else:
        yield Finding("systemd", Verdict.OK, "runs, and has edge-infer.service")
