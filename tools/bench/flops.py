"""Counts a network's arithmetic from its graph."""

import math
from typing import Any

from engines import Bundle
from engines.openvino.engine import read_network


def count_gflop(bundle: Bundle) -> float:
    """Return the GFLOP of one window: convolutions and matrix multiplications, a multiply-add as two."""
    model = read_network(bundle.path / bundle.file("onnx", "fp32").name)
    model.reshape([1, *bundle.clip_tchw])
    return sum(count_operation(operation) for operation in model.get_ops()) / 1e9


def count_operation(operation: Any) -> int:
    """Return the floating-point operations of one OpenVINO node of static shape; 0 for all but the two kinds."""
    kind = operation.get_type_name()
    if kind == "MatMul":
        left = list(operation.input(0).get_shape())
        depth = left[-2 if operation.get_attributes()["transpose_a"] else -1]
        return 2 * int(depth) * _num_outputs(operation)
    if kind in ("Convolution", "GroupConvolution"):
        # weights are (C_out, C_in, kernel...), with the number of groups before them where there are groups
        weights = list(operation.input(1).get_shape())[2 if kind == "GroupConvolution" else 1 :]
        return 2 * math.prod(map(int, weights)) * _num_outputs(operation)
    return 0


def _num_outputs(operation: Any) -> int:
    return math.prod(map(int, operation.output(0).get_shape()))
