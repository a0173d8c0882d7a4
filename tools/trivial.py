"""Writes a bundle whose network does almost nothing, to measure and test the pipeline around it.

`heatmap[t]` is frame t averaged over blocks, and the positive probability is the clip's mean: so a reader can tell
which frames a window holds, and in which order.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge.commandline import Parser, run_command
from engines import PreprocessSpec
from engines.bundle import write_manifest

_GRID = 4
_OPSET = 20


def main() -> int:
    """Run `python -m tools.trivial OUT`."""
    return run_command(_run)


def write_trivial_bundle(
    folder: Path,
    *,
    num_frames: int = 16,
    preprocess: PreprocessSpec | None = None,
    frame_interval_ms: float = 1000 / 30,
    threshold: float = 0.5,
    is_honest: bool = True,
) -> Path:
    """Write the bundle and return its folder. The crop's height and width must be multiples of 4.

    With `is_honest` False its reference is not what the network gives, so that the parity gate must refuse it.
    """
    spec = preprocess or PreprocessSpec()
    folder.mkdir(parents=True, exist_ok=True)
    shape_tchw = (num_frames, spec.channels, *spec.crop_hw)
    onnx.save(_network(*shape_tchw), folder / "model.onnx")
    clips = np.random.default_rng(0).random((2, *shape_tchw), np.float32)
    clips[0], clips[1] = clips[0] / 2 + 0.5, clips[1] / 2  # one bright and one dark, so that their top classes differ
    heatmaps = _block_means(clips)
    positive = heatmaps.mean((1, 2, 3)) + (0 if is_honest else 0.1)
    probabilities = np.stack([1 - positive, positive], 1)
    np.savez_compressed(folder / "reference.npz", clips=clips, probabilities=probabilities, heatmaps=heatmaps)
    write_manifest(
        folder,
        name="trivial-mean",
        classes=("dark", "bright"),
        threshold=threshold,
        preprocess=spec,
        num_frames=num_frames,
        frame_interval_ms=frame_interval_ms,
        outputs={
            "probabilities": {"shape": ["N", 2], "dtype": "float32"},
            "heatmap": {"shape": ["N", num_frames, _GRID, _GRID], "dtype": "float32"},
        },
        intended_use="Measures and tests the pipeline; its output is the mean brightness. Not a medical device.",
        training={"data": "none: not trained"},
        files=[("model.onnx", "onnx", "fp32"), ("reference.npz", "reference", None)],
    )
    return folder


def _block_means(clips: np.ndarray) -> np.ndarray:
    num_clips, num_frames, _, height, width = clips.shape
    blocks = clips.mean(2).reshape(num_clips, num_frames, _GRID, height // _GRID, _GRID, width // _GRID)
    return blocks.mean((3, 5), dtype=np.float32)


def _network(num_frames: int, channels: int, height: int, width: int) -> onnx.ModelProto:
    block = [height // _GRID, width // _GRID]
    # a convolution whose weights are all equal is a mean, and the fastest way to say so
    weights = np.full((1, channels, *block), 1 / (channels * block[0] * block[1]), np.float32)
    nodes = [
        helper.make_node("Reshape", ["clip", "frames_shape"], ["frames"]),
        helper.make_node("Conv", ["frames", "weights"], ["means"], strides=block),
        helper.make_node("Reshape", ["means", "heatmap_shape"], ["heatmap"]),
        helper.make_node("ReduceMean", ["heatmap", "all_axes"], ["mean"], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "last_axis"], ["positive"]),
        helper.make_node("Sub", ["one", "positive"], ["negative"]),
        helper.make_node("Concat", ["negative", "positive"], ["probabilities"], axis=1),
    ]
    constants = [
        numpy_helper.from_array(weights, "weights"),
        numpy_helper.from_array(np.array([-1, channels, height, width]), "frames_shape"),
        numpy_helper.from_array(np.array([-1, num_frames, _GRID, _GRID]), "heatmap_shape"),
        numpy_helper.from_array(np.array([1, 2, 3]), "all_axes"),
        numpy_helper.from_array(np.array([1]), "last_axis"),
        numpy_helper.from_array(np.array(1, np.float32), "one"),
    ]
    graph = helper.make_graph(
        nodes,
        "trivial",
        [helper.make_tensor_value_info("clip", TensorProto.FLOAT, ["N", num_frames, channels, height, width])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 2]),
            helper.make_tensor_value_info("heatmap", TensorProto.FLOAT, ["N", num_frames, _GRID, _GRID]),
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def _run() -> int:
    parser = Parser(
        "python -m tools.trivial",
        "Write a bundle whose network does almost nothing, to measure the pipeline around it.",
        "python -m tools.trivial /tmp/trivial && edge-bench pipeline --source x.mp4 --engine /tmp/trivial --pace max",
    )
    parser.add_argument("folder", metavar="OUT", type=Path)
    print(f"wrote {write_trivial_bundle(parser.parse_args().folder)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
