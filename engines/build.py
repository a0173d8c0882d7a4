"""Compiling into a bundle: what is built must pass the parity gate before the manifest lists it."""

import contextlib
import dataclasses
import datetime
import fcntl
import importlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import numpy.typing as npt

from engines.bundle import Bundle, BundleFile, describe_file, replace_files
from engines.engine import Engine, EngineOptions
from engines.errors import BackendError, EngineError, ParityError
from engines.load import backend_module, load_unproven
from engines.parity import ParityResult, measure_parity

_TIMED_S, _MIN_TIMED = 1.0, 5
_SCRATCH = ".build-"
SPARE = "older-"
"""What the names of files begin with that are just being replaced; they keep them where that is cut short."""

Progress = Callable[[str, float], None]
"""Is told what is being done, and which share of it is done, 0 to 1."""


class Builder(NamedTuple):
    """A way to compile."""

    module: str
    """Has `PRECISIONS` and `build(bundle, precision, options, folder, progress) -> Built`."""
    backend: str
    """The backend that runs what it builds."""


BUILDERS = {
    "openvino": Builder("engines.openvino.build", "openvino"),
    "onnx": Builder("engines.half", "onnxruntime"),
    "tensorrt": Builder("engines.tensorrt.build", "tensorrt"),
    "torch-tensorrt": Builder("engines.torch.tensorrt_build", "torch"),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What a build may be told. Each builder takes what concerns it."""

    device: str | None = None
    """The backend's own name of a device; None: its default."""
    calibration_clips: npt.NDArray[np.float32] | None = None
    """(n, T, C, H, W) in 0..1, from which INT8 takes its ranges; None: the bundle's reference clips."""
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What one builder alone knows, as text; `engines.tensorrt.plan_options.PlanOptions` lists TensorRT's."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What a builder wrote into the folder that it was given."""

    files: tuple[tuple[str, str], ...]
    """(name, kind) of each file; the first one is the engine."""
    device: str
    software: Mapping[str, str]
    """Library to version: what the files depend on."""
    hardware: Mapping[str, Any]
    """What of the machine the files depend on, and what their speed was measured on."""
    options: Mapping[str, Any]
    """What was chosen, as JSON."""


class _BuilderModule(Protocol):
    PRECISIONS: tuple[str, ...]

    def build(
        self, bundle: Bundle, precision: str, options: BuildOptions, folder: Path, progress: Progress
    ) -> Built: ...


def build_engine(
    bundle: Bundle, builder: str, precision: str, options: BuildOptions, progress: Progress
) -> tuple[Bundle, BundleFile, ParityResult]:
    """Compile, prove on the reference clips, time, and add to the bundle.

    Args:
        bundle: A loaded bundle.
        builder: A name from `BUILDERS`.
        precision: Arithmetic that the builder knows.
        options: What the builder may be told.
        progress: Is told how far it is.

    Returns:
        The bundle with the new files, the engine's entry, and its measured differences.

    Raises:
        BackendError: Unknown builder or precision, or its library is not installed.
        ParityError: The engine differs from the reference; the bundle is as it was.
        EngineError: The builder failed, or another is at work on the bundle; the bundle is as it was.
    """
    module = _module(builder, precision)
    with alone(bundle.path):
        return _build_alone(bundle, builder, module, precision, options, progress)


def _build_alone(
    bundle: Bundle, builder: str, module: _BuilderModule, precision: str, options: BuildOptions, progress: Progress
) -> tuple[Bundle, BundleFile, ParityResult]:
    # in the bundle's folder, so that moving the files there is atomic
    try:
        scratch = tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=bundle.path)
    except OSError as exc:
        raise EngineError(f"{bundle.path} cannot be written ({exc.strerror}); give it write permission") from exc
    with scratch as name:
        folder = Path(name)
        built = module.build(bundle, precision, options, folder, progress)
        candidate = _candidate(bundle, builder, precision, built, folder)
        progress("proving on the reference clips", 0.0)
        result, speed = _prove(candidate, BUILDERS[builder].backend, built.device, precision)
        if not result.is_within:
            raise ParityError(
                f"{builder} {precision} of {bundle.path} is refused: {result.describe()} over {result.num_clips} "
                "reference clips; nothing was added to the bundle: choose another precision"
            )
        files = _with_results(candidate.files[-len(built.files) :], result, speed)
        return _put_in_place(bundle, folder, files), files[0], result


def _put_in_place(bundle: Bundle, folder: Path, files: Sequence[BundleFile]) -> Bundle:
    """Move built files into the bundle, over older ones of their names.

    The manifest is true at each moment, and lists the older engine or the new one, whenever the process is killed.
    """
    names = {file.name for file in files}
    spares = [dataclasses.replace(file, name=SPARE + file.name) for file in bundle.files if file.name in names]
    if spares:
        for spare in spares:
            _link(bundle.path / spare.name.removeprefix(SPARE), bundle.path / spare.name)
        bundle = replace_files(bundle, names, spares)
    for file in files:
        (folder / file.name).replace(bundle.path / file.name)
    spare_names = {SPARE + name for name in names}
    bundle = replace_files(bundle, names | spare_names, files)
    for name in spare_names:
        (bundle.path / name).unlink(missing_ok=True)
    return bundle


def _link(path: Path, second: Path) -> None:
    """Give a file a second name; a copy where the drive has no links."""
    second.unlink(missing_ok=True)
    try:
        second.hardlink_to(path)
    except OSError:
        shutil.copyfile(path, second)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Let no two change a bundle or falsify each other's times; clear away what a build that was killed left.

    Raises:
        EngineError: There is another one, or the folder cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as exc:
        raise EngineError(f"{path} cannot be read ({exc.strerror}); give it read permission") from exc
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise EngineError(f"another edge-build is at work on {path}; let it end first") from exc
        except OSError:
            pass  # on some network drives no folder can be locked
        else:
            for left in path.glob(f"{_SCRATCH}*"):
                shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(descriptor)


def _module(builder: str, precision: str) -> _BuilderModule:
    if builder not in BUILDERS:
        raise BackendError(f"backend {builder!r} cannot be built; allowed are {', '.join(BUILDERS)}")
    if (trouble := backend_module(BUILDERS[builder].backend).probe()) is not None:
        raise BackendError(f"{builder} cannot be built here: {trouble}")
    module = cast(_BuilderModule, importlib.import_module(BUILDERS[builder].module))
    if precision not in module.PRECISIONS:
        raise BackendError(
            f"{builder} cannot be built in precision {precision!r}; allowed are {', '.join(module.PRECISIONS)}"
        )
    return module


def _candidate(bundle: Bundle, builder: str, precision: str, built: Built, folder: Path) -> Bundle:
    """Return the bundle as it would be: a folder of links to the old files, and the new ones."""
    names = {name for name, _ in built.files}
    kept = tuple(file for file in bundle.files if file.name.removeprefix(SPARE) not in names)
    for file in kept:
        (folder / file.name).symlink_to((bundle.path / file.name).resolve())
    build = {
        "builder": builder,
        "backend": BUILDERS[builder].backend,
        "device": built.device,
        "software": dict(built.software),
        "hardware": dict(built.hardware),
        "options": dict(built.options),
        "built_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    new = [
        describe_file(folder / name, kind, precision, build if place == 0 else None)
        for place, (name, kind) in enumerate(built.files)
    ]
    return dataclasses.replace(bundle, path=folder, files=(*kept, *new))


def _prove(candidate: Bundle, backend: str, device: str, precision: str) -> tuple[ParityResult, dict[str, Any]]:
    """Return the engine's differences, and its speed: alone, and beside the backend's FP32 where that runs."""
    with contextlib.ExitStack() as stack:
        engine = load_unproven(candidate, backend, EngineOptions(device=device, precision=precision))
        stack.callback(engine.close)
        result = measure_parity(engine, candidate)
        engines = [engine]
        if precision != "fp32" and "fp32" in backend_module(backend).precisions(candidate):
            # on the backend's own choice of device: it is what would run otherwise, and not every device has FP32
            engines.append(load_unproven(candidate, backend, EngineOptions(precision="fp32")))
            stack.callback(engines[1].close)
        times_s = _measure_s(engines, candidate.reference().clips[0])
    speed: dict[str, Any] = {"windows_per_s": round(1 / times_s[0], 3)}
    if len(engines) > 1:
        speed |= {"gain_over_fp32": round(times_s[1] / times_s[0], 3), "fp32_device": engines[1].spec.device}
    return result, speed


def _measure_s(engines: Sequence[Engine], clip_tchw: npt.NDArray[np.float32]) -> list[float]:
    """Return each engine's median time a window in s, taken in turns, so that a drift of the machine hits all alike."""
    for engine in engines:
        for frame_chw in clip_tchw:
            engine.push(frame_chw)
    times_s: list[list[float]] = [[] for _ in engines]
    while sum(map(sum, times_s)) < _TIMED_S or len(times_s[0]) < _MIN_TIMED:
        for engine, own_s in zip(engines, times_s, strict=True):
            start_s = time.perf_counter()
            engine.infer()
            own_s.append(time.perf_counter() - start_s)
    return [float(np.median(own_s)) for own_s in times_s]


def _with_results(files: tuple[BundleFile, ...], result: ParityResult, speed: Mapping[str, Any]) -> list[BundleFile]:
    engine, *others = files
    build = {**(engine.build or {}), "parity": result.as_json(), **speed}
    return [dataclasses.replace(engine, build=build), *others]
