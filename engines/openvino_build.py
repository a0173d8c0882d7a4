"""Builds for the `openvino` backend: the network in OpenVINO's own format, in INT8 with NNCF's help."""

import contextlib
import importlib.metadata
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engines import host
from engines.build import BuildOptions, Built, Progress
from engines.bundle import Bundle
from engines.errors import BackendError, EngineError
from engines.openvino_engine import DEFAULT_DEVICE, KIND, check_device, import_openvino, last_line

PRECISIONS = ("fp32", "bf16", "fp16", "int8")


def build(bundle: Bundle, precision: str, options: BuildOptions, folder: Path, progress: Progress) -> Built:
    """Write `model.openvino-PRECISION.xml` and `.bin`.

    Raises:
        BackendError: OpenVINO or, for INT8, NNCF is not installed; the device or its arithmetic is not there.
        EngineError: OpenVINO cannot read the network.
    """
    openvino = import_openvino()
    core = openvino.Core()
    device = options.device or DEFAULT_DEVICE
    check_device(core, device, precision)
    path = bundle.path / bundle.file("onnx", "fp32").name
    progress("reading the network", 0.0)
    try:
        model = core.read_model(path)
        model.reshape([1, *bundle.clip_tchw])
    except RuntimeError as exc:
        raise EngineError(f"OpenVINO cannot read {path}: {last_line(exc)}; export the bundle again") from exc
    software = {"openvino": importlib.metadata.version("openvino")}
    chosen: dict[str, Any] = {}
    if precision == "int8":
        model, num_clips = _quantize(model, bundle, options, progress)
        software["nncf"] = importlib.metadata.version("nncf")
        chosen["num_calibration_clips"] = num_clips
    name = f"model.openvino-{precision}"
    openvino.save_model(model, folder / f"{name}.xml", compress_to_fp16=precision in ("bf16", "fp16"))
    return Built(
        files=((f"{name}.xml", KIND), (f"{name}.bin", f"{KIND}-weights")),
        device=device,
        software=software,
        hardware=_hardware(core, device),
        options=chosen,
    )


def _hardware(core: Any, device: str) -> dict[str, Any]:
    others = {} if device == "CPU" else {"device": str(core.get_property(device, "FULL_DEVICE_NAME"))}
    return {**host.describe(), **others}


def _quantize(model: Any, bundle: Bundle, options: BuildOptions, progress: Progress) -> tuple[Any, int]:
    """Return the network in INT8, each layer's range taken from clips that stand for what it will see."""
    nncf = _import_nncf()
    clips = bundle.reference().clips if options.calibration_clips is None else options.calibration_clips

    def batches() -> Iterator[Any]:
        for place, clip_tchw in enumerate(clips):
            progress("quantising", place / len(clips))
            yield clip_tchw[None]

    class Clips:  # NNCF goes through them more than once
        def __iter__(self) -> Iterator[Any]:
            return batches()

        def __len__(self) -> int:
            return len(clips)

    with _quiet(), contextlib.redirect_stdout(io.StringIO()):  # it draws a bar there
        quantized = nncf.quantize(model, nncf.Dataset(Clips()), subset_size=len(clips))
    return quantized, len(clips)


def _import_nncf() -> Any:
    try:
        with _quiet():
            import nncf  # type: ignore[import-untyped]
    except ImportError as exc:
        raise BackendError(f"openvino int8: {exc}; install it with `pip install 'nncf>=3,<4'`") from exc
    return nncf


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what NNCF says and draws of its own insides; its errors are exceptions."""
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
