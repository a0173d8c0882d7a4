"""The command `edge-build`: compile a bundle's network into the bundle, or prove what it has."""

import argparse
import contextlib
import dataclasses
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from edge.commandline import Parser, run_command
from edge.errors import ConfigError, EngineError
from engines import Bundle, load_bundle
from engines.build import BUILDERS, BuildOptions, build_engine
from engines.build import Progress as Tell
from engines.load import BACKENDS
from engines.plan_options import PlanOptions
from tools.calibration import read_clips
from tools.parity_table import print_checks
from tools.rank import rank

_MAX_CLIPS = 4096
_SETTINGS = tuple(field.name for field in dataclasses.fields(PlanOptions))


def main() -> int:
    """Run the command."""
    signal.signal(signal.SIGTERM, _interrupt)  # so that nothing half built is left in the bundle
    return run_command(_run)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _run() -> int:
    options = _parse()
    bundle = load_bundle(options.bundle)
    if options.rank:
        with _told_if_stopped(f"the timing was stopped; {bundle.path} keeps no new order"):
            return rank(bundle)
    if options.check:
        with _told_if_stopped(f"the check was stopped; nothing is known of {bundle.path}"):
            return print_checks(bundle, options.backend, options.device)
    with _told_if_stopped(f"the build was stopped; {bundle.path} has no new engine"):
        return _build(bundle, options)


@contextlib.contextmanager
def _told_if_stopped(message: str) -> Iterator[None]:
    """End not quietly as other commands do: a script that goes on would count on what was not done."""
    try:
        yield
    except KeyboardInterrupt as exc:
        raise EngineError(message) from exc


def _parse() -> argparse.Namespace:
    parser = Parser(
        "edge-build",
        "Compile a bundle's network for this machine and add it to the bundle, if its outputs are those of the "
        "reference; or check all that the bundle has.",
        "edge-build my-bundle --backend openvino --precision int8 --calibrate videos/manifest.csv",
    )
    parser.usage = "edge-build BUNDLE --backend B --precision P [options]  |  --check [--backend B]  |  --rank"
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", type=Path)
    add("--backend", metavar="B", help=f"to build: {', '.join(BUILDERS)}; to check: {', '.join(BACKENDS)}")
    add("--precision", metavar="P", help="fp32, fp16, bf16 or int8, as the backend has it")
    add("--device", metavar="D", help="the backend's device (default: its own choice)")
    add("--check", action="store_true", help="build nothing; run the reference clips on every engine, print a table")
    add(
        "--rank", action="store_true", help="build nothing; time every engine here, for --backend auto to take the best"
    )
    add("--calibrate", metavar="SOURCE", help="int8: a manifest or recording to take ranges from, beside the reference")
    add("--clips", metavar="N", type=int, default=64, help="int8: how many clips of it at most (default: 64)")
    add("--set", metavar="KEY=VALUE", action="append", default=[], help=f"TensorRT: {', '.join(_SETTINGS)}; repeatable")
    options = parser.parse_args()
    if not (options.check or options.rank) and not (options.backend and options.precision):
        raise ConfigError("--backend and --precision, --check or --rank must be given; see edge-build --help")
    others = options.check, options.backend, options.precision, options.device, options.calibrate, options.set
    if options.rank and any(others):
        raise ConfigError("--rank takes nothing beside it; see edge-build --help")
    if options.check and (options.precision or options.calibrate or options.set):
        raise ConfigError("--check takes only --backend and --device beside it; see edge-build --help")
    if options.calibrate and options.precision != "int8":
        raise ConfigError(f"--calibrate serves --precision int8; got {options.precision}")
    if not 1 <= options.clips <= _MAX_CLIPS:
        raise ConfigError(f"--clips is {options.clips}; it must be 1 to {_MAX_CLIPS}")
    return options


def _settings(options: argparse.Namespace) -> dict[str, str]:
    """Return the `--set` pairs, checked before anything long begins."""
    settings = {}
    for pair in options.set:
        key, separator, value = pair.partition("=")
        if not separator:
            raise ConfigError(f"--set takes KEY=VALUE; got {pair!r}")
        settings[key] = value
    if settings and options.backend not in ("tensorrt", "torch-tensorrt"):
        raise ConfigError(f"--set serves --backend tensorrt and torch-tensorrt; got {options.backend}")
    try:
        PlanOptions.parse(settings)
    except ValueError as exc:
        raise ConfigError(f"--set: {exc}") from exc
    return settings


def _build(bundle: Bundle, options: argparse.Namespace) -> int:
    clips = bundle.reference().clips
    if options.calibrate:
        clips = np.concatenate([clips, read_clips(bundle, options.calibrate, options.clips)])
    build_options = BuildOptions(device=options.device, calibration_clips=clips, settings=_settings(options))
    with _progress() as tell:
        _, file, result = build_engine(bundle, options.backend, options.precision, build_options, tell)
    build = file.build or {}
    print(f"{bundle.path / file.name}: {result.describe()}, over {result.num_clips} reference clips")
    gain = ""
    if "gain_over_fp32" in build:
        beside = "" if build["fp32_device"] == build["device"] else f" on {build['fp32_device']}"
        gain = f", {build['gain_over_fp32']:.2f} times as fast as FP32 beside it{beside}"
    print(f"{build['windows_per_s']:.2f} windows/s on {build['device']}{gain}")
    return 0


@contextlib.contextmanager
def _progress() -> Iterator[Tell]:
    """Show what is being done, on a terminal alone."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda what, share: progress.update(task, description=what, completed=share)


if __name__ == "__main__":
    raise SystemExit(main())
