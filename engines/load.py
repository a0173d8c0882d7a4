"""From a bundle to a proven engine: the one table of backends."""

import importlib
from typing import Protocol, cast

from engines.bundle import Bundle
from engines.engine import Engine
from engines.errors import BackendError, EngineError
from engines.parity import check_parity

BACKENDS = {
    "openvino": "engines.openvino_engine",
    "torch": "engines.torch_engine",
}
"""Backend name to the module that owns its library and has `create(bundle, device)`."""

DEFAULT_BACKEND = "openvino"


class _BackendModule(Protocol):
    def create(self, bundle: Bundle, device: str | None) -> Engine: ...


def load_engine(bundle: Bundle, backend: str = "auto", device: str | None = None) -> Engine:
    """Load the bundle on a backend, warm it up and check it against the reference.

    Args:
        bundle: A loaded bundle.
        backend: A name from `BACKENDS`, or "auto".
        device: The backend's own name of a device; None for its default.

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
    try:
        engine = module.create(bundle, device)
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
