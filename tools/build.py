"""The command `edge-build`: compile a bundle's network into the bundle, or prove what it has."""

import argparse
import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from edge.commandline import Parser, ignore_signals, interrupt_on_sigterm, log_lines, print_line, run_command
from edge.errors import ConfigError, EngineError
from engines import Bundle, load_bundle
from engines.build import BUILDERS, BuildOptions, build_engine
from engines.build import Progress as Tell
from engines.bundle import read_manifest
from engines.load import BACKENDS
from engines.openvino.int8 import FEW_CLIPS
from engines.tensorrt.plan_options import PlanOptions
from tools.calibration import read_clips
from tools.parity_table import print_checks
from tools.rank import rank

_DEFAULT_CLIPS, _MAX_CLIPS = 64, 4096
_SETTINGS = tuple(field.name for field in dataclasses.fields(PlanOptions))
_BESIDE = {"rank": (), "check": ("backend", "device")}
"""What builds nothing, and the options that have a meaning beside it."""


def main() -> int:
    """Run the command."""
    log_lines()
    interrupt_on_sigterm()
    exit_code = run_command(_run)
    ignore_signals()
    return exit_code


def _run() -> int:
    options = _parse()
    bundle = load_bundle(options.bundle)
    if options.rank:
        with _told_if_stopped(lambda: _stopped_timing(bundle)):
            return rank(bundle)
    if options.check:
        with _told_if_stopped(lambda: f"the check was stopped; nothing is known of {bundle.path}"):
            return print_checks(bundle, options.backend, options.device)
    with _told_if_stopped(lambda: _stopped_build(bundle)):
        return _build(bundle, options)


@contextlib.contextmanager
def _told_if_stopped(say: Callable[[], str]) -> Iterator[None]:
    """End not quietly as other commands do: a script that goes on would count on what was not done."""
    try:
        yield
    except KeyboardInterrupt as exc:
        ignore_signals()  # a second one would end in a traceback
        raise EngineError(say()) from exc


def _stopped_timing(bundle: Bundle) -> str:
    """Say what a timing left, by the manifest: the signal may have come after it was written."""
    if read_manifest(bundle.path).rankings != bundle.rankings:
        return f"the timing was stopped after the new order was kept in {bundle.path}"
    return f"the timing was stopped; {bundle.path} keeps no new order"


def _stopped_build(bundle: Bundle) -> str:
    """Say what a build left, by the manifest: the signal may have come after it was written."""
    builds = [file.build for file in bundle.files]
    now = read_manifest(bundle.path).files
    if new := [file.name for file in now if file.build and file.build not in builds]:
        return f"the build was stopped after {', '.join(new)} was added to {bundle.path}"
    return f"the build was stopped; {bundle.path} has no new engine"


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
    add("--clips", metavar="N", type=int, help=f"int8: how many clips of it at most (default: {_DEFAULT_CLIPS})")
    add("--set", metavar="KEY=VALUE", action="append", help=f"TensorRT: {', '.join(_SETTINGS)}; repeatable")
    options = parser.parse_args()
    given = [name for name, value in vars(options).items() if value is not None and value is not False]
    for mode, allowed in _BESIDE.items():
        if mode in given:
            _refuse_beside(mode, allowed, [name for name in given if name not in ("bundle", mode, *allowed)])
            return options
    if not (options.backend and options.precision):
        raise ConfigError("--backend and --precision, --check or --rank must be given; see edge-build --help")
    if options.calibrate is not None and options.precision != "int8":
        raise ConfigError(f"--calibrate serves --precision int8; got {options.precision}")
    if options.clips is not None and not 1 <= options.clips <= _MAX_CLIPS:
        raise ConfigError(f"--clips is {options.clips}; it must be 1 to {_MAX_CLIPS}")
    if options.clips is not None and options.calibrate is None:
        raise ConfigError("--clips serves --calibrate SOURCE, which is not given; see edge-build --help")
    return options


def _refuse_beside(mode: str, allowed: tuple[str, ...], others: list[str]) -> None:
    if others:
        takes, got = (" and ".join(f"--{name}" for name in names) for names in (allowed, others))
        only = f"only {takes}" if allowed else "nothing"
        raise ConfigError(f"--{mode} takes {only} beside it; got {got}; see edge-build --help")


def _settings(options: argparse.Namespace) -> dict[str, str]:
    """Return the `--set` pairs, checked before anything long begins."""
    settings = {}
    for pair in options.set or ():
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
    if options.calibrate is not None:
        clips = np.concatenate([clips, read_clips(bundle, options.calibrate, options.clips or _DEFAULT_CLIPS)])
    build_options = BuildOptions(device=options.device, calibration_clips=clips, settings=_settings(options))
    with _progress() as tell:
        _, file, result = build_engine(bundle, options.backend, options.precision, build_options, tell)
    build = file.build or {}
    if options.precision == "int8" and len(clips) < FEW_CLIPS:
        few = f"the ranges of feature maps are from {len(clips)} clips"
        print_line("warning", f"{few}; {FEW_CLIPS} or more make better heatmaps: --calibrate SOURCE")
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
