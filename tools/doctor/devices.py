"""Frame grabbers and cameras: what each gives, or why it may not be used."""

import dataclasses
import errno
import grp
import os
import shlex
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from edge.errors import ConfigError, SourceError
from edge.sources.listing import lasting_names
from edge.sources.options import SourceOptions
from edge.sources.v4l2.device import V4l2Device, capture_nodes
from edge.sources.v4l2.modes import FFMPEG_NAMES, choose_mode
from tools.doctor.finding import Finding, Verdict, as_root, user_name
from tools.doctor.machine import is_container

_RULE = "70-edge-ultrasound.rules"
_UDEV = f"cp deploy/{_RULE} /etc/udev/rules.d/ && udevadm control --reload && udevadm trigger -s video4linux"


def check_devices(nodes: Sequence[Path] | None = None) -> Iterator[Finding]:
    """Open every video device; None: those in /dev."""
    nodes = capture_nodes() if nodes is None else nodes
    if not nodes:
        yield _no_device()
    findings = [_judge(path) for path in nodes]
    has_one = any(finding.verdict is Verdict.OK for finding in findings)
    for finding in findings:
        # beside one that works it is usual: a camera's second node holds metadata
        is_usual = has_one and "refused" in finding.details
        yield dataclasses.replace(finding, verdict=Verdict.NOTE, mend="") if is_usual else finding


def _no_device() -> Finding:
    told = "no frame grabber or camera (/dev/video*); files and network sources do without"
    if is_container():
        mend = "docker run --device /dev/video0 --group-add video ...   # on the host"
    else:
        mend = as_root(
            "dmesg | grep -i -e uvcvideo -e 'new .* USB device'   # after plugging one in: is it seen at all"
        )
    return Finding("V4L2", Verdict.NOTE, told, mend)


def _judge(path: Path) -> Finding:
    try:
        with V4l2Device(path) as device:
            return _describe(device)
    except PermissionError:
        return _forbidden(path)
    except SourceError as exc:
        mend = "edge-infer --list-sources   # names what can be read; a USB (UVC) grabber can"
        return Finding(str(path), Verdict.WARNING, f"not usable: {exc}", mend, {"refused": str(exc)})
    except OSError as exc:
        mend = as_root("dmesg | tail   # the driver says more there; plug the device in again")
        return Finding(str(path), Verdict.WARNING, f"cannot be opened: {os.strerror(exc.errno or errno.EIO)}", mend)


def _describe(device: V4l2Device) -> Finding:
    name, modes = str(device.path), device.modes()
    about = f"{device.identity.card} ({device.identity.driver})"
    lasting = lasting_names().get(device.path.resolve())
    details = {
        "card": device.identity.card,
        "driver": device.identity.driver,
        "lasting_name": str(lasting) if lasting else None,
        "modes": [str(mode) for mode in modes],
    }
    try:
        mode, rate_hz = choose_mode(modes, SourceOptions(), name)
    except ConfigError as exc:
        mend = f"v4l2-ctl -d {name} --list-formats-ext   # what it gives; read are {', '.join(FFMPEG_NAMES)}"
        return Finding(name, Verdict.WARNING, f"{about}: {exc}", mend, details)
    if trouble := device.trouble():
        mend = f"v4l2-ctl -d {name} --query-dv-timings   # look at the cable and at the scanner's video output"
        return Finding(name, Verdict.WARNING, f"{about}: {trouble}", mend, details)
    size = "the signal's own size" if mode.size_wh is None else "{}x{}".format(*mode.size_wh)
    rate = f" at {rate_hz:g} frames/s" if rate_hz else ""
    told = f"{about}: {len(modes)} modes, {mode.pixel_format} {size}{rate} would be taken"
    return Finding(name, Verdict.OK, told + (f"; lasting name {lasting}" if lasting else ""), "", details)


def _forbidden(path: Path) -> Finding:
    """Say who may open the node, and what makes this user one of them."""
    status = path.stat()
    try:
        group = grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        group = str(status.st_gid)
    told = f"this user may not open it; the group {group} has {stat.filemode(status.st_mode)[4:7]!r}"
    user = user_name()
    if is_container():
        mend = (
            f"docker run --device {path} --group-add {status.st_gid} ...   # on the host, whose group has this number"
        )
    elif not status.st_mode & stat.S_IRGRP or not status.st_mode & stat.S_IWGRP or status.st_gid == 0:
        mend = as_root(f"sh -c {shlex.quote(_UDEV)}   # gives such devices to the group video")
    elif user in grp.getgrnam(group).gr_mem:
        mend = f"newgrp {group}   # {user} is in it since the last login: log in again"
    else:
        mend = as_root(f"usermod -aG {group} {user}   # then log in again")
    return Finding(str(path), Verdict.WARNING, told, mend, {"group": group, "mode": stat.filemode(status.st_mode)})
