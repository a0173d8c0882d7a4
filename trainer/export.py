"""From a trained network to a bundle: ONNX and PyTorch programs, reference outputs and the manifest."""

import contextlib
import copy
import io
import itertools
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from engines.bundle import REFERENCE_NAME, Bundle, PreprocessSpec, load_bundle, write_manifest
from engines.errors import EngineError
from engines.half import add_half
from engines.load import load_engine
from trainer.models.classifier import Classifier

OPSET = 20
ONNX_NAME = "model.onnx"
PROGRAM_NAME = "model.pt2"
INPUT_NAME = "clip"
OUTPUT_NAMES = ("probabilities", "heatmap")


class WithHeatmap(nn.Module):
    """What a bundle's model computes: class probabilities, and the heatmap of the positive class.

    Args:
        model: A network in evaluation mode.
        temperature: Divides the logits; from calibration.
    """

    def __init__(self, model: Classifier, temperature: float = 1.0) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature

    def forward(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities (N, K) and heatmap (N, T, h, w) >= 0 of a clip (N, T, C, H, W) in 0..1."""
        logits, heatmap = self.model.explain(clip)
        if self.temperature != 1:
            logits = logits / self.temperature
        return logits.softmax(1), heatmap


def export_bundle(
    model: nn.Module,
    out_dir: str | os.PathLike[str],
    *,
    classes: Sequence[str],
    threshold: float,
    preprocess: PreprocessSpec,
    frame_interval_ms: float,
    reference_clips: npt.NDArray[np.float32],
    name: str,
    intended_use: str,
    training: Mapping[str, Any],
    temperature: float = 1.0,
) -> None:
    """Write a bundle and prove it on each backend.

    Args:
        model: A trained network.
        out_dir: The bundle's folder, made where it is missing; files of the same names are replaced.
        classes: Class names, the positive one last.
        threshold: Operating point in [0, 1].
        preprocess: How frames become input.
        frame_interval_ms: Time between two frames of a clip.
        reference_clips: (n, T, C, H, W) float32 in 0..1, against which every engine is checked.
        name: The model's name, for people.
        intended_use: What the model is for, and what it is not for.
        training: Summary of data, folds and metrics; as JSON.
        temperature: Divides the logits; from calibration.

    Raises:
        ParityError: A backend does not give the network's own outputs.
    """
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    model = copy.deepcopy(model).eval().cpu().float()
    outputs = write_reference(WithHeatmap(model, temperature), reference_clips, folder / REFERENCE_NAME)
    network = WithHeatmap(fold_batch_norms(model), temperature)
    program = export_program(network, torch.from_numpy(reference_clips[:1]))
    write_onnx(program, folder / ONNX_NAME)
    write_program(program, folder / PROGRAM_NAME)
    write_manifest(
        folder,
        name=name,
        classes=classes,
        threshold=threshold,
        preprocess=preprocess,
        num_frames=reference_clips.shape[1],
        frame_interval_ms=frame_interval_ms,
        outputs={key: {"shape": [1, *array.shape[1:]], "dtype": "float32"} for key, array in outputs.items()},
        intended_use=intended_use,
        training=training,
        files=[
            (ONNX_NAME, "onnx", "fp32"),
            (PROGRAM_NAME, "torch-export", "fp32"),
            (REFERENCE_NAME, "reference", None),
        ],
    )
    bundle = _with_half(load_bundle(folder))
    for backend in ("torch", "openvino"):
        load_engine(bundle, backend).close()


def _with_half(bundle: Bundle) -> Bundle:
    """Add the FP16 ONNX file; a network that does not hold in FP16 still is a whole bundle."""
    try:
        return add_half(bundle)
    except EngineError as exc:
        logging.getLogger("edge").warning("no FP16 file: %s", exc)
        return bundle


def write_reference(
    network: WithHeatmap, clips: npt.NDArray[np.float32], path: Path
) -> dict[str, npt.NDArray[np.float32]]:
    """Write clips and the network's FP32 outputs for them; return the outputs by their names in the graph."""
    with torch.inference_mode():
        pairs = [network(torch.from_numpy(clip[np.newaxis])) for clip in clips]
    probabilities, heatmaps = (torch.cat(parts).numpy() for parts in zip(*pairs, strict=True))
    np.savez_compressed(path, clips=clips, probabilities=probabilities, heatmaps=heatmaps)
    return dict(zip(OUTPUT_NAMES, (probabilities, heatmaps), strict=True))


def fold_batch_norms(model: nn.Module) -> nn.Module:
    """Return a copy in which each batch norm that follows a convolution is part of it; exact in evaluation mode."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for (before_name, before), (norm_name, norm) in itertools.pairwise(list(parent.named_children())):
            if not isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d):
                continue
            # a (2+1)D convolution is a sequence whose last part is what the norm follows
            holder, name = (
                (before, str(len(before) - 1)) if isinstance(before, nn.Sequential) else (parent, before_name)
            )
            setattr(holder, name, fuse_conv_bn_eval(getattr(holder, name), norm))
            setattr(parent, norm_name, nn.Identity())
    return model


def export_program(network: WithHeatmap, clip: Tensor) -> torch.export.ExportedProgram:
    """Trace the network with its heatmap for clips of exactly this shape (1, T, C, H, W)."""
    with _quiet():
        program = torch.export.export(network.eval(), (clip,))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names files of the machine that trained
    return program


def write_program(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write what the torch backend runs; drops the program's example inputs, which would be stored with it."""
    program.example_inputs = None
    content = io.BytesIO()  # torch tells a full disk by an error of its own kind; Python by one that can be told apart
    with _quiet():
        torch.export.save(program, content)
    path.write_bytes(content.getbuffer())


def write_onnx(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write one self-contained ONNX file, checked."""
    with _quiet():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[INPUT_NAME],
            output_names=list(OUTPUT_NAMES),
            external_data=False,
        )
    model = exported.model_proto
    for part in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer, model.graph):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    model.graph.ClearField("value_info")
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what the exporters say about their own insides; their errors are exceptions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
