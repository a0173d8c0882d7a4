"""How far training is: a bar with the time left on a terminal, one line an epoch elsewhere."""

import math
from typing import Any

import lightning.pytorch as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from trainer.training.keeper import Keeper, Row, best_row


class TrainingProgress(pl.Callback):
    """Shows the training's progress on one process.

    Args:
        keeper: Has the epochs' figures.
        num_epochs: Of the whole training.
    """

    def __init__(self, keeper: Keeper, num_epochs: int) -> None:
        self._keeper = keeper
        self._num_epochs = num_epochs
        self._num_told = 0
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            TextColumn("{task.fields[figures]}"),
            console=console,
            disable=not console.is_terminal,
            speed_estimate_period=3600,
        )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._num_told = len(self._keeper.rows)
        total = self._num_epochs * int(trainer.num_training_batches)
        self._task = self._bar.add_task("steps", total=total, completed=trainer.global_step, figures=self._figures())
        if trainer.is_global_zero:
            self._bar.start()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._bar.update(self._task, completed=trainer.global_step)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._tell(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._tell(trainer)
        self._bar.stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._bar.stop()

    def _tell(self, trainer: pl.Trainer) -> None:
        rows = self._keeper.rows
        if not trainer.is_global_zero or len(rows) == self._num_told:
            return
        self._num_told = len(rows)
        self._bar.update(self._task, figures=self._figures())
        if self._bar.disable:
            print(f"epoch {len(rows)}/{self._num_epochs}: {describe(rows[-1], best_row(rows) is rows[-1])}", flush=True)

    def _figures(self) -> str:
        rows = self._keeper.rows
        if not rows:
            return ""
        return f"epoch {len(rows)}: {describe(rows[-1])}; best: epoch {best_row(rows)['epoch']:.0f}"


def describe(row: Row, is_best: bool = False) -> str:
    """Return an epoch's figures in one line."""
    auc = "-" if math.isnan(row["val_auc"]) else f"{row['val_auc']:.3f}"
    return (
        f"loss {row['train_loss']:.4f}, validation loss {row['val_loss']:.4f} accuracy {row['val_accuracy']:.3f} "
        f"AUC {auc}{', the best so far' if is_best else ''}; {row['wall_s']:.1f} s"
    )
