"""What stays of each epoch: a line of figures, a checkpoint, and the weights where they are the best so far."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging
from torch import Tensor

from trainer.evaluation.predictions import write_table
from trainer.runs import METRICS_NAME, WEIGHTS_NAME, write_weights
from trainer.training.checkpointing import FOLDER, IDENTITY, checkpoint_path, network_weights

Row = dict[str, float]
COLUMNS = (
    "epoch",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "val_auc",
    "learning_rate",
    "wall_s",
)
_NUM_KEPT = 2
"""Checkpoints beside the best one's: should the last be damaged, the one before is there."""


def best_row(rows: Sequence[Row]) -> Row:
    """Return the epoch whose weights are kept: of the highest validation AUC; of equals the lowest loss, the first."""
    return max(rows, key=lambda row: (-1.0 if math.isnan(row["val_auc"]) else row["val_auc"], -row["val_loss"]))


def is_exhausted(rows: Sequence[Row], patience: int) -> bool:
    """Whether so many epochs have passed since the best that training ends early; a patience of 0 never does."""
    return bool(rows) and 0 < patience <= rows[-1]["epoch"] - best_row(rows)["epoch"]


class Keeper(Checkpoint):
    """Writes metrics.csv, checkpoints and the best weights after every epoch, and ends training early.

    Args:
        folder: The run's.
        identity: What is trained; goes into each checkpoint, so that none is mistaken for another's.
        patience: Of the recipe.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], patience: int) -> None:
        self._folder = folder
        self._identity = dict(identity)
        self._patience = patience
        self._started_s = 0.0
        self.rows: list[Row] = []

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started_s = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.rows.append(self._row(trainer))
        # the table goes first: after a kill in between, the epoch is done again and its line replaced
        if trainer.is_global_zero:
            write_table(self._folder / METRICS_NAME, COLUMNS, [[row[name] for name in COLUMNS] for row in self.rows])
        trainer.save_checkpoint(checkpoint_path(self._folder, len(self.rows)))
        if trainer.is_global_zero:
            self._prune()
        trainer.should_stop = trainer.should_stop or is_exhausted(self.rows, self._patience)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[IDENTITY] = self._identity
        if trainer.is_global_zero and best_row(self.rows) is self.rows[-1]:
            write_weights(self._folder / WEIGHTS_NAME, network_weights(checkpoint["state_dict"]))

    def _row(self, trainer: pl.Trainer) -> Row:
        measured = {name: float(value) for name, value in trainer.callback_metrics.items()}
        row = {
            "epoch": len(self.rows) + 1,
            "learning_rate": float(trainer.optimizers[0].param_groups[0]["lr"]),
            "wall_s": round(time.monotonic() - self._started_s, 3),
            **measured,
        }
        return {name: row[name] for name in COLUMNS}

    def _prune(self) -> None:
        num_done = len(self.rows)
        wanted = {*range(num_done - _NUM_KEPT + 1, num_done + 1), int(best_row(self.rows)["epoch"])}
        keep = {checkpoint_path(self._folder, number) for number in wanted}
        for path in (self._folder / FOLDER).glob("*.ckpt"):
            if path not in keep:
                path.unlink(missing_ok=True)


def weight_averaging(decay: float) -> WeightAveraging:
    """Return a running mean of weights and normalisation statistics, whose decay rises to `decay` over the first steps.

    With a fixed decay of 0.999 the mean would be that of the random start for the first thousands of steps.
    """

    def mean(averaged: Tensor, current: Tensor, num_averaged: Tensor | int) -> Tensor:
        if not averaged.is_floating_point():
            return current
        num = float(num_averaged)
        return torch.lerp(current, averaged, min(decay, (1 + num) / (10 + num)))

    return WeightAveraging(avg_fn=mean)
