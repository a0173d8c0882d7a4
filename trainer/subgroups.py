"""The same figures for parts of the videos, and Table 1: who the patients are."""

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from trainer.metrics import Metrics, measure, plain
from trainer.predictions import Predictions
from trainer.statistics import association_test, mann_whitney_test

MAX_LEVELS = 8
"""A text column of more values names things, it does not group them."""
MIN_NUMERIC_LEVELS = 6
"""A column of fewer, whole and recurring numbers is a code such as 0/1."""

Masks = dict[str, npt.NDArray[np.bool_]]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Covariate:
    """A column as numbers or as levels; a missing value is NaN or ""."""

    name: str
    texts: tuple[str, ...]
    numbers: npt.NDArray[np.float64] | None
    """(n,) where the column is numeric, else None."""

    @property
    def levels(self) -> list[str]:
        return sorted({text for text in self.texts if not _is_missing(text)})

    @property
    def num_missing(self) -> int:
        return sum(_is_missing(text) for text in self.texts)


def covariates_of(predictions: Predictions) -> list[Covariate]:
    """Return the columns that describe patients: numbers, or texts of few levels; not those that are all equal."""
    found = []
    for name, texts in predictions.covariates.items():
        covariate = Covariate(name, texts, _numbers(texts))
        num_levels = len(covariate.levels)
        does_group = num_levels <= min(MAX_LEVELS, len(texts) - covariate.num_missing - 1)
        if num_levels > 1 and (covariate.numbers is not None or does_group):
            found.append(covariate)
    return found


def measure_subgroups(predictions: Predictions, threshold: float, interval: str) -> list[Metrics]:
    """Return the figures of every level of every covariate; numbers are cut at the median."""
    tables = []
    for covariate in covariates_of(predictions):
        for level, chosen in _masks(covariate).items():
            if chosen.any():
                part = predictions.at(np.flatnonzero(chosen))
                values = measure(part.labels, part.probabilities, threshold, interval)
                tables.append({"covariate": covariate.name, "level": level, **values})
    return tables


def table_one(predictions: Predictions) -> list[Metrics]:
    """Return a row a covariate (and a level of it), negative against positive, with a test.

    Numbers: median (quartiles) and Mann-Whitney U. Levels: count (share) and chi-square, or Fisher's exact test
    where an expected count is below 5. Missing values are left out, and counted.
    """
    rows: list[Metrics] = []
    groups = {"all": np.ones(len(predictions), bool), "negative": predictions.labels == 0}
    groups["positive"] = ~groups["negative"]
    for covariate in covariates_of(predictions):
        rows += _numeric_rows(covariate, groups) if covariate.numbers is not None else _level_rows(covariate, groups)
    return rows


def _numeric_rows(covariate: Covariate, groups: Masks) -> list[Metrics]:
    numbers = covariate.numbers
    assert numbers is not None
    parts = {name: numbers[chosen & ~np.isnan(numbers)] for name, chosen in groups.items()}
    test = mann_whitney_test(parts["negative"], parts["positive"])
    return [
        {
            "covariate": covariate.name,
            "level": "median (quartiles)",
            **{name: _quartiles(part) for name, part in parts.items()},
            "missing": covariate.num_missing,
            "test": test.method,
            "p_value": plain(test.p_value),
        }
    ]


def _level_rows(covariate: Covariate, groups: Masks) -> list[Metrics]:
    masks = _masks(covariate)
    counts = {name: [int((mask & chosen).sum()) for mask in masks.values()] for name, chosen in groups.items()}
    test = association_test(np.array([counts["negative"], counts["positive"]]))
    rows = []
    for place, level in enumerate(masks):
        shares = {name: _share(own[place], sum(own)) for name, own in counts.items()}
        rows.append({"covariate": covariate.name, "level": level, **shares, "missing": "", "test": "", "p_value": None})
    rows[0].update(missing=covariate.num_missing, test=test.method, p_value=plain(test.p_value))
    return rows


def _masks(covariate: Covariate) -> Masks:
    if covariate.numbers is None:
        return {level: np.array([text == level for text in covariate.texts]) for level in covariate.levels}
    median = float(np.nanmedian(covariate.numbers))
    return {
        f"below {_short(median)}": covariate.numbers < median,
        f"{_short(median)} or more": covariate.numbers >= median,
    }


def _numbers(texts: tuple[str, ...]) -> npt.NDArray[np.float64] | None:
    try:
        numbers = np.array([math.nan if _is_missing(text) else float(text) for text in texts])
    except ValueError:
        return None
    if np.isinf(numbers).any():
        return None
    known = numbers[~np.isnan(numbers)]
    num_levels = len(np.unique(known))
    is_code = num_levels < min(MIN_NUMERIC_LEVELS, len(known)) and bool((known == known.round()).all())
    return None if is_code else numbers


def _is_missing(text: str) -> bool:
    return text.lower() in ("", "nan", "na", "n/a", "none", "null")


def _quartiles(values: npt.NDArray[np.float64]) -> str:
    if not len(values):
        return "-"
    low, middle, high = np.percentile(values, (25, 50, 75))
    return f"{_short(middle)} ({_short(low)}–{_short(high)})"


def _short(value: float) -> str:
    """Return four digits, and no exponent in what people count."""
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def _share(count: int, total: int) -> str:
    return f"{count} ({count / total:.1%})" if total else "-"
