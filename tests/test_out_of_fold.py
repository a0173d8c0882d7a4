"""Out-of-fold predictions: the threshold that a video is held against was chosen without it."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from edge.errors import ConfigError
from tests.trainer_command import edge_train
from trainer.evaluation.calibration import choose_threshold
from trainer.evaluation.evaluate import series_of
from trainer.evaluation.metrics import by_patient, measure
from trainer.evaluation.plots import _counts
from trainer.evaluation.predictions import Predictions, read_predictions, write_predictions
from trainer.training.crossval import concatenated
from trainer.training.out_of_fold import cross_fitted, out_of_fold_predictions, thresholds_by_fold


def folds_of(num_folds: int, num_each: int, seed: int, signal: float = 0.0) -> list[Predictions]:
    rng = np.random.default_rng(seed)
    parts = []
    for fold in range(num_folds):
        labels = np.arange(num_each) % 2
        scores = rng.normal(signal * labels, 1)
        parts.append(
            Predictions(
                ids=tuple(f"{fold}-{n}" for n in range(num_each)),
                labels=labels,
                probabilities=1 / (1 + np.exp(-scores)),
                patient_ids=tuple(f"p{fold}-{n // 4}-{n % 2}" for n in range(num_each)),
                folds=(str(fold),) * num_each,
            )
        )
    return parts


def test_cross_fitted_threshold_of_a_fold_is_that_of_the_other_folds() -> None:
    parts = folds_of(3, 20, seed=0, signal=1.5)
    fitted = cross_fitted(concatenated(parts), "sensitivity=0.8")
    for fold, part in enumerate(parts):
        others = concatenated([other for other in parts if other is not part])
        expected = choose_threshold(others.labels, others.probabilities, "sensitivity=0.8")
        assert thresholds_by_fold(fitted)[str(fold)] == expected
        assert set(fitted.thresholds[20 * fold : 20 * fold + 20]) == {expected}


def test_cross_fitted_threshold_does_not_depend_on_the_videos_that_it_judges() -> None:
    parts = folds_of(3, 20, seed=1, signal=1.0)
    before = thresholds_by_fold(cross_fitted(concatenated(parts)))
    parts[1].probabilities[:] = parts[1].probabilities[::-1].copy()
    after = thresholds_by_fold(cross_fitted(concatenated(parts)))
    assert after["1"] == before["1"]


def test_cross_fitted_thresholds_do_not_find_skill_in_noise_and_own_ones_do() -> None:
    def skill(predictions: Predictions, thresholds: np.ndarray) -> float:
        figures = measure(predictions.labels, predictions.probabilities, thresholds)
        return figures["sensitivity"] + figures["specificity"] - 1

    fitted, own = [], []
    for seed in range(40):
        parts = folds_of(5, 20, seed)
        together = cross_fitted(concatenated(parts))
        fitted.append(skill(together, together.thresholds))
        cuts = np.repeat([choose_threshold(part.labels, part.probabilities) for part in parts], 20)
        own.append(skill(together, cuts))
    assert np.mean(own) > 0.2
    assert abs(np.mean(fitted)) < 0.05


def test_predictions_with_thresholds_are_measured_by_them_everywhere(tmp_path: Path) -> None:
    together = cross_fitted(concatenated(folds_of(3, 20, seed=2, signal=1.0)))
    write_predictions(tmp_path / "p.csv", together)
    again = read_predictions(tmp_path / "p.csv")
    assert again.thresholds.tolist() == together.thresholds.tolist()
    assert "threshold" not in again.covariates
    done = edge_train("evaluate", "--predictions", tmp_path / "p.csv", "--out", tmp_path / "own")
    assert done.returncode == 0, done.stderr
    assert "threshold of each fold" in done.stdout
    metrics = json.loads((tmp_path / "own" / "metrics.json").read_text())
    calls = together.probabilities >= together.thresholds
    truth = together.labels == 1
    expected = {"tp": calls & truth, "fp": calls & ~truth, "tn": ~calls & ~truth, "fn": ~calls & truth}
    assert metrics["counts"] == {name: int(which.sum()) for name, which in expected.items()}
    assert metrics["threshold"] is None
    assert "each video has its own" in metrics["reasons"]["threshold"]
    assert metrics["patient_level"]["threshold"] is None
    drawn = _counts(series_of("x", again, 0.5))
    assert (drawn.tp, drawn.fp, drawn.tn, drawn.fn) == tuple(metrics["counts"].values())
    done = edge_train("evaluate", "--predictions", tmp_path / "p.csv", "--threshold", "0", "--out", tmp_path / "zero")
    assert json.loads((tmp_path / "zero" / "metrics.json").read_text())["counts"]["fn"] == 0


def test_threshold_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("id,label,probability,threshold\na,0,0.1,0.5\nb,1,0.9,high\n")
    done = edge_train("evaluate", "--predictions", tmp_path / "p.csv", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "line 3: threshold is 'high'; a number in 0..1 is needed" in done.stderr


def test_patient_with_several_thresholds_is_no_patient_figure() -> None:
    predictions = concatenated(folds_of(2, 8, seed=3))
    cuts = np.linspace(0.1, 0.9, len(predictions))
    several = Predictions(
        predictions.ids, predictions.labels, predictions.probabilities, predictions.patient_ids, thresholds=cuts
    )
    assert by_patient(several) == "a patient's videos have different thresholds"


def test_table_of_an_earlier_cross_validation_gets_thresholds_when_it_is_read(tmp_path: Path) -> None:
    together = concatenated(folds_of(3, 20, seed=4, signal=1.0))
    write_predictions(tmp_path / "predictions.csv", together)
    (tmp_path / "crossval.json").write_text("{}")
    with (tmp_path / "predictions.csv").open(encoding="utf-8") as stream:
        assert "threshold" not in next(csv.reader(stream))
    read = out_of_fold_predictions(tmp_path)
    assert read.thresholds == pytest.approx(cross_fitted(together).thresholds)


def test_rule_that_somebody_changed_is_refused_by_its_name(tmp_path: Path) -> None:
    write_predictions(tmp_path / "predictions.csv", concatenated(folds_of(2, 8, seed=3)))
    (tmp_path / "crossval.json").write_text('{"threshold_rule": 5}')
    with pytest.raises(ConfigError, match="threshold rule '5' is not known"):
        out_of_fold_predictions(tmp_path)
