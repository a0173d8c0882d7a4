"""Every figure of the paper that follows from its counts, computed anew; and those that it prints wrongly."""

from decimal import ROUND_DOWN, ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest

from trainer.evaluation.statistics import Counts

DOCUMENT = Path(__file__).parent.parent / "docs" / "paper.md"
COLUMNS = ("ACC", "SEN", "SPE", "PPV", "NPV", "F1", "kappa")

TESTING_A = {  # TP of 21, TN of 40, and the row as printed
    "TIN": (16, 36, "85.25 76.19 90.00 80.00 87.8 0.7805 0.669"),
    "R(2+1)D": (14, 25, "63.93 66.67 62.50 48.28 78.12 0.5600 0.627"),
    "ResNet3D": (13, 38, "83.61 61.90 95.00 86.67 82.61 0.7222 0.610"),
    "ResNet50": (14, 35, "80.33 66.67 87.50 73.68 83.33 0.7000 0.554"),
    "InceptionV3": (14, 30, "72.13 66.67 75.00 58.33 81.08 0.6220 0.403"),
    "VGG19": (18, 22, "65.57 85.71 60.05 50.00 88.00 0.6320 0.348"),
}
TESTING_B = {  # TP of 11, TN of 38; kappa and its standard error as printed
    "reader A": (5, 28, "0.169", "0.148"),
    "reader B": (6, 30, "0.305", "0.150"),
    "reader C": (7, 32, "0.449", "0.147"),
    "TIN": (6, 35, "0.499", "0.153"),
}
WRONG = {  # network and column: as printed, as it must be
    ("R(2+1)D", "kappa"): ("0.627", "0.267"),
    ("InceptionV3", "F1"): ("0.6220", "0.6222"),
    ("VGG19", "SPE"): ("60.05", "55.00"),
    ("VGG19", "F1"): ("0.6320", "0.6316"),
}


def counts_of(tp: int, positives: int, tn: int, negatives: int) -> Counts:
    return Counts(tp=tp, fp=negatives - tn, tn=tn, fn=positives - tp)


def cells_of(counts: Counts) -> list[float]:
    percentages = [100 * count / total for count, total in counts.proportions.values()]
    return [*percentages, counts.f1, counts.kappa]


def is_printed_right(exact: float, printed: str) -> bool:
    """Whether some usual rounding, or cutting off, to the printed number of digits gives what is printed."""
    step = Decimal(1).scaleb(Decimal(printed).as_tuple().exponent)  # type: ignore[arg-type]
    value = Decimal(repr(round(exact, 12)))
    return any(
        value.quantize(step, rounding) == Decimal(printed) for rounding in (ROUND_HALF_UP, ROUND_HALF_EVEN, ROUND_DOWN)
    )


def wrong_cells() -> dict[tuple[str, str], float]:
    found = {}
    for network, (tp, tn, row) in TESTING_A.items():
        cells = zip(COLUMNS, cells_of(counts_of(tp, 21, tn, 40)), row.split(), strict=True)
        found.update(
            {(network, column): exact for column, exact, printed in cells if not is_printed_right(exact, printed)}
        )
    return found


def test_table_of_testing_set_a_has_exactly_these_wrong_cells() -> None:
    found = wrong_cells()
    assert set(found) == set(WRONG)
    for cell, exact in found.items():
        assert is_printed_right(exact, WRONG[cell][1])


@pytest.mark.parametrize("who", TESTING_B)
def test_kappa_and_its_error_of_testing_set_b_are_printed_right(who: str) -> None:
    tp, tn, kappa, error = TESTING_B[who]
    counts = counts_of(tp, 11, tn, 38)
    assert is_printed_right(counts.kappa, kappa)
    assert is_printed_right(counts.kappa_se, error)


def test_printed_error_of_kappa_is_not_that_of_cohen_1960() -> None:
    for tp, tn, _, error in TESTING_B.values():
        counts = counts_of(tp, 11, tn, 38)
        observed = (tp + tn) / 49
        chance = (observed - counts.kappa) / (1 - counts.kappa)
        cohen = (observed * (1 - observed) / 49) ** 0.5 / (1 - chance)
        assert not is_printed_right(cohen, error)


@pytest.mark.parametrize("printed", ["0.914 0.843 0.985", "0.856 0.753 0.959", "0.773 0.630 0.915"])
def test_printed_auc_lies_in_the_middle_of_its_interval(printed: str) -> None:
    # as of DeLong's interval; one on the logit scale would not
    auc, low, high = map(float, printed.split())
    assert (low + high) / 2 == pytest.approx(auc, abs=0.0011)


def test_document_lists_exactly_the_wrong_cells() -> None:
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    start = lines.index("| network | column | printed | from the counts |") + 2
    listed = {}
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        network, column, printed, exact = (cell.strip() for cell in line.strip("|").split("|"))
        listed[network, column] = printed, exact
    assert listed == WRONG
