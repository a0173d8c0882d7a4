"""INT8 for OpenVINO: NNCF's quantisation, and a graph in which 8-bit feature maps stay in 8 bits."""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.errors import BackendError

FEW_CLIPS = 8
"""Fewer do not show how large a feature map's values become on others, and what is beyond its range is cut off."""
_HEADROOM = 1.5
"""How much wider ranges from few clips are made. With the demo bundle, ranges from its two reference clips changed
heatmaps by up to 0.15 of the peak on 54 phantom clips, and widened so by up to 0.08, at the same speed; from 10 clips
on it was 0.04 either way. The last stage of blocks in FP32 makes it 0.03, and a window 1.2 to 1.6 times as long."""
_FEATURE_MAP_RANK = 4
_QUANTIZER = "FakeQuantize"


def quantize(
    model: Any, clips_ntchw: npt.NDArray[np.float32], num_classes: int, progress: Callable[[float], None]
) -> Any:
    """Return the network in INT8, each layer's range taken from clips that stand for what it will see.

    Three of NNCF's choices are others here, measured with the demo bundle on 150 clips that it had not seen. Its bias
    correction moved logits by 0.17 where quantising alone moves them by 0.03. The mean of the clips' ranges cut the
    heatmap's strongest peaks by a fifth; the whole range changes them by 0.03. Signed maps in asymmetric steps kept all
    probabilities within 0.015 instead of 0.032.

    Args:
        model: An OpenVINO model in FP32 of static shape.
        clips_ntchw: (n, T, C, H, W) in 0..1.
        num_classes: K, the last convolution's outputs.
        progress: Is told which share of the clips was looked at.

    Raises:
        BackendError: NNCF is not installed.
    """
    nncf = _import_nncf()
    with _quiet():
        quantized = nncf.quantize(
            model,
            nncf.Dataset(_Batches(clips_ntchw, progress)),
            subset_size=len(clips_ntchw),
            ignored_scope=nncf.IgnoredScope(names=_kept_in_float(model, num_classes), validate=False),
            preset=nncf.QuantizationPreset.MIXED,
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                disable_bias_correction=True,
                activations_range_estimator_params=nncf.quantization.range_estimator.RangeEstimatorParametersSet.MINMAX,
            ),
        )
    if len(clips_ntchw) < FEW_CLIPS:
        _widen_ranges(quantized)
    _share_quantizers(quantized)
    return quantized


class _Batches:
    """The clips one by one; NNCF goes through them more than once."""

    def __init__(self, clips_ntchw: npt.NDArray[np.float32], progress: Callable[[float], None]) -> None:
        self._clips_ntchw = clips_ntchw
        self._progress = progress

    def __len__(self) -> int:
        return len(self._clips_ntchw)

    def __iter__(self) -> Iterator[npt.NDArray[np.float32]]:
        for place in range(len(self)):
            self._progress(place / len(self))
            yield self._clips_ntchw[place : place + 1]


def _kept_in_float(model: Any, num_classes: int) -> list[str]:
    """Name the nodes that cost little and decide much: the first convolution, the last, and all that is no feature map.

    The first one is computed once a frame, not once a window (`engines.openvino.stem`).
    """
    num_channels = model.input().get_shape()[2]
    return [node.get_friendly_name() for node in model.get_ops() if _is_kept_in_float(node, num_channels, num_classes)]


def _is_kept_in_float(node: Any, num_channels: int, num_classes: int) -> bool:
    if node.get_type_name() in ("Constant", "Parameter", "Result"):
        return False
    shape = node.output(0).get_shape()
    if node.get_type_name() == "Convolution":
        return bool(node.input(0).get_shape()[1] == num_channels or shape[1] == num_classes)
    return len(shape) != _FEATURE_MAP_RANK


def _widen_ranges(model: Any) -> None:
    """Make room in every feature map's range; zero keeps its place among the steps."""
    from openvino import opset13 as ops

    for node in model.get_ordered_ops():
        is_quantizer = node.get_type_name() == _QUANTIZER
        if not is_quantizer or node.input(0).get_source_output().get_node().get_type_name() == "Constant":
            continue  # of weights all values are known
        for place, bound in enumerate(_range(node) or (), 1):
            node.input(place).replace_source_output(ops.constant(bound * np.float32(_HEADROOM)).output(0))


def _share_quantizers(model: Any) -> None:
    """Let all readers of a feature map read its 8-bit form, so that the layer before writes that form alone.

    TIN reads some channels of each feature map in floating point. NNCF leaves that reader the map in FP32, which then
    is written beside the one in 8 bits: a third of the time of TIN-ResNet50 on a processor.
    """
    for node in model.get_ordered_ops():
        for output in node.outputs():
            readers = [target.get_node() for target in output.get_target_inputs()]
            quantizers = [reader for reader in readers if reader.get_type_name() == _QUANTIZER]
            if quantizers and node.get_type_name() != "Constant" and _have_one_range_from_zero(quantizers):
                _share(output, quantizers[0])


def _share(output: Any, quantizer: Any) -> None:
    """Give the other quantizers' readers, and slices of the map, the one quantizer's output."""
    name = quantizer.get_friendly_name()
    for target in list(output.get_target_inputs()):
        reader = target.get_node()
        if reader.get_friendly_name() == name:
            continue
        if reader.get_type_name() == _QUANTIZER:
            _replace(reader.output(0), quantizer.output(0))
        elif reader.get_type_name() == "Slice":
            target.replace_source_output(quantizer.output(0))
            _end_integers(reader.output(0))


def _end_integers(output: Any) -> None:
    """Put an `Abs` behind a slice; the values are not negative, so it changes none.

    OpenVINO carries integers through slices and reshapes as far as a matrix product, finds that this wants others than
    the convolutions do, and then computes them all in FP32. It does not carry integers through `Abs`.
    """
    from openvino import opset13 as ops

    targets = list(output.get_target_inputs())
    barrier = ops.absolute(output)
    for target in targets:
        target.replace_source_output(barrier.output(0))


def _replace(old: Any, new: Any) -> None:
    for target in list(old.get_target_inputs()):
        target.replace_source_output(new)


def _have_one_range_from_zero(quantizers: list[Any]) -> bool:
    ranges = [_range(quantizer) for quantizer in quantizers]
    first = ranges[0]
    if first is None or first[0].min() < 0:
        return False
    return all(other is not None and all(map(np.array_equal, first, other)) for other in ranges)


def _range(quantizer: Any) -> list[npt.NDArray[np.float32]] | None:
    """Return the low and high ends of the input and of the output; None where they are not constant."""
    nodes = [quantizer.input(place).get_source_output().get_node() for place in range(1, 5)]
    if any(node.get_type_name() != "Constant" for node in nodes):
        return None
    return [np.array(node.get_data()) for node in nodes]


def _import_nncf() -> Any:
    try:
        with _quiet():
            import nncf  # type: ignore[import-untyped]
    except ImportError as exc:
        raise BackendError(f"openvino int8: {exc}; install it with `pip install 'nncf>=3,<4'`") from exc
    return nncf


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what NNCF says and draws of its own insides; its errors are exceptions."""
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
