"""Counts, proportions, kappa, and the tests that compare two groups or two raters; pure functions on arrays.

What cannot be computed is NaN here; `trainer.evaluation.metrics` says why in words.
"""

import dataclasses
import math
import warnings

import numpy as np
import numpy.typing as npt
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.inter_rater import cohens_kappa
from statsmodels.stats.proportion import proportion_confint

CONFIDENCE = 0.95
INTERVALS = {"wilson": "wilson", "clopper-pearson": "beta"}
"""Intervals for proportions, by statsmodels' names."""
DEFAULT_INTERVAL = "wilson"
MIN_EXPECTED = 5.0

NAN = float("nan")
Labels = npt.NDArray[np.integer]
Pair = tuple[float, float]


@dataclasses.dataclass(frozen=True, slots=True)
class Counts:
    """The confusion matrix of two classes, and what follows from it."""

    tp: int
    fp: int
    tn: int
    fn: int

    @classmethod
    def of(cls, labels: Labels, calls: Labels) -> "Counts":
        """Count labels (n,) against calls (n,), both 0 or 1."""
        truth, called = np.asarray(labels) == 1, np.asarray(calls) == 1
        return cls(
            tp=int((truth & called).sum()),
            fp=int((~truth & called).sum()),
            tn=int((~truth & ~called).sum()),
            fn=int((truth & ~called).sum()),
        )

    @property
    def n(self) -> int:
        return self.tp + self.fp + self.tn + self.fn

    @property
    def proportions(self) -> dict[str, tuple[int, int]]:
        """Each proportion as (how many, of how many)."""
        return {
            "accuracy": (self.tp + self.tn, self.n),
            "sensitivity": (self.tp, self.tp + self.fn),
            "specificity": (self.tn, self.tn + self.fp),
            "ppv": (self.tp, self.tp + self.fp),
            "npv": (self.tn, self.tn + self.fn),
        }

    @property
    def f1(self) -> float:
        return _divided(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def kappa(self) -> float:
        """Cohen's kappa between labels and calls."""
        return self._agreement()[0]

    @property
    def kappa_se(self) -> float:
        """Standard error of kappa for large samples, not assuming that kappa is 0.

        Source: Fleiss, Cohen, Everitt, "Large sample standard errors of kappa and weighted kappa", Psychological
        Bulletin 72:323, 1969, equation 13. It is the one that Li et al. 2023 print; Cohen's of 1960 is not.
        """
        return self._agreement()[1]

    def _agreement(self) -> Pair:
        table = np.array([[self.tn, self.fp], [self.fn, self.tp]], float)
        chance = float((table.sum(0) * table.sum(1)).sum() / max(self.n, 1) ** 2)
        if self.n == 0 or math.isclose(chance, 1.0):
            return NAN, NAN
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # statsmodels computes the null hypothesis' error as well
            found = cohens_kappa(table)
        # perfect agreement leaves a variance of 0, on which rounding may put a minus
        return float(found.kappa), math.sqrt(max(0.0, float(found.var_kappa)))


def _divided(part: float, whole: float) -> float:
    return part / whole if whole else NAN


def proportion_interval(count: int, total: int, interval: str = DEFAULT_INTERVAL) -> Pair:
    """Return the 95 % confidence interval of a proportion.

    Args:
        count: How many.
        total: Of how many; 0 gives NaN.
        interval: "wilson" (Wilson 1927, no continuity correction) or "clopper-pearson" (1934, exact).
    """
    if total == 0:
        return NAN, NAN
    low, high = proportion_confint(count, total, alpha=1 - CONFIDENCE, method=INTERVALS[interval])
    return float(low), float(high)


@dataclasses.dataclass(frozen=True, slots=True)
class TestResult:
    """A test's name, statistic and two-sided p-value; NaN where the data allow none."""

    __test__ = False  # not one of pytest's

    method: str
    statistic: float
    p_value: float


def mcnemar_test(labels: Labels, calls_a: Labels, calls_b: Labels) -> TestResult:
    """Test whether two raters of the same videos are right equally often: exact, on the discordant pairs.

    The statistic is the smaller number of discordant pairs. Source: McNemar 1947; the exact form is the binomial test.
    """
    right_a, right_b = np.asarray(calls_a) == labels, np.asarray(calls_b) == labels
    only_a, only_b = int((right_a & ~right_b).sum()), int((~right_a & right_b).sum())
    found = mcnemar([[0, only_a], [only_b, 0]], exact=True)  # where both are right or both wrong nothing is told
    return TestResult("McNemar, exact", float(found.statistic), float(found.pvalue))


def mann_whitney_test(first: npt.NDArray[np.floating], second: npt.NDArray[np.floating]) -> TestResult:
    """Test whether two independent samples come from one distribution (Mann-Whitney U of the first sample)."""
    if not len(first) or not len(second):
        return TestResult("Mann-Whitney U", NAN, NAN)
    found = stats.mannwhitneyu(first, second, alternative="two-sided")
    return TestResult("Mann-Whitney U", float(found.statistic), float(found.pvalue))


def association_test(table: npt.NDArray[np.integer]) -> TestResult:
    """Test whether the rows and columns of a table of counts are independent.

    Pearson's chi-square without correction where every expected count is 5 or more; else Fisher's exact test, which
    for a table larger than 2 x 2 is the Fisher-Freeman-Halton test by 9,999 random tables from a fixed seed.
    """
    table = np.asarray(table)
    table = table[table.sum(1) > 0][:, table.sum(0) > 0]
    if min(table.shape) < 2:
        return TestResult("chi-square", NAN, NAN)
    found = stats.chi2_contingency(table, correction=False)
    if found.expected_freq.min() >= MIN_EXPECTED:
        return TestResult("chi-square", float(found.statistic), float(found.pvalue))
    if table.shape == (2, 2):
        exact = stats.fisher_exact(table)
        return TestResult("Fisher, exact", float(exact.statistic), float(exact.pvalue))
    sampled = stats.fisher_exact(table, method=stats.MonteCarloMethod(rng=np.random.default_rng(0)))
    # an array of one where all entries are small
    statistic, p_value = (float(np.asarray(value).item()) for value in (sampled.statistic, sampled.pvalue))
    return TestResult("Fisher-Freeman-Halton", statistic, p_value)
