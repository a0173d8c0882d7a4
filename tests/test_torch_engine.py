"""The torch backend through the engines' interface."""

import dataclasses
import hashlib
import json
import logging
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from small_bundle import NUM_FRAMES, random_clips, small_bundle, small_model
from test_program_file import any_function, written

from engines.bundle import load_bundle
from engines.errors import BackendError, BundleError, EngineError
from engines.load import load_engine
from trainer.export import WithHeatmap


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return small_bundle(tmp_path_factory)


@pytest.fixture
def engine(bundle):
    engine = load_engine(bundle, "torch")
    yield engine
    engine.close()


def test_spec_says_what_runs(engine, bundle):
    spec = engine.spec
    assert (spec.backend, spec.precision, spec.device) == ("torch", "fp32", "cpu")
    assert spec.sha256 == hashlib.sha256((bundle.path / "model.pt2").read_bytes()).hexdigest()
    assert spec.clip_tchw == bundle.clip_tchw


def test_every_window_of_a_stream_equals_the_network_on_those_frames(engine, model):
    stream = random_clips(3, seed=3).reshape(3 * NUM_FRAMES, 1, *random_clips(1, 0).shape[-2:])
    network = WithHeatmap(model)
    for index, frame in enumerate(stream):
        engine.push(frame)
        if index < NUM_FRAMES - 1:
            continue
        output = engine.infer()
        window = torch.from_numpy(stream[index - NUM_FRAMES + 1 : index + 1][np.newaxis])
        with torch.inference_mode():
            probabilities, heatmap = network(window)
        np.testing.assert_allclose(output.probabilities, probabilities[0], atol=1e-5)
        np.testing.assert_allclose(output.heatmap, heatmap[0], atol=1e-5 * heatmap.max().item())


def test_outputs_stay_the_callers_after_the_next_window(engine):
    first, second = random_clips(2, seed=4)
    output = engine.run_clip(first)
    kept = output.probabilities.copy(), output.heatmap.copy()
    engine.run_clip(second)
    np.testing.assert_array_equal(output.probabilities, kept[0])
    np.testing.assert_array_equal(output.heatmap, kept[1])


def test_infer_after_reset_without_enough_frames_is_refused(engine):
    for frame in random_clips(1, seed=5)[0]:
        engine.push(frame)
    engine.reset()
    engine.push(frame)
    with pytest.raises(EngineError, match=f"a window needs {NUM_FRAMES} frames"):
        engine.infer()


def test_close_twice_is_fine(bundle):
    engine = load_engine(bundle, "torch")
    engine.close()
    engine.close()


def test_another_device_is_refused_with_the_allowed(bundle):
    with pytest.raises(BackendError, match=r"runs on devices cpu, cuda, cuda:1, \.\.\.; got 'xpu'"):
        load_engine(bundle, "torch", "xpu")


def test_another_precision_on_the_cpu_is_refused_with_the_cure(bundle):
    with pytest.raises(BackendError, match="on the CPU in fp32; got fp16; --device cuda has others"):
        load_engine(bundle, "torch", precision="fp16")


def test_missing_torch_is_refused_with_the_cure(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(BackendError, match=r"install it with `pip install torch==2\.13\.0`"):
        load_engine(bundle, "torch")


def test_module_import_leaves_torch_alone():
    program = "import sys, engines.torch.engine; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def with_program(bundle, folder, content: bytes):
    """Copy the bundle with other bytes for model.pt2 and a manifest that vouches for them."""
    shutil.copytree(bundle.path, folder)
    (folder / "model.pt2").write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    for file in manifest["files"]:
        if file["name"] == "model.pt2":
            file["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return load_bundle(folder)


@pytest.mark.parametrize("num_bytes_kept", [0, 1000, -1000])
def test_damaged_program_is_refused_in_one_line(bundle, tmp_path, num_bytes_kept, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("torch.export"), "handlers", [caplog.handler])
    content = (bundle.path / "model.pt2").read_bytes()[:num_bytes_kept]
    damaged = with_program(bundle, tmp_path / "damaged", content)
    with pytest.raises(EngineError, match=r"torch cannot load .*model\.pt2: .*export the bundle again") as caught:
        load_engine(damaged, "torch")
    assert "\n" not in str(caught.value)
    assert caplog.text == ""


def test_program_that_would_run_code_is_refused_in_one_line(bundle, tmp_path):
    path = written(bundle.path / "model.pt2", tmp_path / "model.pt2", any_function)
    strange = with_program(bundle, tmp_path / "strange", path.read_bytes())
    with pytest.raises(EngineError, match=r"cannot load .*: it calls 'torch\.os\.mkdir', which is no operator"):
        load_engine(strange, "torch")


@pytest.mark.parametrize(
    ("give", "said"),
    [
        (lambda p, h: (p, h, h), "torch failed to run small: too many values"),
        (lambda p, h: p, "torch failed to run small: not enough values"),
        (lambda p, h: (p, None), "torch failed to run small: 'NoneType'"),
        (lambda p, h: (p, h.bfloat16()), "torch failed to run small: Got unsupported ScalarType BFloat16"),
        (lambda p, h: (p.sum(), h), r"small on torch gave float32 \(\) as probabilities of one window"),
        (lambda p, h: (p, h.repeat(2, 1, 1, 1)), r"gave float32 \(2, 8, 2, 2\) as heatmap of one window"),
        (lambda p, h: (p.to(torch.complex64), h), r"gave complex64 \(1, 2\) as probabilities of one window"),
    ],
)
def test_program_that_gives_something_else_is_refused_in_one_line(bundle, tmp_path, give, said):
    class Strange(torch.nn.Module):
        def forward(self, clip):
            return give(clip.mean((2, 3, 4))[:, :2], clip[:, :, 0, :2, :2])

    program = torch.export.export(Strange(), (torch.zeros(1, *bundle.clip_tchw),))
    torch.export.save(program, tmp_path / "model.pt2")
    strange = with_program(bundle, tmp_path / "strange", (tmp_path / "model.pt2").read_bytes())
    with pytest.raises(EngineError, match=said):
        load_engine(strange, "torch")


def test_bundle_without_a_program_is_refused(bundle):
    files = tuple(file for file in bundle.files if file.kind != "torch-export")
    with pytest.raises(BundleError, match="no fp32 torch-export file"):
        load_engine(dataclasses.replace(bundle, files=files), "torch")
