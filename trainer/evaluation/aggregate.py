"""From a video's windows to one answer, and from a patient's videos to one."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax, logsumexp, softmax

FloatArray = npt.NDArray[np.float64]

SMALLEST_PROBABILITY = float(np.finfo(np.float32).tiny)
"""What an engine's probability of 0 stands for: float32 holds nothing smaller at full precision."""


def _strongest(log_probabilities: FloatArray) -> FloatArray:
    odds = log_probabilities[:, -1] - logsumexp(log_probabilities[:, :-1], axis=1)
    return np.asarray(log_probabilities[odds.argmax()])


AGGREGATES: dict[str, Callable[[FloatArray], FloatArray]] = {
    "mean-logit": lambda logs: np.asarray(logs.mean(0)),
    "mean-probability": lambda logs: np.asarray(logsumexp(logs, axis=0) - np.log(len(logs))),
    "strongest": _strongest,
}
"""How windows become a video; "strongest" takes the window that speaks most for the positive class."""

DEFAULT_AGGREGATE = "mean-logit"


def aggregate_logits(logits: npt.NDArray[np.floating], aggregate: str = DEFAULT_AGGREGATE) -> FloatArray:
    """Return one row of logits for many.

    Args:
        logits: (n, K), of the windows of a video or the videos of a patient; n >= 1. Logarithms of probabilities
            serve as well: softmax does not see a constant added to all classes.
        aggregate: A name of `AGGREGATES`.

    Returns:
        (K,) float64, logarithms of numbers in proportion to probabilities.
    """
    return AGGREGATES[aggregate](np.asarray(log_softmax(np.asarray(logits, np.float64), axis=1)))


def probabilities_of(logits: npt.NDArray[np.floating]) -> FloatArray:
    """Return the softmax over the last axis, float64."""
    return np.asarray(softmax(np.asarray(logits, np.float64), axis=-1))


def logits_of(probabilities: npt.NDArray[np.floating]) -> FloatArray:
    """Return logarithms of probabilities (..., K), float64: logits up to a constant."""
    return np.asarray(np.log(np.maximum(np.asarray(probabilities, np.float64), SMALLEST_PROBABILITY)))


def binary_logits(probabilities: npt.NDArray[np.floating]) -> FloatArray:
    """Return (n, 2) logarithms for the positive class's probabilities (n,)."""
    positive = np.asarray(probabilities, np.float64)
    return logits_of(np.stack([1 - positive, positive], axis=-1))
