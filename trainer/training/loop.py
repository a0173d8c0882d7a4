"""The training loop: Lightning, set up for a plan."""

import contextlib
from collections.abc import Iterator, Sequence

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from trainer.training.checkpointing import AtomicCheckpointIO
from trainer.training.dataset import Clips
from trainer.training.failures import configuration_errors
from trainer.training.keeper import Keeper, is_exhausted, weight_averaging
from trainer.training.module import Training
from trainer.training.plan import FitOptions, Plan
from trainer.training.progress import TrainingProgress
from trainer.training.recipe import Recipe
from trainer.training.resume import identity_of
from trainer.training.surroundings import default_precision


def fit_trainer(plan: Plan, options: FitOptions) -> pl.Trainer | None:
    """Return what will run the epochs that are still to be done; None where none is.

    Raises:
        ConfigError: The machine does not have the devices, or cannot compute in this precision.
    """
    recipe, rows = plan.recipe, plan.start.rows
    if len(rows) >= recipe.epochs or is_exhausted(rows, recipe.patience):
        return None
    keeper = Keeper(plan.run.path, identity_of(plan.run), recipe.patience)
    callbacks = [keeper, TrainingProgress(keeper, recipe.epochs), LearningRateMonitor("epoch")]
    # on resuming, what the interrupted epoch has logged already is dropped
    logger = TensorBoardLogger(plan.run.path, name="", version="tensorboard", purge_step=plan.start.num_steps or None)
    return make_trainer(plan, options, callbacks, logger)


def run_epochs(trainer: pl.Trainer, plan: Plan) -> None:
    """Train from where the plan starts."""
    with restored_determinism():
        trainer.fit(make_module(plan), datamodule=make_clips(plan), ckpt_path=plan.start.checkpoint, weights_only=True)


@contextlib.contextmanager
def restored_determinism() -> Iterator[None]:
    """Take back afterwards what Lightning's `deterministic` asks of all of torch."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    num_threads = torch.get_num_threads()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)  # two threads gave other weights from run to run (docs/log.md)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def make_module(plan: Plan) -> Training:
    """Return the network with its loss and its optimizer."""
    weights = class_weights([video.label for video, _ in plan.train], len(plan.run.classes), plan.recipe)
    return Training(plan.network, plan.recipe, plan.run.seed, weights, [video.label for video, _ in plan.validation])


def make_clips(plan: Plan) -> Clips:
    """Return the loaders."""
    return Clips(plan.train, plan.validation, plan.recipe, plan.run.seed, first_epoch=len(plan.start.rows))


def make_trainer(
    plan: Plan,
    options: FitOptions,
    callbacks: Sequence[pl.Callback],
    logger: Logger | bool,
    max_steps: int = -1,
) -> pl.Trainer:
    """Return Lightning's trainer.

    Raises:
        ConfigError: The machine does not have the devices, or cannot compute in this precision.
    """
    recipe = plan.recipe
    averaging = [weight_averaging(recipe.ema_decay)] if recipe.ema_decay else []
    with configuration_errors():
        return pl.Trainer(
            accelerator="auto",
            devices=options.devices,
            num_nodes=options.num_nodes,
            strategy="ddp" if options.devices * options.num_nodes > 1 else "auto",
            precision=options.precision or default_precision(recipe),  # type: ignore[arg-type]
            max_epochs=recipe.epochs,
            max_steps=max_steps,
            gradient_clip_val=recipe.gradient_clip or None,
            deterministic="warn" if torch.cuda.is_available() else True,
            callbacks=[*callbacks, *averaging],
            logger=logger,
            plugins=[AtomicCheckpointIO()],
            default_root_dir=plan.run.path,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # the order is ours
            enable_checkpointing=any(isinstance(callback, Keeper) for callback in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
        )


def class_weights(labels: Sequence[int], num_classes: int, recipe: Recipe) -> torch.Tensor:
    """Return a weight a class, (K,) float32: 1, or the inverse of its share of the videos, 1 in the mean over them."""
    if not recipe.class_balance:
        return torch.ones(num_classes)
    counts = torch.bincount(torch.tensor(labels), minlength=num_classes)
    return len(labels) / (num_classes * counts.float())
