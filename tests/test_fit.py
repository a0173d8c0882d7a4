"""Training: what a run holds, that it can be repeated, and what stops it. Small networks on synthetic videos."""

import csv
import dataclasses
import json
import re
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from small_training import SETTINGS, fit_command, fit_options, is_equal, run_command, trained_state
from source_files import noise, write_movie

from edge.errors import ConfigError
from engines import PreprocessSpec
from tools.phantom import DatasetSpec, write_dataset
from trainer.data.manifest import ManifestError
from trainer.errors import RunError, TrainingError
from trainer.evaluation.calibration import choose_threshold
from trainer.models import MODELS
from trainer.runs import (
    FINISHED,
    WEIGHTS_NAME,
    Run,
    build_network,
    load_run,
    read_weights,
    write_run,
    write_weights,
)
from trainer.training.checkpointing import checkpoint_path, network_weights, read_checkpoint
from trainer.training.crossval import cross_validate
from trainer.training.dataset import ValidationClips
from trainer.training.failures import explained
from trainer.training.finish import video_logits
from trainer.training.fit import fit
from trainer.training.keeper import COLUMNS, best_row, is_exhausted
from trainer.training.module import parameter_groups, validation_metrics
from trainer.training.plan import FitOptions, make_plan
from trainer.training.profile import profile
from trainer.training.recipe import Recipe


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tests share the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(phantom_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of two epochs by the best preset; do not change it."""
    out = tmp_path_factory.mktemp("runs") / "first"
    fit(fit_options(phantom_manifest, out, preset="best"))
    return out


def test_fit_leaves_a_run_that_says_how_it_came_about(phantom_manifest: Path, finished: Path) -> None:
    run = load_run(finished)
    assert (run.state, run.model, run.classes) == (FINISHED, "tin-r18", ("negative", "positive"))
    assert (run.num_frames, run.frame_interval_ms, run.preprocess.crop_hw) == (4, 66, (32, 32))
    assert run.recipe["ema_decay"] > 0
    assert {len(run.split[name]) for name in ("train", "validation")} == {4}
    assert run.manifest["name"] == phantom_manifest.name
    assert len(run.manifest["sha256"]) == 64
    assert run.validation["n"] == 4
    assert run.versions["torch"] == torch.__version__
    assert 0 <= run.threshold <= 1
    assert run.wall_s > 0
    assert list((finished / "tensorboard").glob("events*"))
    with (finished / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [row["epoch"] for row in rows] == ["1", "2"]


def test_fit_predicts_the_validation_videos_with_the_weights_it_keeps(phantom_manifest: Path, finished: Path) -> None:
    run = load_run(finished)
    plan = make_plan(fit_options(phantom_manifest, finished.parent / "other", preset="best"))
    assert [video.id for video, _ in plan.validation] == run.split["validation"]
    logits = video_logits(run, plan.validation)
    with (finished / "predictions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    expected = torch.from_numpy(logits / run.temperature).softmax(1)[:, -1].numpy()
    assert np.allclose([float(row["probability"]) for row in rows], expected, atol=1e-9)
    assert [int(row["label"]) for row in rows] == [video.label for video, _ in plan.validation]


def test_fit_keeps_the_running_mean_of_the_best_epoch(finished: Path) -> None:
    run = load_run(finished)
    checkpoint = read_checkpoint(checkpoint_path(finished, run.best_epoch))
    assert is_equal(read_weights(finished / "model.safetensors"), network_weights(checkpoint["state_dict"]))
    name = "network.backbone.conv1.weight"
    assert not torch.equal(checkpoint["state_dict"][name], checkpoint["current_model_state"][name])


def test_fit_of_the_same_command_gives_the_same_weights_and_of_another_seed_others(
    phantom_manifest: Path, tmp_path: Path, finished: Path
) -> None:
    fit(fit_options(phantom_manifest, tmp_path / "again", preset="best"))
    assert is_equal(trained_state(tmp_path / "again", 2), trained_state(finished, 2))
    same = (finished / "model.safetensors").read_bytes()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == same
    fit(fit_options(phantom_manifest, tmp_path / "other", "epochs=1", preset="best", seed=1))
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != same


def coarse_and_fine_grains(folder: Path) -> Path:
    """Return the manifest of sixteen videos of equal brightness whose class is the size of their grains."""
    lines = ["path,label,patient_id,fold,roi"]
    for number in range(16):
        label = number % 2
        fine = noise(12, 48 >> label, 48 >> label, seed=number)
        write_movie(folder / f"{number}.mp4", fine.repeat(1 << label, axis=1).repeat(1 << label, axis=2))
        lines.append(f'{number}.mp4,{label},patient-{number},{int(number < 4)},"0,0,48,48"')
    (folder / "manifest.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder / "manifest.csv"


@pytest.mark.parametrize("preset", [pytest.param("paper", marks=pytest.mark.slow), "best"])
def test_fit_learns_what_can_be_learned(tmp_path: Path, preset: str) -> None:
    manifest = coarse_and_fine_grains(tmp_path)
    settings = ("epochs=14", "clips_per_video=1", "batch_size=4", "frame_interval_ms=40")
    run = fit(fit_options(manifest, tmp_path / "run", *settings, preset=preset, fold=1))
    with (run.path / "metrics.csv").open(encoding="utf-8") as file:
        losses = [float(row["train_loss"]) for row in csv.DictReader(file)]
    # an epoch is three batches: of one alone the loss depends on the processor's rounding
    assert np.mean(losses[-3:]) < 0.6 * losses[0]
    assert run.validation["auc"] == 1.0
    assert run.validation["accuracy"] == 1.0


def test_fit_into_a_run_is_refused_and_changes_nothing(phantom_manifest: Path, finished: Path) -> None:
    before = (finished / "run.json").read_bytes()
    with pytest.raises(RunError, match="holds a run already; add --resume"):
        fit(fit_options(phantom_manifest, finished))
    assert (finished / "run.json").read_bytes() == before


def test_fit_into_a_file_is_refused(phantom_manifest: Path) -> None:
    with pytest.raises(RunError, match=r"cannot be made: .* is a file"):
        fit(fit_options(phantom_manifest, phantom_manifest / "run"))


def test_fit_into_a_folder_of_other_files_is_refused(phantom_manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "letters.txt").touch()
    with pytest.raises(RunError, match="is not empty and holds no run"):
        fit(fit_options(phantom_manifest, tmp_path))


def test_fit_that_diverges_names_the_step_and_keeps_what_was_trained(phantom_manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"the loss is (nan|inf) at step \d+ \(epoch 1, batch \d+\).*no epoch"
    ) as info:
        fit(fit_options(phantom_manifest, tmp_path / "run", "learning_rate=1e30", "batch_size=1"))
    assert "\n" not in str(info.value)
    assert info.value.exit_code == 1


def test_fit_on_a_full_disk_says_so_and_goes_on_where_it_was(phantom_manifest: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # a checkpoint is three times as large as the weights: the first does not fit
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, hard))
    try:
        with pytest.raises(TrainingError, match=r"the disk is full: no room for \d+\.\d MB to write .*00001.ckpt"):
            fit(fit_options(phantom_manifest, run))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in (run / "checkpoints").iterdir()] == []
    assert fit(fit_options(phantom_manifest, run, resume=True)).state == FINISHED


@pytest.mark.parametrize(
    ("stop", "said"),
    [
        (
            lambda: torch.empty(2**50),
            "out of memory with batches of 4 clips of 16 x 1 x 224 x 224.*lower --set batch_size",
        ),
        (lambda: (_ for _ in ()).throw(MemoryError()), "out of memory"),
        (lambda: Path("/dev/full").write_bytes(b"x"), "the disk is full"),
    ],
    ids=["allocation", "memory-error", "write"],
)
def test_library_error_is_told_with_the_checkpoint_that_is_left(
    finished: Path, stop: Callable[[], object], said: str
) -> None:
    with (
        pytest.raises(TrainingError, match=f"{said}.*last good checkpoint is .*epoch-00002.ckpt"),
        explained(finished, Recipe()),
    ):
        stop()


def test_lost_worker_of_a_training_that_was_told_to_end_is_no_want_of_memory(finished: Path) -> None:
    lost = RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")
    with (
        pytest.raises(TrainingError, match=r"^training was stopped; the last good"),
        explained(finished, Recipe(), lambda: True),
    ):
        raise lost
    with pytest.raises(TrainingError, match="loads clips was killed"), explained(finished, Recipe()):
        raise lost


def test_library_error_that_is_a_bug_stays_what_it_is(finished: Path) -> None:
    with pytest.raises(RuntimeError, match="inconsistent tensor size"), explained(finished, Recipe()):
        torch.zeros(2) @ torch.zeros(3)


def test_fit_names_videos_that_are_too_short_and_leaves_them_out(
    phantom_manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    list(write_dataset(DatasetSpec(tmp_path / "short", num_videos=1, seed=9, num_frames=3, size_wh=(128, 96))))
    lines = phantom_manifest.read_text(encoding="utf-8").splitlines()
    lines = [lines[0], *(f"{phantom_manifest.parent}/{line}" for line in lines[1:]), "short/videos/000000.mp4,0,new"]
    (tmp_path / "manifest.csv").write_text("\n".join(lines), encoding="utf-8")
    plan = make_plan(fit_options(tmp_path / "manifest.csv", tmp_path / "run"))
    assert plan.run.left_out.keys() == {"short/videos/000000.mp4"}
    assert len(plan.train) + len(plan.validation) == 8
    assert "warning: short/videos/000000.mp4 is left out" in capsys.readouterr().err


def test_fit_whose_validation_videos_cannot_be_used_is_refused_before_training(
    phantom_manifest: Path, tmp_path: Path
) -> None:
    list(write_dataset(DatasetSpec(tmp_path / "short", num_videos=1, seed=9, num_frames=3, size_wh=(128, 96))))
    videos = [line.split(",") for line in phantom_manifest.read_text(encoding="utf-8").splitlines()[1:]]
    positive = next(name for name, label, _ in videos if label == "1")
    lines = [f"{phantom_manifest.parent}/{name},{label},{patient},train" for name, label, patient in videos]
    lines[0] = lines[0].replace("train", "val")
    assert positive not in lines[0]
    (tmp_path / "manifest.csv").write_text(
        "\n".join(["path,label,patient_id,split", *lines, "short/videos/000000.mp4,1,new,val"]), encoding="utf-8"
    )
    with pytest.raises(ManifestError, match="the 1 validation videos that can be used are of class 'negative' alone"):
        make_plan(fit_options(tmp_path / "manifest.csv", tmp_path / "run"))


def test_fit_starts_from_another_runs_weights(
    phantom_manifest: Path, tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan(fit_options(phantom_manifest, tmp_path / "run", f"init={finished}"))
    assert is_equal(plan.network.state_dict(), load_run(finished).network().state_dict())
    assert "random: none" in capsys.readouterr().out


def test_fit_from_an_imported_run_takes_over_how_it_normalises_pixels(phantom_manifest: Path, tmp_path: Path) -> None:
    options = {"pixel_mean": [0.449], "pixel_std": [0.226], "constant_plane": True, "width": 16}
    start = Run(
        path=tmp_path / "start", model="tin-r18", model_options=options, classes=("a", "b"),
        preprocess=PreprocessSpec(), num_frames=4, frame_interval_ms=66.0,
    )  # fmt: skip
    write_weights(start.path / WEIGHTS_NAME, build_network(start).state_dict())
    write_run(start)
    plan = make_plan(fit_options(phantom_manifest, tmp_path / "run", f"init={start.path}"))
    assert plan.run.model_options == options
    assert is_equal(plan.network.state_dict(), start.network().state_dict())


def test_fit_from_another_networks_weights_is_refused(phantom_manifest: Path, tmp_path: Path, finished: Path) -> None:
    with pytest.raises(RunError, match="most of its weights do not fit"):
        make_plan(fit_options(phantom_manifest, tmp_path / "run", f"init={finished}", "width=32"))


def test_static_network_trains_on_single_frames(phantom_manifest: Path, tmp_path: Path) -> None:
    settings = [setting for setting in SETTINGS if not setting.startswith("num_frames")]
    options = fit_options(phantom_manifest, tmp_path / "run", model="resnet50")
    run = fit(dataclasses.replace(options, settings=(*settings, "epochs=1")))
    assert run.num_frames == 1
    assert load_run(run.path).network()(torch.rand(2, 1, 1, 32, 32)).shape == (2, 2)


def test_cross_validation_of_another_number_of_folds_than_asked_for_says_so(
    phantom_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = list(csv.DictReader(phantom_manifest.read_text(encoding="utf-8").splitlines()))
    manifest = phantom_manifest.with_name("two-folds.csv")
    lines = [f"{row['path']},{row['label']},{row['patient_id']},{place // 4}" for place, row in enumerate(rows)]
    manifest.write_text("\n".join(["path,label,patient_id,fold", *lines]), encoding="utf-8")
    began = []

    def begin(options: FitOptions) -> None:
        began.append(options.fold)
        raise KeyboardInterrupt

    monkeypatch.setattr("trainer.training.crossval.fit", begin)
    with pytest.raises(KeyboardInterrupt):
        cross_validate(fit_options(manifest, tmp_path / "folds", num_folds=5))
    assert began == [0]
    assert capsys.readouterr().out.startswith(f"the 2 folds of {manifest}'s fold column are taken, not 5\n")


def test_cross_validation_is_one_fit_a_fold_and_names_the_best(phantom_manifest: Path, tmp_path: Path) -> None:
    options = fit_options(phantom_manifest, tmp_path / "folds", "epochs=1")
    summary = cross_validate(options)
    runs = [load_run(tmp_path / "folds" / f"fold-{fold}") for fold in range(2)]
    assert load_run(tmp_path / "folds").path.name == summary["best"]
    assert max(run.validation["auc"] for run in runs) == load_run(tmp_path / "folds").validation["auc"]
    with (tmp_path / "folds" / "predictions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["id"] for row in rows if row["fold"] == "1"} == set(runs[1].split["validation"])
    assert {row["id"] for row in rows} == {id for run in runs for id in run.split["validation"]}
    assert json.loads((tmp_path / "folds" / "crossval.json").read_text(encoding="utf-8")) == summary
    cuts = {row["fold"]: float(row["threshold"]) for row in rows}
    assert summary["out_of_fold_thresholds"] == cuts
    first = [row for row in rows if row["fold"] == "0"]
    labels, probabilities = ([float(row[name]) for row in first] for name in ("label", "probability"))
    assert cuts["1"] == choose_threshold(np.array(labels), np.array(probabilities))
    called = sum(float(row["probability"]) >= cuts[row["fold"]] for row in rows)
    assert summary["out_of_fold"]["counts"]["tp"] + summary["out_of_fold"]["counts"]["fp"] == called
    assert "other folds" in summary["out_of_fold_at"]
    alone = fit(dataclasses.replace(options, out=tmp_path / "alone", fold=1))
    assert (alone.path / "model.safetensors").read_bytes() == (runs[1].path / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "model",
    [
        "r2plus1d-18",
        pytest.param("tin-r50", marks=pytest.mark.slow),
        pytest.param("resnet3d-50", marks=pytest.mark.slow),
        pytest.param("inception-v3", marks=pytest.mark.slow),
        pytest.param("vgg19", marks=pytest.mark.slow),
    ],
)
def test_each_kind_of_network_trains_and_predicts(model: str, phantom_manifest: Path, tmp_path: Path) -> None:
    is_static = MODELS[model].is_static
    changes = ["num_frames=1"] if is_static else []
    changes += ["resize=80", "crop=75", "width=none"] if model == "inception-v3" else []
    run = fit(fit_options(phantom_manifest, tmp_path / "run", "epochs=1", *changes, model=model))
    assert (run.state, run.model) == (FINISHED, model)
    assert np.isfinite(run.validation["auc"])


def test_profile_tells_where_a_step_goes_and_writes_no_run(phantom_manifest: Path, tmp_path: Path) -> None:
    text = profile(fit_options(phantom_manifest, tmp_path / "run"), 2)
    assert "2 steps of" in text
    assert "in the network" in text
    assert not (tmp_path / "run").exists()


def test_validation_clips_are_windows_as_live(phantom_manifest: Path, tmp_path: Path) -> None:
    plan = make_plan(fit_options(phantom_manifest, tmp_path / "run"))
    clips = ValidationClips(plan.validation)
    starts = plan.validation[1][1].window_starts
    for place, share in enumerate((1 / 8, 3 / 8, 5 / 8, 7 / 8)):
        clip, label, which = clips[4 + place]
        expected = plan.validation[1][1].clip(int(starts[int(share * len(starts))]))
        assert np.array_equal(clip.numpy(), expected * np.float32(1 / 255))
        assert (label, which) == (plan.validation[1][0].label, 1)


def test_unknown_setting_and_device_are_told_in_one_line(phantom_manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown.*allowed: resize"):
        fit(fit_options(phantom_manifest, tmp_path / "run", "lr=1"))
    with pytest.raises(ConfigError, match="this machine cannot train so"):
        fit(fit_options(phantom_manifest, tmp_path / "run", precision="17-bit"))


def test_network_that_cannot_be_built_is_refused_before_training(phantom_manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="tin-r18 cannot be built with width=10"):
        fit(fit_options(phantom_manifest, tmp_path / "run", "width=10"))
    assert not (tmp_path / "run").exists()


def row(epoch: int, auc: float, loss: float) -> dict[str, float]:
    return {"epoch": epoch, "val_auc": auc, "val_loss": loss}


def test_best_epoch_has_the_highest_auc_then_the_lowest_loss_then_is_the_first() -> None:
    rows = [row(1, 0.7, 0.1), row(2, 0.9, 0.6), row(3, 0.9, 0.5), row(4, 0.9, 0.5), row(5, float("nan"), 0.0)]
    assert best_row(rows)["epoch"] == 3


def test_patience_ends_training_so_many_epochs_after_the_best() -> None:
    rows = [row(1, 0.7, 0.1), row(2, 0.6, 0.1), row(3, 0.6, 0.1)]
    assert is_exhausted(rows, 2)
    assert not is_exhausted(rows, 3)
    assert not is_exhausted(rows, 0)
    assert not is_exhausted([], 1)


def test_early_stopping_ends_training(phantom_manifest: Path, tmp_path: Path) -> None:
    # nothing is learned at this rate: the first epoch stays the best
    run = fit(fit_options(phantom_manifest, tmp_path / "run", "epochs=9", "patience=1", "learning_rate=0"))
    assert run.best_epoch == 1
    assert len((tmp_path / "run" / "metrics.csv").read_text(encoding="utf-8").splitlines()) == 1 + 2


def test_weight_decay_spares_biases_and_normalisation() -> None:
    run_network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))
    decayed, plain = parameter_groups(run_network, 0.1)
    assert decayed["weight_decay"] == 0.1
    assert plain["weight_decay"] == 0
    assert {parameter.ndim for parameter in plain["params"]} == {1}
    assert len(decayed["params"]) + len(plain["params"]) == len(list(run_network.parameters()))


def test_validation_metrics_of_three_classes_count_the_last_as_positive() -> None:
    logits = torch.tensor([[2.0, 0, 0], [0, 2, 0], [0, 0, 2], [0, 3, 2]], dtype=torch.float64)
    measured = validation_metrics(logits, np.array([0, 1, 2, 2]))
    assert measured["accuracy"] == 0.75
    assert measured["auc"] == 1.0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_train_together_and_twice_the_same(phantom_manifest: Path, tmp_path: Path) -> None:
    runs = []
    for name in ("first", "second"):
        done = run_command(fit_command(phantom_manifest, tmp_path / name, "batch_size=2", more=["--devices", "2"]))
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("epoch 2/2") == 1
        assert "auc" in done.stdout
        # told by one of the two, where two epochs were too few
        assert re.fullmatch(r"(warning: the threshold .* separates nothing\n)?", done.stderr)
        runs.append(tmp_path / name)
    assert (runs[0] / "model.safetensors").read_bytes() == (runs[1] / "model.safetensors").read_bytes()
    assert load_run(runs[0]).state == FINISHED
