"""Table 1 of a clinical paper: who the patients are, negative against positive, one count a patient."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from trainer.evaluation.metrics import Metrics, plain
from trainer.evaluation.predictions import Predictions
from trainer.evaluation.statistics import association_test, mann_whitney_test
from trainer.evaluation.subgroups import Covariate, Masks, covariates_of, is_missing, masks_of, short

PATIENTS, VIDEOS = "patients", "videos"


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class TableOne:
    """Table 1, with what it counts."""

    unit: str
    """`PATIENTS`, or `VIDEOS` where nobody says whose they are."""
    sizes: dict[str, dict[str, int]]
    """How many there are by unit, under `all`, `negative` and `positive`; both units where some rows count videos."""
    rows: tuple[Metrics, ...]
    """One a covariate, or a level of it, with its `unit`."""
    num_of_both_classes: int
    """Patients with videos of both classes; they are counted as positive."""

    @property
    def by_video(self) -> tuple[str, ...]:
        """Covariates that are not the same for all videos of a patient: counted by video."""
        names = (row["covariate"] for row in self.rows if row["unit"] != self.unit)
        return tuple(dict.fromkeys(names))

    def records(self) -> list[Metrics]:
        """Return the rows of a CSV file; the first ones say how many patients, or videos, there are."""
        if not self.rows:
            return []
        empty = {"level": "", "missing": "", "test": "", "p_value": None}
        heads = [{**self.rows[0], "unit": unit, "covariate": "n", **empty, **own} for unit, own in self.sizes.items()]
        return [*heads, *self.rows]


def table_one(predictions: Predictions) -> TableOne:
    """Return Table 1, by patient where the patients are known.

    Numbers: median (quartiles) and Mann-Whitney U. Levels: count (share) and chi-square, or Fisher's exact test
    where an expected count is below 5. Missing values are left out, and counted. A covariate that differs between
    videos of one patient is counted by video. A patient with a positive video is positive.
    """
    if predictions.patient_ids is None:
        return TableOne(VIDEOS, {VIDEOS: _sizes(predictions)}, _rows_of(predictions, VIDEOS), 0)
    places: dict[str, list[int]] = {}
    for place, patient in enumerate(predictions.patient_ids):
        places.setdefault(patient, []).append(place)
    persons, varying = _one_a_patient(predictions, list(places.values()))
    by_video = [name for name in predictions.covariates if name in varying]
    parts = {PATIENTS: persons, **({VIDEOS: _only(predictions, by_video)} if by_video else {})}
    found = [row for unit, part in parts.items() for row in _rows_of(part, unit)]
    order = list(predictions.covariates)
    rows = sorted(found, key=lambda row: order.index(row["covariate"]))
    units = {PATIENTS, *(row["unit"] for row in rows)}
    return TableOne(
        unit=PATIENTS,
        sizes={unit: _sizes(part) for unit, part in parts.items() if unit in units},
        rows=tuple(rows),
        num_of_both_classes=sum(len(set(predictions.labels[own].tolist())) > 1 for own in places.values()),
    )


def _one_a_patient(predictions: Predictions, places: list[list[int]]) -> tuple[Predictions, set[str]]:
    """Return one row a patient with the covariates that are the same in all of a patient's rows, and the others' names.

    What is missing in some rows of a patient is taken from the others.
    """
    constant: dict[str, tuple[str, ...]] = {}
    for name, texts in predictions.covariates.items():
        known = [{texts[place] for place in own if not is_missing(texts[place])} for own in places]
        if all(len(values) <= 1 for values in known):
            constant[name] = tuple(next(iter(values), "") for values in known)
    persons = dataclasses.replace(
        predictions.at(own[0] for own in places),
        labels=np.array([predictions.labels[own].max() for own in places]),
        covariates=constant,
    )
    return persons, set(predictions.covariates) - set(constant)


def _only(predictions: Predictions, names: Sequence[str]) -> Predictions:
    return dataclasses.replace(predictions, covariates={name: predictions.covariates[name] for name in names})


def _groups(predictions: Predictions) -> Masks:
    positive = predictions.labels == 1
    return {"all": np.ones(len(predictions), bool), "negative": ~positive, "positive": positive}


def _sizes(predictions: Predictions) -> dict[str, int]:
    return {name: int(chosen.sum()) for name, chosen in _groups(predictions).items()}


def _rows_of(predictions: Predictions, unit: str) -> tuple[Metrics, ...]:
    groups = _groups(predictions)
    rows: list[Metrics] = []
    for covariate in covariates_of(predictions):
        rows += _numeric_rows(covariate, groups) if covariate.numbers is not None else _level_rows(covariate, groups)
    return tuple({"unit": unit, **row} for row in rows)


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
    masks = masks_of(covariate)
    counts = {name: [int((mask & chosen).sum()) for mask in masks.values()] for name, chosen in groups.items()}
    test = association_test(np.array([counts["negative"], counts["positive"]]))
    rows = []
    for place, level in enumerate(masks):
        shares = {name: _share(own[place], sum(own)) for name, own in counts.items()}
        rows.append({"covariate": covariate.name, "level": level, **shares, "missing": "", "test": "", "p_value": None})
    rows[0].update(missing=covariate.num_missing, test=test.method, p_value=plain(test.p_value))
    return rows


def _quartiles(values: npt.NDArray[np.float64]) -> str:
    if not len(values):
        return "-"
    low, middle, high = np.percentile(values, (25, 50, 75))
    return f"{short(middle)} ({short(low)}–{short(high)})"


def _share(count: int, total: int) -> str:
    return f"{count} ({count / total:.1%})" if total else "-"
