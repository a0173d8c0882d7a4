"""Library errors that a training meets, in words for people."""

import contextlib
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from edge.errors import ConfigError
from trainer.errors import TrainingError
from trainer.files import unwritable
from trainer.training.checkpointing import latest_checkpoint
from trainer.training.recipe import Recipe

_NO_MEMORY = ("out of memory", "can't allocate memory", "Cannot allocate memory", "not enough memory")
_LOST_WORKER = ("DataLoader worker",)


@contextlib.contextmanager
def explained(run_folder: Path, recipe: Recipe, was_asked: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Turn what stops a training into a `TrainingError` that also says what was kept.

    Args:
        run_folder: Where the checkpoints are.
        recipe: Of the training.
        was_asked: Whether the training was told to end, of which the loss of a loading process may be the first sign.

    Raises:
        TrainingError: Out of memory, a lost worker, a loss that is no number, a disk that cannot be written, Ctrl-C.
    """
    try:
        yield
    except TrainingError as exc:
        raise TrainingError(f"{exc}; {_kept(run_folder)}") from exc
    except (KeyboardInterrupt, SystemExit) as exc:  # Lightning leaves by the latter on Ctrl-C and SIGTERM
        raise TrainingError(f"training was stopped; {_kept(run_folder)}") from exc
    except OSError as exc:
        raise TrainingError(f"{unwritable(Path(exc.filename or run_folder), exc)}; {_kept(run_folder)}") from exc
    except (RuntimeError, MemoryError) as exc:
        reason = "training was stopped" if was_asked() else why_stopped(exc, recipe)
        if reason is None:
            raise
        raise TrainingError(f"{reason}; {_kept(run_folder)}") from exc


def why_stopped(exc: RuntimeError | MemoryError, recipe: Recipe) -> str | None:
    """Return what happened and what to do; None where it is none of what is known."""
    text = str(exc)
    if isinstance(exc, MemoryError | torch.OutOfMemoryError) or any(part in text for part in _NO_MEMORY):
        clip = f"{recipe.num_frames} x {recipe.channels} x {recipe.crop} x {recipe.crop}"
        return (
            f"out of memory with batches of {recipe.batch_size} clips of {clip}; begin anew with a lower "
            "--set batch_size, crop or width, or with --precision bf16-mixed"
        )
    if "killed by signal: Terminated" in text:
        return "training was stopped"
    if any(part in text for part in _LOST_WORKER):
        return "a process that loads clips was killed, mostly for want of memory; free some, or use a machine with more"
    return None


def _kept(run_folder: Path) -> str:
    latest = latest_checkpoint(run_folder)
    if latest is None:
        return "no epoch was finished before"
    return f"the last good checkpoint is {latest}, from which the same command with --resume goes on"


@contextlib.contextmanager
def configuration_errors() -> Iterator[None]:
    """Turn Lightning's complaints about devices and precision into a `ConfigError`."""
    try:
        yield
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as exc:
        if isinstance(exc, ConfigError):
            raise
        reason = " ".join(str(exc).split())
        raise ConfigError(f"this machine cannot train so: {reason}; choose other --devices or --precision") from exc


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hold back what Lightning and TensorBoard say about themselves; their errors are exceptions."""
    loggers = [logging.getLogger(name) for name in ("lightning", "lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    hook = threading.excepthook
    threading.excepthook = _without_write_errors(hook)
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # fast enough with few workers: the step's profile says so
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*number of training batches.*smaller than the logging interval")
            # without a deterministic kernel for one operation on a GPU, the others still are
            warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")
            warnings.filterwarnings("ignore", message=".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*")
            yield
    finally:
        threading.excepthook = hook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _without_write_errors(hook: Any) -> Any:
    """TensorBoard's thread dies of a full disk with a traceback, and its next call raises the same in our thread."""

    def said(arguments: threading.ExceptHookArgs) -> None:
        if not issubclass(arguments.exc_type, OSError):
            hook(arguments)

    return said
