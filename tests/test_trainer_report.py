"""`edge-train report`: one page that holds everything, asks nobody for anything, and says what it must."""

import base64
import csv
import functools
import hashlib
import io
import json
import operator
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edge.commandline import NOTICE
from engines import PreprocessSpec
from tests.trainer_command import edge_train
from trainer.evaluation.plots import Series, draw_confusion, draw_decision, draw_history, save_png
from trainer.inference.predictors import about_run
from trainer.report.entries import load_contents
from trainer.report.sections import evidence_text
from trainer.runs import FINISHED, Run, load_run, write_run

EVIL = "<img src=http://evil.example/x>"
WIDTHS_PX = (1280, 390)


def write_predictions(path: Path, seed: int, num: int = 24) -> Path:
    rng = np.random.default_rng(seed)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "label", "probability", "patient_id", "age", EVIL])
        for index in range(num):
            label = index % 2
            probability = np.clip(rng.normal(0.35 + 0.3 * label, 0.2), 0.01, 0.99)
            writer.writerow([f"{index}.mp4", label, probability, f"P{index // 4}-{label}", 40 + index, "ab"[index % 2]])
    return path


def write_readers(path: Path, num: int = 24) -> Path:
    rows = [f"{reader},{index}.mp4,{(index + place) % 2}" for place, reader in enumerate("XY") for index in range(num)]
    path.write_text("\n".join(["reader,id,call", *rows]))
    return path


def write_small_run(folder: Path) -> Path:
    """Write what a training leaves, but for the weights."""
    run = Run(
        path=folder,
        model="tin-r18",
        model_options={},
        classes=("negative", "positive"),
        preprocess=PreprocessSpec(),
        num_frames=16,
        frame_interval_ms=40.0,
        recipe={"epochs": 3, "learning_rate": 1e-4, "init": None},
        manifest={"name": "patients.csv", "sha256": "ab" * 32},
        split={"train": ["t.mp4"], "validation": [f"{index}.mp4" for index in range(24)], "test": []},
        threshold=0.45,
        versions={"torch": "2.13.0"},
        wall_s=4000.0,
        state=FINISHED,
    )
    folder.mkdir()
    write_run(run)
    write_predictions(folder / "predictions.csv", seed=5)
    (folder / "metrics.csv").write_text(
        "epoch,train_loss,train_accuracy,val_loss,val_accuracy\n1,0.7,0.5,0.69,0.5\n2,0.6,0.6,,\n3,0.5,0.8,0.55,0.7\n"
    )
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two evaluations of the same videos, one of others, a run, and their report."""
    folder = tmp_path_factory.mktemp("report")
    readers = write_readers(folder / "readers.csv")
    for name, seed, num in (("first", 0, 24), ("second", 1, 24), ("b/first", 2, 10)):
        (folder / name).parent.mkdir(exist_ok=True)
        table = write_predictions(folder / f"{name}.csv", seed, num)
        more = ("--readers", readers) if name == "first" else ()
        assert edge_train("evaluate", "--predictions", table, *more, "--out", folder / f"ev-{name}").returncode == 0
    write_small_run(folder / "run")
    inputs = [folder / "ev-first", folder / "ev-second", folder / "ev-b" / "first", folder / "run"]
    done = edge_train("report", *inputs, "--out", folder / "report.html", "--title", f"Title {EVIL}")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", re.sub(r"(?s)<style>.*?</style>", "", page)))


def test_report_names_no_address_and_loads_no_file(page: str) -> None:
    markup = re.sub(r'"data:image/png;base64,[^"]*"', '""', page)
    assert not re.search(r"(?i)<(script|link|iframe|object|embed|img src=http)", markup)
    assert not re.search(r"url\(|@import", markup)
    assert all(source == "" for source in re.findall(r'src="([^"]*)"', markup))


def test_report_says_what_it_is_not(page: str) -> None:
    assert page.count(NOTICE) >= 2
    assert "Research use only" in page
    assert "Not for diagnosis" in page


def test_report_shows_names_of_others_as_text(page: str) -> None:
    assert EVIL not in page
    assert "Title &lt;img src=http://evil.example/x&gt;" in page


def test_report_holds_the_tables_of_the_evaluations(folder: Path, page: str) -> None:
    text = text_of(page)
    for caption in ("Table 1A", "Table 2A", "Table 3A", "Table 2B", "Subgroups, first", "same network on two sets"):
        assert caption in text
    metrics = json.loads((folder / "ev-first" / "metrics.json").read_text())
    counts = metrics["counts"]
    row = (
        f"first {counts['tp']}/12 {counts['tn']}/12 {100 * metrics['accuracy']:.2f} {100 * metrics['sensitivity']:.2f}"
    )
    assert row in text
    assert f"{metrics['kappa']:.3f} ± {metrics['kappa_se']:.3f}" in text
    assert "Reader X" in text
    assert "p McNemar" in text


def test_report_shows_a_runs_validation_as_such_and_its_training(page: str) -> None:
    text = text_of(page)
    assert "the weights and the threshold were chosen: not a test" in text
    assert "patients.csv, SHA-256 abababababababab; videos: 1 train, 24 validation, 0 test" in text
    assert "1 h 6 min" in text
    assert "learning_rate 0.0001" in text


def test_report_pictures_are_whole_and_lie_beside_it(folder: Path, page: str) -> None:
    held = re.findall(r'"data:image/png;base64,([^"]*)"', page)
    assert len(held) == 3 * 5 + 1
    for picture in held:
        with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
            image.load()
            assert min(image.size) > 300
    beside = {path.name for path in (folder / "report_files").iterdir()}
    assert {"a-roc.png", "a-confusion.png", "b-decision.png", "table-2a-networks.csv"} <= beside
    assert {base64.b64encode((folder / "report_files" / "a-roc.png").read_bytes()).decode()} <= set(held)
    with (folder / "report_files" / "table-2a-networks.csv").open(encoding="utf-8") as stream:
        assert [row["Network"] for row in csv.DictReader(stream)] == ["first", "second"]


def test_report_in_a_browser_asks_for_nothing_and_fits_the_window(folder: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for width_px in WIDTHS_PX:
            tab = browser.new_page(viewport={"width": width_px, "height": 900})
            asked: list[str] = []
            said: list[str] = []
            tab.on("request", lambda request, asked=asked: asked.append(request.url))
            tab.on("console", lambda message, said=said: said.append(message.text))
            tab.goto((folder / "report.html").as_uri())
            assert [url for url in asked if not url.startswith("data:")] == [(folder / "report.html").as_uri()]
            assert said == []
            assert tab.evaluate("document.documentElement.scrollWidth") <= width_px
            assert tab.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
            assert tab.evaluate("document.images.length") == 16
            tab.close()
        browser.close()


def test_report_of_a_measured_run_shows_the_test_and_not_the_validation(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "ev-first", tmp_path / "test")
    path = tmp_path / "test" / "metrics.json"
    metrics = json.loads(path.read_text())
    shutil.copytree(folder / "run", tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").write_bytes(b"weights")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    metrics["model"] = {"kind": "run", "name": "run", "weights_sha256": sha256}
    path.write_text(json.dumps(metrics))
    contents = load_contents([tmp_path / "test", tmp_path / "run"])
    assert [entry.folder.name for entry in contents.entries] == ["test"]
    assert [bool(training.history) for training in contents.trainings] == [True]


def test_report_of_a_measured_cross_validation_shows_the_test_and_all_folds(folder: Path, tmp_path: Path) -> None:
    fold = tmp_path / "five" / "fold-0"
    shutil.copytree(folder / "run", fold)
    (fold / "model.safetensors").write_bytes(b"weights")
    with (folder / "second.csv").open(newline="", encoding="utf-8") as stream:
        table = [{**row, "fold": place % 2, "threshold": 0.5} for place, row in enumerate(csv.DictReader(stream))]
    with (tmp_path / "five" / "predictions.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    (tmp_path / "five" / "crossval.json").write_text(json.dumps({"best": "fold-0"}))
    shutil.copytree(folder / "ev-first", tmp_path / "test")
    path = tmp_path / "test" / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["model"] = {"kind": "run", "name": "five/fold-0", "weights_sha256": hashlib.sha256(b"weights").hexdigest()}
    path.write_text(json.dumps(metrics))
    contents = load_contents([tmp_path / "test", tmp_path / "five"])
    assert [entry.folder.name for entry in contents.entries] == ["test", "five"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: None, "has neither metrics.json nor run.json"),
        (lambda folder: (folder / "metrics.json").write_text("{"), "metrics.json cannot be read"),
        (lambda folder: (folder / "metrics.json").write_text('{"name": "a"}'), "cannot be read (it has no n); run"),
        (lambda folder: (folder / "metrics.json").write_text("[]"), "(it is [], not an object)"),
        (lambda folder: (folder / "metrics.json").write_text("[" * 200_000), "metrics.json cannot be read (maximum"),
        (lambda folder: (folder / "run.json").write_text("[]"), "run.json holds no JSON object"),
        (lambda folder: (folder / "run.json").write_text("[" * 200_000), "run.json cannot be read (maximum"),
        (lambda folder: (folder / "crossval.json").write_text("[" * 200_000), "crossval.json cannot be read (maximum"),
    ],
)
def test_report_of_something_else_is_refused_by_one_line(tmp_path: Path, make, said: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "input").mkdir()
    make(tmp_path / "input")
    done = edge_train("report", tmp_path / "input", "--out", tmp_path / "report.html")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert said in done.stderr
    assert not (tmp_path / "report.html").exists()


def keys_of(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path to every key, and to the first item of every list."""
    items: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value[:1]))
    for key, part in items:
        yield (*path, key)
        yield from keys_of(part, (*path, key))


CHANGES = {"missing": None, "text": "x", "list": ["x"], "number": 0.5}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda metrics: metrics.pop("auc"), "it has no auc"),
        (lambda metrics: metrics.update(auc="0,9"), 'auc is "0,9", not a number or null'),
        (lambda metrics: metrics["counts"].pop("tp"), "it has no counts.tp"),
        (lambda metrics: metrics["readers"][1].update(kappa_se=[]), "readers[1].kappa_se is [], not a number or null"),
        (lambda metrics: metrics.update(n=0), "n is 0, not a whole number from 1"),
        (lambda metrics: metrics.update(sensitivity_ci=[0.5]), "sensitivity_ci is [0.5], not two numbers or null"),
        (lambda metrics: metrics["model"].update(clip=["x" * 99]), f'model.clip is ["{"x" * 38}..., not an object'),
        (lambda metrics: metrics.update(threshold=None), "threshold is null, and predictions.csv has no column thresh"),
    ],
)
def test_report_of_metrics_changed_by_hand_names_file_and_key(
    folder: Path,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], object],
    said: str,
) -> None:
    shutil.copytree(folder / "ev-first", tmp_path / "ev")
    path = tmp_path / "ev" / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8"))
    change(metrics)
    path.write_text(json.dumps(metrics), encoding="utf-8")
    done = edge_train("report", tmp_path / "ev", "--out", tmp_path / "report.html")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert done.stderr.startswith(f"error: {path}")
    assert said in done.stderr
    assert not (tmp_path / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_report_of_metrics_with_any_key_changed_names_it_or_shows_them(
    folder: Path, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.report.sections._pictures", lambda *_: ())  # drawing takes long
    shutil.copytree(folder / "ev-first", tmp_path / "ev")
    path = tmp_path / "ev" / "metrics.json"
    whole = {**json.loads(path.read_text(encoding="utf-8")), "model": about_run(load_run(folder / "run"))}
    whole["cases"] = [{"kind": "tp", "picture": "roc.png", "id": "a", "probability": 0.9, "keyframe": 3, "peak": 1.0}]
    rates = dict.fromkeys(("keyframe_hit_rate", "window_hit_rate", "mask_share"), 0.5)
    whole["heatmap"] = {"num_videos": 1, "num_windows": 2, **rates}
    refused = set()
    for keys in list(keys_of(whole)):
        metrics = json.loads(json.dumps(whole))
        parent = functools.reduce(operator.getitem, keys[:-1], metrics)
        if change == "missing":
            del parent[keys[-1]]
        else:
            parent[keys[-1]] = CHANGES[change]
        path.write_text(json.dumps(metrics), encoding="utf-8")
        done = edge_train("report", tmp_path / "ev", "--out", tmp_path / "report.html")
        assert (done.returncode, len(done.stderr.splitlines())) in ((0, 0), (2, 1)), (keys, done.stderr)
        if done.returncode == 2:
            refused.add(keys[-1])
            assert f"{path} cannot be read (" in done.stderr
            assert str(keys[-1]) in done.stderr or isinstance(keys[-1], int)
    assert {"counts", "tp", "model", "data"} <= refused
    assert change == "number" or {"auc", "kappa", "brier", "mcnemar"} <= refused


def test_report_that_is_no_page_is_refused(folder: Path, tmp_path: Path) -> None:
    done = edge_train("report", folder / "run", "--out", tmp_path / "report")
    assert done.returncode == 2
    assert "give a file name that ends in .html" in done.stderr


def test_pictures_of_the_same_figures_have_the_same_bytes(tmp_path: Path) -> None:
    series = [Series("a", np.array([0, 1, 0, 1]), np.array([0.1, 0.4, 0.6, 0.9]), 0.5)]
    for name in ("first.png", "second.png"):
        save_png(draw_confusion(series), tmp_path / name)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


def test_curves_of_missing_values_and_of_one_epoch_are_drawn(tmp_path: Path) -> None:
    figure = draw_history("run", [1.0], {"training": [0.5], "validation": [float("nan")]}, {})
    lines = figure.axes[0].get_lines()
    assert [len(line.get_xdata()) for line in lines] == [1, 0]
    low, high = figure.axes[0].get_xlim()
    assert [tick for tick in figure.axes[0].get_xticks() if low <= tick <= high] == [1]
    save_png(figure, tmp_path / "history.png")


def test_decision_curve_of_several_networks_draws_each_and_the_two_references() -> None:
    labels = np.array([0, 1, 0, 1])
    series = [Series(name, labels, np.array([0.1, 0.4, 0.6, 0.9]), 0.5) for name in "abc"]
    assert len(draw_decision(series).axes[0].get_lines()) == 5


def test_case_without_evidence_names_no_place() -> None:
    case = {"keyframe": 3, "peak": 0.0, "is_inside_mask": 0}
    assert evidence_text(case) == "frame 3, no evidence for the positive class"
    assert evidence_text({**case, "peak": 0.1}) == "frame 3, peak outside the mask"
    assert evidence_text({**case, "peak": 0.1, "is_inside_mask": 1}) == "frame 3, peak inside the mask"
    assert evidence_text({"keyframe": 3, "peak": 0.1}) == "frame 3"
