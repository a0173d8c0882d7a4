"""How well the demo network does on phantom sweeps: accuracy, and whether the heatmap's peak lies on the node."""

import dataclasses
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edge.phantom import Phantom
from trainer.demo_data import FRAME_INTERVAL_MS, Sweep, is_inside_node
from trainer.export import WithHeatmap, fold_batch_norms


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class SweepResult:
    """What the network says of one sweep."""

    label: int
    window_logits: npt.NDArray[np.float64]
    """(windows,) log odds of the positive class, every window at hop 1."""
    peak_hits: npt.NDArray[np.bool_]
    """(windows,) whether the heatmap's strongest cell lies on the node in that cell's frame."""
    frame_logits: npt.NDArray[np.float64]
    """(frames,) log odds of clips that repeat one frame."""

    @property
    def video_logit(self) -> float:
        return float(self.window_logits.mean())


@torch.inference_mode()
def evaluate(model: nn.Module, sweeps: Iterable[Sweep]) -> list[SweepResult]:
    """Run every window of every sweep, as `edge-infer --pace max --hop 1` does."""
    network = WithHeatmap(fold_batch_norms(model.eval()))
    return [_evaluate_sweep(network, sweep) for sweep in sweeps]


def _evaluate_sweep(network: WithHeatmap, sweep: Sweep) -> SweepResult:
    num_frames = network.model.num_frames
    frames = torch.from_numpy(sweep.frames) / 255
    phantom = Phantom(sweep.seed, label=sweep.label, frame_interval_ms=FRAME_INTERVAL_MS)
    logits, hits = [], []
    for start in range(len(frames) - num_frames + 1):
        probabilities, heatmap = network(frames[None, start : start + num_frames])
        logits.append(torch.logit(probabilities[0, -1].double(), eps=1e-9).item())
        hits.append(_is_hit(phantom, start, heatmap[0].numpy()))
    singles = [frame.expand(1, num_frames, *frame.shape) for frame in frames[::num_frames]]
    frame_logits = [torch.logit(network(clip)[0][0, -1].double(), eps=1e-9).item() for clip in singles]
    return SweepResult(sweep.label, np.array(logits), np.array(hits), np.array(frame_logits))


def _is_hit(phantom: Phantom, start: int, heatmap: npt.NDArray[np.float32]) -> bool:
    if heatmap.max() <= 0:
        return False
    frame, row, column = (int(index) for index in np.unravel_index(heatmap.argmax(), heatmap.shape))
    return is_inside_node(phantom, start + frame, (row, column), heatmap.shape[1:])


def best_threshold(results: list[SweepResult]) -> float:
    """Return the probability that best parts the videos' mean logits: the middle of the best interval."""
    logits = np.array([result.video_logit for result in results])
    labels = np.array([result.label for result in results])
    edges = np.concatenate([[logits.min() - 1], np.sort(logits), [logits.max() + 1]])
    cuts = (edges[:-1] + edges[1:]) / 2
    correct = ((logits[None, :] > cuts[:, None]) == labels).mean(1)
    best = cuts[correct == correct.max()]
    return float(1 / (1 + np.exp(-best[len(best) // 2])))


def summarise(results: list[SweepResult], threshold: float) -> dict[str, float | int]:
    """Return the metrics at a threshold on the positive class's probability."""
    cut = np.log(threshold / (1 - threshold))
    suspicious = [result for result in results if result.label == 1]

    def accuracy(per_result: list[npt.NDArray[np.float64]]) -> float:
        return float(np.mean(np.concatenate([(x > cut) == r.label for x, r in zip(per_result, results, strict=True)])))

    return {
        "num_videos": len(results),
        "num_clips": sum(len(result.window_logits) for result in results),
        "video_accuracy": accuracy([np.array([result.video_logit]) for result in results]),
        "clip_accuracy": accuracy([result.window_logits for result in results]),
        "num_heatmap_clips": sum(len(result.peak_hits) for result in suspicious),
        "heatmap_hit_rate": float(np.mean(np.concatenate([result.peak_hits for result in suspicious]))),
        "num_single_frames": sum(len(result.frame_logits) for result in results),
        "single_frame_accuracy": accuracy([result.frame_logits for result in results]),
    }
