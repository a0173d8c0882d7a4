"""What a user of `edge-train` gets wrong is told in one line, before anything long begins and with nothing changed."""

import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from small_bundle import small_bundle
from small_training import SETTINGS, fit_options

from edge.errors import ConfigError
from engines import PreprocessSpec
from tests.trainer_command import edge_train
from trainer.data.manifest import read_manifest
from trainer.errors import RunError
from trainer.runs import FINISHED, WEIGHTS_NAME, Run, build_network, load_run, write_run, write_weights
from trainer.training.fit import fit


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--devices", "-1"), "this machine cannot train so"),
        (("--devices", "0"), "this machine cannot train so"),
        (("--num-nodes", "0"), "this machine cannot train so"),
        (("--seed", "-1"), "--seed is -1; a whole number from 0 to 4294967295"),
        (("--seed", str(2**32)), "--seed is 4294967296"),
        (("--model", "inception-v3"), "inception-v3 cannot learn from batches of 4 clips of 1 x 1 x 32 x 32"),
        (("--model", "resnet50", "--set", "batch_size=1"), "Expected more than 1 value per channel"),
        (("--set", "init=nowhere"), "nowhere is no run"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="--devices -1 are all GPUs")
def test_fit_that_cannot_begin_says_why_and_leaves_no_run(
    phantom_manifest: Path, tmp_path: Path, more: tuple[str, ...], said: str
) -> None:
    of_tin = ("width", "num_frames") if "--model" in more else ()
    settings = [setting for setting in SETTINGS if not setting.startswith(of_tin or "-")]
    words = ["fit", phantom_manifest, "--model", "tin-r18", "--out", tmp_path / "run", "--folds", "2"]
    done = edge_train(
        *words, "--cache", phantom_manifest.parent / "cache", *(f"--set={one}" for one in settings), *more
    )
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(r"error: [^\n]+\n", done.stderr)
    assert said in done.stderr
    assert not (tmp_path / "run").exists()


def test_fit_without_a_usable_video_says_so(phantom_manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no training video can be used; mend the files that are left out"):
        fit(fit_options(phantom_manifest, tmp_path / "run", "num_frames=100"))


def small_run(path: Path) -> Run:
    spec = PreprocessSpec((32, 32), (32, 32))
    run = Run(
        path=path, model="tin-r18", model_options={"width": 16}, classes=("a", "b"), preprocess=spec,
        num_frames=4, frame_interval_ms=40.0, state=FINISHED,
    )  # fmt: skip
    write_weights(path / WEIGHTS_NAME, build_network(run).state_dict())
    write_run(run)
    return run


RUN_CHANGES: list[tuple[dict[str, object], str]] = [
    ({"threshold": "0,3"}, 'threshold is "0,3", not a number from 0 to 1'),
    ({"threshold": None}, "threshold is null, not a number"),
    ({"threshold": True}, "threshold is true, not a number"),
    ({"threshold": 30}, "threshold is 30, not a number from 0 to 1"),
    ({"temperature": 0}, "temperature is 0, not a number above 0"),
    ({"model": ["tin-r18"]}, 'model is ["tin-r18"], not text'),
    ({"model_options": None}, "model_options is null, not an object"),
    ({"classes": "ab"}, 'classes is "ab", not two names or more'),
    ({"classes": ["a", 2]}, 'classes is ["a", 2], not two names or more'),
    ({"preprocess": "gray"}, 'preprocess is "gray", not an object'),
    ({"preprocess": {"resize_hw": [32, 32], "crop_hw": [40, 32], "channels": 1}}, "does not fit into resize_hw"),
    ({"preprocess": {"resize_hw": [32.5, 32], "crop_hw": [32, 32], "channels": 1}}, "preprocess.resize_hw is [32.5, "),
    ({"clip": {"num_frames": 4}}, "it has no clip.frame_interval_ms"),
    ({"clip": {"num_frames": "4", "frame_interval_ms": 40}}, 'clip.num_frames is "4", not a whole number from 1'),
    ({"recipe": ["roi"]}, 'recipe is ["roi"], not an object'),
    ({"split": {"train": 3}}, "split.train is 3, not a list"),
    ({"split": {"train": [3]}}, "split.train[0] is 3, not text"),
    ({"manifest": "m.csv"}, 'manifest is "m.csv", not an object'),
    ({"validation": {"auc": "high"}}, 'validation.auc is "high", not a number or null'),
    ({"hardware": 4}, "hardware is 4, not an object"),
    ({"weights_sha256": 7}, "weights_sha256 is 7, not text"),
    ({"wall_s": "long"}, 'wall_s is "long", not a number'),
    ({"state": "done"}, 'state is "done", not training, finished or imported'),
]


@pytest.mark.parametrize(("change", "said"), RUN_CHANGES)
def test_run_changed_by_hand_is_refused_by_the_key(tmp_path: Path, change: dict[str, object], said: str) -> None:
    run = small_run(tmp_path / "run")
    content = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps({**content, **change}))
    done = edge_train("report", run.path, "--out", tmp_path / "report.html")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert done.stderr.startswith(f"error: {run.path / 'run.json'} cannot be read (")
    assert said in done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"model_options": {"width": -1}},
            "tin-r18 cannot be built with width=-1: Trying to create tensor",
        ),
        ({"model_options": {"depth": "x"}}, "tin-r18 cannot be built with depth=x: "),
        ({"model": "tin-r17"}, "model 'tin-r17' is unknown; allowed are tin-r18, "),
    ],
)
def test_run_of_which_no_network_can_be_built_says_why(tmp_path: Path, change: dict[str, object], said: str) -> None:
    run = small_run(tmp_path / "run")
    content = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps({**content, **change}))
    done = edge_train("export", run.path, "--out", tmp_path / "bundle")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert said in done.stderr


def test_run_of_an_earlier_version_lacks_what_has_a_default(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    content = json.loads((run.path / "run.json").read_text())
    for key in ("video_digests", "left_out", "threshold_rule", "wall_s"):
        del content[key]
    (run.path / "run.json").write_text(json.dumps({**content, "path": "elsewhere", "of_a_later_version": 1}))
    assert load_run(run.path) == run


def test_what_the_engines_log_is_a_warning_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_: object) -> int:
        logging.getLogger("edge.engines").warning("little is proven")
        return 0

    monkeypatch.setattr("trainer.commands.report.run", run)
    assert edge_train("report", tmp_path, "--out", tmp_path / "r.html").stderr == "warning: little is proven\n"


def test_weights_of_another_network_are_told_by_the_first_that_does_not_fit(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    content = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps({**content, "model": "tin-r34"}))
    refusal = r'another network\'s weights \(Missing .* "backbone\.layer1\.2.*" and \d+ more\)'
    with pytest.raises(RunError, match=refusal) as info:
        load_run(run.path).network()
    assert len(str(info.value)) < len(str(run.path)) + 250


@pytest.mark.parametrize("content", ["{}", '{"best": 3}', '{"best": null}'])
@pytest.mark.parametrize("command", ["evaluate", "export", "report"])
def test_cross_validation_that_names_no_best_fold_is_refused(
    phantom_manifest: Path, tmp_path: Path, content: str, command: str
) -> None:
    (tmp_path / "crossval.json").write_text(content)
    manifest = [phantom_manifest] if command == "evaluate" else []
    done = edge_train(command, tmp_path, *manifest, "--out", tmp_path / "out.html")
    assert done.returncode == 2
    assert re.fullmatch(r"error: [^\n]+crossval\.json does not name the best fold; [^\n]+\n", done.stderr)


def test_own_checkpoint_is_not_imported_and_the_run_named(tmp_path: Path) -> None:
    torch.save({"state_dict": {"network.pixel_mean": torch.zeros(1)}}, tmp_path / "epoch-00001.ckpt")
    done = edge_train("import", tmp_path / "epoch-00001.ckpt", "--model", "tin-r18", "--out", tmp_path / "run")
    assert done.returncode == 2
    assert "weights of this project; use its run folder" in done.stderr


@pytest.mark.parametrize("name", ["manifest.json", "run.json", "crossval.json"])
def test_evaluation_into_a_models_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    (tmp_path / "p.csv").write_text("id,label,probability\na,0,0.1\nb,1,0.9\n")
    done = edge_train("evaluate", "--predictions", tmp_path / "p.csv", "--out", tmp_path)
    assert done.returncode == 2
    assert f"holds a model ({name}); give a folder of its own" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {name, "p.csv"}


def bundle_and_manifest(
    phantom_manifest: Path, folder: Path, factory: pytest.TempPathFactory, mask: str = ""
) -> tuple[Path, Path]:
    lines = [
        f"{video.path},{video.label},{video.patient_id},{mask}" for video in read_manifest(phantom_manifest).videos
    ]
    (folder / "m.csv").write_text("\n".join(["path,label,patient_id,mask", *lines]))
    return small_bundle(factory).path, folder / "m.csv"


@pytest.fixture
def no_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    def predict(*_: object) -> None:
        raise AssertionError("began to predict")

    monkeypatch.setattr("trainer.inference.evaluate_videos.predict_video", predict)


@pytest.mark.parametrize(
    ("readers", "said"),
    [
        (None, "cannot be read (No such file or directory)"),
        ("reader,id,call\nA,other.mp4,1\n", "id 'other.mp4' is not in the predictions, the first of which is"),
        ("reader,id,answer\nA,x,1\n", "has no column call"),
    ],
)
@pytest.mark.usefixtures("no_predictions")
def test_unusable_readers_are_refused_before_anything_is_predicted(
    phantom_manifest: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, readers: str | None, said: str
) -> None:
    bundle, manifest = bundle_and_manifest(phantom_manifest, tmp_path, tmp_path_factory)
    if readers is not None:
        (tmp_path / "r.csv").write_text(readers)
    cache = phantom_manifest.parent / "cache"
    done = edge_train(
        "evaluate", bundle, manifest, "--readers", tmp_path / "r.csv", "--out", tmp_path / "out", "--cache", cache
    )
    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (None, "mask.npz is not there"),
        ((24, 5, 5), "(24, 5, 5); the video has 24 frames of 128x96"),
    ],
)
@pytest.mark.usefixtures("no_predictions")
def test_unusable_masks_are_refused_before_anything_is_predicted(
    phantom_manifest: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, ...] | None,
    said: str,
) -> None:
    if shape is not None:
        np.savez_compressed(tmp_path / "mask.npz", masks=np.zeros(shape, np.uint8))
    bundle, manifest = bundle_and_manifest(phantom_manifest, tmp_path, tmp_path_factory, "mask.npz")
    cache = phantom_manifest.parent / "cache"
    done = edge_train("evaluate", bundle, manifest, "--out", tmp_path / "out", "--cache", cache)
    assert done.returncode == 2
    assert said in done.stderr
