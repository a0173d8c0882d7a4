"""Decision curves: what a model is worth to someone who weighs a missed finding against a false alarm."""

import dataclasses

import numpy as np
import numpy.typing as npt

from trainer.evaluation.statistics import Labels

FloatArray = npt.NDArray[np.float64]

THRESHOLDS = np.arange(1, 100) / 100


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class DecisionCurve:
    """Net benefit a threshold, in true positives a video."""

    thresholds: FloatArray
    """(n,) in (0, 1): the probability from which on the user would act."""
    model: FloatArray
    """(n,) act where the model's probability is at or above the threshold."""
    all: FloatArray
    """(n,) act on every video. To act on none is worth 0."""


def decision_curve(
    labels: Labels, probabilities: npt.NDArray[np.floating], thresholds: FloatArray = THRESHOLDS
) -> DecisionCurve:
    """Return the net benefit TP/n - FP/n * p/(1-p) at each threshold p.

    Source: Vickers and Elkin, "Decision curve analysis", Medical Decision Making 26:565, 2006.
    """
    truth = np.asarray(labels) == 1
    called = np.asarray(probabilities, np.float64)[None] >= thresholds[:, None]
    odds = thresholds / (1 - thresholds)
    model = (called & truth).mean(1) - (called & ~truth).mean(1) * odds
    return DecisionCurve(thresholds, model, truth.mean() - (1 - truth.mean()) * odds)
