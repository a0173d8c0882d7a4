"""Compiles the bundle's FP16 ONNX file into a TensorRT plan, and proves that the plan computes in FP16.

For TensorRT 10 and 11. The network is strongly typed: TensorRT takes every type from the ONNX file and changes none.
"""

import dataclasses
from pathlib import Path

import tensorrt as trt

from engines import half
from engines.build import BuildOptions, Built, Progress
from engines.bundle import Bundle
from engines.cuda import describe_gpu, device_index, select
from engines.errors import EngineError
from engines.tensorrt.plan import Plan
from engines.tensorrt.plan_check import PlanHost
from engines.tensorrt.plan_options import PlanOptions
from engines.tensorrt.words import WORDS, Monitor

PRECISIONS = ("fp16",)
KIND = "tensorrt"

_HEAVY = (trt.LayerType.CONVOLUTION, trt.LayerType.MATRIX_MULTIPLY)


def build(bundle: Bundle, precision: str, options: BuildOptions, folder: Path, progress: Progress) -> Built:
    """Write `model.tensorrt-fp16.plan`, and the FP16 ONNX file first where the bundle has none.

    Raises:
        BackendError: What the FP16 file needs is not installed, or there is no such device.
        EngineError: The ONNX file overflows or is not supported, or the plan would not be FP16.
    """
    plan_options = PlanOptions.parse(options.settings)
    gpu = describe_gpu(device_index(options.device))
    select(gpu.index)  # TensorRT builds for the thread's device
    if not bundle.has("onnx", "fp16"):
        progress("writing the FP16 network", 0.0)
        bundle = half.add_half(bundle)
    half.check_half(bundle)
    onnx_path = bundle.path / bundle.file("onnx", "fp16").name
    host = PlanHost.here(trt.__version__, gpu)
    plan_path = folder / f"model.tensorrt-{precision}.plan"
    cache_path = plan_options.cache_path(host.tensorrt, gpu.name)
    compile_plan(onnx_path, plan_path, plan_options, cache_path, progress)
    counts = Plan(plan_path, is_version_compatible=plan_options.version_compatible).layer_counts()
    counts.require_half(plan_path.stat().st_size, onnx_path, _num_weights(onnx_path))
    return Built(
        files=((plan_path.name, KIND),),
        device=f"cuda:{gpu.index}",
        software=host.software,
        hardware=host.hardware,
        options={**dataclasses.asdict(plan_options), "layers": dataclasses.asdict(counts)},
    )


def compile_plan(onnx_path: Path, plan_path: Path, options: PlanOptions, cache_path: Path, progress: Progress) -> None:
    """Compile an ONNX file of fixed shapes.

    Args:
        onnx_path: FP16 ONNX file.
        plan_path: Where the plan is written.
        options: What TensorRT is told.
        cache_path: The timing cache; made where it is missing, brought up to date.
        progress: Is told TensorRT's phases.

    Raises:
        EngineError: The file has an unsupported operator or no FP16, or TensorRT fails; with TensorRT's own words.
    """
    builder = WORDS.make(trt.Builder, "start its builder")
    # needed by TensorRT 10; 11 knows no other networks
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = WORDS.require(builder.create_network(typed), "create a network")
    _parse(onnx_path, network)
    require_half_network(network, onnx_path)
    config = WORDS.require(builder.create_builder_config(), "create a configuration")
    _configure(config, options)
    cache = _load_cache(config, cache_path)
    monitor = Monitor(progress)
    config.progress_monitor = monitor
    with monitor.catching_ctrl_c():
        plan = builder.build_serialized_network(network, config)
    if monitor.is_interrupted:
        raise KeyboardInterrupt
    plan_path.write_bytes(memoryview(WORDS.require(plan, f"build a plan from {onnx_path}")))
    _save_cache(cache, cache_path)


def _parse(onnx_path: Path, network: trt.INetworkDefinition) -> None:
    parser = WORDS.make(trt.OnnxParser, "start its parser", network)
    if parser.parse_from_file(str(onnx_path)):
        return
    errors = [parser.get_error(place) for place in range(parser.num_errors)]
    said = "; ".join(f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in errors)
    words = WORDS.take()  # the same less clearly; kept, they would be told with the next failure
    raise EngineError(
        f"TensorRT {trt.__version__} cannot read {onnx_path}: {' '.join(said.split()) or words}; update "
        "TensorRT, or run this bundle on another backend"
    )


def require_half_network(network: trt.INetworkDefinition, onnx_path: Path) -> None:
    """Refuse a network in which no convolution and no matrix product gives FP16: its plan would be silently FP32.

    Raises:
        EngineError: It is such a one.
    """
    layers = [network.get_layer(place) for place in range(network.num_layers)]
    types = [layer.get_output(0).dtype for layer in layers if layer.type in _HEAVY]
    if trt.DataType.HALF not in types:
        raise EngineError(
            f"{onnx_path}: none of its {len(types)} convolutions and matrix products is in FP16, and TensorRT changes "
            "no type; export the bundle again"
        )


def _num_weights(onnx_path: Path) -> int:
    """Return about how many weights the FP16 file holds: each takes two bytes."""
    return onnx_path.stat().st_size // 2


def _configure(config: trt.IBuilderConfig, options: PlanOptions) -> None:
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    config.builder_optimization_level = options.optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # on by default: products that are kept in FP32 for accuracy would be rounded as FP16 is
    config.clear_flag(trt.BuilderFlag.TF32)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    config.hardware_compatibility_level = _hardware_level(options.hardware_compatibility)


def _hardware_level(name: str) -> trt.HardwareCompatibilityLevel:
    """Return TensorRT's value of one of `HARDWARE_COMPATIBILITY`.

    Raises:
        EngineError: This TensorRT does not have it: the first versions 10 have no "same-compute-capability".
    """
    key = name.replace("-", "_").upper()
    if not hasattr(trt.HardwareCompatibilityLevel, key):
        raise EngineError(f"TensorRT {trt.__version__} has no hardware_compatibility {name}; update it or take another")
    level: trt.HardwareCompatibilityLevel = getattr(trt.HardwareCompatibilityLevel, key)
    return level


def _load_cache(config: trt.IBuilderConfig, path: Path) -> trt.ITimingCache:
    """Give the builder the kernel timings of earlier builds; a cache that does not fit is begun anew."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes() if path.is_file() else b""
        _write(path, content)  # now, not after minutes of building
    except OSError as exc:
        raise _cache_error(path, exc) from exc
    cache: trt.ITimingCache | None = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):
        WORDS.take()
        cache = WORDS.require(config.create_timing_cache(b""), "create a timing cache")
        WORDS.require(config.set_timing_cache(cache, False), "use a new timing cache")
    return cache


def _save_cache(cache: trt.ITimingCache, path: Path) -> None:
    content = memoryview(WORDS.require(cache.serialize(), "write the timing cache"))
    try:
        _write(path, content)
    except OSError as exc:
        raise _cache_error(path, exc) from exc


def _write(path: Path, content: bytes | memoryview) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def _cache_error(path: Path, exc: OSError) -> EngineError:
    return EngineError(
        f"timing cache {path} cannot be read and written ({exc.strerror}); give it another place: "
        "--set timing_cache=FILE"
    )
