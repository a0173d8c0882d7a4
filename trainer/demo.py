"""Train the demo bundle: `python -m trainer.demo --out engines/demo`, or `make demo-bundle`.

It shows that the pipeline works, from synthetic phantom sweeps alone; it has no clinical meaning. Besides the class of
the clip, the network is taught where the node is: the phantom knows it, and from the class alone it learns nothing in
this time.
"""

import argparse
import time
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn import functional

from edge.phantom.node import CLASSES
from engines import host
from trainer.demo_data import FRAME_INTERVAL_MS, SPEC, Sweep, render_sweeps
from trainer.demo_evaluate import best_threshold, evaluate, summarise
from trainer.export import export_bundle
from trainer.models.tin import TIN

T = TypeVar("T")

NAME = "demo-tin-r18"
INTENDED_USE = (
    "Shows the pipeline. Trained on synthetic phantom images only; research software, not a medical device; "
    "its output has no clinical meaning on any patient's images."
)
NUM_FRAMES = 16
WIDTH = 16
STRIDES = (1, 2, 2, 1)
"""The last stage keeps its resolution: a heatmap of 8 x 8 cells, finer than the nodes."""

TEST_SEEDS = range(200)
"""Held out: the small seeds that people type as `phantom:SEED`."""
VALIDATION_SEEDS = range(500_000, 500_080)
TRAIN_SEEDS = range(1_000_000, 1_000_400)
"""Each is rendered with both labels: the same tissue and probe, so that only the node can tell them apart."""
NUM_TRAIN_FRAMES = 32
NUM_TEST_FRAMES = 48

NUM_EPOCHS = 10
BATCH_SIZE = 8
PEAK_LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.02
CELL_LOSS_WEIGHT = 2.0
NODE_CELL_WEIGHT = 6.0
"""Cells on the node are few."""
MAX_SHIFT_CELLS = 3
"""Of the 32 x 32 coverage cells: a shift of the image is a whole number of them."""


def augment(clip: Tensor, coverage: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Flip in space and time, shift, and change gain and gamma: the same for all frames of the clip.

    Args:
        clip: (T, C, H, W) uint8.
        coverage: (T, 32, 32) uint8.
        generator: Draws the changes.

    Returns:
        The clip float32 in 0..1 and the coverage float32 in 0..1.
    """
    clip, coverage = clip / 255, coverage / 255
    if torch.rand((), generator=generator) < 0.5:
        clip, coverage = clip.flip(-1), coverage.flip(-1)
    if torch.rand((), generator=generator) < 0.5:
        clip, coverage = clip.flip(0), coverage.flip(0)
    shift = torch.randint(-MAX_SHIFT_CELLS, MAX_SHIFT_CELLS + 1, (2,), generator=generator)
    cell_px = clip.shape[-1] // coverage.shape[-1]
    clip = clip.roll((shift * cell_px).tolist(), (-2, -1))
    coverage = coverage.roll(shift.tolist(), (-2, -1))
    gamma, gain = 0.8 + 0.4 * torch.rand(2, generator=generator)
    return (clip**gamma * gain).clamp(0, 1), coverage


def loss_of(model: TIN, clips: Tensor, labels: Tensor, coverage: Tensor) -> Tensor:
    """Return the loss of the clips' classes and of what each cell of the last feature map shows.

    A cell shows nothing, a benign node or a suspicious one; nothing has the fixed logit 0, so that evidence is negative
    away from nodes and the heatmap dark there. Cells on the node's rim are left out.

    Args:
        model: The network.
        clips: (N, T, C, H, W) float32 in 0..1.
        labels: (N,) int64.
        coverage: (N, T, 32, 32) float32 in 0..1.
    """
    features = model.dropout(model.features(clips))
    evidence = functional.conv2d(features, model.fc.weight[:, :, None, None])  # (N * T, K, h, w)
    logits = evidence.unflatten(0, (len(clips), -1)).mean((1, 3, 4)) + model.fc.bias
    node_share = functional.adaptive_avg_pool2d(coverage.flatten(0, 1), evidence.shape[-2:])  # (N * T, h, w)
    frame_labels = labels.repeat_interleave(model.num_frames)[:, None, None]
    shown = torch.where(node_share > 0.5, 1 + frame_labels, 0)
    weight = torch.tensor([1.0, NODE_CELL_WEIGHT, NODE_CELL_WEIGHT])
    cell_loss = functional.cross_entropy(functional.pad(evidence, (0, 0, 0, 0, 1, 0)), shown, weight, reduction="none")
    is_clear = (node_share > 0.5) | (node_share < 0.2)
    return functional.cross_entropy(logits, labels) + CELL_LOSS_WEIGHT * cell_loss[is_clear].mean()


def draw_batch(sweeps: Sequence[Sweep], indices: Sequence[int], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Return clips, labels and coverage of one clip, from a random start, of each named sweep."""
    pairs = []
    for index in indices:
        sweep = sweeps[index]
        start = int(torch.randint(0, len(sweep.frames) - NUM_FRAMES + 1, (), generator=generator))
        part = slice(start, start + NUM_FRAMES)
        pairs.append(augment(torch.from_numpy(sweep.frames[part]), torch.from_numpy(sweep.coverage[part]), generator))
    clips, coverage = (torch.stack(parts) for parts in zip(*pairs, strict=True))
    return clips, torch.tensor([sweeps[index].label for index in indices]), coverage


def progress(items: Iterable[T], total: int, what: str, console: Console) -> Iterable[T]:
    """Show how far a loop is, where somebody can see it."""
    return track(items, what, total=total, console=console, transient=True, disable=not console.is_terminal)


def fit(sweeps: Sequence[Sweep], console: Console) -> TIN:
    """Train the network from a fixed start, in a fixed order."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model = TIN(18, num_frames=NUM_FRAMES, width=WIDTH, strides=STRIDES, dropout=0.2)
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    num_steps = len(sweeps) // BATCH_SIZE
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LEARNING_RATE, epochs=NUM_EPOCHS, steps_per_epoch=num_steps, pct_start=0.2
    )
    for epoch in range(NUM_EPOCHS):
        order = torch.randperm(len(sweeps), generator=generator).tolist()
        losses = []
        for step in progress(range(num_steps), num_steps, f"epoch {epoch + 1} of {NUM_EPOCHS}", console):
            batch = draw_batch(sweeps, order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE], generator)
            loss = loss_of(model, *batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        console.print(f"epoch {epoch + 1} of {NUM_EPOCHS}: loss {np.mean(losses):.3f}")
    return model


def render(seeds: range, labels: Sequence[int] | None, num_frames: int, what: str, console: Console) -> list[Sweep]:
    """Render each seed with each of the labels, or with its own (`seed % 2`)."""
    keys = [(seed, label) for seed in seeds for label in (labels or [seed % 2])]
    return list(progress(render_sweeps(keys, num_frames), len(keys), f"rendering {what} sweeps", console))


def reference_clips(sweeps: Sequence[Sweep]) -> npt.NDArray[np.float32]:
    """Return the first clip of one sweep of each class, (2, T, C, H, W) float32 in 0..1."""
    chosen = [next(sweep for sweep in sweeps if sweep.label == label) for label in range(len(CLASSES))]
    return np.stack([sweep.frames[:NUM_FRAMES] for sweep in chosen]).astype(np.float32) / 255


def training_summary(held_out: dict[str, Any], validation: dict[str, Any], wall_s: float) -> dict[str, Any]:
    """Return what the manifest says about data, method and measured figures."""
    return {
        "data": "synthetic phantom sweeps (edge-phantom), 30 frames/s; no patient data",
        "train": {
            "num_videos": 2 * len(TRAIN_SEEDS),
            "seeds": _span(TRAIN_SEEDS),
            "labels": "both labels of each seed",
            "supervision": "class of the clip; node mask and class of each cell of the last feature map",
            "num_epochs": NUM_EPOCHS,
        },
        "validation": {"seeds": _span(VALIDATION_SEEDS), "used_for": "threshold", **validation},
        "held_out": {
            "seeds": _span(TEST_SEEDS),
            "heatmap_hit": "clips of suspicious videos whose strongest cell's centre lies in that frame's node mask",
            "single_frame": "the same network on one frame repeated 16 times",
            **held_out,
        },
        "wall_time_s": round(wall_s),
        "hardware": f"{host.processor_name()}, {host.num_cores()} cores; torch {torch.__version__}",
    }


def _span(seeds: range) -> str:
    return f"{seeds.start} to {seeds.stop - 1}"


def main() -> None:
    """Render, train, choose the threshold, measure on held-out sweeps and write the bundle."""
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: python -m trainer.demo --out engines/demo")
    parser.add_argument("--out", required=True, help="the bundle's folder")
    out = parser.parse_args().out
    started_s = time.monotonic()
    console = Console()
    model = fit(render(TRAIN_SEEDS, (0, 1), NUM_TRAIN_FRAMES, "training", console), console)
    validation_sweeps = render(VALIDATION_SEEDS, None, NUM_TEST_FRAMES, "validation", console)
    validation = evaluate(model, progress(validation_sweeps, len(validation_sweeps), "validating", console))
    threshold = best_threshold(validation)
    test_sweeps = render(TEST_SEEDS, None, NUM_TEST_FRAMES, "held-out", console)
    test = evaluate(model, progress(test_sweeps, len(test_sweeps), "measuring", console))
    held_out = summarise(test, threshold)
    export_bundle(
        model,
        out,
        classes=CLASSES,
        threshold=threshold,
        preprocess=SPEC,
        frame_interval_ms=FRAME_INTERVAL_MS,
        reference_clips=reference_clips(test_sweeps),
        name=NAME,
        intended_use=INTENDED_USE,
        training=training_summary(held_out, summarise(validation, threshold), time.monotonic() - started_s),
    )
    console.print(held_out)


if __name__ == "__main__":
    main()
