"""Phantom sweeps for the demo bundle, preprocessed as the daemon does it. Synthetic images; no patient is in them."""

import dataclasses
import multiprocessing
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from edge.phantom import Phantom
from edge.preprocess import preprocess_uint8, visible_rect
from engines import PreprocessSpec

SPEC = PreprocessSpec(resize_hw=(128, 128), crop_hw=(128, 128))
COVERAGE_SIZE = (32, 32)
FRAME_INTERVAL_MS = 1000 / 30
NUM_PROCESSES = 2


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Sweep:
    """One synthetic video as the network sees it."""

    seed: int
    label: int
    """0 benign, 1 suspicious."""
    frames: npt.NDArray[np.uint8]
    """(F, C, H, W) uint8."""
    coverage: npt.NDArray[np.uint8]
    """(F, 32, 32) uint8: 255 where the node fills the cell, 0 where it is not."""


def render_sweep(key: tuple[int, int, int]) -> Sweep:
    """Render the phantom of (seed, label, number of frames)."""
    seed, label, num_frames = key
    cv2.setNumThreads(1)  # the processes share the cores already
    phantom = Phantom(seed, label=label, frame_interval_ms=FRAME_INTERVAL_MS)
    frames = [preprocess_uint8(phantom.frame(index), phantom.region, SPEC) for index in range(num_frames)]
    coverage = [node_coverage(phantom, index) for index in range(num_frames)]
    return Sweep(seed, label, np.stack(frames), np.stack(coverage))


def node_coverage(phantom: Phantom, frame_index: int) -> npt.NDArray[np.uint8]:
    """Return how much of each cell of what the network sees belongs to the node, (32, 32) uint8."""
    x, y, width, height = visible_rect(phantom.region, SPEC)
    mask = phantom.mask(frame_index)[y : y + height, x : x + width]
    return np.asarray(cv2.resize(np.uint8(255) * mask, COVERAGE_SIZE, interpolation=cv2.INTER_AREA), np.uint8)


def render_sweeps(seeds_and_labels: Sequence[tuple[int, int]], num_frames: int) -> Iterator[Sweep]:
    """Render many, in order, on all of `NUM_PROCESSES`."""
    keys = [(seed, label, num_frames) for seed, label in seeds_and_labels]
    with multiprocessing.get_context("spawn").Pool(NUM_PROCESSES) as pool:
        yield from pool.imap(render_sweep, keys, chunksize=4)


def is_inside_node(phantom: Phantom, frame_index: int, cell_rc: tuple[int, int], map_hw: tuple[int, int]) -> bool:
    """Return whether the centre of a heatmap cell, taken back to source pixels, lies in the node's mask."""
    x, y, width, height = visible_rect(phantom.region, SPEC)
    column = int(x + (cell_rc[1] + 0.5) * width / map_hw[1])
    row = int(y + (cell_rc[0] + 0.5) * height / map_hw[0])
    return bool(phantom.mask(frame_index)[row, column])
