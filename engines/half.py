"""From the FP32 ONNX file to `model.fp16.onnx`: FP16 wherever the bundle's own clips show that it holds.

FP32 stays where the operator has no FP16 form, where many values are summed (the CPU cannot show how a GPU would sum
them in FP16), where values come near FP16's largest number, and where the comparison with the reference asks for it.
What stays, and why, is recorded in the manifest.
"""

import contextlib
import dataclasses
import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from engines import host
from engines.build import BuildOptions, Built, Progress
from engines.bundle import Bundle, add_files, describe_file
from engines.errors import BackendError, EngineError, last_line
from engines.parity import TOLERANCES
from engines.reference import Reference

if TYPE_CHECKING:
    import onnx

HALF_NAME = "model.fp16.onnx"
PRECISIONS = ("fp16",)

SUMS = frozenset({"GlobalAveragePool", "ReduceL1", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare", "Softmax"})
"""Operators that sum many values into one."""

HEADROOM = 8.0
"""How much larger than on the reference clips a value may become on others before FP16 overflows."""

TARGET_SHARE = 0.5
"""Share of the FP16 tolerance that rounding alone may use up; the rest is the GPU's."""

MAX_ROUNDS = 8
TENSORS_A_RUN = 32

FloatArray = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """How far a model is from the reference, over all its clips."""

    probability: float
    heatmap: float
    """As a fraction of the reference heatmaps' peak."""

    def is_within(self, share: float) -> bool:
        """Whether it is within a share of the FP16 tolerance; a NaN is not."""
        tolerance = TOLERANCES["fp16"]
        return self.probability <= share * tolerance.probability and self.heatmap <= share * tolerance.heatmap


@dataclasses.dataclass(frozen=True, slots=True)
class HalfReport:
    """What was written and what it was chosen by."""

    num_nodes: int
    """Nodes of the FP32 graph that touch floats."""
    kept: Mapping[str, tuple[str, ...]]
    """Reason to the names of the nodes that stay FP32 for it: "operator", "sum", "range", "accuracy"."""
    largest_value: float
    """Largest absolute value of any tensor on the reference clips, in FP32."""
    difference: Difference
    """Of FP16 storage with FP32 arithmetic, by ONNX Runtime on the CPU; a GPU's own is measured where it runs."""

    def as_json(self) -> dict[str, Any]:
        """Return what the manifest says of it."""
        return {
            "num_nodes": self.num_nodes,
            "kept_fp32": {reason: list(names) for reason, names in self.kept.items()},
            "largest_value": self.largest_value,
            "rounding": {
                "probability_difference": self.difference.probability,
                "heatmap_difference": self.difference.heatmap,
            },
        }


def add_half(bundle: Bundle) -> Bundle:
    """Write `model.fp16.onnx` and list it in the manifest, over one that is there.

    Raises:
        As `write_half`.
    """
    report = write_half(bundle, bundle.path)
    build = {"builder": "onnx", "software": _software(), "options": report.as_json()}
    return add_files(bundle, describe_file(bundle.path / HALF_NAME, "onnx", "fp16", build))


def build(bundle: Bundle, precision: str, options: BuildOptions, folder: Path, progress: Progress) -> Built:
    """Write `model.fp16.onnx` as `edge-build --backend onnx` asks for it.

    Raises:
        BackendError: A device is asked for: the file is the same for all.
        EngineError: As `write_half`.
    """
    if options.device is not None and options.device.upper() != "CPU":  # on which it is proven
        raise BackendError(f"onnx has one file for all devices; got --device {options.device}; leave it out")
    progress("choosing what stays FP32", 0.0)
    report = write_half(bundle, folder)
    return Built(
        files=((HALF_NAME, "onnx"),),
        device="CPU",
        software=_software(),
        hardware=host.describe(),
        options=report.as_json(),
    )


def _software() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("onnx", "onnxruntime")}


def write_half(bundle: Bundle, folder: Path) -> HalfReport:
    """Write `model.fp16.onnx` into a folder; the manifest is left alone.

    Raises:
        BackendError: onnx or onnxruntime is not installed.
        BundleError: The bundle has no FP32 ONNX file.
        EngineError: The network does not hold in FP16.
    """
    onnx, graphs = _import_graphs()
    path = bundle.path / bundle.file("onnx", "fp32").name
    reference = bundle.reference()
    with _running(path, "export the bundle again"):
        model = _named(onnx.load(path))
        kept = _Kept(model, graphs)
        largest = _largest_values(model, graphs, kept.float_tensors, reference.clips)
    kept.add("range", _beyond_range(model, largest, graphs.HALF_MAX / HEADROOM))
    for _ in range(MAX_ROUNDS):
        half = graphs.to_half(model, kept.all)
        stored = graphs.emulated(half)
        difference = _difference(stored, reference)
        if difference.is_within(TARGET_SHARE):
            _save(onnx, half, folder, bundle)
            values = [float(value) for value in largest.values()]
            return HalfReport(kept.num_nodes, kept.by_reason, max(values), difference)
        kept.add("accuracy", _worst_nodes(model, stored, kept, reference.clips))
    raise EngineError(
        f"{path} does not hold in FP16: after {len(kept.all)} of {kept.num_nodes} nodes were kept in FP32, "
        f"probabilities still differ by {difference.probability:.2g} and heatmaps by {difference.heatmap:.2g} of the "
        "peak; run this bundle in FP32 or BF16"
    )


def check_half(bundle: Bundle) -> Difference:
    """Compare the bundle's FP16 file, with every FP16 value rounded as stored, with the reference.

    Raises:
        EngineError: It overflows, or differs by more than the FP16 tolerance.
    """
    onnx, graphs = _import_graphs()
    path = bundle.path / bundle.file("onnx", "fp16").name
    rewrite = f"write it anew: edge-build {bundle.shell_path} --backend onnx --precision fp16"
    reference = bundle.reference()
    with _running(path, rewrite):
        difference = _difference(graphs.emulated(onnx.load(path)), reference)
    if difference.is_within(1.0):
        return difference
    is_finite = np.isfinite([difference.probability, difference.heatmap]).all()
    found = (
        f"differs from the reference by {difference.probability:.2g} in probability and {difference.heatmap:.2g} of "
        "the peak in the heatmap"
        if is_finite
        else "overflows in FP16 on the reference clips"
    )
    raise EngineError(f"{path} {found}; {rewrite}")


class _Kept:
    """Which nodes stay FP32, by reason; each is counted under the first that applies."""

    def __init__(self, model: "onnx.ModelProto", graphs: Any) -> None:
        types = graphs.tensor_types(model)
        nodes = [node for node in model.graph.node if graphs.tensors_of(node, types)]
        self.num_nodes = len(nodes)
        self.float_tensors = {node.name: tuple(graphs.tensors_of(node, types)) for node in nodes}
        """Node name to the FP32 tensors that it touches."""
        self.by_reason: dict[str, tuple[str, ...]] = {}
        self.add("operator", graphs.only_float(model))
        self.add("sum", {node.name for node in nodes if node.op_type in SUMS})

    @property
    def all(self) -> set[str]:
        return {name for names in self.by_reason.values() for name in names}

    def add(self, reason: str, names: Set[str]) -> None:
        added = sorted(names - self.all)
        if added:
            self.by_reason[reason] = (*self.by_reason.get(reason, ()), *added)


def _beyond_range(model: "onnx.ModelProto", largest: Mapping[str, float], limit: float) -> set[str]:
    """Return the nodes that read or write a tensor whose values come near FP16's largest number."""
    return {
        node.name
        for node in model.graph.node
        if any(not largest.get(name, 0.0) <= limit for name in (*node.input, *node.output))
    }


def _largest_values(
    model: "onnx.ModelProto", graphs: Any, float_tensors: Mapping[str, Sequence[str]], clips: FloatArray
) -> dict[str, float]:
    names = sorted({name for tensors in float_tensors.values() for name in tensors})
    session = _Session(graphs.with_largest(model, names))
    values = [session.run(clip) for clip in clips]
    return dict(zip(names, np.max(values, axis=0).tolist(), strict=True))


def _difference(model: "onnx.ModelProto", reference: Reference) -> Difference:
    session = _Session(model)
    outputs = [session.run(clip) for clip in reference.clips]
    probabilities, heatmaps = (np.concatenate(parts) for parts in zip(*outputs, strict=True))
    peak = float(np.abs(reference.heatmaps).max()) or 1.0
    return Difference(
        float(np.abs(probabilities - reference.probabilities).max()),
        float(np.abs(heatmaps - reference.heatmaps).max()) / peak,
    )


def _worst_nodes(model: "onnx.ModelProto", stored: "onnx.ModelProto", kept: _Kept, clips: FloatArray) -> set[str]:
    """Return the nodes at which the relative error grows most, and those that feed them: rounding starts there."""
    errors = _relative_errors(model, stored, clips[0])
    growth = {}
    for node in model.graph.node:
        before = max((errors.get(name, 0.0) for name in node.input), default=0.0)
        after = max((errors.get(name, 0.0) for name in node.output), default=0.0)
        if node.name not in kept.all:
            growth[node.name] = after - before
    worst = sorted(growth, key=lambda name: growth[name], reverse=True)[: max(1, kept.num_nodes // 20)]
    makers = {name: node.name for node in model.graph.node for name in node.output}
    feeders = {makers[name] for node in model.graph.node if node.name in worst for name in node.input if name in makers}
    return (set(worst) | feeders) & set(kept.float_tensors)


def _relative_errors(model: "onnx.ModelProto", stored: "onnx.ModelProto", clip: FloatArray) -> dict[str, float]:
    """Return each tensor's largest error as a share of its largest value; not finite counts as 1."""
    _, graphs = _import_graphs()
    written = {name for node in stored.graph.node for name in node.output}
    names = [name for node in model.graph.node for name in node.output if name in written]
    types = graphs.tensor_types(model)
    names = [name for name in names if types.get(name) == graphs.FLOAT]
    errors = {}
    for start in range(0, len(names), TENSORS_A_RUN):
        part = names[start : start + TENSORS_A_RUN]
        exact, rounded = (_Session(graphs.with_outputs(each, part)).run(clip) for each in (model, stored))
        for name, wanted, got in zip(part, exact, rounded, strict=True):
            with np.errstate(invalid="ignore"):
                error = float(np.abs(got - wanted).max()) / (float(np.abs(wanted).max()) or 1.0)
            errors[name] = error if np.isfinite(error) else 1.0
    return errors


class _Session:
    """An FP32 model in ONNX Runtime on the CPU."""

    def __init__(self, model: "onnx.ModelProto") -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors alone
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
            enable_fallback=False,  # it would print to stdout and try the same again
        )
        self._input = self._session.get_inputs()[0].name

    def run(self, clip_tchw: FloatArray) -> list[FloatArray]:
        """Return all outputs for one clip."""
        outputs: list[FloatArray] = self._session.run(None, {self._input: clip_tchw[np.newaxis]})
        return outputs


def _named(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Give every node a name of its own; choices are recorded by it."""
    taken = set()
    for place, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{place}"
        taken.add(node.name)
    return model


@contextlib.contextmanager
def _running(path: Path, cure: str) -> Iterator[None]:
    """Refuse by name a file that onnx cannot read or ONNX Runtime cannot run."""
    try:
        yield
    except Exception as exc:  # their errors, and protobuf's, have no common class but this
        raise EngineError(f"onnx cannot read {path}: {last_line(exc)}; {cure}") from exc


def _save(onnx_module: Any, model: "onnx.ModelProto", folder: Path, bundle: Bundle) -> None:
    temporary = folder / (HALF_NAME + ".tmp")
    try:
        onnx_module.save(model, temporary)
        temporary.replace(folder / HALF_NAME)
    except OSError as exc:
        temporary.unlink(missing_ok=True)
        raise EngineError(
            f"{HALF_NAME} cannot be written into {bundle.path} ({exc.strerror}); make room on its disk"
        ) from exc


def _import_graphs() -> tuple[Any, Any]:
    try:
        import onnx
        import onnxruntime  # noqa: F401

        from engines import half_graph
    except ImportError as exc:
        raise BackendError(f"writing FP16: {exc}; install it with `pip install onnx onnxruntime`") from exc
    return onnx, half_graph
