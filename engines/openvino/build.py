"""Builds for the `openvino` backend: the network in OpenVINO's own format."""

import importlib.metadata
from pathlib import Path
from typing import Any

from engines.build import SPARE, BuildOptions, Built, Progress
from engines.bundle import Bundle
from engines.errors import EngineError, last_line
from engines.openvino.engine import (
    DEFAULT_DEVICE,
    KIND,
    check_device,
    device_of,
    hardware,
    import_openvino,
    latency_properties,
    shared_core,
)
from engines.openvino.int8 import quantize
from engines.openvino.stem import measure_gain

PRECISIONS = ("fp32", "bf16", "fp16", "int8")


def build(bundle: Bundle, precision: str, options: BuildOptions, folder: Path, progress: Progress) -> Built:
    """Write `model.openvino-PRECISION.xml` and `.bin`; for another device than the processor, `-DEVICE` before the dot.

    Raises:
        BackendError: OpenVINO or, for INT8, NNCF is not installed; the device or its arithmetic is not there.
        EngineError: OpenVINO cannot read or run the network.
    """
    openvino = import_openvino()
    core = shared_core()
    device = (options.device or DEFAULT_DEVICE).upper()
    capabilities = check_device(core, device, precision)
    path = bundle.path / bundle.file("onnx", "fp32").name
    progress("reading the network", 0.0)
    try:
        model = openvino.convert_model(path, input=[1, *bundle.clip_tchw])
    except Exception as exc:  # its errors have no common class but this
        raise EngineError(f"OpenVINO cannot read {path}: {last_line(exc)}; export the bundle again") from exc
    software = {"openvino": importlib.metadata.version("openvino")}
    chosen: dict[str, Any] = {}
    if precision == "int8":
        clips = bundle.reference().clips if options.calibration_clips is None else options.calibration_clips
        model = quantize(model, clips, len(bundle.classes), lambda share: progress("quantising", share))
        software["nncf"] = importlib.metadata.version("nncf")
        chosen["num_calibration_clips"] = len(clips)
    name = _name(bundle, precision, device)
    try:
        openvino.save_model(model, folder / f"{name}.xml", compress_to_fp16=precision in ("bf16", "fp16"))
    except RuntimeError as exc:  # it does not say why
        raise EngineError(
            f"OpenVINO cannot write {name}.xml and .bin into {bundle.path}; make room on its disk"
        ) from exc
    if device == DEFAULT_DEVICE:
        progress("timing", 0.0)
        properties = latency_properties(precision, capabilities)
        try:
            gain = measure_gain(core, device, lambda: core.read_model(folder / f"{name}.xml"), properties)
        except RuntimeError as exc:
            raise EngineError(
                f"OpenVINO cannot run {path} in {precision} on {device}: {last_line(exc)}; choose another precision"
            ) from exc
        if gain is not None:
            chosen |= {"is_stem_cut": gain > 1, "stem_cut_gain": round(gain, 3)}
    return Built(
        files=((f"{name}.xml", KIND), (f"{name}.bin", f"{KIND}-weights")),
        device=device,
        software=software,
        hardware=hardware(device),
        options=chosen,
    )


def _name(bundle: Bundle, precision: str, device: str) -> str:
    """Return the files' name without its end: that of what is built anew, or one by which no other device's is lost."""
    for file in bundle.files:
        if (file.kind, file.precision, device_of(file)) == (KIND, precision, device):
            return Path(file.name).stem.removeprefix(SPARE)
    suffix = "" if device == DEFAULT_DEVICE else f"-{device.lower().replace('.', '-')}"
    return f"model.openvino-{precision}{suffix}"
