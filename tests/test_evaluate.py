"""`edge-train evaluate --predictions`: figures, tables, pictures, readers, and what it says of unusable input."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score, f1_score, roc_auc_score

from tests.trainer_command import edge_train
from trainer.evaluation.predictions import Predictions, read_predictions, write_predictions

PICTURES = ("roc.png", "pr.png", "calibration.png", "decision.png", "confusion.png")
TABLES = ("predictions.csv", "roc.csv", "pr.csv", "calibration.csv", "decision.csv", "subgroups.csv", "table1.csv")
PROPORTIONS = ("accuracy", "sensitivity", "specificity", "ppv", "npv")


def evaluate(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return edge_train("evaluate", *arguments)


def read_metrics(out: Path) -> dict[str, Any]:
    def refuse(word: str) -> NoReturn:
        raise AssertionError(f"metrics.json holds {word}, which JSON does not know")

    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text(encoding="utf-8"), parse_constant=refuse)
    return metrics


def example_rows(num: int = 60, seed: int = 0) -> list[dict[str, object]]:
    rng = np.random.default_rng(seed)
    rows: list[dict[str, object]] = []
    for index in range(num):
        label = int(index % 3 == 0)
        rows.append(
            {
                "id": f"clips/{index}.mp4",
                "label": label,
                "probability": float(1 / (1 + math.exp(-rng.normal(2 * label - 1, 1.2)))),
                "patient_id": f"P{index // 6}-{label}",
                "age": rng.integers(30, 80) + 3 * label if index % 10 else "",
                "sex": rng.choice(["F", "M"]),
                "site": ["north", "south, <b>"][index % 2],
            }
        )
    return rows


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_readers(path: Path, rows: list[dict[str, object]]) -> Path:
    rng = np.random.default_rng(1)
    lines: list[dict[str, object]] = []
    for reader, skill in (("junior", 0.6), ("senior", 0.8)):
        for row in rows:
            call = int(row["label"]) if rng.random() < skill else 1 - int(row["label"])  # type: ignore[call-overload]
            score = call + rng.normal(0, 0.3) if reader == "senior" else ""
            lines.append({"reader": reader, "id": row["id"], "call": call, "score": score})
    return write_rows(path, lines)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    rows = example_rows()
    predictions, readers = write_rows(folder / "p.csv", rows), write_readers(folder / "r.csv", rows)
    done = evaluate("--predictions", predictions, "--readers", readers, "--out", folder / "out")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "60 videos of 20 patients, 20 positive; threshold 0.5" in done.stdout
    return folder


def test_evaluate_table_writes_the_figures_of_other_libraries(evaluated: Path) -> None:
    metrics, rows = read_metrics(evaluated / "out"), example_rows()
    labels = np.array([row["label"] for row in rows], int)
    probabilities = np.array([row["probability"] for row in rows], float)
    calls = probabilities >= 0.5
    assert metrics["n"] == 60
    assert metrics["threshold"] == 0.5
    assert metrics["counts"] == {
        "tp": int((calls & (labels == 1)).sum()),
        "fp": int((calls & (labels == 0)).sum()),
        "tn": int((~calls & (labels == 0)).sum()),
        "fn": int((~calls & (labels == 1)).sum()),
    }
    assert metrics["auc"] == pytest.approx(roc_auc_score(labels, probabilities), abs=1e-12)
    assert metrics["f1"] == pytest.approx(f1_score(labels, calls), abs=1e-12)
    for name in (*PROPORTIONS, "auc"):
        low, high = metrics[f"{name}_ci"]
        assert 0 <= low <= metrics[name] <= high <= 1
    assert {"kappa", "kappa_se", "brier", "ece", "average_precision"} <= set(metrics)
    assert metrics["reasons"] == {}


def test_evaluate_table_writes_pictures_and_tables(evaluated: Path) -> None:
    for name in PICTURES:
        with Image.open(evaluated / "out" / name) as picture:
            assert min(picture.size) > 400
            assert len(picture.convert("L").getcolors(1 << 20) or []) > 20
    for name in TABLES:
        assert len((evaluated / "out" / name).read_text(encoding="utf-8").splitlines()) > 2, name


def test_evaluate_table_measures_patients_by_the_mean_of_their_logits(evaluated: Path) -> None:
    metrics, rows = read_metrics(evaluated / "out"), example_rows()
    logits: dict[str, list[float]] = {}
    for row in rows:
        p = float(row["probability"])  # type: ignore[arg-type]
        logits.setdefault(str(row["patient_id"]), []).append(math.log(p / (1 - p)))
    labels = [patient.endswith("-1") for patient in logits]
    assert metrics["patient_level"]["n"] == metrics["num_patients"] == 20
    expected = roc_auc_score(labels, [np.mean(values) for values in logits.values()])
    assert metrics["patient_level"]["auc"] == pytest.approx(expected, abs=1e-12)


def test_evaluate_table_measures_every_level_of_every_covariate(evaluated: Path) -> None:
    groups = read_metrics(evaluated / "out")["subgroups"]
    assert {group["covariate"] for group in groups} == {"age", "sex", "site"}
    assert sum(group["n"] for group in groups if group["covariate"] == "site") == 60
    assert sum(group["n"] for group in groups if group["covariate"] == "age") == 54  # six ages are missing


def test_evaluate_readers_get_figures_and_tests_by_name(evaluated: Path) -> None:
    junior, senior = read_metrics(evaluated / "out")["readers"]
    assert (junior["reader"], junior["auc_of"]) == ("junior", "call")
    assert (senior["reader"], senior["auc_of"]) == ("senior", "score")
    assert junior["auc"] == pytest.approx((junior["sensitivity"] + junior["specificity"]) / 2)
    for reader in (junior, senior):
        assert reader["kappa_se"] > 0
        assert reader["brier"] is None
        assert "probabilities" in reader["reasons"]["brier"]
        for test in ("mcnemar", "delong"):
            assert 0 <= reader[test]["p_value"] <= 1
            assert isinstance(reader[test]["statistic"], float)
    assert senior["delong"]["auc"] == [senior["auc"], read_metrics(evaluated / "out")["auc"]]


def _mcnemar_p(right_a: np.ndarray, right_b: np.ndarray) -> float:
    """Return the exact p-value by the binomial test of the discordant pairs."""
    only_a, only_b = int((right_a & ~right_b).sum()), int((~right_a & right_b).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue)


def test_evaluate_readers_are_held_against_the_network_as_other_libraries_do(evaluated: Path) -> None:
    rows = example_rows()
    labels = np.array([row["label"] for row in rows], int)
    network = np.array([row["probability"] for row in rows], float) >= 0.5
    with (evaluated / "r.csv").open(encoding="utf-8", newline="") as stream:
        lines = list(csv.DictReader(stream))
    for reader in read_metrics(evaluated / "out")["readers"]:
        own = [line for line in lines if line["reader"] == reader["reader"]]
        calls = np.array([line["call"] == "1" for line in own])
        scores = [float(line["score"] or line["call"]) for line in own]
        assert reader["auc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
        assert reader["agreement_kappa"]["kappa"] == pytest.approx(cohen_kappa_score(network, calls), abs=1e-12)
        assert reader["network"]["sensitivity"] == network[labels == 1].mean()
        for test, chosen in (("", labels >= 0), ("_sensitivity", labels == 1), ("_specificity", labels == 0)):
            expected = _mcnemar_p((calls == labels)[chosen], (network == labels)[chosen])
            assert reader[f"mcnemar{test}"]["p_value"] == pytest.approx(expected, abs=1e-12)


def test_evaluate_predictions_written_are_read_back_unchanged(evaluated: Path, tmp_path: Path) -> None:
    first = read_predictions(evaluated / "out" / "predictions.csv")
    write_predictions(tmp_path / "again.csv", first)
    assert (tmp_path / "again.csv").read_bytes() == (evaluated / "out" / "predictions.csv").read_bytes()
    assert first.probabilities.tolist() == [row["probability"] for row in example_rows()]
    assert first.covariates["site"][1] == "south, <b>"


def test_evaluate_interval_can_be_exact(evaluated: Path, tmp_path: Path) -> None:
    done = evaluate("--predictions", evaluated / "p.csv", "--interval", "clopper-pearson", "--out", tmp_path)
    assert done.returncode == 0
    exact, wilson = read_metrics(tmp_path), read_metrics(evaluated / "out")
    assert exact["interval"] == "clopper-pearson"
    assert exact["sensitivity_ci"][0] < wilson["sensitivity_ci"][0]


def test_evaluate_video_at_the_threshold_is_positive(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("id,label,probability\na,1,0.3\nb,0,0.29999\n")
    assert evaluate("--predictions", tmp_path / "p.csv", "--threshold", "0.3", "--out", tmp_path).returncode == 0
    assert read_metrics(tmp_path)["counts"] == {"tp": 1, "fp": 0, "tn": 1, "fn": 0}


def test_evaluate_few_videos_gives_null_with_reasons(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("id,label,probability\na,0,0.1\nb,1,0.2\n")
    done = evaluate("--predictions", tmp_path / "p.csv", "--out", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    metrics = read_metrics(tmp_path / "out")
    assert metrics["ppv"] is None
    assert metrics["auc_ci"] is None
    assert metrics["patient_level"] is None
    assert metrics["reasons"]["ppv"] == metrics["reasons"]["ppv_ci"] == "no video was called positive"
    assert "two videos of each class" in metrics["reasons"]["auc_ci"]
    assert metrics["patient_level_reason"] == "no patient_id column"


def test_evaluate_fully_separated_classes_say_what_the_interval_is_worth(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("id,label,probability\na,0,0.1\nb,0,0.2\nc,1,0.8\nd,1,0.9\n")
    assert evaluate("--predictions", tmp_path / "p.csv", "--out", tmp_path).returncode == 0
    metrics = read_metrics(tmp_path)
    assert metrics["auc_ci"] == [1.0, 1.0]
    assert "tells nothing" in metrics["reasons"]["auc_ci"]


def test_evaluate_patient_with_videos_of_both_classes_is_no_patient_figure(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("id,label,probability,patient_id\na,0,0.1,x\nb,1,0.9,x\nc,1,0.8,y\n")
    assert evaluate("--predictions", tmp_path / "p.csv", "--out", tmp_path).returncode == 0
    assert read_metrics(tmp_path)["patient_level_reason"] == "1 patients have videos of both classes, such as x"


GOOD = "id,label,probability\na,0,0.1\nb,1,0.9\n"


def test_evaluate_empty_rows_of_a_spreadsheet_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(f"{GOOD},,\n\n")
    (tmp_path / "r.csv").write_text("reader,id,call\nA,a,0\n,,\n")
    out = tmp_path / "out"
    done = evaluate("--predictions", tmp_path / "p.csv", "--readers", tmp_path / "r.csv", "--out", out)
    assert done.returncode == 0, done.stderr
    metrics = read_metrics(out)
    assert (metrics["n"], [reader["n"] for reader in metrics["readers"]]) == (2, [1])


@pytest.mark.parametrize(
    ("predictions", "said"),
    [
        ("id,label,probability\na,1,0.1\nb,1,0.9\n", "one class only (label 1)"),
        ("id,label,probability\na,nan,0.1\nb,1,0.9\n", "line 2: label is 'nan'; 0 and 1 are allowed"),
        ("id,label,probability\na,0,nan\nb,1,0.9\n", "line 2: probability is 'nan'"),
        ("id,label,probability\na,0,1.2\nb,1,0.9\n", "line 2: probability is '1.2'"),
        ("id,label,probability\na,0,\nb,1,0.9\n", "line 2: probability is ''"),
        ("id,label,score\na,0,0.1\nb,1,0.9\n", "has no column probability; its columns are id, label, score"),
        ("id,label,probability\na,0,0.1\na,1,0.9\n", "line 3: id a stands in line 2 already"),
        ("id,label,probability\na,0\nb,1,0.9\n", "line 2 does not have 3 values"),
        ("id,label,label,probability\na,0,0,0.1\n", "has a column twice"),
        ("id,label,probability\n,0,0.1\nb,1,0.9\n", "line 2 has no id; name it, or remove the line"),
        (
            "id;label;probability\na;0;0.1\n",
            "its columns are id;label;probability, it needs id,label,probability, with commas",
        ),
        ("id,label,probability\n", "has no rows"),
        ("", "has no column id, label, probability"),
        ("id,label,probability,patient_id\na,0,0.1,\nb,1,0.9,x\n", "lacks a patient_id in some rows"),
        ('id,label,probability\n"a,0,0.1\n', "is not a CSV file"),
    ],
)
def test_evaluate_unusable_predictions_are_refused_by_one_line(tmp_path: Path, predictions: str, said: str) -> None:
    (tmp_path / "p.csv").write_text(predictions)
    done = evaluate("--predictions", tmp_path / "p.csv", "--out", tmp_path / "out")
    assert_refused(done, said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("readers", "said"),
    [
        ("reader,id,call\nA,c,1\n", "line 2: id 'c' is not in the predictions"),
        ("reader,id,call\nA,a,2\n", "line 2: call is '2'; 0 and 1 are allowed"),
        ("reader,id,answer\nA,a,1\n", "has no column call"),
        ("reader,id,call\nA,a,1\n ,b,1\n", "line 3 has no reader; name it, or remove the line"),
        ("reader,id,call\nA,a,1\nA,a,0\n", "line 3: id a of reader A stands in line 2 already"),
        ("reader,id,call,score\nA,a,1,0.5\nA,b,1,\n", "line 3: score is ''; give reader A a number in every row"),
    ],
)
def test_evaluate_unusable_readers_are_refused_by_one_line(tmp_path: Path, readers: str, said: str) -> None:
    (tmp_path / "p.csv").write_text(GOOD)
    (tmp_path / "r.csv").write_text(readers)
    done = evaluate("--predictions", tmp_path / "p.csv", "--readers", tmp_path / "r.csv", "--out", tmp_path / "out")
    assert_refused(done, said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give BUNDLE|RUN and MANIFEST, or --predictions CSV"),
        (("--predictions", "missing.csv"), "missing.csv cannot be read (No such file or directory)"),
        (("--predictions", "p.csv", "--threshold", "2"), "--threshold is 2; a probability in 0..1 is needed"),
        (("--predictions", "p.csv", "--split", "test"), "leave out --split"),
        (("--predictions", "p.csv", "--out", "p.csv/out"), "p.csv/out cannot be made"),
        (("bundle", "manifest.csv", "--threshold", "0.3"), "has its own, chosen in validation"),
        (("bundle", "manifest.csv"), "bundle is neither a run (run.json)"),
    ],
)
def test_evaluate_wrong_usage_is_refused_by_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.csv").write_text(GOOD)
    out = () if "--out" in arguments else ("--out", "out")
    assert_refused(evaluate(*arguments, *out), said)


def assert_refused(done: subprocess.CompletedProcess[str], said: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr


@pytest.mark.slow
def test_evaluate_table_and_report_load_neither_torch_nor_video(evaluated: Path, tmp_path: Path) -> None:
    program = f"""
import sys
from trainer.cli import main
sys.argv = ["edge-train", "evaluate", "--predictions", {str(evaluated / "p.csv")!r}, "--out", {str(tmp_path)!r}]
assert main() == 0
sys.argv = ["edge-train", "report", {str(tmp_path)!r}, "--out", {str(tmp_path / "r.html")!r}]
assert main() == 0
print("loaded:", *[name for name in ("torch", "lightning", "monai", "av") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines()[-1] == "loaded:", done.stdout + done.stderr


def test_predictions_at_keeps_all_columns_together() -> None:
    whole = Predictions(
        ids=("a", "b", "c"),
        labels=np.array([0, 1, 1]),
        probabilities=np.array([0.1, 0.2, 0.3]),
        patient_ids=("p", "q", "r"),
        covariates={"age": ("1", "2", "3")},
    )
    part = whole.at([2, 0])
    assert (part.ids, part.labels.tolist(), part.patient_ids) == (("c", "a"), [1, 0], ("r", "p"))
    assert part.covariates == {"age": ("3", "1")}
    assert part.paths is None
