"""The list that `edge-infer --list-sources` prints."""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge.errors import SourceError
from edge.sources.v4l2.device import Mode, V4l2Device, capture_nodes
from edge.sources.v4l2.modes import FFMPEG_NAMES


class ListSources(argparse.Action):
    """An option that prints the list and ends the program."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        parser.exit(0, "\n".join(list_sources()) + "\n")


def list_sources() -> Iterator[str]:
    """Yield a line for each video device and each of its modes."""
    nodes = capture_nodes()
    names = lasting_names()
    for path in nodes:
        yield from _describe(path, names.get(path.resolve()))
    if not nodes:
        yield "no video device (/dev/video*) is there: plug one in, and see that its driver is loaded (dmesg)"


def _describe(path: Path, name: Path | None) -> Iterator[str]:
    try:
        with V4l2Device(path) as device:
            trouble = device.trouble()
            yield f"{path}  {device.identity.card} ({device.identity.driver}){f'; {trouble}' if trouble else ''}"
            if name is not None:
                yield f"  the same device, whatever its number: {name}"
            yield from _inputs(device)
            yield from _lines(device.modes())
    except PermissionError:
        yield f"{path}  may not be opened by this user; add the user to the group 'video' and log in again"
    except SourceError as exc:
        yield f"{path}  not usable: {exc}"
    except OSError as exc:
        yield f"{path}  cannot be opened: {os.strerror(exc.errno or 0)}"


def _inputs(device: V4l2Device) -> Iterator[str]:
    """Yield the inputs of a device that has several, and how another one is chosen."""
    inputs, in_use = device.inputs(), device.input_in_use()
    if len(inputs) > 1:
        told = ", ".join(f"{number} {name}{' (in use)' * (number == in_use)}" for number, name in inputs.items())
        yield f"  inputs: {told}; another one: v4l2-ctl -d {device.path} -i NUMBER"


def _lines(modes: list[Mode]) -> Iterator[str]:
    yield from (f"  {mode}" for mode in modes if mode.pixel_format in FFMPEG_NAMES)
    others = dict.fromkeys(mode.pixel_format for mode in modes if mode.pixel_format not in FFMPEG_NAMES)
    if others:
        yield f"  not read: {', '.join(others)}"


def lasting_names() -> dict[Path, Path]:
    """Return the names under which udev keeps devices, by node."""
    return {path.resolve(): path for path in sorted(Path("/dev/v4l/by-id").glob("*"))}
