"""Cuts a video network after what it does with each frame by itself, so that this is done once a frame.

Successive windows share all frames but the newest: what comes before the first layer that looks at several frames
(normalisation, the first convolution, pooling) gives the same values again, and the ring may hold these instead.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

_WITH_CONSTANT = ("Add", "Subtract", "Multiply", "Divide", "FakeQuantize", "Convolution")
_ALONE = ("Relu", "MaxPool", "Convert")
_TIMED_S, _MIN_TIMED = 1.0, 5


def split(model: Any) -> tuple[Any, Any] | None:
    """Return what is done to one frame, and what is done to the T results; None where there is nothing to gain.

    Args:
        model: A network of static shape with one input (1, T, C, H, W); it is used up.

    Returns:
        A model from (1, 1, C, H, W) to (1, C', h, w), and one from (T, C', h, w) to the network's outputs.
    """
    import openvino

    (parameter,) = model.get_parameters()
    num_frames = parameter.output(0).get_shape()[1]
    chain = _chain(parameter, num_frames)
    if num_frames == 1 or not any(node.get_type_name() == "Convolution" for node in chain):
        return None
    cut = chain[-1].output(0)
    rest = _rest(model, cut)
    for node in chain:
        if node.get_type_name() == "Reshape":
            _free_first_axis(node)
    stem = openvino.Model([cut], [parameter], "stem")
    stem.reshape([1, 1, *parameter.output(0).get_shape()[2:]])
    return stem, rest


def measure_gain(core: Any, device: str, read: Callable[[], Any], properties: Mapping[str, Any]) -> float | None:
    """Return how many times as long a new frame and its window take where the network is not cut.

    Args:
        core: OpenVINO's core.
        device: What it is to run on.
        read: Gives the network anew, of static shape, at each call.
        properties: To compile with.

    Returns:
        The ratio of medians, measured in turns; None where there is nothing to cut.
    """
    if (parts := split(read())) is None:
        return None
    cut, whole = (
        [core.compile_model(model, device, dict(properties)).create_infer_request() for model in models]
        for models in (parts, (read(),))
    )
    times_s: tuple[list[float], list[float]] = ([], [])
    while sum(map(sum, times_s)) < _TIMED_S or len(times_s[0]) < _MIN_TIMED:
        for requests, own_s in zip((cut, whole), times_s, strict=True):
            start_s = time.perf_counter()
            for request in requests:
                request.infer()
            own_s.append(time.perf_counter() - start_s)
    return statistics.median(times_s[1]) / statistics.median(times_s[0])


def fold_constants(model: Any) -> None:
    """Compute what does not depend on the input: as read from ONNX, biases are computed from their layers' shapes.

    Not for networks in INT8, whose weights would be turned to floating point.
    """
    from openvino.passes import ConstantFolding, Manager

    folding = Manager()
    folding.register_pass(ConstantFolding())
    folding.run_passes(model)


def _chain(parameter: Any, num_frames: int) -> list[Any]:
    """Return the nodes that follow each other alone and keep frames apart, up to one with a frame an entry."""
    chain: list[Any] = []
    node = parameter
    while len(targets := node.output(0).get_target_inputs()) == 1:
        (target,) = targets
        node = target.get_node()
        if target.get_index() != 0 or not _keeps_frames_apart(node, num_frames):
            break
        chain.append(node)
    while chain and not _is_entry(chain[-1], num_frames):
        chain.pop()
    return chain


def _is_entry(node: Any, num_frames: int) -> bool:
    """Whether the rest may begin with its output: a quantiser stays with the layers that compute in integers for it."""
    shape = node.output(0).get_shape()
    return bool(node.get_type_name() != "FakeQuantize" and len(shape) == 4 and shape[0] == num_frames)


def _keeps_frames_apart(node: Any, num_frames: int) -> bool:
    kind = node.get_type_name()
    if kind == "Reshape":
        # (1, T, C, H, W) to (T, C, H, W)
        return bool(list(node.input(0).get_shape()) == [1, *node.output(0).get_shape()])
    if kind in _WITH_CONSTANT:
        others = [node.input(place) for place in range(1, node.get_input_size())]
        if not all(_is_constant(other.get_source_output().get_node()) for other in others):
            return False
        return kind == "Convolution" or all(_is_alike_for_frames(other, node, num_frames) for other in others)
    return kind in _ALONE


def _is_alike_for_frames(value: Any, node: Any, num_frames: int) -> bool:
    """Whether a constant that is spread over a node's input is the same for every frame."""
    shape: list[int] = list(value.get_shape())
    spread_over: list[int] = list(node.input(0).get_shape())
    frame_axis = len(shape) - len(spread_over) + spread_over.index(num_frames)
    return math.prod(shape[: max(0, frame_axis + 1)]) == 1


def _is_constant(node: Any) -> bool:
    if node.get_type_name() == "Constant":
        return True
    inputs = [node.input(place).get_source_output().get_node() for place in range(node.get_input_size())]
    return bool(inputs) and all(map(_is_constant, inputs))


def _rest(model: Any, cut: Any) -> Any:
    """Return the network from the cut on."""
    import openvino
    from openvino import opset13 as ops

    entry = ops.parameter(cut.get_shape(), cut.get_element_type())
    for target in list(cut.get_target_inputs()):
        target.replace_source_output(entry.output(0))
    return openvino.Model(model.get_results(), [entry], "rest")


def _free_first_axis(reshape: Any) -> None:
    from openvino import opset13 as ops

    pattern = ops.constant(np.array([-1, *reshape.output(0).get_shape()[1:]], np.int64))
    reshape.input(1).replace_source_output(pattern.output(0))
