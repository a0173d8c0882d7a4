"""The folder of an evaluation: nothing of an earlier one is left in it, and nothing else is touched."""

import json
from pathlib import Path

import pytest

from edge.errors import ConfigError
from tests.trainer_command import edge_train
from trainer.errors import TrainingError
from trainer.evaluation.folder import METRICS_NAME, check_folder, new_evaluation, own_names

ROWS = ["a,0,0.1,p,F", "b,1,0.9,q,M", "c,0,0.6,r,F", "d,1,0.4,s,M", "e,0,0.2,t,M", "f,1,0.8,u,M"]


def tables(folder: Path) -> tuple[Path, Path]:
    """Write a table of predictions with a covariate, and one of readers."""
    predictions, readers = folder / "p.csv", folder / "r.csv"
    predictions.write_text("\n".join(["id,label,probability,patient_id,sex", *ROWS]))
    readers.write_text("\n".join(["reader,id,call", *(f"A,{row[0]},{row[2]}" for row in ROWS)]))
    return predictions, readers


def evaluate(out: Path, predictions: Path, *more: str | Path) -> None:
    done = edge_train("evaluate", "--predictions", predictions, "--out", out, *more)
    assert done.returncode == 0, done.stderr


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_evaluation_leaves_nothing_of_the_one_before_and_other_files_alone(tmp_path: Path) -> None:
    predictions, readers = tables(tmp_path)
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    evaluate(out, predictions, "--readers", readers)
    (out / "cases").mkdir()
    for name in ("cases/tp-1.png", "windows.csv", "training.csv"):  # of a model's evaluation
        (out / name).write_text("earlier")
    content = json.loads((out / METRICS_NAME).read_text())
    content["files"] += ["cases/tp-1.png", "windows.csv", "training.csv", "notes.txt", "../p.csv"]
    (out / METRICS_NAME).write_text(json.dumps(content))
    (out / "notes.txt").write_text("mine")
    (out / "cases" / "tp-1-annotated.png").write_text("mine")
    predictions.write_text("\n".join(["id,label,probability", *(row[:7] for row in ROWS)]))
    evaluate(out, predictions)
    evaluate(fresh, predictions)
    assert {"readers.csv", "table1.csv", "subgroups.csv"}.isdisjoint(names_in(fresh))
    assert names_in(out) == names_in(fresh) | {"notes.txt", "cases/tp-1-annotated.png"}
    assert not list(out.glob(".*"))


def test_evaluation_that_fails_leaves_the_one_before_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictions, readers = tables(tmp_path)
    out = tmp_path / "out"
    evaluate(out, predictions, "--readers", readers)
    before = {name: (out / name).read_bytes() for name in names_in(out)}

    def fail() -> None:
        with new_evaluation(out) as folder:
            (folder / "roc.csv").write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(TrainingError, match="the disk is full"):
        fail()
    assert {name: (out / name).read_bytes() for name in names_in(out)} == before


@pytest.mark.parametrize("name", ["predictions.csv", "cases/tp-1.png", "metrics.json"])
def test_files_of_unknown_origin_are_not_replaced(tmp_path: Path, name: str) -> None:
    predictions, _ = tables(tmp_path)
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("{}")
    done = edge_train("evaluate", "--predictions", predictions, "--out", out)
    assert done.returncode == 2
    assert f"holds {name}, which by its metrics.json no evaluation wrote" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert names_in(out) == {name}
    assert (out / name).read_text() == "{}"


def test_folder_of_a_run_is_refused(tmp_path: Path) -> None:
    for name in ("run.json", "model.safetensors", "metrics.csv", "predictions.csv"):
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=r"holds a model \(run\.json\)"):
        check_folder(tmp_path)


def test_inputs_may_lie_in_the_folder_and_are_never_touched(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    predictions, readers = tables(out)
    predictions, readers = predictions.rename(out / "predictions.csv"), readers.rename(out / "readers.csv")
    before = predictions.read_bytes(), readers.read_bytes()
    evaluate(out, predictions, "--readers", readers)
    evaluate(out, out / ".." / "out" / "predictions.csv", "--readers", readers, "--threshold", "0.3")
    assert (predictions.read_bytes(), readers.read_bytes()) == before
    done = edge_train("evaluate", "--predictions", predictions, "--out", out)
    assert "holds readers.csv, which by its metrics.json no evaluation wrote" in done.stderr
    assert (predictions.read_bytes(), readers.read_bytes()) == before


def test_evaluation_of_an_earlier_version_is_replaced(tmp_path: Path) -> None:
    predictions, readers = tables(tmp_path)
    out = tmp_path / "out"
    evaluate(out, predictions, "--readers", readers)
    content = json.loads((out / METRICS_NAME).read_text())
    assert {METRICS_NAME, "readers.csv", "roc.png"} <= set(content.pop("files"))
    (out / METRICS_NAME).write_text(json.dumps(content))
    evaluate(out, predictions)
    assert "readers.csv" not in names_in(out)


def test_own_names_are_distinct_and_begin_with_the_figures() -> None:
    assert own_names()[0] == METRICS_NAME
    assert len(set(own_names())) == len(own_names())
