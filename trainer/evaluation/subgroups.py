"""The same figures for parts of the videos, by the columns that describe patients."""

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from trainer.evaluation.metrics import Metrics, measure
from trainer.evaluation.predictions import Predictions

MAX_LEVELS = 8
"""A text column of more values names things, it does not group them."""
MIN_NUMERIC_LEVELS = 6
"""A column of fewer, whole and recurring numbers is a code such as 0/1."""
_FIVE_DIGITS = 9999.5
"""What is rounded to 10000 has more digits than four, and would get an exponent."""

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
        return sorted({text for text in self.texts if not is_missing(text)})

    @property
    def num_missing(self) -> int:
        return sum(is_missing(text) for text in self.texts)


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
        for level, chosen in masks_of(covariate).items():
            if chosen.any():
                part = predictions.at(np.flatnonzero(chosen))
                values = measure(part.labels, part.probabilities, part.cut(threshold), interval)
                tables.append({"covariate": covariate.name, "level": level, **values})
    return tables


def masks_of(covariate: Covariate) -> Masks:
    """Return who is of each level, by its name; numbers are cut at the median."""
    if covariate.numbers is None:
        return {level: np.array([text == level for text in covariate.texts]) for level in covariate.levels}
    median = float(np.nanmedian(covariate.numbers))
    return {
        f"below {short(median)}": covariate.numbers < median,
        f"{short(median)} or more": covariate.numbers >= median,
    }


def _numbers(texts: tuple[str, ...]) -> npt.NDArray[np.float64] | None:
    try:
        numbers = np.array([math.nan if is_missing(text) else float(text) for text in texts])
    except ValueError:
        return None
    if np.isinf(numbers).any():
        return None
    known = numbers[~np.isnan(numbers)]
    num_levels = len(np.unique(known))
    is_code = num_levels < min(MIN_NUMERIC_LEVELS, len(known)) and bool((known == known.round()).all())
    return None if is_code else numbers


def is_missing(text: str) -> bool:
    """Whether a cell of a table stands for no value."""
    return text.lower() in ("", "nan", "na", "n/a", "none", "null")


def short(value: float) -> str:
    """Return four digits, and no exponent in what people count."""
    return f"{value:.0f}" if _FIVE_DIGITS <= abs(value) < 1e15 else f"{value:.4g}"
