"""Trains one network: from a manifest and a recipe to a run."""

import dataclasses

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from trainer.runs import FINISHED, WEIGHTS_NAME, Run, load_run, write_run, write_weights
from trainer.training.checkpointing import checkpoint_path, network_weights, read_checkpoint
from trainer.training.failures import explained, quiet_libraries
from trainer.training.finish import calibrated
from trainer.training.keeper import best_row
from trainer.training.loop import fit_trainer, run_epochs
from trainer.training.plan import FitOptions, Plan, make_plan
from trainer.training.resume import find_start


def fit(options: FitOptions) -> Run:
    """Train one network, or go on with its training; then choose temperature and threshold.

    Raises:
        ConfigError: Wrong options, manifest, folds, recipe or run folder.
        TrainingError: Training stopped; what was trained before is kept.
    """
    with quiet_libraries():
        plan = make_plan(options)
        if plan.start.is_finished:
            return load_run(options.out)
        trainer = fit_trainer(plan, options)
        with explained(plan.run.path, plan.recipe, lambda: trainer is not None and trainer.received_sigterm):
            if rank_zero_only.rank == 0:
                write_run(plan.run)
            if trainer is not None:
                run_epochs(trainer, plan)
            return _finish(plan) if rank_zero_only.rank == 0 else plan.run


def _finish(plan: Plan) -> Run:
    """Take the best epoch's weights, and learn from the validation videos what they are worth."""
    rows = find_start(plan.run, resume=True).rows
    best = int(best_row(rows)["epoch"])
    weights = read_checkpoint(checkpoint_path(plan.run.path, best))["state_dict"]
    sha256 = write_weights(plan.run.path / WEIGHTS_NAME, network_weights(weights))
    run = calibrated(plan.run, plan.validation)
    wall_s = round(sum(row["wall_s"] for row in rows), 1)
    run = dataclasses.replace(run, state=FINISHED, wall_s=wall_s, best_epoch=best, weights_sha256=sha256)
    write_run(run)
    return run
