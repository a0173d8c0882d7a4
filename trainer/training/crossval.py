"""Cross-validation: one run a fold, the best of them by name, and every video's out-of-fold probability."""

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from trainer.data.folds import fold_numbers, split_for_fold
from trainer.data.manifest import read_manifest
from trainer.errors import RunError
from trainer.evaluation.metrics import measure
from trainer.evaluation.predictions import read_predictions, write_predictions
from trainer.files import write_json
from trainer.runs import CROSSVAL_NAME, PREDICTIONS_NAME, RUN_NAME, SCHEMA, Run, describe_result
from trainer.training.fit import fit
from trainer.training.out_of_fold import OUT_OF_FOLD_AT, concatenated, cross_fitted, thresholds_by_fold
from trainer.training.plan import FitOptions

FIGURES = ("auc", "accuracy", "sensitivity", "specificity", "f1", "kappa")


def cross_validate(options: FitOptions) -> dict[str, Any]:
    """Train one network a fold, in turn; folds that are done already are kept on resuming.

    Returns:
        What `crossval.json` says.

    Raises:
        ConfigError: As `fit`, before the first fold is trained.
        TrainingError: Training stopped; what was trained before is kept.
    """
    manifest = read_manifest(options.manifest)
    numbers = fold_numbers(manifest, options.num_folds)
    for number in numbers:  # a fold without a class is refused before the first is trained
        split_for_fold(manifest, number, options.num_folds, options.seed, options.by)
    _check_folder(options)
    if len(numbers) != options.num_folds:
        _say(f"the {len(numbers)} folds of {options.manifest}'s fold column are taken, not {options.num_folds}")
    runs = []
    for number in numbers:
        _say(f"fold {number}:")
        runs.append(fit(dataclasses.replace(options, fold=number, out=options.out / f"fold-{number}")))
        if rank_zero_only.rank == 0:
            _say(describe_result(runs[-1]))
    return _summarise(options.out, runs, options.threshold_rule) if rank_zero_only.rank == 0 else {}


def _check_folder(options: FitOptions) -> None:
    if (options.out / RUN_NAME).is_file():
        raise RunError(f"{options.out} holds a single run; give another --out")
    if rank_zero_only.rank == 0 and not options.resume and options.out.is_dir() and any(options.out.iterdir()):
        raise RunError(f"{options.out} is not empty; add --resume to go on with it, or give another --out")


def _summarise(folder: Path, runs: Sequence[Run], rule: str) -> dict[str, Any]:
    """Write the out-of-fold predictions and what the folds came to."""
    best = max(runs, key=lambda run: (run.validation["auc"], -run.validation["brier"]))
    together = cross_fitted(concatenated([read_predictions(run.path / PREDICTIONS_NAME) for run in runs]), rule)
    write_predictions(folder / PREDICTIONS_NAME, together)
    cuts = together.cut(best.threshold)
    summary = {
        "schema": SCHEMA,
        "best": best.path.name,
        "chosen_by": "highest AUC on its validation videos; of equals the lowest Brier score",
        "folds": [_fold_entry(run) for run in runs],
        "mean": {name: _spread([run.validation[name] for run in runs]) for name in FIGURES},
        "mean_at": "each fold's own threshold, chosen on the same videos: optimistic",
        "threshold_rule": rule,
        "out_of_fold": measure(together.labels, together.probabilities, cuts),
        "out_of_fold_thresholds": thresholds_by_fold(together),
        "out_of_fold_at": OUT_OF_FOLD_AT,
        "wall_s": sum(run.wall_s for run in runs),
    }
    write_json(folder / CROSSVAL_NAME, summary)
    return summary


def _fold_entry(run: Run) -> dict[str, Any]:
    return {
        "fold": run.fold,
        "run": run.path.name,
        "best_epoch": run.best_epoch,
        "threshold": run.threshold,
        "temperature": run.temperature,
        "wall_s": run.wall_s,
        "validation": run.validation,
    }


def _spread(values: Sequence[float | None]) -> dict[str, float | None]:
    """Return mean and standard deviation over the folds that have the figure."""
    given = [value for value in values if value is not None]
    return {
        "mean": statistics.fmean(given) if given else None,
        "sd": statistics.stdev(given) if len(given) > 1 else None,
    }


def _say(text: str) -> None:
    if rank_zero_only.rank == 0:
        print(text, flush=True)
