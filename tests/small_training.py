"""Trainings that take seconds."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trainer.training.checkpointing import checkpoint_path, read_checkpoint
from trainer.training.plan import FitOptions

SETTINGS = (
    "width=16",
    "resize=40",
    "crop=32",
    "num_frames=4",
    "frame_interval_ms=66",
    "epochs=2",
    "learning_rate=0.003",
)


def fit_options(manifest: Path, out: Path, *settings: str, **changes: Any) -> FitOptions:
    """Return a small training; `settings` are as typed after --set."""
    plain = {"model": "tin-r18", "num_folds": 2, "cache": manifest.parent / "cache"}
    return FitOptions(manifest=manifest, out=out, settings=(*SETTINGS, *settings), **{**plain, **changes})


def fit_command(manifest: Path, out: Path, *settings: str, more: Sequence[str] = ()) -> list[str]:
    """Return the same training as a command line."""
    words = [sys.executable, "-m", "trainer.cli", "fit", str(manifest), "--model", "tin-r18", "--out", str(out)]
    words += ["--folds", "2", "--cache", str(manifest.parent / "cache"), *more]
    return words + [word for setting in (*SETTINGS, *settings) for word in ("--set", setting)]


def run_command(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command with one thread, as tests share the cores."""
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def trained_state(run: Path, num_epochs: int) -> dict[str, Any]:
    """Return all that training has made after so many epochs."""
    checkpoint = read_checkpoint(checkpoint_path(run, num_epochs))
    return {name: checkpoint[name] for name in ("state_dict", "optimizer_states", "lr_schedulers", "global_step")}


def is_equal(first: Any, second: Any) -> bool:
    """Whether two nested states are the same to the last bit."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(is_equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(is_equal, first, second))
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second
