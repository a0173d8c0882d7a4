"""The out-of-fold predictions of a cross-validation, and the operating points that they are judged at.

A fold's own threshold was chosen on the very videos that the fold predicts, and the best fold's on a part of them: at
either, sensitivity and specificity would flatter. So each fold is judged at the threshold that the other folds'
predictions give by the same rule: no video has a part in the choice of the threshold that it is held against.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trainer.evaluation.calibration import DEFAULT_RULE, choose_threshold
from trainer.evaluation.predictions import Predictions, read_predictions
from trainer.runs import CROSSVAL_NAME, PREDICTIONS_NAME

OUT_OF_FOLD_AT = "each fold's videos at the threshold that the other folds' predictions give by threshold_rule"


def cross_fitted(predictions: Predictions, rule: str = DEFAULT_RULE) -> Predictions:
    """Return the predictions with a threshold each, chosen on the videos of the other folds.

    Args:
        predictions: Of two folds or more, each with videos of both classes.
        rule: As `trainer.evaluation.calibration.choose_threshold` takes it.
    """
    folds = np.array(predictions.folds)
    thresholds = np.empty(len(predictions))
    for fold in np.unique(folds):
        own = folds == fold
        thresholds[own] = choose_threshold(predictions.labels[~own], predictions.probabilities[~own], rule)
    return dataclasses.replace(predictions, thresholds=thresholds)


def thresholds_by_fold(predictions: Predictions) -> dict[str, float]:
    """Return the threshold that each fold's videos are held against."""
    assert predictions.folds is not None
    assert predictions.thresholds is not None
    return dict(zip(predictions.folds, predictions.thresholds.tolist(), strict=True))


def out_of_fold_predictions(folder: Path) -> Predictions:
    """Read a cross-validation's predictions; choose the thresholds where an earlier version wrote none.

    Raises:
        ConfigError: The table cannot be read.
    """
    predictions = read_predictions(folder / PREDICTIONS_NAME)
    if predictions.thresholds is not None:
        return predictions
    rule = json.loads((folder / CROSSVAL_NAME).read_text(encoding="utf-8")).get("threshold_rule", DEFAULT_RULE)
    return cross_fitted(predictions, str(rule))


def concatenated(parts: Sequence[Predictions]) -> Predictions:
    """Return the predictions of all folds as one table; all have the same columns."""
    return Predictions(
        ids=_joined([part.ids for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        probabilities=np.concatenate([part.probabilities for part in parts]),
        patient_ids=_joined([part.patient_ids or () for part in parts]),
        folds=_joined([part.folds or () for part in parts]),
        covariates={name: _joined([part.covariates[name] for part in parts]) for name in parts[0].covariates},
    )


def _joined(parts: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(value for part in parts for value in part)
