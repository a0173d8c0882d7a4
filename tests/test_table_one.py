"""Table 1: one count a patient, and by video what is not the same in all videos of a patient."""

import csv
import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tests.trainer_command import edge_train
from trainer.evaluation.predictions import Predictions
from trainer.evaluation.subgroups import Covariate, covariates_of, masks_of, measure_subgroups, short
from trainer.evaluation.table_one import table_one
from trainer.report.tables import demographics

SEXES = ("F", "F", "F", "F", "M", "M", "M", "M", "F", "F")
AGES = (31, 32, 33, 35, 38, 41, 47, 52, 55, 71)


def ten_patients(videos_each: int = 3, **covariates: tuple[str, ...]) -> Predictions:
    """Return ten patients, the last four positive, of so many videos each."""
    num = 10 * videos_each
    patients = np.repeat(np.arange(10), videos_each)
    of_patients = {"sex": SEXES, "age": tuple(map(str, AGES))}
    return Predictions(
        ids=tuple(f"v{n}" for n in range(num)),
        labels=(patients >= 6).astype(np.int64),
        probabilities=np.linspace(0.01, 0.99, num),
        patient_ids=tuple(f"p{patient}" for patient in patients),
        covariates={
            **{name: tuple(values[patient] for patient in patients) for name, values in of_patients.items()},
            **covariates,
        },
    )


def rows_of(table: Mapping[str, object] | object, name: str) -> list[dict[str, object]]:
    return [row for row in table.rows if row["covariate"] == name]  # type: ignore[attr-defined]


@pytest.mark.parametrize("videos_each", [1, 3])
def test_table_one_counts_patients_however_many_videos_they_have(videos_each: int) -> None:
    table = table_one(ten_patients(videos_each))
    assert (table.unit, table.by_video) == ("patients", ())
    assert table.sizes == {"patients": {"all": 10, "negative": 6, "positive": 4}}
    female, male = rows_of(table, "sex")
    assert (female["all"], female["negative"], female["positive"]) == ("6 (60.0%)", "4 (66.7%)", "2 (50.0%)")
    assert (male["negative"], male["positive"]) == ("2 (33.3%)", "2 (50.0%)")
    assert female["p_value"] == pytest.approx(stats.fisher_exact([[4, 2], [2, 2]]).pvalue)
    (age,) = rows_of(table, "age")
    assert age["p_value"] == pytest.approx(stats.mannwhitneyu(AGES[:6], AGES[6:]).pvalue)


def test_table_one_gives_medians_and_quartiles() -> None:
    scores = ("1.5", "2.5", "10", "20", "40", "80", "7000.4", "12000.4", "33333.3", "2e5")
    (row,) = rows_of(table_one(ten_patients(1, score=scores)), "score")
    assert row["level"] == "median (quartiles)"
    assert row["all"] == "60 (12.5–10750)"
    assert row["negative"] == "15 (4.375–35)"
    assert row["positive"] == "22667 (10750–75000)"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((0.0, "0"), (0.12344, "0.1234"), (43.0, "43"), (-1234.5678, "-1235"), (9999.4, "9999")),
        *((9999.5, "10000"), (10000.0, "10000"), (12345.6, "12346"), (-54321.0, "-54321"), (1e-7, "1e-07")),
    ],
)
def test_numbers_of_tables_have_four_digits_and_counts_no_exponent(value: float, expected: str) -> None:
    assert short(value) == expected


def test_column_that_names_each_patient_is_no_covariate_and_missing_values_are_none() -> None:
    known = ("a", "b", "c", "d", "e", "f", "g")
    columns = {"name": (*known, "", "NA", ""), "group": (*known[:6], "a", "", "NA", ""), "same": ("x",) * 10}
    columns |= {"code": ("0", "1") * 5, "size": ("1", "2", "3", "4", "5", "6", "6", "6", "", "nan")}
    found = {one.name: one for one in covariates_of(ten_patients(1, **columns))}
    assert list(found) == ["sex", "age", "group", "code", "size"]
    assert [name for name, one in found.items() if one.numbers is not None] == ["age", "size"]
    assert (found["group"].levels, found["group"].num_missing, found["size"].num_missing) == ([*known[:6]], 3, 2)


def test_numbers_are_cut_at_the_median_and_who_lacks_one_is_in_neither_part() -> None:
    numbers = np.array([5.0, 1.0, np.nan, 3.0, 9.0, 3.0])
    masks = masks_of(Covariate("size", tuple(map(str, numbers)), numbers))
    assert {name: mask.tolist() for name, mask in masks.items()} == {
        "below 3": [False, True, False, False, False, False],
        "3 or more": [True, False, False, True, True, True],
    }


def test_subgroups_are_measured_on_their_own_videos_at_their_own_thresholds() -> None:
    predictions = dataclasses.replace(ten_patients(1), thresholds=np.linspace(0.9, 0.0, 10))
    (female,) = (row for row in measure_subgroups(predictions, 0.5, "wilson") if row["level"] == "F")
    called = [probability >= 0.9 - n / 10 for n, probability in enumerate(predictions.probabilities)]
    chosen = [n for n in range(10) if SEXES[n] == "F"]
    tp, fp = (sum(called[n] for n in chosen if predictions.labels[n] == label) for label in (1, 0))
    assert female["counts"] == {"tp": tp, "fp": fp, "tn": 4 - fp, "fn": 2 - tp}
    assert (female["covariate"], female["n"], female["threshold"]) == ("sex", 6, None)


def test_table_one_counts_by_video_what_varies_within_a_patient_and_says_so() -> None:
    depths = tuple("30" if n % 3 == 1 or n % 7 == 0 else "40" for n in range(30))
    predictions = ten_patients(depth=depths)
    table = table_one(predictions)
    assert table.by_video == ("depth",)
    assert {row["unit"] for row in rows_of(table, "depth")} == {"videos"}
    assert {row["unit"] for row in rows_of(table, "age")} == {"patients"}
    assert rows_of(table, "depth")[0]["all"].startswith(f"{depths.count('30')} (")  # type: ignore[attr-defined]
    shown = demographics(predictions)
    assert shown is not None
    assert shown.caption == "The patients by class, counted by patient"
    assert shown.columns[2:5] == ("all (n = 10)", "negative (n = 6)", "positive (n = 4)")
    assert "counted by video (18 negative, 12 positive)" in shown.note
    assert shown.note.count("depth") == 1
    assert "depth (by video)" in [row[0] for row in shown.rows]


def test_table_one_takes_what_is_missing_in_one_video_from_another_of_the_patient() -> None:
    ages = tuple("" if n % 3 else str(AGES[n // 3]) for n in range(30))
    table, whole = table_one(ten_patients(age=ages)), table_one(ten_patients())
    assert rows_of(table, "age") == rows_of(whole, "age")
    assert rows_of(table, "age")[0]["missing"] == 0


def test_table_one_of_numbers_that_one_class_lacks_shows_a_dash_and_no_p_value() -> None:
    ages = tuple(str(AGES[n // 3]) if n < 18 else "" for n in range(30))
    (age,) = rows_of(table_one(ten_patients(age=ages)), "age")
    assert age["positive"] == "-"
    assert age["all"] == age["negative"] != "-"
    assert (age["missing"], age["p_value"]) == (4, None)


def test_table_one_counts_a_patient_of_both_classes_once_as_positive_and_says_so() -> None:
    predictions = ten_patients()
    predictions.labels[1] = 1
    table = table_one(predictions)
    assert table.num_of_both_classes == 1
    assert table.sizes["patients"] == {"all": 10, "negative": 5, "positive": 5}
    shown = demographics(predictions)
    assert shown is not None
    assert "1 patients with videos of both classes are counted as positive" in shown.note


def test_table_one_of_unknown_patients_counts_videos_and_says_so() -> None:
    known = ten_patients()
    unknown = Predictions(known.ids, known.labels, known.probabilities, covariates=known.covariates)
    assert table_one(unknown).unit == "videos"
    assert table_one(unknown).sizes == {"videos": {"all": 30, "negative": 18, "positive": 12}}
    shown = demographics(unknown)
    assert shown is not None
    assert shown.caption == "The videos by class, counted by video"


def test_table_one_file_says_its_unit_and_how_many_there_are(tmp_path: Path) -> None:
    lines = ["id,label,probability,patient_id,sex,depth"]
    for patient, sex in enumerate(SEXES):
        lines += [f"{patient}-{n},{int(patient > 5)},0.{patient}{n},p{patient},{sex},{30 + 10 * n}" for n in range(2)]
    (tmp_path / "p.csv").write_text("\n".join(lines))
    done = edge_train("evaluate", "--predictions", tmp_path / "p.csv", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out" / "table1.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    heads = [(row["unit"], row["all"], row["negative"], row["positive"]) for row in rows if row["covariate"] == "n"]
    assert heads == [("patients", "10", "6", "4"), ("videos", "20", "12", "8")]
    assert {row["covariate"]: row["unit"] for row in rows[2:]} == {"sex": "patients", "depth": "videos"}
