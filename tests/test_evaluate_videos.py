"""`edge-train evaluate BUNDLE|RUN MANIFEST`: the daemon's own probabilities, the right videos, keyframes and masks."""

import csv
import dataclasses
import json
import shutil
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from edge.errors import ConfigError
from engines import PreprocessSpec
from engines.bundle import load_bundle
from tests.daemon import record
from tests.small_bundle import NUM_FRAMES, SIZE_PX, small_bundle, small_model
from tests.trainer_command import edge_train
from tools.phantom import DatasetSpec, write_dataset
from trainer.data.clips import ClipStore, VideoFrames
from trainer.data.decode import ClipSpec
from trainer.data.manifest import read_manifest
from trainer.data.video import Video
from trainer.evaluation.aggregate import aggregate_logits, binary_logits, logits_of, probabilities_of
from trainer.evaluation.folder import own_names
from trainer.inference.evidence import Peak, covered_share, find_peak, is_hit, summarise_hits
from trainer.inference.predict import window_logits
from trainer.inference.predictors import Card, RunPredictor
from trainer.inference.selection import select_videos
from trainer.report.facts import facts_of_training
from trainer.runs import FINISHED, TRAINING, WEIGHTS_NAME, Run, write_run, write_weights

DEMO = Path(__file__).parent.parent / "engines" / "demo"
SPEC = PreprocessSpec((SIZE_PX, SIZE_PX), (SIZE_PX, SIZE_PX))
NUM_VIDEOS, NUM_VIDEO_FRAMES, INTERVAL_MS = 8, 18, 40.0


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the manifest of 8 short videos with masks and ROIs, all "train" or "val"."""
    out = tmp_path_factory.mktemp("phantoms") / "data"
    spec = DatasetSpec(out=out, num_videos=NUM_VIDEOS, seed=3, num_frames=NUM_VIDEO_FRAMES, size_wh=(160, 120))
    list(write_dataset(spec))
    return out / "manifest.csv"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> Run:
    """Return the small bundle's network as a run that says that it was trained on the first four phantoms."""
    manifest = read_manifest(phantoms)
    ids = [video.id for video in manifest.videos]
    run = Run(
        path=tmp_path_factory.mktemp("runs") / "small",
        model="tin-r18",
        model_options={"width": 16},
        classes=("benign", "suspicious"),
        preprocess=SPEC,
        num_frames=NUM_FRAMES,
        frame_interval_ms=INTERVAL_MS,
        manifest={"name": phantoms.name, "sha256": manifest.sha256},
        split={"train": ids[:2], "validation": ids[2:4], "test": ids[4:]},
        threshold=0.4,
        state=FINISHED,
    )
    write_run(run)
    write_weights(run.path / WEIGHTS_NAME, small_model().state_dict())
    (run.path / "metrics.csv").write_text("epoch,train_loss,val_loss\n1,0.7,0.8\n")
    return run


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(tmp_path_factory).path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, phantoms: Path, cache: Path) -> Path:
    """Return the demo bundle's evaluation."""
    out = tmp_path_factory.mktemp("demo")
    evaluate(DEMO, phantoms, out, cache)
    return out


@pytest.fixture(scope="module")
def by_bundle(tmp_path_factory: pytest.TempPathFactory, phantoms: Path, bundle: Path, cache: Path) -> Path:
    """Return the small bundle's evaluation."""
    out = tmp_path_factory.mktemp("small")
    evaluate(bundle, phantoms, out, cache)
    return out


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def windows_of(out: Path) -> dict[str, list[float]]:
    found = defaultdict(list)
    for row in rows_of(out / "windows.csv"):
        found[row["id"]].append(float(row["probability"]))
    return found


def metrics_of(out: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    return metrics


def evaluate(model: Path, manifest: Path, out: Path, cache: Path, *more: str) -> None:
    done = edge_train("evaluate", model, manifest, "--out", out, "--cache", cache, *more)
    assert done.returncode == 0, done.stderr


def test_evaluate_bundle_gives_the_probabilities_of_the_daemon(phantoms: Path, bundle: Path, by_bundle: Path) -> None:
    video = read_manifest(phantoms).videos[-1]
    assert video.roi is not None
    roi = ",".join(map(str, video.roi))
    played = record(
        *("--source", str(video.path), "--engine", str(bundle), "--pace", "max", "--hop", "1", "--roi", roi)
    ).predictions
    live = [header["probabilities"][-1] for header in played]
    assert len(live) > 3
    assert windows_of(by_bundle)[video.id] == pytest.approx(live, abs=1e-6)
    pooled = probabilities_of(aggregate_logits(binary_logits(np.array(live))))[1]
    ours = {row["id"]: float(row["probability"]) for row in rows_of(by_bundle / "predictions.csv")}
    assert ours[video.id] == pytest.approx(pooled, abs=1e-6)


def test_evaluate_manifest_with_other_predictions_writes_the_models_own(
    phantoms: Path, bundle: Path, by_bundle: Path, cache: Path, tmp_path: Path
) -> None:
    rows = [
        {**row, "id": f"case {n}", "probability": 0.123, "threshold": 0.9} for n, row in enumerate(rows_of(phantoms))
    ]
    manifest = phantoms.with_name("with-predictions.csv")
    with manifest.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    evaluate(bundle, manifest, tmp_path / "out", cache)
    assert rows_of(tmp_path / "out" / "predictions.csv") == rows_of(by_bundle / "predictions.csv")


def test_evaluate_run_agrees_with_its_bundle_and_leaves_out_what_it_has_seen(
    phantoms: Path, run: Run, by_bundle: Path, cache: Path, tmp_path: Path
) -> None:
    evaluate(run.path, phantoms, tmp_path, cache)
    by_run = windows_of(tmp_path)
    assert list(by_run) == run.split["test"]
    for id_, probabilities in by_run.items():
        assert windows_of(by_bundle)[id_] == pytest.approx(probabilities, abs=1e-4)
    metrics = metrics_of(tmp_path)
    assert (metrics["threshold"], metrics["n"]) == (run.threshold, 4)
    assert metrics["data"]["selection"] == "the videos that training and validation left out"
    assert (tmp_path / "training.csv").read_bytes() == (run.path / "metrics.csv").read_bytes()


@pytest.mark.parametrize("command", ["evaluate", pytest.param("export", marks=pytest.mark.slow)])
def test_unfinished_training_is_told_by_whoever_uses_its_weights(
    run: Run, phantoms: Path, cache: Path, tmp_path: Path, command: str
) -> None:
    half = dataclasses.replace(run, path=tmp_path / "half", state=TRAINING, threshold=0.5)
    write_run(half)
    shutil.copyfile(run.path / WEIGHTS_NAME, half.path / WEIGHTS_NAME)
    more = (phantoms, "--cache", cache) if command == "evaluate" else ()
    done = edge_train(command, half.path, *more, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"warning: the training of {half.path} did not finish: ")
    if command == "evaluate":
        facts, _ = facts_of_training(metrics_of(tmp_path / "out")["model"])
        assert "training did not finish" in {fact.name: fact.value for fact in facts}["state"]


def test_run_predictor_divides_the_logits_by_the_temperature(run: Run, phantoms: Path, cache: Path) -> None:
    store = ClipStore(cache, SPEC, NUM_FRAMES, INTERVAL_MS)
    frames = store.get(read_manifest(phantoms).videos[0])
    plain, cooled = (
        np.array([output.logits for output in RunPredictor(own, "cpu").windows(frames)])
        for own in (run, dataclasses.replace(run, temperature=0.5))
    )
    assert cooled == pytest.approx(2 * plain)
    assert plain == pytest.approx(window_logits(run.network(), frames), abs=1e-6)


def test_evaluate_demo_bundle_finds_nodes_and_writes_what_the_report_shows(phantoms: Path, demo: Path) -> None:
    metrics = metrics_of(demo)
    assert metrics["n"] == NUM_VIDEOS  # it was trained on other videos
    assert metrics["auc"] > 0.9
    assert metrics["threshold"] == load_bundle(DEMO).threshold
    assert metrics["heatmap"]["num_videos"] == NUM_VIDEOS // 2
    assert metrics["heatmap"]["window_hit_rate"] > 0.9 > 3 * metrics["heatmap"]["mask_share"]
    rows = rows_of(demo / "predictions.csv")
    assert [row["path"] for row in rows] == [video.id for video in read_manifest(phantoms).videos]
    assert "mask" not in rows[0]
    keyframes = rows_of(demo / "keyframes.csv")
    assert all(
        int(row["window_first_index"]) <= int(row["keyframe"]) <= int(row["window_last_index"]) for row in keyframes
    )
    assert {case["kind"] for case in metrics["cases"]} >= {"tp", "tn"}
    assert all((demo / case["picture"]).is_file() for case in metrics["cases"])
    files = {str(path.relative_to(demo)) for path in demo.rglob("*") if path.is_file()}
    assert files == set(metrics["files"])
    assert {"windows.csv", "keyframes.csv", "cases/tp-1.png", "metrics.json"} <= files <= set(own_names())


def test_evaluate_table_of_a_models_predictions_gives_the_same_figures(demo: Path, tmp_path: Path) -> None:
    first = metrics_of(demo)
    threshold = ("--threshold", repr(first["threshold"]))
    done = edge_train("evaluate", "--predictions", demo / "predictions.csv", *threshold, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    second = metrics_of(tmp_path)
    for name in ("counts", "auc", "auc_ci", "brier", "ece", "kappa", "subgroups"):
        assert second[name] == first[name]


def test_evaluate_short_video_is_named_and_left_out(run: Run, phantoms: Path, cache: Path, tmp_path: Path) -> None:
    manifest = read_manifest(phantoms)
    list(write_dataset(DatasetSpec(out=tmp_path / "short", num_videos=1, seed=9, num_frames=2, size_wh=(160, 120))))
    lines = ["path,label,patient_id", *(f"{v.path},{v.label},{v.patient_id}" for v in manifest.videos[-4:])]
    lines.append(f"{tmp_path / 'short' / 'videos' / '000000.mp4'},0,other")
    (tmp_path / "m.csv").write_text("\n".join(lines))
    done = edge_train("evaluate", run.path, tmp_path / "m.csv", "--out", tmp_path / "out", "--cache", cache)
    assert done.returncode == 0, done.stderr
    assert "warning: left out:" in done.stderr
    metrics = metrics_of(tmp_path / "out")
    assert metrics["n"] == 4
    assert [Path(id_).parent.parent.name for id_ in metrics["data"]["left_out"]] == ["short"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--backend", "openvino"), "--backend runs bundles"),
        (("--device", "nonsense"), "--device nonsense cannot be used"),
    ],
)
def test_evaluate_run_with_wrong_device_is_refused(
    run: Run, phantoms: Path, tmp_path: Path, more: tuple[str, str], said: str
) -> None:
    done = edge_train("evaluate", run.path, phantoms, "--out", tmp_path / "out", *more)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_evaluate_one_class_only_is_refused_before_decoding(run: Run, phantoms: Path, tmp_path: Path) -> None:
    manifest = read_manifest(phantoms)
    lines = [f"{video.path},0,{video.patient_id}" for video in manifest.videos if video.label == 0]
    (tmp_path / "m.csv").write_text("\n".join(["path,label,patient_id", *lines]))
    done = edge_train("evaluate", run.path, tmp_path / "m.csv", "--out", tmp_path / "out", "--cache", tmp_path / "c")
    assert done.returncode == 2
    assert "are of one class only; measuring needs videos of 'suspicious'" in done.stderr
    assert not (tmp_path / "c").exists()


def card(sha256: str | None, split: dict[str, list[str]]) -> Card:
    return Card(
        name="model",
        classes=("negative", "positive"),
        threshold=0.5,
        clip=ClipSpec(SPEC, NUM_FRAMES, INTERVAL_MS),
        roi="auto",
        about={},
        manifest_sha256=sha256,
        split=split,
    )


def nothing_known(video: Video) -> str:
    raise AssertionError(f"{video.id} was read for a model that knows no videos by content")


def test_selection_leaves_out_what_the_run_has_seen(phantoms: Path) -> None:
    manifest = read_manifest(phantoms)
    ids = [video.id for video in manifest.videos]
    own = card(manifest.sha256, {"train": ids[:4], "validation": ids[4:6], "test": []})
    assert [video.id for video in select_videos(manifest, own, None, nothing_known).videos] == ids[6:]
    assert [video.id for video in select_videos(manifest, own, "val", nothing_known).videos] == ids[4:6]
    assert len(select_videos(manifest, own, "all", nothing_known).videos) == NUM_VIDEOS


def test_selection_of_nothing_unseen_is_refused(phantoms: Path) -> None:
    manifest = read_manifest(phantoms)
    own = card(manifest.sha256, {"train": [video.id for video in manifest.videos]})
    with pytest.raises(ConfigError, match="trained and chosen on all 8 videos"):
        select_videos(manifest, own, None, nothing_known)
    with pytest.raises(ConfigError, match="has no test videos for model"):
        select_videos(manifest, own, "test", nothing_known)


def test_selection_without_a_test_takes_the_validation_videos_and_says_so(
    phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = read_manifest(phantoms)
    ids = [video.id for video in manifest.videos]
    own = card(manifest.sha256, {"train": ids[2:], "validation": ids[:2]})
    selection = select_videos(manifest, own, None, nothing_known)
    assert [video.id for video in selection.videos] == ids[:2]
    assert "no test" in selection.description
    assert "no test" in capsys.readouterr().err


def test_selection_of_all_says_that_training_videos_are_among_them(
    phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = read_manifest(phantoms)
    assert "no test" in select_videos(manifest, card(manifest.sha256, {}), "all", nothing_known).description
    assert "no test" in capsys.readouterr().err
    assert "no test" not in select_videos(manifest, card("another", {}), "all", nothing_known).description
    assert capsys.readouterr().err == ""


def test_selection_of_another_manifest_takes_all_and_warns_of_shared_paths(
    phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = read_manifest(phantoms)
    other = card("another", {"train": [manifest.videos[0].id]})
    assert len(select_videos(manifest, other, None, nothing_known).videos) == NUM_VIDEOS
    assert "1 videos have the paths of videos that model was trained on" in capsys.readouterr().err


def test_selection_of_a_bundle_that_names_no_videos_warns(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"{video.path},{video.label},{video.patient_id}" for video in read_manifest(phantoms).videos]
    (tmp_path / "m.csv").write_text("\n".join(["path,label,patient_id", *lines]))
    manifest = read_manifest(tmp_path / "m.csv")
    assert "no test" in select_videos(manifest, card(manifest.sha256, {}), None, nothing_known).description
    assert "evaluate the run" in capsys.readouterr().err


def test_hit_is_inside_the_mask_of_the_keyframe_and_not_without_evidence() -> None:
    masks = np.zeros((3, 20, 30), bool)
    masks[1, 5:10, 10:20] = True
    peak = Peak(value=2.0, frame_index=1, point_px=(19, 9), visible=(0, 0, 30, 20))
    assert is_hit(peak, masks)
    assert not is_hit(dataclasses.replace(peak, point_px=(20, 9)), masks)
    assert not is_hit(dataclasses.replace(peak, frame_index=2), masks)
    assert not is_hit(dataclasses.replace(peak, value=0.0), masks)
    assert covered_share(peak, masks) == pytest.approx(50 / 600)


def test_peak_lies_where_its_cell_does_in_the_roi_of_its_own_frame() -> None:
    frames = SimpleNamespace(
        rois=np.array([(0, 0, 8, 8)] * 4 + [(10, 20, 100, 60)] + [(0, 0, 8, 8)]),
        frame_indices=np.array([0, 2, 4, 6, 9, 10]),
    )
    heatmap = np.zeros((2, 4, 5), np.float32)
    heatmap[1, 3, 0] = 2.5
    peak, offset = find_peak(heatmap, cast(VideoFrames, frames), 3, PreprocessSpec((64, 64), (32, 48)))
    assert (offset, peak.value, peak.frame_index) == (1, 2.5, 9)
    # the cell's centre in the resized image is (8 + 48 * 0.5 / 5, 16 + 32 * 3.5 / 4), of 64 x 64
    assert peak.point_px == (pytest.approx(10 + 100 * 12.8 / 64, abs=1), pytest.approx(20 + 60 * 44 / 64, abs=1))
    assert peak.visible == pytest.approx((10 + 100 * 8 / 64, 20 + 60 * 16 / 64, 75, 30), abs=0.5)
    masks = np.zeros((10, 100, 120), bool)
    masks[9, 35:50, 22:97] = True  # the upper half of what the network saw
    assert covered_share(peak, masks) == 0.5


def test_hits_of_no_video_are_none() -> None:
    assert summarise_hits([]) is None
    summary = summarise_hits([(True, [True, False], 0.1), (False, [False, False], 0.3)])
    assert summary == {
        "num_videos": 2,
        "num_windows": 4,
        "keyframe_hit_rate": 0.5,
        "window_hit_rate": 0.25,
        "mask_share": 0.2,
    }


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [
        ("mean-logit", 1 / (1 + np.exp(-(2 - 1 + 5) / 3))),
        ("mean-probability", np.mean(1 / (1 + np.exp(-np.array([2, -1, 5]))))),
        ("strongest", 1 / (1 + np.exp(-5))),
    ],
)
def test_aggregate_of_binary_windows_equals_its_definition(aggregate: str, expected: float) -> None:
    logits = np.array([[0.0, 2.0], [7.0, 6.0], [-5.0, 0.0]])
    assert probabilities_of(aggregate_logits(logits, aggregate))[1] == pytest.approx(expected)


def test_aggregate_takes_probabilities_for_logits() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (9, 4))
    expected = probabilities_of(logits.mean(0))
    assert probabilities_of(aggregate_logits(logits_of(probabilities_of(logits)))) == pytest.approx(expected)
