"""From a bundle to a proven engine: the one table of backends."""

import importlib
from pathlib import Path
from typing import Protocol, cast

from engines.bundle import Bundle
from engines.engine import Engine, EngineOptions
from engines.errors import BackendError, EngineError
from engines.parity import check_parity

BACKENDS = {
    "openvino": "engines.openvino.engine",
    "onnxruntime": "engines.onnxruntime_engine",
    "torch": "engines.torch.engine",
    "tensorrt": "engines.tensorrt.engine",
}
"""Backend name to the module that owns its library."""


class BackendModule(Protocol):
    """What each backend's module has."""

    def create(self, bundle: Bundle, options: EngineOptions) -> Engine:
        """Load the bundle; the engine is neither warm nor proven."""

    def probe(self) -> str | None:
        """Return why this backend cannot run on this machine; None: it can. Cheap, and never crashes."""

    def devices(self) -> tuple[str | None, ...]:
        """Return the devices that this machine has for the backend, by its own names; None: its own choice."""

    def precisions(self, bundle: Bundle, device: str | None = None) -> tuple[str, ...]:
        """Return the precisions for which the bundle has what the backend needs on the device, the default first."""


def load_engine(
    bundle: Bundle,
    backend: str = "auto",
    device: str | None = None,
    precision: str | None = None,
    *,
    is_for_throughput: bool = False,
    num_threads: int | None = None,
    is_pinned: bool | None = None,
    cache_dir: Path | None = None,
) -> Engine:
    """Load the bundle on a backend, warm it up and check it against the reference.

    Args:
        bundle: A loaded bundle.
        backend: A name from `BACKENDS`, or "auto": the best that this machine has.
        device: The backend's own name of a device; None for its default.
        precision: Arithmetic; None for the backend's default.
        is_for_throughput: Have several windows in flight.
        num_threads: Processor threads for the network; None for the backend's choice.
        is_pinned: Whether each of them stays on one core; None for the backend's choice.
        cache_dir: Where compiled models are kept for the next start; None for nowhere.

    Raises:
        BackendError: Unknown backend or device, or the library is not installed.
        BundleError: The bundle lacks what the backend needs.
        ParityError: The outputs differ from the reference.
        EngineError: The backend could not load the model.
    """
    options = EngineOptions(
        device=device,
        precision=precision,
        is_for_throughput=is_for_throughput,
        num_threads=num_threads,
        is_pinned=is_pinned,
        cache_dir=cache_dir,
    )
    if backend == "auto":
        from engines.auto import load_best  # stands on this module

        return load_best(bundle, options)
    if backend not in BACKENDS:
        raise BackendError(f"backend {backend!r} is unknown; allowed are auto, {', '.join(BACKENDS)}")
    return load_proven(bundle, backend, options)


def load_proven(bundle: Bundle, backend: str, options: EngineOptions) -> Engine:
    """Load, warm up and check, as `load_engine` does for a backend that is named."""
    engine = load_unproven(bundle, backend, options)
    try:
        check_parity(engine, bundle)
    except BaseException:
        engine.close()
        raise
    return engine


def load_unproven(bundle: Bundle, backend: str, options: EngineOptions) -> Engine:
    """Load and warm up, for whoever measures the differences itself.

    Raises:
        EngineError: As `load_engine`, but for the parity.
    """
    module = backend_module(backend)
    if (trouble := module.probe()) is not None:
        raise BackendError(f"backend {backend} cannot run here: {trouble}")
    try:
        engine = module.create(bundle, options)
    except MemoryError as exc:
        raise EngineError(
            f"{bundle.path}: clips of {bundle.clip_tchw} do not fit into this machine's memory; export the bundle again"
        ) from exc
    try:
        engine.warmup()
    except BaseException:
        engine.close()
        raise
    return engine


def backend_module(backend: str) -> BackendModule:
    """Return a backend's module by its name.

    Raises:
        BackendError: There is none of this name.
    """
    if backend not in BACKENDS:
        raise BackendError(f"backend {backend!r} is unknown; allowed are {', '.join(BACKENDS)}")
    return cast(BackendModule, importlib.import_module(BACKENDS[backend]))


def engines_of(bundle: Bundle, backend: str, device: str | None = None) -> tuple[tuple[str | None, str], ...]:
    """Return device and precision of each engine that a bundle has for a backend.

    Args:
        bundle: The bundle.
        backend: One that can run here.
        device: The only one asked for. None: all that the machine has, and all that something was built for; a device
            of None in what is returned is the backend's own choice.
    """
    module = backend_module(backend)
    if device is not None:
        return tuple((device, precision) for precision in module.precisions(bundle, device))
    here = [(one, precision) for one in module.devices() for precision in module.precisions(bundle, one)]
    found = {precision for _, precision in here}
    built = [
        (one, precision)
        for precision in module.precisions(bundle)
        for one in _built_for(bundle, backend, precision)
        if one or precision not in found
    ]
    return tuple(dict.fromkeys([*here, *built]))


def _built_for(bundle: Bundle, backend: str, precision: str) -> tuple[str | None, ...]:
    """Return the devices for which a precision was built, where they are several; else None: the backend's choice."""
    builds = [file.build for file in bundle.files if file.build and file.precision == precision]
    devices = dict.fromkeys(str(build.get("device")) for build in builds if build.get("backend") == backend)
    return tuple(devices) if len(devices) > 1 else (None,)
