"""The committed demo bundle, and the parts of the script that trains and measures it."""

import numpy as np
import pytest
import torch

from edge.config import DEMO_BUNDLE
from edge.phantom import Phantom
from engines.bundle import load_bundle
from engines.load import BACKENDS, load_engine
from trainer.demo import augment
from trainer.demo_data import is_inside_node, node_coverage, render_sweep
from trainer.demo_evaluate import SweepResult, best_threshold, summarise

NUM_FRAMES = 16


@pytest.fixture(scope="module")
def bundle():
    return load_bundle(DEMO_BUNDLE)


@pytest.mark.parametrize("backend", sorted(set(BACKENDS) - {"tensorrt"}))  # it runs what edge-build compiles
def test_demo_bundle_on_every_backend_gives_its_reference(bundle, backend):
    load_engine(bundle, backend).close()


def test_demo_bundle_is_small_enough_for_git(bundle):
    assert sum(path.stat().st_size for path in DEMO_BUNDLE.iterdir()) < 10_000_000


def test_demo_bundle_says_what_it_is_for_and_what_was_measured(bundle):
    assert "synthetic phantom images only" in bundle.intended_use
    assert "not a medical device" in bundle.intended_use
    held_out = bundle.training["held_out"]
    assert held_out["num_videos"] >= 100
    assert held_out["num_clips"] > held_out["num_videos"]
    assert held_out["video_accuracy"] >= 0.9
    assert held_out["heatmap_hit_rate"] >= 0.8
    assert held_out["single_frame_accuracy"] < held_out["clip_accuracy"] - 0.1


@pytest.mark.parametrize("seed", [300, 301, 302, 303, 304, 305])
def test_demo_bundle_on_sweeps_never_seen_finds_class_and_node(bundle, seed):
    sweep = render_sweep((seed, seed % 2, 32))
    phantom = Phantom(seed)
    engine = load_engine(bundle, "openvino")
    logits, hits = [], []
    for start in range(0, 17, 4):
        clip = sweep.frames[start : start + NUM_FRAMES].astype(np.float32) / 255
        output = engine.run_clip(clip)
        logits.append(np.log(output.probabilities[1] / output.probabilities[0]))
        frame, row, column = np.unravel_index(output.heatmap.argmax(), output.heatmap.shape)
        hits.append(is_inside_node(phantom, start + int(frame), (int(row), int(column)), output.heatmap.shape[1:]))
    engine.close()
    assert (np.mean(logits) > np.log(bundle.threshold / (1 - bundle.threshold))) == phantom.label
    if phantom.label == 1:
        assert np.mean(hits) >= 0.8


@pytest.mark.slow
def test_is_inside_node_agrees_with_the_mask_cell_by_cell():
    phantom = Phantom(3)
    index = max(range(32), key=lambda i: phantom.mask(i).sum())
    coverage = node_coverage(phantom, index)
    inside = np.zeros((32, 32), bool)
    for row, column in np.ndindex(32, 32):
        inside[row, column] = is_inside_node(phantom, index, (row, column), (32, 32))
    assert 5 < inside.sum() < 300
    assert inside[coverage == 255].all()
    assert not inside[coverage == 0].any()


def test_augment_moves_the_clip_and_its_coverage_alike():
    generator = torch.Generator().manual_seed(0)
    coverage = torch.zeros(NUM_FRAMES, 32, 32, dtype=torch.uint8)
    for frame in range(NUM_FRAMES):
        coverage[frame, 8 + frame // 2 : 14 + frame // 2, 10:13] = 255
    clip = coverage.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
    seen = set()
    for _ in range(20):
        moved, moved_coverage = augment(clip, coverage, generator)
        assert torch.equal(moved[:, 0, ::4, ::4] > 0, moved_coverage > 0)
        assert moved.min() >= 0
        assert moved.max() <= 1
        seen.add(tuple(moved_coverage.nonzero()[0].tolist()))
    assert len(seen) > 5, "augmentation hardly varies"


def result(label: int, window_logits: list[float], hits: list[bool]) -> SweepResult:
    return SweepResult(label, np.array(window_logits), np.array(hits), np.array([0.5 - label]))


def test_summarise_counts_videos_clips_and_hits_of_suspicious_videos():
    results = [
        result(0, [-2.0, -1.0, 1.0], [False, False, False]),
        result(1, [3.0, -1.0, 2.0], [True, True, False]),
        result(1, [-3.0, -1.0, 2.0], [True, True, True]),
    ]
    assert summarise(results, 0.5) == {
        "num_videos": 3,
        "num_clips": 9,
        "video_accuracy": pytest.approx(2 / 3),
        "clip_accuracy": pytest.approx(5 / 9),
        "num_heatmap_clips": 6,
        "heatmap_hit_rate": pytest.approx(5 / 6),
        "num_single_frames": 3,
        "single_frame_accuracy": 0.0,
    }


def test_best_threshold_parts_separable_videos():
    results = [
        result(0, [-1.0], [False]),
        result(0, [1.0], [False]),
        result(1, [1.4], [True]),
        result(1, [4.0], [True]),
    ]
    threshold = best_threshold(results)
    assert 1.0 < np.log(threshold / (1 - threshold)) < 1.4
