"""Checkpoints of a training: written in one piece after every epoch, read as tensors alone, never as code."""

import io
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from trainer.checkpoints.pickled_code import first_import, named_by_torch
from trainer.errors import RunError
from trainer.files import write_atomic

FOLDER = "checkpoints"
IDENTITY = "edge_training"
"""Key of what was being trained, in a checkpoint."""
_NETWORK_PREFIX = "network."


class AtomicCheckpointIO(CheckpointIO):
    """How Lightning writes and reads checkpoints here."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        # into memory first: where a disk is full, torch's own writer aborts the process
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_atomic(path, content.getvalue())

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        Path(path).unlink(missing_ok=True)


def checkpoint_path(run_folder: Path, num_epochs_done: int) -> Path:
    """Return where the checkpoint after so many epochs lies."""
    return run_folder / FOLDER / f"epoch-{num_epochs_done:05d}.ckpt"


def latest_checkpoint(run_folder: Path) -> Path | None:
    """Return the checkpoint of the last epoch that was finished; None before the first."""
    return max((run_folder / FOLDER).glob("epoch-*.ckpt"), default=None)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint's tensors, numbers and text onto the CPU.

    Raises:
        RunError: It is damaged, or holds something else, which is not run.
    """
    try:
        _check_sums(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError, BadZipFile) as exc:
        raise RunError(f"checkpoint {path} is {_fault(path, exc)}; remove it, and {_before(path)}") from exc
    if not isinstance(checkpoint, dict) or IDENTITY not in checkpoint:
        raise RunError(f"{path} is no checkpoint of edge-train; remove it, and {_before(path)}")
    return checkpoint


def _fault(path: Path, exc: Exception) -> str:
    named = named_by_torch(str(exc)) if isinstance(exc, pickle.UnpicklingError) else None
    if named is None and path.is_file():
        named = first_import(path)
    if named is not None:
        return f"refused (it would import {named}, which could run code, so it was not read)"
    reason = str(exc).partition("\n")[0].rstrip(".") or type(exc).__name__
    return f"damaged or no checkpoint ({reason})"


def _check_sums(path: Path) -> None:
    """Compare the contents with their check sums, at which torch does not look."""
    with ZipFile(path) as archive:
        if (name := archive.testzip()) is not None:
            raise BadZipFile(f"{name} differs from its check sum")


def _before(path: Path) -> str:
    earlier = [other for other in path.parent.glob("epoch-*.ckpt") if other.name < path.name]
    return f"--resume goes on from {max(earlier).name if earlier else 'the start'}"


def network_weights(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the network's own part of a checkpoint's `state_dict`; running means where the recipe has them."""
    return {
        name.removeprefix(_NETWORK_PREFIX): tensor
        for name, tensor in state_dict.items()
        if name.startswith(_NETWORK_PREFIX)
    }
