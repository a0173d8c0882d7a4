"""Where a training begins: anew, or where it was interrupted, if it is the same training."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.errors import RunError
from trainer.runs import FINISHED, RUN_NAME, WEIGHTS_NAME, Run, load_run
from trainer.training.checkpointing import IDENTITY, latest_checkpoint, read_checkpoint
from trainer.training.keeper import Row
from trainer.training.recipe import differences


@dataclasses.dataclass(frozen=True, slots=True)
class Start:
    """Where a training goes on."""

    checkpoint: Path | None = None
    """None: at the beginning."""
    rows: tuple[Row, ...] = ()
    """Figures of the epochs done."""
    num_steps: int = 0
    is_finished: bool = False


def identity_of(run: Run) -> dict[str, Any]:
    """Return what makes two trainings the same one, in types that JSON keeps."""
    identity = {
        "model": run.model,
        "classes": run.classes,
        "seed": run.seed,
        "fold": run.fold,
        "manifest": run.manifest.get("sha256"),
        "videos": {name: run.split[name] for name in ("train", "validation")},
        **run.recipe,
    }
    known: dict[str, Any] = json.loads(json.dumps(identity))
    return known


def find_start(run: Run, resume: bool) -> Start:
    """Return where the training begins.

    Args:
        run: The training that is asked for.
        resume: Go on with what is in its folder, where there is something.

    Raises:
        RunError: The folder is taken, holds another training, or its last checkpoint is damaged.
    """
    _check_place(run.path)
    if not (run.path / RUN_NAME).is_file():
        if run.path.is_dir() and any(run.path.iterdir()):
            raise RunError(f"{run.path} is not empty and holds no run; give another --out")
        return Start()
    if not resume:
        raise RunError(f"{run.path} holds a run already; add --resume to go on with it, or give another --out")
    old = load_run(run.path)
    _check_same(run.path, identity_of(old), identity_of(run))
    if old.state == FINISHED and (run.path / WEIGHTS_NAME).is_file():
        if old.threshold_rule != run.threshold_rule:
            raise RunError(
                f"{run.path} is finished, its threshold chosen by {old.threshold_rule}; "
                "give that --threshold-rule, or another --out"
            )
        return Start(is_finished=True)
    path = latest_checkpoint(run.path)
    if path is None:
        return Start()
    checkpoint = read_checkpoint(path)
    _check_same(path, checkpoint[IDENTITY], identity_of(run))
    rows = checkpoint["callbacks"]["Keeper"]["rows"]
    return Start(path, tuple(rows), checkpoint["global_step"])


def _check_place(path: Path) -> None:
    """Refuse a folder that cannot be made, before hours are spent on what it should hold."""
    there = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not there.is_dir():
        raise RunError(f"{path} cannot be made: {there} is a file; give another --out")
    if not os.access(there, os.W_OK):
        raise RunError(f"{path} cannot be written: no permission in {there}; give another --out")


def _check_same(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    different = differences(old, new)
    if not different:
        return
    told = [text if len(text) < 100 else f"other {text.split()[0]}" for text in different[:5]]
    raise RunError(f"{path} is another training: {'; '.join(told)}; give the same command as before, or another --out")
