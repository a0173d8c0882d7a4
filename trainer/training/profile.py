"""Where the time of a training step goes: in the network, or in waiting for clips."""

import dataclasses
import time
from typing import Any

import lightning.pytorch as pl
import torch

from edge.errors import ConfigError
from trainer.training.failures import explained, quiet_libraries
from trainer.training.loop import make_trainer, run_epochs
from trainer.training.plan import FitOptions, make_plan

NUM_WARMUP = 2
"""Steps before the measured ones: workers start, memory is allocated."""


class StepTimer(pl.Callback):
    """Measures each step: forward, backward and optimizer, and what lies between that and the next step."""

    def __init__(self) -> None:
        self.network_s: list[float] = []
        self.between_s: list[float] = []
        self._began_s = self._ended_s = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        self._began_s = time.perf_counter()
        if self._ended_s:
            self.between_s.append(self._began_s - self._ended_s)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._ended_s = time.perf_counter()
        self.network_s.append(self._ended_s - self._began_s)


def profile(options: FitOptions, num_steps: int) -> str:
    """Train a few steps, write no run, and say where their time went.

    Raises:
        ConfigError: As for `fit`; or `num_steps` is below 1.
    """
    if num_steps < 1:
        raise ConfigError(f"--profile {num_steps}: give a number of steps from 1")
    timer = StepTimer()
    with quiet_libraries():
        plan = make_plan(dataclasses.replace(options, resume=False))
        with explained(plan.run.path, plan.recipe):
            trainer = make_trainer(plan, options, [timer], logger=False, max_steps=NUM_WARMUP + num_steps)
            trainer.limit_val_batches = 0
            run_epochs(trainer, plan)
    return _describe(timer, options.model, num_steps)


def _describe(timer: StepTimer, model: str, num_steps: int) -> str:
    # the pause before a step belongs to it; an epoch's end in between has none of its own here
    network_s = sum(timer.network_s[-num_steps:])
    between_s = sum(timer.between_s[-num_steps:])
    total_s = network_s + between_s
    return (
        f"{model}: {num_steps} steps of {total_s / num_steps:.3f} s each; {network_s / total_s:.1%} in the network "
        f"(forward, backward, optimizer), {between_s / total_s:.1%} between steps (waiting for clips, and the loop)"
    )
