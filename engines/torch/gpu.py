"""The `torch` backend on a GPU: the exported program in FP16 or BF16, and torch-tensorrt programs, in CUDA graphs."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from engines import cuda
from engines.bundle import Bundle, BundleFile
from engines.cuda_engine import CudaEngine
from engines.engine import EngineOptions, EngineSpec
from engines.errors import BackendError, BundleError, EngineError, first_line
from engines.tensorrt.plan_check import PlanHost, require_fit
from engines.torch.engine import COMPILED_KIND
from engines.torch.program_file import load_program

PRECISIONS = ("fp16", "bf16")
INSTALL_TENSORRT = "pip install torch-tensorrt==2.13.0"


def create(bundle: Bundle, options: EngineOptions) -> CudaEngine:
    """Load the bundle's program on `options.device`: what torch-tensorrt compiled for FP16, or else eager.

    Raises:
        BackendError: No CUDA device, a torch without CUDA, or a precision that it does not have.
        BundleError: The bundle has no program.
        EngineError: The program cannot be loaded or captured, or was compiled for another machine.
    """
    precision = options.precision or PRECISIONS[0]
    if precision not in PRECISIONS:
        raise BackendError(f"backend torch runs on a GPU in {' or '.join(PRECISIONS)}; got {precision}")
    if (trouble := cuda.probe()) is not None:
        raise BackendError(f"backend torch cannot run on {options.device}: {trouble}")
    info = cuda.describe_gpu(cuda.device_index(options.device))
    torch = import_torch()
    device = f"cuda:{info.index}"
    compiled = precision == "fp16" and bundle.has(COMPILED_KIND, precision)
    file = bundle.file(COMPILED_KIND, precision) if compiled else bundle.file("torch-export", "fp32")
    network = (
        _load_compiled(torch, bundle, file, info) if compiled else _load_eager(torch, bundle, file, device, precision)
    )
    torch.cuda.synchronize(device)  # weights are converted on a stream for which the engine's own does not wait
    outputs = {name: (1, *array.shape[1:]) for name, array in _reference_outputs(bundle).items()}
    spec = EngineSpec(bundle.name, file.sha256, "torch", precision, device, bundle.clip_tchw, bundle.classes)
    with cuda.running(bundle.path / file.name, info.index) as gpu:
        shape = (1, *bundle.clip_tchw)
        return CudaEngine(spec, gpu, TorchProgram(torch, network, device, shape, outputs, is_compiled=compiled))


class TorchProgram:
    """A PyTorch network that takes and gives FP32, on device memory that is not torch's own."""

    def __init__(
        self,
        torch: Any,
        network: Callable[[Any], Any],
        device: str,
        input_shape: tuple[int, ...],
        outputs: dict[str, tuple[int, ...]],
        *,
        is_compiled: bool = False,
    ) -> None:
        self.inputs = {"clip": input_shape}
        self.outputs = outputs
        # torch-tensorrt has one context of TensorRT, which a graph leaves no further use of (`engines.tensorrt.plan`)
        self.has_many_graphs = not is_compiled
        self._torch = torch
        self._network = network
        self._device = device
        self._tensors: dict[str, Any] = {}
        self._pool = torch.cuda.graph_pool_handle()
        """One memory pool for all graphs: no two of them run at once."""

    def bind(self, name: str, address: int) -> None:
        """Say where a tensor lies from the next `enqueue` on."""
        memory = _DeviceArray(address, (self.inputs | self.outputs)[name])
        self._tensors[name] = self._torch.as_tensor(memory, device=self._device)

    def enqueue(self, stream: int) -> None:
        """Start the network on a stream.

        Raises:
            EngineError: torch fails.
        """
        torch = self._torch
        with _told("run the network"), torch.inference_mode(), torch.cuda.stream(self._stream(stream)):
            self._run()

    def _run(self) -> None:
        probabilities, heatmap = self._network(self._tensors["clip"])
        self._tensors["probabilities"].copy_(probabilities)
        self._tensors["heatmap"].copy_(heatmap)

    def capture(self, gpu: cuda.Gpu) -> Callable[[], None]:
        """Record the network as a graph by torch's own means, as its allocator must know; return what starts it."""
        torch = self._torch
        stream = self._stream(gpu.stream)
        graph = torch.cuda.CUDAGraph()
        kept = dict(self._tensors)  # a graph does not keep what it reads and writes
        # other threads may go on using CUDA while this one captures
        captured = torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local")
        with _told("capture a CUDA graph"), torch.inference_mode(), captured:
            self._run()

        def start() -> None:
            assert kept
            with _told("run a CUDA graph"), torch.cuda.stream(stream):
                graph.replay()

        return start

    def _stream(self, handle: int) -> Any:
        return self._torch.cuda.ExternalStream(handle, device=self._device)


class _DeviceArray:
    """Device memory as others see it, by the CUDA array interface, version 3."""

    def __init__(self, address: int, shape: tuple[int, ...]) -> None:
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": "<f4",
            "data": (address, False),
            "version": 3,
            "strides": None,
        }


def lower(torch: Any, program: Any, device: str, precision: str) -> Any:
    """Return an exported FP32 program as a module that takes and gives FP32 and computes in a lower precision.

    Weights and constants are converted, and every type that stands in the graph; convolutions' weights are laid out
    channels last, which the activations then take over.
    """
    from torch.export.passes import move_to_device_pass

    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    network = move_to_device_pass(program, device).module(check_guards=False)
    for node in list(network.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            network.graph.erase_node(node)  # it says what the types were
            continue
        node.args = _with_dtype(torch, node.args, dtype)
        node.kwargs = _with_dtype(torch, node.kwargs, dtype)
    network.recompile()
    network = network.to(dtype)
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}  # 2D and 3D convolutions' weights
    for weight in network.parameters():
        if weight.dim() in formats:
            weight.data = weight.data.contiguous(memory_format=formats[weight.dim()])

    class Lowered(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, clip: Any) -> tuple[Any, Any]:
            probabilities, heatmap = self.network(clip.to(dtype))
            return probabilities.float(), heatmap.float()

    return Lowered()


def _with_dtype(torch: Any, value: Any, dtype: Any) -> Any:
    return torch.fx.node.map_aggregate(value, lambda item: dtype if item is torch.float32 else item)


def _load_eager(torch: Any, bundle: Bundle, file: BundleFile, device: str, precision: str) -> Any:
    path = bundle.path / file.name
    torch.backends.cudnn.benchmark = True  # shapes are fixed: the fastest algorithm is worth the search
    with _told(f"load {path}", "export the bundle again"), _quiet():
        return lower(torch, load_program(torch, path), device, precision)


def _load_compiled(torch: Any, bundle: Bundle, file: BundleFile, info: cuda.GpuInfo) -> Any:
    import_torch_tensorrt()
    import tensorrt as trt

    require_fit(bundle, file, PlanHost.here(trt.__version__, info))
    path = bundle.path / file.name
    with _told(f"load {path}", "build it again"), _quiet():
        return load_program(torch, path, may_hold_engines=True).module(check_guards=False)


def import_torch_tensorrt() -> Any:
    """Return the library.

    Raises:
        BackendError: It is not installed, or does not fit torch: its version is paired with torch's.
    """
    try:
        with _quiet():
            import torch_tensorrt  # type: ignore[import-not-found, unused-ignore]
    except Exception as exc:  # beside a torch without CUDA, or without TensorRT, it raises this very class
        raise BackendError(
            f"torch-tensorrt does not load ({first_line(exc)}); install the pair with `{INSTALL_TENSORRT}`"
        ) from exc
    return torch_tensorrt


def import_torch() -> Any:
    """Return torch.

    Raises:
        BackendError: It is not installed, or cannot use CUDA.
    """
    try:
        import torch
    except ImportError as exc:
        raise BackendError(f"backend torch: {exc}; install it with `pip install torch==2.13.0`") from exc
    if not torch.cuda.is_available():
        raise BackendError(
            f"torch {torch.__version__} cannot use CUDA: install a build that fits the driver, or leave --device out"
        )
    return torch


def _reference_outputs(bundle: Bundle) -> dict[str, Any]:
    """Return the reference's arrays by the outputs' names: their shapes are the network's."""
    reference = bundle.reference()
    if not np.size(reference.heatmaps):
        raise BundleError(f"{bundle.path}: the reference has empty heatmaps; export the bundle again")
    return {"probabilities": reference.probabilities, "heatmap": reference.heatmaps}


@contextlib.contextmanager
def _told(what: str, cure: str = "") -> Iterator[None]:
    """Turn torch's errors into ours."""
    try:
        yield
    except EngineError:
        raise
    except Exception as exc:  # torch raises whatever its schema checks and its kernels meet
        raise EngineError(f"torch cannot {what}: {first_line(exc)}{f'; {cure}' if cure else ''}") from exc


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back deprecations inside the libraries."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
