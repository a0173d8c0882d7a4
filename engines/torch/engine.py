"""The `torch` backend: PyTorch in FP32 on the CPU, the reference that others are compared with; or on a GPU."""

import dataclasses
import importlib.util
import logging
import sys
import warnings
from typing import Any

from engines import host
from engines.bundle import Bundle
from engines.engine import Engine, EngineOptions, EngineOutput, EngineSpec, HostEngine
from engines.errors import BackendError, EngineError, first_line
from engines.torch.program_file import load_program

COMPILED_KIND = "torch-tensorrt"


def create(bundle: Bundle, options: EngineOptions = EngineOptions()) -> Engine:  # noqa: B008  frozen
    """Load the bundle's exported PyTorch program, on the CPU by default; FP16 where it was compiled for.

    Raises:
        BackendError: torch is not installed, or has not this device or precision.
        BundleError: The bundle has no exported program.
        EngineError: torch cannot load it.
    """
    if options.device is None and options.precision == "fp16" and bundle.has(COMPILED_KIND, "fp16"):
        build = bundle.file(COMPILED_KIND, "fp16").build or {}
        options = dataclasses.replace(options, device=str(build.get("device", "cuda")))
    if _is_gpu(options.device):
        from engines.torch import gpu

        return gpu.create(bundle, options)
    if options.device not in (None, "cpu"):
        raise BackendError(f"backend torch runs on devices cpu, cuda, cuda:1, ...; got {options.device!r}")
    if options.precision not in (None, "fp32"):
        raise BackendError(f"backend torch runs on the CPU in fp32; got {options.precision}; --device cuda has others")
    return TorchEngine(bundle)


def probe() -> str | None:
    """Return why torch cannot run here; looked up without loading it, which takes seconds."""
    is_there = "torch" in sys.modules or importlib.util.find_spec("torch") is not None
    return None if is_there else "it is not installed: `pip install torch==2.13.0`"


def devices() -> tuple[str, ...]:
    """Return the processor, and the first CUDA device where there is one."""
    return ("cpu",) if host.cuda_trouble() else ("cuda", "cpu")


def precisions(bundle: Bundle, device: str | None = None) -> tuple[str, ...]:
    """Return what the bundle has a program for on the device; without one on the CPU, and what was compiled."""
    has_program = bundle.has("torch-export", "fp32")
    compiled = ("fp16",) if bundle.has(COMPILED_KIND, "fp16") else ()
    if _is_gpu(device):
        return ("fp16", "bf16") if has_program else compiled
    eager = ("fp32",) if has_program else ()
    return eager if device is not None else (*eager, *compiled)


def _is_gpu(device: str | None) -> bool:
    return device is not None and device.startswith("cuda")


class TorchEngine(HostEngine):
    """Runs the ring's windows without a copy: one tensor for each of the T places where a window can start."""

    def __init__(self, bundle: Bundle) -> None:
        file = bundle.file("torch-export", "fp32")
        super().__init__(EngineSpec(bundle.name, file.sha256, "torch", "fp32", "cpu", bundle.clip_tchw, bundle.classes))
        self._torch = _import_torch()
        path = bundle.path / file.name
        logging.getLogger("torch.export").setLevel(logging.CRITICAL)  # it logs tracebacks of what it raises as well
        try:
            # torch warns about deprecations inside itself
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                # the bundle says what goes in; guards would say it again, in code
                self._network: Any = load_program(self._torch, path).module(check_guards=False)
        except Exception as exc:  # torch raises whatever its schema checks meet
            raise EngineError(f"torch cannot load {path}: {first_line(exc)}; export the bundle again") from exc
        self._inputs = [self._torch.from_numpy(self._ring.window(slot)) for slot in range(self._ring.num_frames)]

    def _run(self, start_slot: int) -> EngineOutput:
        try:
            with self._torch.inference_mode():
                probabilities, heatmap = (output.numpy() for output in self._network(self._inputs[start_slot]))
        except Exception as exc:  # torch's own have no common class, and a program may give anything
            raise EngineError(f"torch failed to run {self.spec.name}: {first_line(exc)}") from exc
        return self._output(probabilities, heatmap)

    def close(self) -> None:
        self._network = None
        self._inputs = []


def _import_torch() -> Any:
    try:
        import torch
    except ImportError as exc:
        raise BackendError(f"backend torch: {exc}; install it with `pip install torch==2.13.0`") from exc
    return torch
