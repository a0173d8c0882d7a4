"""The `tensorrt` backend: an FP16 plan on an NVIDIA GPU, by cuda-python, without torch. TensorRT 10 and 11."""

import importlib.util
import logging
from typing import TYPE_CHECKING

from engines import cuda
from engines.bundle import Bundle, BundleFile
from engines.cuda_engine import CudaEngine
from engines.engine import EngineOptions, EngineSpec
from engines.errors import BackendError, EngineError
from engines.parity import rebuild_command
from engines.tensorrt.plan_check import PlanHost, require_fit

if TYPE_CHECKING:
    from engines.tensorrt.plan import Plan

_log = logging.getLogger("edge.engines")

KIND = "tensorrt"
INSTALL = "pip install tensorrt"


def create(bundle: Bundle, options: EngineOptions = EngineOptions()) -> CudaEngine:  # noqa: B008  frozen
    """Load the bundle's plan on a CUDA device ("cuda:0" by default).

    Raises:
        BackendError: TensorRT or a CUDA device is missing.
        BundleError: The bundle has no plan.
        EngineError: The plan was built for another machine, is damaged, or does not fit into the GPU's memory.
    """
    file = bundle.file(KIND, options.precision)
    if (trouble := probe()) is not None:
        raise BackendError(f"backend tensorrt cannot run here: {trouble}")
    info = cuda.describe_gpu(cuda.device_index(options.device))
    import tensorrt as trt

    require_fit(bundle, file, PlanHost.here(trt.__version__, info))
    device, precision = f"cuda:{info.index}", file.precision or "fp16"
    spec = EngineSpec(bundle.name, file.sha256, "tensorrt", precision, device, bundle.clip_tchw, bundle.classes)
    with cuda.running(bundle.path / file.name, info.index) as gpu:
        return CudaEngine(spec, gpu, _load(bundle, file, gpu))


def _load(bundle: Bundle, file: BundleFile, gpu: cuda.Gpu) -> "Plan":
    from engines.tensorrt.plan import Plan

    is_compatible = ((file.build or {}).get("options") or {}).get("version_compatible") is True
    if is_compatible:
        _log.warning(
            "%s is version compatible: it carries code of its own, which runs here; take it only from those you trust",
            bundle.path / file.name,
        )
    try:
        return Plan(bundle.path / file.name, gpu, is_version_compatible=is_compatible)
    except EngineError as exc:
        raise EngineError(
            f"{exc}; if the GPU's memory is full, end what else runs on it; else {rebuild_command(bundle, file)}"
        ) from exc


def probe() -> str | None:
    """Return why TensorRT cannot run here.

    CUDA is asked first and by cuda-python: without a driver TensorRT's own objects end the process.
    """
    if importlib.util.find_spec("tensorrt") is None:
        return f"TensorRT is not installed: `{INSTALL}`"
    if (trouble := cuda.probe()) is not None:
        return trouble
    try:
        import tensorrt  # noqa: F401
    except (ImportError, OSError, RuntimeError) as exc:  # its bindings are there, its libraries are not
        return f"TensorRT does not load ({exc}): `{INSTALL}`"
    return None


def devices() -> tuple[None, ...]:
    """Return its own choice: a plan is of one GPU."""
    return (None,)


def precisions(bundle: Bundle, device: str | None = None) -> tuple[str, ...]:
    """Return the precisions in which the bundle has a plan."""
    return tuple(file.precision for file in bundle.files if file.kind == KIND and file.precision)
