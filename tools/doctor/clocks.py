"""The two clocks: the monotonic one, by which latency is measured, and the wall clock of the records."""

import ctypes
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

from tools.doctor.finding import Finding, Verdict, as_root
from tools.doctor.machine import is_container

_COARSE_NS = 1_000_000
_SLOW_CLOCKS = ("hpet", "acpi_pm", "jiffies", "pit")


def check_clocks() -> Iterator[Finding]:
    """See that the monotonic clock, by which latency is measured, is fine and cheap; and that the wall clock is set."""
    step_ns, read_ns = _measure_clock()
    source = _clock_source()
    told = f"monotonic, steps of {step_ns} ns" + (f", by {source}" if source else "")
    details = {"step_ns": step_ns, "read_ns": read_ns, "source": source}
    if step_ns > _COARSE_NS or source in _SLOW_CLOCKS:
        told += "; too coarse or slow to time frames well"
        mend = as_root("dmesg | grep -i -e clocksource -e tsc   # says why the kernel gave up the processor's own")
        yield Finding("clock", Verdict.WARNING, told, mend, details)
    else:
        yield Finding("clock", Verdict.OK, told, "", details)
    yield _judge_wall_clock()


def _measure_clock(num_readings: int = 20_000) -> tuple[int, float]:
    """Return the clock's smallest step and the time of a reading, in ns."""
    times_ns = [time.monotonic_ns() for _ in range(num_readings)]
    steps_ns = [later - sooner for sooner, later in itertools.pairwise(times_ns) if later > sooner]
    return min(steps_ns), (times_ns[-1] - times_ns[0]) / (num_readings - 1)


def _clock_source() -> str:
    path = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    return path.read_text(encoding="ascii").strip() if path.exists() else ""


class _Timex(ctypes.Structure):
    """What adjtimex(2) fills in, as far as it is read here; its true size on 64 bits is 208 bytes."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror_us", ctypes.c_long),
        ("esterror_us", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    )


_UNSYNCHRONISED = 0x40
"""STA_UNSYNC of adjtimex(2)."""


def _judge_wall_clock() -> Finding:
    """Ask the kernel, which every time service tells: no service needs to be known by its name."""
    timex = _Timex()
    if ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex)) < 0:
        reason = os.strerror(ctypes.get_errno())
        return Finding("wall clock", Verdict.WARNING, f"the kernel does not tell its state ({reason})", "timedatectl")
    now = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    if timex.status & _UNSYNCHRONISED:
        mend = as_root("apt-get install systemd-timesyncd && " + as_root("timedatectl set-ntp true"))
        if is_container():
            mend = "timedatectl   # on the host: a container has the host's clock"
        told = f"{now}; not synchronised: times in records and reports may be wrong, latencies are not touched"
        return Finding("wall clock", Verdict.WARNING, told, mend)
    return Finding("wall clock", Verdict.OK, f"{now}, synchronised to {timex.maxerror_us / 1e3:.0f} ms or better")
