"""Rewrites an ONNX graph so that chosen nodes compute in FP16; says what FP16 storage does to its values.

TensorRT types every layer as the graph does (strong typing), so a graph in FP16 is what makes a plan FP16.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Set

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT
HALF = TensorProto.FLOAT16
HALF_MAX = 65504.0
"""Largest finite number in FP16."""


def tensor_types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element type of every tensor, by name."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = itertools.chain(graph.input, graph.output, graph.value_info)
    types = {value.name: int(value.type.tensor_type.elem_type) for value in values}
    return types | {tensor.name: int(tensor.data_type) for tensor in graph.initializer}


def tensors_of(node: onnx.NodeProto, types: Mapping[str, int], wanted: int = FLOAT) -> list[str]:
    """Return the node's inputs and outputs of this element type, in order."""
    return [name for name in (*node.input, *node.output) if types.get(name) == wanted]


def only_float(model: onnx.ModelProto) -> set[str]:
    """Return the names of nodes that touch floats and cannot be had in FP16 by their operator's definition."""
    types = tensor_types(model)
    opset = model.opset_import[0].version
    return {node.name for node in model.graph.node if tensors_of(node, types) and not _may_be_half(node, types, opset)}


def _may_be_half(node: onnx.NodeProto, types: Mapping[str, int], opset: int) -> bool:
    if node.op_type == "Cast" or not any(types.get(name) == FLOAT for name in node.input):
        return False  # its output's type does not follow its input's
    schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    allowed = {item.type_param_str: item.allowed_type_strs for item in schema.type_constraints}
    formals = [schema.inputs[min(place, len(schema.inputs) - 1)] for place in range(len(node.input))]
    return all(
        "tensor(float16)" in allowed.get(formal.type_str, [formal.type_str])
        for name, formal in zip(node.input, formals, strict=True)
        if types.get(name) == FLOAT
    )


def to_half(model: onnx.ModelProto, kept: Set[str]) -> onnx.ModelProto:
    """Return the model with every float node in FP16 but those in `kept`; its inputs and outputs stay FP32.

    A cast stands wherever a tensor goes from one precision into the other, once a tensor.

    Args:
        model: An FP32 model of one graph without subgraphs, every node named.
        kept: Names of the nodes that stay FP32.
    """
    types = tensor_types(model)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    writer = _Writer(result, types, {value.name for value in model.graph.output})
    for node in model.graph.node:
        writer.add(node, HALF if node.name not in kept and tensors_of(node, types) else FLOAT)
    writer.finish()
    onnx.checker.check_model(result, full_check=True)
    return result


class _Writer:
    """Writes nodes in order, and before each the casts that it needs."""

    def __init__(self, model: onnx.ModelProto, types: Mapping[str, int], outputs: Set[str]) -> None:
        self._graph = model.graph
        self._types = types
        self._outputs = outputs
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self._names: dict[tuple[str, int], str] = {(value.name, FLOAT): value.name for value in model.graph.input}
        """Under which name a tensor is to be had in a precision."""
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def add(self, node: onnx.NodeProto, precision: int) -> None:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for place, name in enumerate(node.input):
            copy.input[place] = self._read(name, precision)
        self._nodes.append(copy)
        for place, name in enumerate(node.output):
            if self._types.get(name) == FLOAT:
                is_cast = precision == HALF and name in self._outputs
                copy.output[place] = f"{name}.fp16" if is_cast else name
                self._names[name, precision] = copy.output[place]
                if is_cast:
                    self._cast(name, FLOAT, name)

    def _read(self, name: str, precision: int) -> str:
        if name in self._initializers:
            return self._constant(name, precision)
        if self._types.get(name) != FLOAT:
            return name
        if (name, precision) not in self._names:
            self._cast(name, precision, f"{name}.{'fp16' if precision == HALF else 'fp32'}")
        return self._names[name, precision]

    def _cast(self, name: str, precision: int, cast_name: str) -> None:
        other = self._names[name, FLOAT if precision == HALF else HALF]
        self._nodes.append(helper.make_node("Cast", [other], [cast_name], f"{cast_name}.cast", to=precision))
        self._names[name, precision] = cast_name

    def _constant(self, name: str, precision: int) -> str:
        tensor: onnx.TensorProto = self._initializers[name]
        if tensor.data_type != FLOAT or precision == FLOAT:
            self._constants[name] = tensor
            return name
        half = f"{name}.fp16"
        if half not in self._constants:
            with np.errstate(over="ignore"):  # what overflows shows in the outputs
                values = numpy_helper.to_array(tensor).astype(np.float16)
            self._constants[half] = numpy_helper.from_array(values, half)
        return half

    def finish(self) -> None:
        constants = list(self._constants.values())
        for field, content in (("node", self._nodes), ("initializer", constants)):
            self._graph.ClearField(field)
            getattr(self._graph, field).extend(content)
        self._graph.ClearField("value_info")


def emulated(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return an FP32 model that gives what FP16 storage gives: every FP16 tensor is rounded, and may overflow.

    ONNX Runtime's CPU provider computes FP16 nodes in FP32 and drops the casts between neighbours, which hides
    overflow; casts that stand in the graph by themselves are kept.
    """
    types = tensor_types(model)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    for tensor in graph.initializer:
        if tensor.data_type == HALF:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    nodes = list(itertools.chain.from_iterable(_rounded(node, types) for node in model.graph.node))
    graph.ClearField("node")
    graph.node.extend(nodes)
    graph.ClearField("value_info")
    onnx.checker.check_model(result, full_check=True)
    return result


def _rounded(node: onnx.NodeProto, types: Mapping[str, int]) -> Iterator[onnx.NodeProto]:
    """Yield the node in FP32, and after it the casts to FP16 and back for each of its FP16 outputs."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    halves = [(place, name) for place, name in enumerate(node.output) if types.get(name) == HALF]
    if node.op_type == "Cast" and halves:  # a cast to another type, an integer's say, means what it says
        copy.ClearField("attribute")
        copy.attribute.append(helper.make_attribute("to", FLOAT))
    for place, name in halves:
        copy.output[place] = f"{name}.exact"
    yield copy
    for _, name in halves:
        yield helper.make_node("Cast", [f"{name}.exact"], [f"{name}.stored"], f"{name}.store", to=HALF)
        yield helper.make_node("Cast", [f"{name}.stored"], [name], f"{name}.load", to=FLOAT)


def with_outputs(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """Return the model with these float tensors as its only outputs."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    result.graph.ClearField("output")
    result.graph.output.extend(helper.make_tensor_value_info(name, FLOAT, None) for name in names)
    return result


def with_largest(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """Return the model with the largest absolute value of each float tensor as its outputs, in the names' order."""
    names = list(names)
    result = with_outputs(model, [f"{name}.largest" for name in names])
    for name in names:
        result.graph.node.append(helper.make_node("Abs", [name], [f"{name}.abs"]))
        result.graph.node.append(helper.make_node("ReduceMax", [f"{name}.abs"], [f"{name}.largest"], keepdims=0))
    return result
