"""INT8 for OpenVINO: how wide the ranges are that NNCF takes from clips."""

from typing import Any

import numpy as np
import numpy.typing as npt
from openvino import Model
from openvino import opset13 as ops

from engines.openvino.int8 import FEW_CLIPS, quantize

NUM_FRAMES, NUM_CHANNELS, SIZE_PX = 2, 1, 8


def network() -> Model:
    """Return convolutions of one frame each: the first and the last stay in floating point, as in a real network."""
    rng = np.random.default_rng(0)
    clip = ops.parameter([1, NUM_FRAMES, NUM_CHANNELS, SIZE_PX, SIZE_PX], np.float32)
    value: Any = ops.reshape(clip, np.array([NUM_FRAMES, NUM_CHANNELS, SIZE_PX, SIZE_PX]), special_zero=False)
    for num_in, num_out in ((NUM_CHANNELS, 4), (4, 4), (4, 4), (4, 2)):
        weights = rng.normal(size=(num_out, num_in, 3, 3)).astype(np.float32)
        value = ops.relu(ops.convolution(value, weights, [1, 1], [1, 1], [1, 1], [1, 1]))
    return Model([ops.result(value)], [clip], "network")


def ranges(clips: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the ends of the feature maps' ranges, four for each."""
    nodes = quantize(network(), clips, 2, lambda share: None).get_ordered_ops()
    quantizers = [node for node in nodes if node.get_type_name() == "FakeQuantize"]
    bounds = [node.input(place).get_source_output().get_node() for node in quantizers for place in range(1, 5)]
    return np.concatenate([np.array(bound.get_data()).ravel() for bound in bounds])


def test_ranges_of_feature_maps_from_few_clips_leave_room_for_what_others_hold() -> None:
    clips = np.random.default_rng(1).random((FEW_CLIPS - 1, NUM_FRAMES, NUM_CHANNELS, SIZE_PX, SIZE_PX), np.float32)
    few, enough = ranges(clips), ranges(np.concatenate([clips, clips[:1]]))  # the same extremes
    assert enough.max() > 0
    np.testing.assert_allclose(few, 1.5 * enough, rtol=1e-6)
