"""Compiles the bundle's PyTorch program with torch-tensorrt, in FP16, and proves that it computes in FP16.

The program is lowered to FP16 before it is compiled: asked for a precision, torch-tensorrt's dynamo path ignores it and
gives FP32.
"""

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engines.build import BuildOptions, Built, Progress
from engines.bundle import Bundle
from engines.cuda import describe_gpu, device_index
from engines.errors import EngineError
from engines.tensorrt.plan_check import PlanHost
from engines.tensorrt.plan_options import LayerCounts, PlanOptions
from engines.torch.engine import COMPILED_KIND
from engines.torch.gpu import import_torch, import_torch_tensorrt, lower
from engines.torch.program_file import load_program

PRECISIONS = ("fp16",)
_HEAVY = ("conv", "linear", "matmul", "addmm", "bmm")


def build(bundle: Bundle, precision: str, options: BuildOptions, folder: Path, progress: Progress) -> Built:
    """Write `model.torch-tensorrt-fp16.pt2`.

    Raises:
        BackendError: torch-tensorrt or a CUDA device is missing.
        EngineError: The program cannot be compiled, or would not be FP16.
    """
    gpu = describe_gpu(device_index(options.device))
    torch, torch_tensorrt = import_torch(), import_torch_tensorrt()
    import tensorrt as trt

    plan_options = PlanOptions.parse(options.settings)
    if plan_options.hardware_compatibility == "same-compute-capability":
        raise EngineError("torch-tensorrt has no hardware_compatibility same-compute-capability; take ampere-plus")
    path = bundle.path / bundle.file("torch-export", "fp32").name
    target = folder / f"model.{COMPILED_KIND}-{precision}.pt2"
    device = f"cuda:{gpu.index}"
    host = PlanHost.here(trt.__version__, gpu)
    settings = _settings(torch_tensorrt, plan_options, device, plan_options.cache_path(host.tensorrt, gpu.name))
    progress("compiling with torch-tensorrt", 0.0)
    with _told(path), torch.cuda.device(gpu.index):
        clip = torch.zeros((1, *bundle.clip_tchw), device=device)
        program = half_program(torch, load_program(torch, path), clip, precision)
        compiled = torch_tensorrt.dynamo.compile(program, inputs=[clip], **settings)
        counts = require_half_parts(compiled, path, sum(each.numel() for each in program.parameters()))
        torch_tensorrt.save(compiled, str(target), inputs=[clip])
    return Built(
        files=((target.name, COMPILED_KIND),),
        device=device,
        software={**host.software, "torch": torch.__version__, "torch_tensorrt": torch_tensorrt.__version__},
        hardware=host.hardware,
        options={**dataclasses.asdict(plan_options), "layers": dataclasses.asdict(counts)},
    )


def half_program(torch: Any, program: Any, clip: Any, precision: str) -> Any:
    """Return the FP32 program exported anew in FP16, with FP32 inputs and outputs.

    Raises:
        EngineError: A convolution or matrix product in it still gives FP32.
    """
    module = lower(torch, program, str(clip.device), precision)
    with torch.no_grad():
        lowered = torch.export.export(module, (clip,))
    heavy = [node for node in lowered.graph.nodes if any(word in str(node.target) for word in _HEAVY)]
    left = [node.name for node in heavy if node.op == "call_function" and node.meta["val"].dtype == torch.float32]
    if left:
        raise EngineError(
            f"{len(left)} layers of the program stay in FP32 ({', '.join(left[:3])}); export the bundle again"
        )
    return lowered


def _settings(torch_tensorrt: Any, options: PlanOptions, device: str, cache_path: Path) -> dict[str, Any]:
    return {
        "device": torch_tensorrt.Device(device),
        "require_full_compilation": True,
        "workspace_size": options.workspace_bytes,
        "optimization_level": options.optimization_level,
        "version_compatible": options.version_compatible,
        "hardware_compatible": options.hardware_compatibility == "ampere-plus",
        "timing_cache_path": str(cache_path),  # its own choice is a file in /tmp, whatever version and GPU
    }


def require_half_parts(compiled: Any, path: Path, num_weights: int) -> LayerCounts:
    """Count the layers of all compiled parts, and refuse what is FP32 all the same.

    Args:
        compiled: A module whose compiled parts have `get_layer_info()` and `serialized_engine` (bytes), as
            `TorchTensorRTModule` of torch-tensorrt 2.13 has them.
        path: What it was made of.
        num_weights: How many weights that holds.

    Raises:
        EngineError: Nothing was compiled, or not in FP16.
    """
    parts = [part for part in compiled.modules() if hasattr(part, "get_layer_info")]
    if not parts:
        raise EngineError(f"torch-tensorrt compiled no part of {path}; use --backend tensorrt")
    counts = [LayerCounts.read(part.get_layer_info()) for part in parts]
    total = LayerCounts(
        *(sum(getattr(each, field.name) for each in counts) for field in dataclasses.fields(LayerCounts))
    )
    total.require_half(sum(len(part.serialized_engine or b"") for part in parts), path, num_weights)
    return total


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn torch's errors into ours; hold back deprecations inside the libraries."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except EngineError:
        raise
    except Exception as exc:  # whatever torch, torch-tensorrt and TensorRT raise
        first = next(iter(str(exc).strip().splitlines()), type(exc).__name__)
        raise EngineError(f"torch-tensorrt cannot compile {path}: {first}; use --backend tensorrt") from exc
