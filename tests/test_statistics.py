"""Statistics against published values (R's pROC on its aSAH data, kappas in print) and against other computation."""

import csv
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import brier_score_loss, cohen_kappa_score

from trainer.evaluation import roc
from trainer.evaluation.calibration import (
    Bin,
    choose_threshold,
    expected_calibration_error,
    fit_temperature,
    reliability,
)
from trainer.evaluation.decision import decision_curve
from trainer.evaluation.statistics import Counts, association_test, mann_whitney_test, mcnemar_test, proportion_interval

MARKERS = ("s100b", "wfns", "ndka")


@pytest.fixture(scope="module")
def asah() -> dict[str, np.ndarray]:
    with (Path(__file__).parent / "data" / "asah.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    return {name: np.array([float(row[name]) for row in rows]) for name in ("poor", *MARKERS)}


def random_scores(seed: int, num: int = 60, *, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, num)
    scores = rng.normal(labels * 0.8, 1)
    return labels, np.round(scores, 1) if ties else scores


# pROC 1.19: tests/testthat/test-roc.test.R and ci.auc of the same curves
AUC_OF_PROC = {"wfns": 0.823678861788618, "ndka": 0.611957994579946, "s100b": 0.731368563685637}
PAIRED_OF_PROC = {
    ("wfns", "s100b"): (2.20898359144091, 0.0271757822291882, 0.0104061769564846, 0.174214419249478),
    ("wfns", "ndka"): (2.79777591868904, 0.00514557970691098, 0.0634011709339876, 0.3600405634833566),
    ("ndka", "s100b"): (-1.39077002573558, 0.164295175223054, -0.2876917446341914, 0.0488706064228094),
}
UNPAIRED_OF_PROC = {
    ("wfns", "s100b"): (1.43490640926908, 0.152825378808796),
    ("wfns", "ndka"): (3.10125096778969, 0.00220950791756457),
    ("ndka", "s100b"): (-1.55995743389685, 0.120192832430845),
}


@pytest.mark.parametrize("marker", MARKERS)
def test_auc_on_asah_is_that_of_proc(asah: dict[str, np.ndarray], marker: str) -> None:
    assert roc.auc_delong(asah["poor"], asah[marker]).value == pytest.approx(AUC_OF_PROC[marker], abs=1e-14)


def test_auc_interval_on_asah_is_that_of_proc(asah: dict[str, np.ndarray]) -> None:
    # printed by pROC's documentation: 95% CI: 0.6301-0.8326 (DeLong)
    assert roc.auc_delong(asah["poor"], asah["s100b"]).ci == pytest.approx((0.6301, 0.8326), abs=5e-5)


@pytest.mark.parametrize("pair", PAIRED_OF_PROC)
def test_paired_delong_on_asah_is_that_of_proc(asah: dict[str, np.ndarray], pair: tuple[str, str]) -> None:
    test = roc.compare_paired(asah["poor"], asah[pair[0]], asah[pair[1]])
    assert (test.statistic, test.p_value, *test.difference_ci) == pytest.approx(PAIRED_OF_PROC[pair], rel=1e-10)


@pytest.mark.parametrize("pair", UNPAIRED_OF_PROC)
def test_unpaired_delong_on_asah_is_that_of_proc(asah: dict[str, np.ndarray], pair: tuple[str, str]) -> None:
    test = roc.compare_unpaired(asah["poor"], asah[pair[0]], asah["poor"], asah[pair[1]])
    assert (test.statistic, test.p_value) == pytest.approx(UNPAIRED_OF_PROC[pair], rel=1e-10)


def test_youden_threshold_on_asah_is_that_of_proc(asah: dict[str, np.ndarray]) -> None:
    # pROC: coords(roc(outcome, s100b), "best") is at 0.205; probabilities lie in 0..1
    assert choose_threshold(asah["poor"], asah["s100b"] / 10) * 10 == pytest.approx(0.205)


@pytest.mark.parametrize("ties", [False, True])
def test_delong_variance_equals_the_sum_over_all_pairs(ties: bool) -> None:
    labels, scores = random_scores(1, ties=ties)
    positives, negatives = scores[labels == 1], scores[labels == 0]
    wins = (positives[:, None] > negatives) + 0.5 * (positives[:, None] == negatives)
    auc = roc.auc_delong(labels, scores)
    assert auc.value == pytest.approx(wins.mean(), abs=1e-14)
    variance = wins.mean(1).var(ddof=1) / len(positives) + wins.mean(0).var(ddof=1) / len(negatives)
    assert auc.variance == pytest.approx(variance, rel=1e-12)


def test_delong_interval_covers_the_truth_as_often_as_it_says() -> None:
    truth, hits = stats.norm.cdf(0.8 / math.sqrt(2)), 0
    for seed in range(600):
        labels, scores = random_scores(seed + 10, num=120)
        low, high = roc.auc_delong(labels, scores).ci
        hits += low <= truth <= high
    assert 0.925 <= hits / 600 <= 0.97


def test_unpaired_delong_of_scores_that_part_the_classes_fully_finds_no_difference() -> None:
    labels, scores = np.array([0, 0, 1, 1]), np.arange(4.0)
    test = roc.compare_unpaired(labels, scores, labels, scores)
    assert (test.statistic, test.p_value) == (0.0, 1.0)


def test_paired_delong_of_a_difference_that_is_small_but_sure_has_a_p_value() -> None:
    labels, first = random_scores(12, num=2000)
    second = np.where((labels == 1) & (np.arange(2000) % 50 == 0), first - 0.5, first)
    test = roc.compare_paired(labels, first, second)
    wins = [scores[labels == 1][:, None] > scores[labels == 0] for scores in (first, second)]
    difference = wins[0].astype(float) - wins[1]
    error = math.sqrt(sum(difference.mean(axis).var(ddof=1) / difference.shape[1 - axis] for axis in (0, 1)))
    assert error < 0.001
    assert test.statistic == pytest.approx(difference.mean() / error)
    assert test.p_value == pytest.approx(2 * stats.norm.sf(difference.mean() / error))


def test_paired_delong_of_equal_scores_finds_no_difference() -> None:
    labels, scores = random_scores(3)
    test = roc.compare_paired(labels, scores, 2 * scores + 1)
    assert (test.statistic, test.p_value) == (0.0, 1.0)


def test_paired_delong_of_scores_that_part_the_classes_differently_but_fully_has_no_p_value() -> None:
    test = roc.compare_paired(np.array([0, 0, 1, 1]), np.array([1, 2, 3, 4]), np.array([4, 3, 2, 1]))
    assert test.difference == 1.0
    assert math.isnan(test.p_value)


def test_paired_delong_needs_two_videos_of_each_class_and_no_more() -> None:
    first, second = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 4.0])
    for labels in ([0, 0, 0, 1], [0, 1, 1, 1]):
        lone = roc.compare_paired(np.array(labels), first, second)
        assert math.isnan(lone.p_value)
        assert math.isnan(lone.difference_ci[0])
    # areas 1 and 3/4; the placements differ by 0 and 1/2 in both classes: variances of 1/8, over 2 videos each
    pair = roc.compare_paired(np.array([0, 0, 1, 1]), first, second)
    assert pair.difference == 0.25
    assert pair.statistic == pytest.approx(0.25 / math.sqrt(1 / 16 + 1 / 16))
    assert pair.p_value == pytest.approx(2 * stats.norm.sf(pair.statistic))


def test_auc_of_one_class_is_nan_and_of_one_positive_has_no_interval() -> None:
    assert math.isnan(roc.auc_delong(np.zeros(3, int), np.arange(3.0)).value)
    lone = roc.auc_delong(np.array([0, 0, 1]), np.array([0.1, 0.4, 0.3]))
    assert lone.value == 0.5
    assert math.isnan(lone.ci[0])


@pytest.mark.parametrize(("interval", "method"), [("wilson", "wilson"), ("clopper-pearson", "exact")])
@pytest.mark.parametrize(("count", "total"), [(16, 21), (0, 7), (7, 7), (1, 300)])
def test_proportion_interval_equals_that_of_scipy(interval: str, method: str, count: int, total: int) -> None:
    ci = stats.binomtest(count, total).proportion_ci(0.95, method)  # type: ignore[arg-type]
    assert proportion_interval(count, total, interval) == pytest.approx((ci.low, ci.high), abs=1e-12)


def test_wilson_interval_in_print() -> None:
    # Newcombe, Statistics in Medicine 17:857, 1998, on 81 of 263
    assert proportion_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert proportion_interval(81, 263, "clopper-pearson") == pytest.approx((0.2527, 0.3676), abs=5e-5)


def test_kappa_equals_that_of_scikit_learn() -> None:
    labels, scores = random_scores(4)
    calls = (scores > 0.5).astype(int)
    assert Counts.of(labels, calls).kappa == pytest.approx(cohen_kappa_score(labels, calls), abs=1e-12)


def test_kappa_error_equals_the_delta_method_by_finite_differences() -> None:
    table = np.array([[28.0, 10.0], [6.0, 5.0]])
    shares = table / table.sum()

    def kappa(p: np.ndarray) -> float:
        chance = (p.sum(0) * p.sum(1)).sum()
        return float((np.trace(p) - chance) / (1 - chance))

    gradient = np.zeros((2, 2))
    for cell in itertools.product(range(2), repeat=2):
        step = np.zeros((2, 2))
        step[cell] = 1e-6
        gradient[cell] = (kappa(shares + step) - kappa(shares - step)) / 2e-6
    variance = ((gradient**2 * shares).sum() - (gradient * shares).sum() ** 2) / table.sum()
    assert Counts(tp=5, fp=10, tn=28, fn=6).kappa_se == pytest.approx(math.sqrt(variance), rel=1e-6)


def test_counts_give_the_proportions_of_their_definitions() -> None:
    counts = Counts(tp=5, fp=10, tn=28, fn=6)
    assert counts.n == 49
    assert counts.proportions == {
        "accuracy": (33, 49),
        "sensitivity": (5, 11),
        "specificity": (28, 38),
        "ppv": (5, 15),
        "npv": (28, 34),
    }
    assert counts.f1 == pytest.approx(stats.hmean([5 / 15, 5 / 11]))


@pytest.mark.parametrize("interval", ["wilson", "clopper-pearson"])
def test_proportion_of_nothing_has_no_interval(interval: str) -> None:
    assert np.isnan(proportion_interval(0, 0, interval)).all()


def test_counts_of_nothing_positive_leave_ppv_and_f1_undefined() -> None:
    counts = Counts.of(np.zeros(4, int), np.zeros(4, int))
    assert counts.proportions["ppv"] == (0, 0)
    assert math.isnan(counts.f1)
    assert math.isnan(counts.kappa)
    assert math.isnan(counts.kappa_se)


@pytest.mark.parametrize("counts", [Counts(tp=0, fp=0, tn=0, fn=0), Counts(tp=1, fp=0, tn=0, fn=0)])
def test_kappa_of_no_video_and_of_one_is_undefined(counts: Counts) -> None:
    assert math.isnan(counts.kappa)
    assert math.isnan(counts.kappa_se)


def test_perfect_agreement_has_kappa_one_without_error() -> None:
    counts = Counts(tp=5, fp=0, tn=7, fn=0)
    assert (counts.kappa, counts.kappa_se) == (1.0, 0.0)


def test_mcnemar_equals_the_binomial_test_of_discordant_pairs() -> None:
    labels = np.ones(20, int)
    first = np.array([1] * 9 + [0] * 2 + [1] * 9)
    second = np.array([0] * 9 + [1] * 2 + [1] * 9)
    test = mcnemar_test(labels, first, second)
    assert test.statistic == 2
    assert test.p_value == pytest.approx(stats.binomtest(2, 11).pvalue, abs=1e-12)


def test_mann_whitney_in_print() -> None:
    # the example of R's wilcox.test (Hollander and Wolfe 1973, p. 69): W = 35, one-sided p = 0.1272
    x = np.array([0.80, 0.83, 1.89, 1.04, 1.45, 1.38, 1.91, 1.64, 0.73, 1.46])
    y = np.array([1.15, 0.88, 0.90, 0.74, 1.21])
    test = mann_whitney_test(x, y)
    assert test.statistic == 35
    assert test.p_value == pytest.approx(2 * 0.1272, abs=1e-4)


def test_association_takes_fisher_where_few_are_expected() -> None:
    tea = association_test(np.array([[3, 1], [1, 3]]))  # Fisher's lady: p = 0.4857
    assert tea.method == "Fisher, exact"
    assert tea.p_value == pytest.approx(0.4857, abs=5e-5)
    large = association_test(np.array([[30, 20], [15, 35]]))
    assert large.method == "chi-square"
    assert large.statistic == pytest.approx(100 * (30 * 35 - 20 * 15) ** 2 / (50 * 50 * 45 * 55))


def test_association_takes_chi_square_from_five_expected_on() -> None:
    assert association_test(np.array([[4, 6], [6, 4]])).method == "chi-square"  # 5 in each cell
    assert association_test(np.array([[4, 6], [6, 5]])).method == "Fisher, exact"  # 100 / 21 in the first
    assert association_test(np.array([[5, 6], [6, 5]])).method == "chi-square"  # 5.5


def test_association_of_one_group_is_undefined() -> None:
    assert math.isnan(association_test(np.array([[3, 4], [0, 0]])).p_value)


def test_association_leaves_out_a_row_or_column_that_is_empty() -> None:
    wanted = association_test(np.array([[30, 20], [15, 35]]))
    assert association_test(np.array([[30, 0, 20], [15, 0, 35]])) == wanted
    assert association_test(np.array([[30, 20], [0, 0], [15, 35]])) == wanted


def test_mann_whitney_of_an_empty_sample_is_undefined() -> None:
    for first, second in ((np.array([]), np.array([1.0])), (np.array([1.0]), np.array([]))):
        test = mann_whitney_test(first, second)
        assert math.isnan(test.statistic)
        assert math.isnan(test.p_value)


def test_larger_table_with_few_expected_gets_the_same_p_value_every_time() -> None:
    table = np.array([[3, 1, 2], [0, 5, 4]])
    first, second = association_test(table), association_test(table)
    assert first.method == "Fisher-Freeman-Halton"
    assert first.p_value == second.p_value
    assert first.p_value == pytest.approx(_exact_table_p(table), abs=0.01)


def _exact_table_p(table: np.ndarray) -> float:
    """Enumerate all 2 x 3 tables with the same margins (Freeman and Halton 1951)."""
    columns, row = table.sum(0), int(table[0].sum())
    tops = [top for top in itertools.product(*(range(c + 1) for c in columns)) if sum(top) == row]
    weights = {top: math.prod(math.comb(int(c), k) for c, k in zip(columns, top, strict=True)) for top in tops}
    observed = weights[tuple(int(value) for value in table[0])]
    return sum(w for w in weights.values() if w <= observed) / sum(weights.values())


def test_average_precision_equals_the_sum_over_ranks() -> None:
    labels, scores = random_scores(5)
    ranked = labels[np.argsort(-scores)]
    precision = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
    assert roc.average_precision(labels, scores) == pytest.approx(precision[ranked == 1].mean(), abs=1e-12)


def test_average_precision_without_positives_is_undefined() -> None:
    assert math.isnan(roc.average_precision(np.zeros(3, int), np.arange(3.0)))


def test_roc_points_area_equals_the_auc() -> None:
    labels, scores = random_scores(6, ties=True)
    curve = roc.roc_points(labels, scores)
    assert np.trapezoid(curve.y, curve.x) == pytest.approx(roc.auc_delong(labels, scores).value, abs=1e-12)


def test_curves_have_a_point_for_every_score() -> None:
    labels, scores = np.array([1, 1, 1, 0, 0, 0]), np.array([0.9, 0.8, 0.7, 0.3, 0.2, 0.1])
    assert roc.roc_points(labels, scores).thresholds.tolist() == [np.inf, *scores]
    curve = roc.precision_recall_points(labels, scores)
    assert curve.thresholds.tolist() == [*scores[::-1], np.inf]
    for recall, precision, threshold in zip(curve.x[:-1], curve.y[:-1], curve.thresholds[:-1], strict=True):
        counts = Counts.of(labels, scores >= threshold)
        assert (recall, precision) == (counts.tp / 3, pytest.approx(counts.tp / (counts.tp + counts.fp)))


def test_brier_and_calibration_error_equal_those_of_other_libraries() -> None:
    torchmetrics = pytest.importorskip("torchmetrics.functional.classification")
    torch = pytest.importorskip("torch")
    labels, scores = random_scores(7, num=200)
    probabilities = 1 / (1 + np.exp(-scores))
    assert roc.brier_score(labels, probabilities) == pytest.approx(brier_score_loss(labels, probabilities), abs=1e-12)
    theirs = torchmetrics.binary_calibration_error(torch.tensor(probabilities), torch.tensor(labels), n_bins=10)
    ours = expected_calibration_error(reliability(labels, probabilities))
    assert ours == pytest.approx(float(theirs), abs=1e-6)


def test_reliability_puts_one_into_the_last_bin_and_edges_into_the_upper() -> None:
    bins = reliability(np.array([1, 0, 1]), np.array([1.0, 0.5, 0.05]))
    assert bins == [
        Bin(0.0, 0.1, 1, 0.05, 1.0),
        Bin(0.5, 0.6, 1, 0.5, 0.0),
        Bin(0.9, 1.0, 1, 1.0, 1.0),
    ]


def test_decision_curve_equals_its_definition() -> None:
    labels, scores = random_scores(8)
    probabilities = 1 / (1 + np.exp(-scores))
    curve = decision_curve(labels, probabilities)
    for place in (9, 49, 89):
        threshold = (place + 1) / 100
        tp = sum(p >= threshold and y == 1 for p, y in zip(probabilities, labels, strict=True))
        fp = sum(p >= threshold and y == 0 for p, y in zip(probabilities, labels, strict=True))
        expected = tp / len(labels) - fp / len(labels) * threshold / (1 - threshold)
        assert curve.model[place] == pytest.approx(expected, abs=1e-12)
    assert curve.all[0] == pytest.approx(labels.mean() - (1 - labels.mean()) / 99)


def test_decision_curve_acts_on_a_video_at_the_threshold() -> None:
    curve = decision_curve(np.array([1, 0]), np.array([0.07, 0.07]))
    assert curve.model[:7] == pytest.approx(curve.all[:7])
    assert curve.model[7:].tolist() == [0.0] * 92


def test_temperature_finds_the_scale_of_overconfident_logits() -> None:
    rng = np.random.default_rng(0)
    honest = np.stack([np.zeros(4000), rng.normal(0, 1.5, 4000)], axis=1)
    labels = (rng.random(4000) < 1 / (1 + np.exp(-honest[:, 1]))).astype(int)
    assert fit_temperature(3 * honest, labels) == pytest.approx(3, rel=0.1)


def test_temperature_of_logits_without_error_is_one() -> None:
    assert fit_temperature(np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([0, 1])) == 1.0


def test_threshold_reaches_the_wanted_sensitivity_with_the_best_specificity() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    probabilities = np.array([0.1, 0.2, 0.3, 0.6, 0.25, 0.5, 0.7, 0.9])
    assert choose_threshold(labels, probabilities, "sensitivity=0.75") == pytest.approx(0.4)
    assert choose_threshold(labels, probabilities, "sensitivity=1") == pytest.approx(0.225)


@pytest.mark.parametrize(
    ("negatives", "positives", "expected"),
    [
        ((0.1,), (0.5, 0.9), 0.3),  # 0.7 would miss a video and spare no false alarm
        ((0.2, 1.0), (0.6, 1.0), 0.4),  # 1 is at or below what is saturated there
        ((0.0, 0.0), (0.0, 1.0), 0.5),
    ],
)
def test_threshold_for_a_sensitivity_misses_nothing_for_no_gain(
    negatives: tuple[float, ...], positives: tuple[float, ...], expected: float
) -> None:
    labels = np.array([0] * len(negatives) + [1] * len(positives))
    assert choose_threshold(labels, np.array(negatives + positives), "sensitivity=0.5") == pytest.approx(expected)


@pytest.mark.parametrize(("wanted", "num_missed"), [("1", 0), ("0.999", 0), ("0.995", 1), ("0.98", 4), ("0.975", 5)])
def test_threshold_for_a_sensitivity_misses_no_more_than_it_may(wanted: str, num_missed: int) -> None:
    labels, probabilities = np.tile([1, 0], 200), np.linspace(0.001, 0.999, 400)  # each step spares one, and misses one
    threshold = choose_threshold(labels, probabilities, f"sensitivity={wanted}")
    assert Counts.of(labels, probabilities >= threshold).fn == num_missed


def test_threshold_of_youden_counts_videos_at_zero_and_one_as_evaluate_does() -> None:
    rng = np.random.default_rng(9)
    for _ in range(20):
        labels = np.array([0, 1, *rng.integers(0, 2, 10)])
        probabilities = rng.choice([0.0, 0.3, 0.7, 1.0], 12)
        counts = [Counts.of(labels, probabilities >= cut) for cut in (0.0, 0.15, 0.5, 0.85, 1.01)]
        best = max(one.tp / (one.tp + one.fn) + one.tn / (one.tn + one.fp) for one in counts)
        got = Counts.of(labels, probabilities >= choose_threshold(labels, probabilities))
        assert got.tp / (got.tp + got.fn) + got.tn / (got.tn + got.fp) == pytest.approx(best)


@pytest.mark.parametrize(("scale", "labels", "bound"), [(1.0, [1, 0, 0], 20.0), (1e-3, [0, 1, 0], 0.05)])
def test_temperature_without_a_best_value_ends_at_its_bound(scale: float, labels: list[int], bound: float) -> None:
    logits = scale * np.array([[9.0, 0.0], [0.0, 9.0], [0.0, 1.0]])
    assert fit_temperature(logits, np.array(labels)) == pytest.approx(bound, rel=1e-3)


@pytest.mark.parametrize("rule", ["best", "sensitivity", "sensitivity=0", "sensitivity=1.2", "sensitivity=nan"])
def test_threshold_rule_that_is_none_is_refused(rule: str) -> None:
    with pytest.raises(ValueError, match="is not known; give youden"):
        choose_threshold(np.array([0, 1]), np.array([0.2, 0.8]), rule)


def test_threshold_of_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="both classes"):
        choose_threshold(np.array([1, 1]), np.array([0.2, 0.8]))
