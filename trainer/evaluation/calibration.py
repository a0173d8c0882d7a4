"""Probabilities that mean what they say, and the operating point: both chosen on validation data alone."""

import dataclasses

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from edge.errors import ConfigError

NUM_BINS = 10
DEFAULT_RULE = "youden"
_TEMPERATURE_BOUNDS = (0.05, 20.0)

FloatArray = npt.NDArray[np.float64]


def fit_temperature(logits: npt.NDArray[np.floating], labels: npt.NDArray[np.integer]) -> float:
    """Return the temperature that makes `softmax(logits / temperature)` most likely for the labels.

    Where every row's top class is right the likelihood grows without end as the temperature falls, so that it has no
    best value: 1, no scaling.

    Args:
        logits: (n, K), one row a validation video.
        labels: (n,) int, 0 to K - 1.

    Returns:
        0.05 to 20.

    Source: Guo et al., "On calibration of modern neural networks", ICML 2017, section 4.2.
    """
    logits = np.asarray(logits, np.float64)
    if (logits.argmax(1) == labels).all():
        return 1.0

    def loss(log_temperature: float) -> float:
        logs = log_softmax(logits / np.exp(log_temperature), axis=1)
        return -float(logs[np.arange(len(logs)), labels].mean())

    best = minimize_scalar(loss, bounds=tuple(np.log(_TEMPERATURE_BOUNDS)), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(best.x))


def choose_threshold(
    labels: npt.NDArray[np.integer], probabilities: npt.NDArray[np.floating], rule: str = DEFAULT_RULE
) -> float:
    """Return the operating point: a video is positive at or above it.

    The threshold lies halfway between two neighbouring probabilities.

    Args:
        labels: (n,) 0 or 1, both of which occur.
        probabilities: (n,) in 0..1, of the positive class.
        rule: "youden" for the largest sensitivity + specificity - 1, the most sensitive of equals; "sensitivity=S"
            for the best specificity at a sensitivity of S or more, the most sensitive of equals as well.

    Raises:
        ConfigError: The rule is not known, or only one class is there.
    """
    wanted = parse_rule(rule)
    positive = np.asarray(labels) == 1
    if positive.all() or not positive.any():
        raise ConfigError("a threshold needs validation videos of both classes; got one class only")
    cuts = _cuts(np.asarray(probabilities, np.float64))
    called = np.asarray(probabilities, np.float64)[None] >= cuts[:, None]
    sensitivity, specificity = called[:, positive].mean(1), 1 - called[:, ~positive].mean(1)
    if wanted is None:
        return float(cuts[(sensitivity + specificity).round(12).argmax()])
    return float(cuts[np.where(sensitivity >= wanted - 1e-12, specificity, -1).argmax()])


def parse_rule(rule: str) -> float | None:
    """Return the sensitivity that a rule asks for; None for Youden's.

    Raises:
        ConfigError: The rule is not known.
    """
    name, _, value = rule.partition("=")
    if rule == DEFAULT_RULE:
        return None
    try:
        wanted = float(value)
    except ValueError:
        wanted = float("nan")
    if name != "sensitivity" or not 0 < wanted <= 1:
        raise ConfigError(
            f"threshold rule {rule!r} is not known; give youden, or sensitivity=S with S above 0, up to 1"
        )
    return wanted


def _cuts(probabilities: FloatArray) -> FloatArray:
    """Return every threshold that parts the videos differently, rising: 0, the middles, 1."""
    values = np.unique(probabilities)
    return np.concatenate([[0.0], (values[:-1] + values[1:]) / 2, [1.0]])


@dataclasses.dataclass(frozen=True, slots=True)
class Bin:
    """The videos whose probabilities lie in one of ten equal intervals; empty ones are left out."""

    low: float
    high: float
    num: int
    mean_probability: float
    positive_fraction: float


def reliability(labels: npt.NDArray[np.integer], probabilities: npt.NDArray[np.floating]) -> list[Bin]:
    """Return the reliability curve: ten bins of equal width; a probability on an edge belongs to the upper bin."""
    probabilities, labels = np.asarray(probabilities, np.float64), np.asarray(labels)
    places = np.minimum((probabilities * NUM_BINS).astype(int), NUM_BINS - 1)
    bins = []
    for place in np.unique(places):
        inside = places == place
        bins.append(
            Bin(
                low=float(place) / NUM_BINS,
                high=float(place + 1) / NUM_BINS,
                num=int(inside.sum()),
                mean_probability=float(probabilities[inside].mean()),
                positive_fraction=float(labels[inside].mean()),
            )
        )
    return bins


def expected_calibration_error(bins: list[Bin]) -> float:
    """Return the mean distance of positive fraction and mean probability, weighted by the bins' sizes.

    Source: Naeini et al., "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015, for the
    positive class's probability.
    """
    total = sum(bin_.num for bin_ in bins)
    return sum(bin_.num * abs(bin_.positive_fraction - bin_.mean_probability) for bin_ in bins) / total
