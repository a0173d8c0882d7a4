"""edge-doctor: devices and folders that may not be used, and devices of every kind."""

import contextlib
import errno
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from doctor_findings import NOBODY, one_finding, unprivileged

from tools.doctor import clocks, devices, machine
from tools.doctor.finding import Finding, Verdict

# what is forbidden


@pytest.mark.parametrize(
    ("mode", "container", "mend"),
    [
        (0o660, False, "usermod -aG {group} nobody   # then log in again"),
        (0o600, False, "70-edge-ultrasound.rules /etc/udev/rules.d/"),
        (0o660, True, "docker run --device {path} --group-add {gid}"),
    ],
)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a node to another group")
def test_doctor_device_that_may_not_be_opened_tells_who_may(
    monkeypatch: pytest.MonkeyPatch, mode: int, container: bool, mend: str
) -> None:
    monkeypatch.setattr(devices, "is_container", lambda: container)
    group = next(one for one in devices.grp.getgrall() if one.gr_gid not in (0, NOBODY) and not one.gr_mem)
    with _folder_for_all() as folder:
        path = folder / "video0"
        path.touch()
        os.chown(path, 0, group.gr_gid)
        path.chmod(mode)
        with unprivileged():
            finding = one_finding(devices.check_devices([path]))
    assert finding.verdict is Verdict.WARNING
    assert finding.found.startswith(f"this user may not open it; the group {group.gr_name} has")
    assert mend.format(group=group.gr_name, path=path, gid=group.gr_gid) in finding.mend
    assert finding.mend.startswith("docker" if container else "sudo ")


@contextlib.contextmanager
def _folder_for_all() -> Iterator[Path]:
    """Make a folder that every user may enter, unlike pytest's own."""
    folder = Path("/tmp") / f"edge-doctor-{os.getpid()}"
    folder.mkdir(mode=0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def test_doctor_folder_that_may_not_be_written_is_a_problem(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with unprivileged():
        finding = one_finding(machine.check_disk("recordings", tmp_path / "new", 1, 1, holds_recordings=True))
    assert finding.verdict is Verdict.PROBLEM
    assert "this user may not write to" in finding.found
    assert "install -d -m 700" in finding.mend


@pytest.mark.parametrize(
    ("enough", "least", "verdict"),
    [(1, 1, Verdict.OK), (2**60, 1, Verdict.WARNING), (2**60, 2**60, Verdict.PROBLEM)],
)
def test_doctor_room_on_disk_is_judged_and_nothing_is_made(
    tmp_path: Path, enough: int, least: int, verdict: Verdict
) -> None:
    finding = one_finding(machine.check_disk("recordings", tmp_path / "a" / "b", enough, least, holds_recordings=True))
    assert finding.verdict is verdict
    assert finding.details["free_bytes"] == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)
    assert list(tmp_path.iterdir()) == []


# devices

_CAPTURE, _MULTI_PLANAR, _METADATA = 0x04000001, 0x04001000, 0x04800000


def _ioctl(capabilities: dict[str, int]) -> Callable[..., int]:
    """Return an ioctl that answers as drivers do: QUERYCAP by the node's name, and one mode, YUYV 640x480 at 30."""
    answers = {
        2: (8, struct.pack("=I32sI", 0, b"YUYV", int.from_bytes(b"YUYV", "little"))),
        74: (8, struct.pack("=3I", 1, 640, 480)),
        75: (16, struct.pack("=3I", 1, 1, 30)),
    }

    def ioctl(fd: int, code: int, buffer: bytearray) -> int:
        number, name = code & 0xFF, Path(f"/proc/self/fd/{fd}").readlink().name
        if number == 0:
            about = (b"uvcvideo", b"HDMI grabber", b"usb-1", 0, capabilities[name], capabilities[name])
            struct.pack_into("=16s32s32s3I", buffer, 0, *about)
        elif number in answers and int.from_bytes(buffer[:4], "little") == 0:
            place, answer = answers[number]
            buffer[place : place + len(answer)] = answer
        else:
            raise OSError(errno.EINVAL, "")
        return 0

    return ioctl


def _examined(monkeypatch: pytest.MonkeyPatch, folder: Path, capabilities: dict[str, int]) -> dict[str, Finding]:
    monkeypatch.setattr("edge.sources.v4l2.device.fcntl.ioctl", _ioctl(capabilities))
    nodes = [folder / name for name in capabilities]
    for node in nodes:
        node.touch()
    return {Path(finding.name).name: finding for finding in devices.check_devices(nodes)}


def test_doctor_device_tells_its_modes_and_the_one_that_would_be_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = _examined(monkeypatch, tmp_path, {"video0": _CAPTURE, "video1": _METADATA})
    assert found["video0"].verdict is Verdict.OK
    assert found["video0"].found == "HDMI grabber (uvcvideo): 1 modes, YUYV 640x480 at 30 frames/s would be taken"
    assert found["video0"].details["modes"] == ["YUYV 640x480 at 30 frames/s"]
    # a camera's second node is usual
    assert (found["video1"].verdict, found["video1"].mend) == (Verdict.NOTE, "")


def test_doctor_multi_planar_device_alone_is_warned_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = _examined(monkeypatch, tmp_path, {"video0": _MULTI_PLANAR})
    assert found["video0"].verdict is Verdict.WARNING
    assert "multi-planar" in found["video0"].found
    assert found["video0"].mend


def test_doctor_node_that_is_no_device_and_one_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "video0").touch()
    findings = list(devices.check_devices([tmp_path / "video0", tmp_path / "video1"]))
    assert [finding.verdict for finding in findings] == [Verdict.WARNING] * 2
    assert "is no V4L2 device" in findings[0].found
    assert "No such file" in findings[1].found


def test_doctor_machine_without_devices_is_noted() -> None:
    finding = one_finding(devices.check_devices([]))
    assert (finding.name, finding.verdict) == ("V4L2", Verdict.NOTE)
    assert finding.mend


# processor, memory and clock


@pytest.mark.parametrize(
    ("free_mib", "limit_mib", "verdict"),
    [
        (1000, None, Verdict.OK),
        (999, None, Verdict.WARNING),
        (400, None, Verdict.WARNING),
        (399, None, Verdict.PROBLEM),
        (5000, 999, Verdict.WARNING),
        (399, 5000, Verdict.PROBLEM),
        (5000, 0, Verdict.PROBLEM),
    ],
)
def test_doctor_memory_is_what_is_free_within_the_limit(
    monkeypatch: pytest.MonkeyPatch, free_mib: int, limit_mib: int | None, verdict: Verdict
) -> None:
    room_mib = free_mib if limit_mib is None else min(free_mib, limit_mib)
    monkeypatch.setattr(machine, "_meminfo_bytes", {"MemAvailable": free_mib * 2**20, "MemTotal": 8 * 10**9}.get)
    monkeypatch.setattr(machine, "_group_limit_bytes", lambda: None if limit_mib is None else limit_mib * 2**20)
    finding = one_finding(machine.check_memory())
    assert (finding.verdict, finding.details["free_bytes"]) == (verdict, room_mib * 2**20)
    assert finding.found.startswith(f"{room_mib * 2**20 / 1e9:.1f} GB free of 8.0 GB")
    assert ("limit of the control group" in finding.found) == (limit_mib is not None)
    assert ("needs 400 MiB" in finding.found) == bool(finding.mend) == (verdict is not Verdict.OK)


def test_doctor_memory_is_that_of_this_machine() -> None:
    finding = one_finding(machine.check_memory())
    assert 0 < finding.details["free_bytes"] < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("flags", "wide", "precisions"),
    [
        (("avx2", "fma"), "AVX2", ["FP32"]),
        (("avx2", "avx_vnni"), "AVX2", ["FP32", "INT8"]),
        (("avx2", "avx512f", "avx512_vnni"), "AVX-512", ["FP32", "INT8"]),
        (("avx2", "avx512_bf16", "amx_tile"), "AMX", ["FP32", "BF16"]),
        (("asimd", "asimddp", "bf16"), "", ["FP32", "BF16", "INT8"]),
        ((), "", ["FP32"]),
    ],
)
def test_doctor_processor_tells_the_precisions_that_it_has_instructions_for(
    monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], wide: str, precisions: list[str]
) -> None:
    monkeypatch.setattr(machine.host, "_arithmetic", lambda: flags)
    monkeypatch.setattr(machine.host, "processor_name", lambda: "Some processor")
    monkeypatch.setattr(machine.host, "num_cores", lambda: 2)
    finding = one_finding(machine.check_processor())
    assert (finding.verdict, finding.details["precisions"]) == (Verdict.OK, precisions)
    first = f"Some processor, 2 cores, {wide}" if wide else "Some processor, 2 cores"
    assert finding.found.startswith(f"{first}; made for {', '.join(precisions)}")
    assert ("INT8 may gain little" in finding.found) == ("INT8" not in precisions)
    monkeypatch.setattr(machine.host, "num_cores", lambda: 1)
    assert one_finding(machine.check_processor()).verdict is Verdict.WARNING


@pytest.mark.parametrize(
    ("step_ns", "source", "verdict"),
    [
        (1_000_000, "tsc", Verdict.OK),
        (1_000_001, "tsc", Verdict.WARNING),
        (100, "kvm-clock", Verdict.OK),
        (100, "acpi_pm", Verdict.WARNING),
        (100, "", Verdict.OK),
    ],
)
def test_doctor_clock_is_fine_and_cheap_or_warned_of(
    monkeypatch: pytest.MonkeyPatch, step_ns: int, source: str, verdict: Verdict
) -> None:
    monkeypatch.setattr(clocks, "_measure_clock", lambda: (step_ns, 40.0))
    monkeypatch.setattr(clocks, "_clock_source", lambda: source)
    clock = next(clocks.check_clocks())
    assert clock.verdict is verdict
    assert clock.found.startswith(f"monotonic, steps of {step_ns} ns" + (f", by {source}" if source else ""))
    assert clock.details == {"step_ns": step_ns, "read_ns": 40.0, "source": source}


def test_doctor_clock_is_measured_by_its_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([0, 0, 50, 80, 80, 200])
    monkeypatch.setattr(clocks, "time", SimpleNamespace(monotonic_ns=lambda: next(readings)))
    assert clocks._measure_clock(6) == (30, 200 / 5)
