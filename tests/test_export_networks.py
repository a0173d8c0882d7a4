"""Every kind of network as a bundle, and `edge-train export` from a run to what `edge-infer` loads."""

import argparse
import dataclasses
import json
import resource
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from small_bundle import randomised
from torch import nn

from edge.errors import ConfigError
from engines import PreprocessSpec, load_bundle, load_engine
from trainer.commands import export
from trainer.errors import TrainingError
from trainer.export import WithHeatmap, export_bundle, fold_batch_norms
from trainer.models import MODELS, build_model
from trainer.models.classifier import Classifier
from trainer.reference_clips import NUM_CLIPS, phantom_clips
from trainer.runs import WEIGHTS_NAME, Run, build_network, load_run, write_run, write_weights

NUM_FRAMES = 4
TEMPERATURE = 1.7
SMALL = {"vgg19": {"width": 8, "hidden": 32}, "inception-v3": {}}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small tensors on many threads wait for each other, above all where other work takes the cores."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def small(name: str) -> Classifier:
    frames = 1 if MODELS[name].is_static else NUM_FRAMES
    return randomised(build_model(name, num_frames=frames, **SMALL.get(name, {"width": 8})), seed=3)


def random_clips(model: Classifier, num_clips: int, seed: int) -> np.ndarray:
    side_px = 80 if type(model).__name__ == "InceptionV3" else 48
    shape = (num_clips, model.num_frames, 1, side_px, side_px)
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


@pytest.mark.parametrize("name", ["r2plus1d-18", "r2plus1d-34", "resnet3d-18", "resnet3d-50", "vgg19", "inception-v3"])
def test_folded_batch_norms_leave_the_outputs_equal(name):
    model = small(name)
    clips = torch.from_numpy(random_clips(model, 2, seed=1))
    folded = fold_batch_norms(model)
    norms = [module for module in folded.backbone.modules() if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d)]
    assert norms == []
    with torch.inference_mode():
        torch.testing.assert_close(folded(clips), model(clips), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "resnet3d-18",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("vgg19", "r2plus1d-18", "r2plus1d-34", "resnet3d-50")
        ),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet50", "inception-v3")),
    ],
)
def test_bundle_of_each_network_gives_its_probabilities_and_heatmap(name, tmp_path):
    model = small(name)
    clips = random_clips(model, 3, seed=5)
    size_hw = clips.shape[-2:]
    export_bundle(
        model,
        tmp_path,
        classes=("benign", "suspicious"),
        threshold=0.5,
        preprocess=PreprocessSpec(size_hw, size_hw),
        frame_interval_ms=40.0,
        reference_clips=clips[:2],
        name=name,
        intended_use="tests",
        training={},
        temperature=TEMPERATURE,
    )
    bundle = load_bundle(tmp_path)
    assert bundle.num_frames == (1 if name in ("resnet50", "vgg19", "inception-v3") else NUM_FRAMES)
    with torch.inference_mode():
        logits, heatmaps = model.explain(torch.from_numpy(clips))
        probabilities = (logits / TEMPERATURE).softmax(1).numpy()
    for backend in ("openvino", "torch"):
        engine = load_engine(bundle, backend)
        outputs = [engine.run_clip(clip) for clip in clips]
        engine.close()
        np.testing.assert_allclose([output.probabilities for output in outputs], probabilities, atol=1e-4, rtol=0)
        got = np.stack([output.heatmap for output in outputs])
        np.testing.assert_allclose(got, heatmaps, atol=1e-3 * max(float(heatmaps.max()), 1e-6), rtol=0)
    operators = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert "BatchNormalization" not in operators


def test_temperature_divides_the_logits_and_leaves_the_heatmap():
    model = small("resnet50")
    clip = torch.from_numpy(random_clips(model, 1, seed=2))
    with torch.inference_mode():
        plain, heatmap = WithHeatmap(model)(clip)
        cooled, same = WithHeatmap(model, temperature=2.0)(clip)
    odds, cooled_odds = (torch.log(p[0, 1] / p[0, 0]) for p in (plain, cooled))
    torch.testing.assert_close(cooled_odds, odds / 2, atol=1e-5, rtol=1e-4)
    assert torch.equal(heatmap, same)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """Return a run of a small network with all that training leaves for the bundle; do not change it."""
    run = Run(
        path=tmp_path_factory.mktemp("runs") / "first",
        model="resnet3d-18",
        model_options={"width": 8},
        classes=("benign", "lesion"),
        preprocess=PreprocessSpec((56, 56), (48, 48)),
        num_frames=NUM_FRAMES,
        frame_interval_ms=50.0,
        manifest={"name": "clinic.csv", "sha256": "0" * 64},
        split={"train": ["mustermann.mp4"], "validation": ["other.mp4"]},
        threshold=0.31,
        temperature=TEMPERATURE,
        validation={"auc": 0.8},
        state="finished",
    )
    write_weights(run.path / WEIGHTS_NAME, randomised(build_network(run), seed=4).state_dict())
    write_run(run)
    return run


def run_export(*words: object) -> None:
    parser = argparse.ArgumentParser()
    export.add_arguments(parser)
    assert export.run(parser.parse_args([str(word) for word in words])) == 0


@pytest.mark.slow
def test_exported_run_replaces_a_bundle_and_says_what_the_run_says(run, trivial_bundle, tmp_path, capsys):
    shutil.copytree(trivial_bundle, tmp_path / "bundle")
    run_export(run.path, "--out", tmp_path / "bundle")
    assert f"edge-infer --source VIDEO --engine {tmp_path / 'bundle'}" in capsys.readouterr().out
    bundle = load_bundle(tmp_path / "bundle")
    assert (bundle.name, bundle.classes, bundle.threshold) == ("bundle", ("benign", "lesion"), 0.31)
    assert (bundle.preprocess, bundle.frame_interval_ms) == (run.preprocess, 50.0)
    assert bundle.training["temperature"] == TEMPERATURE
    assert bundle.training["validation"] == {"auc": 0.8}
    assert bundle.training["num_videos"] == {"train": 1, "validation": 1}
    assert "not a medical device" in bundle.intended_use
    assert "clinic.csv" in bundle.intended_use
    assert "mustermann" not in (tmp_path / "bundle" / "manifest.json").read_text()
    reference = bundle.reference()
    np.testing.assert_array_equal(reference.clips, phantom_clips(run))
    with torch.inference_mode():
        expected = (run.network()(torch.from_numpy(reference.clips)) / TEMPERATURE).softmax(1)
    np.testing.assert_allclose(reference.probabilities, expected, atol=1e-5)


@pytest.mark.slow
def test_reference_clips_come_from_a_manifest_where_one_is_named(run, tmp_path, phantom_manifest, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run_export(run.path, "--out", tmp_path / "bundle", "--name", "mine", "--reference", phantom_manifest)
    bundle = load_bundle(tmp_path / "bundle")
    clips = bundle.reference().clips
    assert bundle.name == "mine"
    assert clips.shape == (NUM_CLIPS, *bundle.clip_tchw)
    assert len({clip.tobytes() for clip in clips}) == NUM_CLIPS
    assert not np.array_equal(clips, phantom_clips(run))


def test_phantom_clips_fit_the_run_in_colour_and_single_frames(run):
    wide = dataclasses.replace(run, preprocess=PreprocessSpec((40, 48), (32, 40), 3), num_frames=1)
    clips = phantom_clips(wide)
    assert (clips.shape, clips.dtype) == ((NUM_CLIPS, 1, 3, 32, 40), np.float32)
    assert 0.05 < clips.mean() < 0.95
    assert clips.max() <= 1


def test_export_over_other_files_is_refused_before_any_work(run, tmp_path):
    (tmp_path / "thesis.docx").write_text("dear reader")
    with pytest.raises(ConfigError, match="holds other files"):
        run_export(run.path, "--out", tmp_path)
    with pytest.raises(ConfigError, match="is a file"):
        run_export(run.path, "--out", tmp_path / "thesis.docx")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.docx"]


@pytest.mark.slow
def test_weak_reference_of_a_network_that_learned_nothing_is_told_once_by_the_bundles_name(run, tmp_path, capsys):
    network = build_network(run)
    nn.init.zeros_(network.fc.weight)
    blank = dataclasses.replace(run, path=tmp_path / "blank")
    write_weights(blank.path / WEIGHTS_NAME, network.state_dict())
    write_run(blank)
    run_export(blank.path, "--out", tmp_path / "bundle")
    told = capsys.readouterr().err.splitlines()
    weak = f"warning: {tmp_path / 'bundle' / 'reference.npz'} holds no "
    assert [line.startswith(weak) for line in told] == [True] * 2
    assert "two clips whose outputs differ" in told[0]
    assert "heatmap but empty ones" in told[1]


def test_full_disk_leaves_the_bundle_that_was_there(run, trivial_bundle, tmp_path):
    out = Path(shutil.copytree(trivial_bundle, tmp_path / "bundle"))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        with pytest.raises(TrainingError, match="the disk is full: no room to write"):
            run_export(run.path, "--out", out, "--name", "second")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_export_of_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is no run"):
        run_export(tmp_path, "--out", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_export_of_a_run_with_another_networks_weights_is_refused(run, tmp_path):
    content = json.loads((run.path / "run.json").read_text()) | {"model": "resnet50"}
    (tmp_path / "run.json").write_text(json.dumps(content))
    (tmp_path / WEIGHTS_NAME).write_bytes((run.path / WEIGHTS_NAME).read_bytes())
    with pytest.raises(ConfigError, match="another network's weights"):
        run_export(load_run(tmp_path).path, "--out", tmp_path / "bundle")
