"""ROC and precision-recall curves; the area under the ROC curve with DeLong's variance, interval and tests.

Source: DeLong, DeLong, Clarke-Pearson, "Comparing the areas under two or more correlated receiver operating
characteristic curves", Biometrics 44:837, 1988; the placements come from midranks (Sun and Xu, IEEE Signal Processing
Letters 21:1389, 2014).
"""

import dataclasses
import math

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn import metrics

from trainer.evaluation.statistics import CONFIDENCE, NAN, Labels, Pair

FloatArray = npt.NDArray[np.float64]
_Z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))


@dataclasses.dataclass(frozen=True, slots=True)
class Auc:
    """An area under the ROC curve."""

    value: float
    """0 to 1; NaN where one class is missing."""
    variance: float
    """DeLong's; NaN where a class has fewer than two members."""
    ci: Pair
    """95 %, normal, cut to 0..1."""
    num_positive: int
    num_negative: int


@dataclasses.dataclass(frozen=True, slots=True)
class AucComparison:
    """DeLong's test of two areas, two-sided."""

    method: str
    auc: Pair
    """The first and the second area."""
    difference: float
    difference_ci: Pair
    statistic: float
    """z where paired, t where not."""
    p_value: float


def auc_delong(labels: Labels, scores: npt.NDArray[np.floating]) -> Auc:
    """Return the area with its interval.

    Args:
        labels: (n,) 0 or 1.
        scores: (n,) any finite numbers, higher for the positive class.
    """
    value, of_positives, of_negatives = _placements(labels, scores)
    num = len(of_positives), len(of_negatives)
    if min(num) < 2:
        return Auc(value, NAN, (NAN, NAN), *num)
    variance = float(of_positives.var(ddof=1) / num[0] + of_negatives.var(ddof=1) / num[1])
    half = _Z * math.sqrt(variance)
    return Auc(value, variance, (max(0.0, value - half), min(1.0, value + half)), *num)


def compare_paired(labels: Labels, first: npt.NDArray[np.floating], second: npt.NDArray[np.floating]) -> AucComparison:
    """Compare two scores of the same videos."""
    parts = [_placements(labels, scores) for scores in (first, second)]
    areas = parts[0][0], parts[1][0]
    if min(len(parts[0][1]), len(parts[0][2])) < 2:
        return _comparison("DeLong, paired", areas, NAN, None)
    # the variance of a difference, so that correlation is in it
    variance = sum(float((a - b).var(ddof=1)) / len(a) for a, b in zip(parts[0][1:], parts[1][1:], strict=True))
    return _comparison("DeLong, paired", areas, variance, None)


def compare_unpaired(
    first_labels: Labels,
    first: npt.NDArray[np.floating],
    second_labels: Labels,
    second: npt.NDArray[np.floating],
) -> AucComparison:
    """Compare scores of two independent sets of videos.

    The statistic is held against Student's t with Welch and Satterthwaite's degrees of freedom, as R's pROC does.
    """
    a, b = auc_delong(first_labels, first), auc_delong(second_labels, second)
    variance = a.variance + b.variance
    dof = None
    if variance > 0:
        dof = variance**2 / (
            a.variance**2 / (a.num_positive + a.num_negative - 1)
            + b.variance**2 / (b.num_positive + b.num_negative - 1)
        )
    return _comparison("DeLong, unpaired", (a.value, b.value), variance, dof)


def _comparison(method: str, areas: Pair, variance: float, dof: float | None) -> AucComparison:
    difference = areas[0] - areas[1]
    error = math.sqrt(max(0.0, variance)) if not math.isnan(variance) else NAN
    statistic, p_value = NAN, NAN
    if error > 1e-12:
        statistic = difference / error
        p_value = 2 * float(stats.t.sf(abs(statistic), dof) if dof else stats.norm.sf(abs(statistic)))
    elif difference == 0 and not math.isnan(error):
        statistic, p_value = 0.0, 1.0  # the same order of videos: no difference to test
    return AucComparison(
        method, areas, difference, (difference - _Z * error, difference + _Z * error), statistic, p_value
    )


def _placements(labels: Labels, scores: npt.NDArray[np.floating]) -> tuple[float, FloatArray, FloatArray]:
    """Return the area; for each positive the share of negatives below it, for each negative of positives above it."""
    scores = np.asarray(scores, np.float64)
    positive = np.asarray(labels) == 1
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_negative:
        return NAN, np.zeros(num_positive), np.zeros(num_negative)
    ranks = stats.rankdata(scores)
    of_positives = (ranks[positive] - stats.rankdata(scores[positive])) / num_negative
    of_negatives = 1 - (ranks[~positive] - stats.rankdata(scores[~positive])) / num_positive
    return float(of_positives.mean()), of_positives, of_negatives


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """A curve's points, and the threshold from which on a video is positive at each."""

    x: FloatArray
    y: FloatArray
    thresholds: FloatArray


def roc_points(labels: Labels, scores: npt.NDArray[np.floating]) -> Curve:
    """Return 1 - specificity against sensitivity; both classes must occur. The first threshold is infinite."""
    x, y, thresholds = metrics.roc_curve(labels, scores, drop_intermediate=False)
    return Curve(x, y, thresholds)


def precision_recall_points(labels: Labels, scores: npt.NDArray[np.floating]) -> Curve:
    """Return recall against precision, from recall 1 down to 0; the last point (0, 1) has an infinite threshold."""
    precision, recall, thresholds = metrics.precision_recall_curve(labels, scores)
    return Curve(recall, precision, np.append(thresholds, np.inf))


def average_precision(labels: Labels, scores: npt.NDArray[np.floating]) -> float:
    """Return the precision averaged over the steps of recall, not interpolated; NaN without positives."""
    if not (np.asarray(labels) == 1).any():
        return NAN
    return float(metrics.average_precision_score(labels, scores))


def brier_score(labels: Labels, probabilities: npt.NDArray[np.floating]) -> float:
    """Return the mean squared distance of probability and label (Brier 1950, the positive class's half)."""
    return float(np.mean((np.asarray(probabilities, np.float64) - labels) ** 2))
