"""From a bundle to a proven engine: the one table of backends."""

import importlib
from typing import Protocol, cast

from engines.bundle import Bundle
from engines.engine import Engine, EngineOptions
from engines.errors import BackendError, EngineError
from engines.parity import check_parity

BACKENDS = {
    "openvino": "engines.openvino_engine",
    "torch": "engines.torch_engine",
}
"""Backend name to the module that owns its library and has `create(bundle, options)`."""

DEFAULT_BACKEND = "openvino"


class _BackendModule(Protocol):
    def create(self, bundle: Bundle, options: EngineOptions) -> Engine: ...


def load_engine(
    bundle: Bundle,
    backend: str = "auto",
    device: str | None = None,
    precision: str | None = None,
    *,
    is_for_throughput: bool = False,
    num_threads: int | None = None,
) -> Engine:
    """Load the bundle on a backend, warm it up and check it against the reference.

    Args:
        bundle: A loaded bundle.
        backend: A name from `BACKENDS`, or "auto".
        device: The backend's own name of a device; None for its default.
        precision: Arithmetic; None for the backend's default.
        is_for_throughput: Have several windows in flight.
        num_threads: Processor threads for the network; None for the backend's choice.

    Raises:
        BackendError: Unknown backend or device, or the library is not installed.
        BundleError: The bundle lacks what the backend needs.
        ParityError: The outputs differ from the reference.
        EngineError: The backend could not load the model.
    """
    name = DEFAULT_BACKEND if backend == "auto" else backend
    if name not in BACKENDS:
        raise BackendError(f"backend {backend!r} is unknown; allowed are auto, {', '.join(BACKENDS)}")
    module = cast(_BackendModule, importlib.import_module(BACKENDS[name]))
    options = EngineOptions(
        device=device, precision=precision, is_for_throughput=is_for_throughput, num_threads=num_threads
    )
    try:
        engine = module.create(bundle, options)
    except MemoryError as exc:
        raise EngineError(
            f"{bundle.path}: clips of {bundle.clip_tchw} do not fit into this machine's memory; export the bundle again"
        ) from exc
    try:
        engine.warmup()
        check_parity(engine, bundle)
    except BaseException:
        engine.close()
        raise
    return engine
