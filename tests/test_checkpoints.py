"""Importing public checkpoints: the same logits as where they come from, and a clear no to all that does not fit."""

import json
import os
import pickle
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from reference_networks import resnet50_frame_logits, video_logits
from reference_tin import reference_logits
from safetensors.torch import save_file
from small_bundle import randomised
from torch import Tensor

from edge.errors import ConfigError
from trainer.checkpoints.file import CheckpointError, read_tensors
from trainer.checkpoints.names import IMAGENET, KINETICS, Pixels
from trainer.checkpoints.network import import_network
from trainer.commands import import_checkpoint
from trainer.models import build_model
from trainer.runs import load_run

NUM_CLASSES = 5
Tensors = dict[str, Tensor]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small tensors on many threads wait for each other, above all where other work takes the cores."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def colour_weights(name: str, seed: int = 0, num_frames: int = 8) -> Tensors:
    """Weights of a network of RGB clips, under the names of `trainer.models`."""
    network = build_model(name, num_classes=NUM_CLASSES, num_frames=num_frames, in_channels=3)
    weights = randomised(network, seed).state_dict()
    return {key: value for key, value in weights.items() if not key.startswith("pixel_")}


def as_mmaction(weights: Tensors, kind: str = "TIN") -> Tensors:
    """Rename as mmaction2's `Recognizer2D` does: `ConvModule`s, wrapped where features move in time."""
    inner = {"TIN": "conv.net2", "TSM": "conv.net", "TSN": "conv"}[kind]
    renamed = {}
    for key, value in weights.items():
        if kind != "TIN" and ("offset_net" in key or "weight_net" in key):
            continue
        parts = key.split(".")
        if parts[0] == "fc":
            new = f"cls_head.fc_cls.{parts[1]}"
        elif parts[1].startswith(("conv", "bn")):  # the stem
            new = f"backbone.conv1.{parts[1].rstrip('1')}.{parts[2]}"
        elif parts[3] == "downsample":
            new = ".".join([*parts[:4], {"0": "conv", "1": "bn"}[parts[4]], parts[5]])
        elif parts[3] == "conv1" and parts[4] in ("offset_net", "weight_net"):
            new = ".".join([*parts[:3], "conv1.conv.net1", *parts[4:]])
        elif parts[3].startswith("bn"):
            new = ".".join([*parts[:3], f"conv{parts[3][2]}", "bn", parts[4]])
        else:
            new = ".".join([*parts[:4], inner if parts[3] == "conv1" else "conv", parts[4]])
        renamed[new] = value
    return renamed


def as_torchvision(weights: Tensors) -> Tensors:
    return {re.sub(r"^backbone\.", "", key): value for key, value in weights.items()}


def save(path: Path, tensors: Tensors) -> Path:
    torch.save({"meta": {"epoch": 40, "CLASSES": ["a", "b"]}, "state_dict": tensors}, path)
    return path


def with_pixels(weights: Tensors, pixels: Pixels) -> Tensors:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (pixels.mean, pixels.std))
    return {**weights, "pixel_mean": mean, "pixel_std": std}


def random_clip(num_frames: int, channels: int, side_px: int = 48) -> Tensor:
    return torch.rand(2, num_frames, channels, side_px, side_px, generator=torch.Generator().manual_seed(9))


@pytest.fixture(scope="module")
def tin_weights() -> Tensors:
    return colour_weights("tin-r50", seed=1)


@pytest.fixture(scope="module")
def tin_checkpoint(tin_weights, tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("checkpoints") / "tin_r50.pth", as_mmaction(tin_weights))


@pytest.fixture(scope="module")
def small_weights() -> Tensors:
    return colour_weights("tin-r18")


@pytest.fixture(scope="module")
def small_checkpoint(small_weights, tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("checkpoints") / "tin_r18.pth", as_mmaction(small_weights))


@pytest.mark.parametrize(("channels", "side_px"), [(1, 48), (1, 33), (3, 48)])
def test_imported_tin_gives_the_logits_of_mmaction2(tin_checkpoint, tin_weights, channels, side_px):
    imported = import_network(tin_checkpoint, "tin-r50", in_channels=channels)
    clip = random_clip(8, channels, side_px)
    with torch.inference_mode():
        logits = imported.network(clip)
        expected = reference_logits(clip.expand(-1, -1, 3, -1, -1), with_pixels(tin_weights, IMAGENET), 50)
    assert expected.std() > 0.1, "logits that hardly vary prove nothing"
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    assert (imported.num_frames, imported.origin) == (8, "mmaction2 TIN")
    assert (imported.num_used, imported.not_used, imported.at_start) == (imported.num_tensors, (), ())
    assert imported.classes == ("class-0", "class-1", "class-2", "class-3", "class-4")


def test_gray_first_convolution_is_the_sum_over_colour(small_checkpoint, small_weights):
    network = import_network(small_checkpoint, "tin-r18").network
    std = torch.tensor(IMAGENET.std)
    expected = (small_weights["backbone.conv1.weight"] * (std.mean() / std).view(3, 1, 1)).sum(1)
    torch.testing.assert_close(network.backbone.conv1.weight[:, 0], expected)
    assert network.pixel_mean.item() == pytest.approx(0.449)


@pytest.mark.parametrize("channels", [1, 3])
def test_imported_torchvision_resnet_gives_its_logits(tmp_path, channels):
    weights = colour_weights("resnet50")
    torch.save(as_torchvision(weights), tmp_path / "resnet50.pth")
    imported = import_network(tmp_path / "resnet50.pth", "resnet50", in_channels=channels)
    clip = random_clip(1, channels)
    with torch.inference_mode():
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET.mean, IMAGENET.std))
        expected = resnet50_frame_logits((clip[:, 0].expand(-1, 3, -1, -1) - mean) / std, weights)
        torch.testing.assert_close(imported.network(clip), expected, atol=1e-4, rtol=0)
    assert (imported.origin, imported.num_frames, imported.not_used) == ("torchvision", 1, ())


def test_imported_torchvision_video_network_gives_its_logits(tmp_path):
    weights = colour_weights("r2plus1d-18")
    save_file(as_torchvision(weights), tmp_path / "r2plus1d_18.safetensors")
    imported = import_network(tmp_path / "r2plus1d_18.safetensors", "r2plus1d-18")
    clip = random_clip(4, 1, 32)
    with torch.inference_mode():
        expected = video_logits(clip.expand(-1, -1, 3, -1, -1), with_pixels(weights, KINETICS))
        torch.testing.assert_close(imported.network(clip), expected, atol=1e-4, rtol=1e-4)


def test_torchvision_names_of_the_other_static_networks_are_read(tmp_path):
    inception = as_torchvision(colour_weights("inception-v3"))
    inception = {re.sub("^aux", "AuxLogits", key): value for key, value in inception.items()}
    torch.save(inception, tmp_path / "inception.pth")
    imported = import_network(tmp_path / "inception.pth", "inception-v3")
    assert (imported.not_used, imported.at_start) == ((), ())
    assert imported.options == {"pixel_mean": (0.5,), "pixel_std": (0.5,)}
    expected = inception["Conv2d_1a_3x3.conv.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(imported.network.backbone.Conv2d_1a_3x3.conv.weight, expected)


@pytest.mark.parametrize("kind", ["TSM", "TSN"])
def test_checkpoint_without_interlacing_starts_a_tin(tmp_path, kind):
    weights = colour_weights("tin-r18")
    path = save(tmp_path / "ts.pth", as_mmaction(weights, kind))
    imported = import_network(path, "tin-r18", classes=("benign", "malignant"))
    assert imported.origin == f"mmaction2 {kind}"
    torch.testing.assert_close(
        imported.network.backbone.layer3[0].conv2.weight, weights["backbone.layer3.0.conv2.weight"]
    )
    assert {"cls_head.fc_cls.weight", "cls_head.fc_cls.bias"} == set(imported.not_used)
    assert len(imported.at_start) == 2 + 8 * 8
    assert imported.num_frames == 16
    notes = " ".join(imported.notes)
    assert "no interlacing" in notes
    assert "last layer is random" in notes
    assert ("shifts features in time" in notes) == (kind == "TSM")


def test_import_is_the_same_every_time(small_checkpoint):
    first, second = (import_network(small_checkpoint, "tin-r18", classes=("a", "b")).network for _ in range(2))
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


def test_run_of_an_import_is_read_back(small_checkpoint, tmp_path, capsys):
    run_import(small_checkpoint, tmp_path / "run", "--classes", "a, b,c,d,lesion")
    said = capsys.readouterr().out
    run = load_run(tmp_path / "run")
    assert (run.model, run.classes, run.num_frames) == ("tin-r18", ("a", "b", "c", "d", "lesion"), 8)
    assert (run.preprocess.channels, run.state) == (1, "imported")
    clip = random_clip(8, 1)
    with torch.inference_mode():
        expected = import_network(small_checkpoint, "tin-r18").network(clip)
        assert torch.equal(run.network()(clip), expected)
    assert "mmaction2 TIN, 186 of 186 tensors used" in said
    assert "summed over colour" in said
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"run.json", "model.safetensors"}


def run_import(checkpoint: Path, out: Path, *more: str, model: str = "tin-r18") -> None:
    import argparse

    parser = argparse.ArgumentParser()
    import_checkpoint.add_arguments(parser)
    options = parser.parse_args([str(checkpoint), "--model", model, "--out", str(out), *more])
    assert import_checkpoint.run(options) == 0


def test_folder_that_holds_a_run_is_left_alone(small_checkpoint, tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds a run already"):
        run_import(small_checkpoint, tmp_path)
    assert (tmp_path / "run.json").read_text() == "{}"


@pytest.mark.parametrize("text", ["one", "a,", "a,a", ""])
def test_classes_that_are_none_are_refused(small_checkpoint, tmp_path, text):
    with pytest.raises(ConfigError, match="two names or more"):
        run_import(small_checkpoint, tmp_path / "run", "--classes", text)


class Planted:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch planted",)


@pytest.mark.parametrize("is_zip", [True, False])
def test_pickle_that_holds_code_is_refused_and_not_run(small_weights, tmp_path, monkeypatch, is_zip):
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": as_mmaction(small_weights), "extra": Planted()}
    torch.save(content, "evil.pth", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(CheckpointError, match=r"evil\.pth holds more than tensors \(\w+\.system\).*not read") as caught:
        import_network(Path("evil.pth"), "tin-r18")
    assert "\n" not in str(caught.value)
    assert not Path("planted").exists()
    assert pickle.loads(pickle.dumps(Planted())) == 0, "the pickle does run elsewhere"
    assert Path("planted").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", ["evil.pth", "evil.safetensors"])
def test_plain_pickle_that_holds_code_is_refused_for_that_and_not_run(tmp_path, monkeypatch, protocol, name):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(pickle.dumps({"conv1.weight": [1.0], "extra": Planted()}, protocol))
    with pytest.raises(
        CheckpointError, match=r"more than tensors \(\w+\.system\).*run code.*allowed are \.safetensors"
    ):
        read_tensors(Path(name))
    assert not Path("planted").exists()


def test_plain_pickle_that_repeats_a_name_is_still_seen_through(tmp_path):
    """In newer protocols the second use of a text is a look into the memo."""
    evil = b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94h\x00h\x01\x93\x8c\x04true\x85R."
    (tmp_path / "evil.pth").write_bytes(evil)
    with pytest.raises(CheckpointError, match=r"more than tensors \(posix\.system\)"):
        read_tensors(tmp_path / "evil.pth")


def test_plain_pickle_without_code_is_not_said_to_hold_any(tmp_path):
    (tmp_path / "x.pth").write_bytes(pickle.dumps({"weights": [1.0, 2.0]}))
    with pytest.raises(CheckpointError, match="damaged or no checkpoint"):
        read_tensors(tmp_path / "x.pth")


def test_damaged_file_is_refused_in_one_line(tmp_path):
    path = tmp_path / "small.pth"
    torch.save({"conv1.weight": torch.zeros(2), "bn1.weight": torch.zeros(3)}, path)
    whole = path.read_bytes()
    rng = random.Random(0)
    contents = [b"", b"PK", b"\x80\x02", whole[: len(whole) // 2], whole[:-30], b"\0" * 1000, b"hello " * 100]
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(4):
            content[rng.randrange(len(content))] = rng.randrange(256)
        contents.append(bytes(content))
    said = []
    for content in contents:
        path.write_bytes(content)
        said.append(refusal(path))
    texts = [text for text in said if text is not None]
    assert None not in said[:7]
    assert len(texts) > 20, "damage in the numbers alone cannot be seen, in the structure it must be"
    assert all("\n" not in text and str(path) in text for text in texts)


def refusal(path: Path) -> str | None:
    try:
        read_tensors(path)
    except CheckpointError as exc:
        return str(exc)
    return None


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_text_file_is_refused(tmp_path, name):
    (tmp_path / name).write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match="damaged or no checkpoint"):
        read_tensors(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "said"), [([1, 2], "holds a list"), ({}, "holds no tensors"), ({"epoch": 3}, "holds no tensors")]
)
def test_file_without_weights_is_refused(tmp_path, content, said):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=said):
        read_tensors(tmp_path / "x.pth")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.pth cannot be read: No such file"):
        read_tensors(tmp_path / "nowhere.pth")
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        read_tensors(tmp_path)


def test_checkpoint_of_another_model_names_the_one_it_fits(small_checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint of tin-r50: its layer1.*; it fits --model tin-r18"):
        import_network(small_checkpoint, "tin-r50")
    deeper = {**as_torchvision(colour_weights("resnet50")), "layer3.6.conv1.weight": torch.zeros(256, 1024, 1, 1)}
    torch.save(deeper, tmp_path / "resnet101.pth")
    with pytest.raises(CheckpointError, match=r"resnet50 has no layer3\.6\.conv1\.weight; it fits no network here"):
        import_network(tmp_path / "resnet101.pth", "resnet50")


def test_checkpoint_that_lacks_a_layer_is_refused(small_weights, tmp_path):
    tensors = as_mmaction(small_weights)
    del tensors["backbone.layer2.1.conv1.conv.net1.offset_net.fc1.weight"]
    with pytest.raises(CheckpointError, match=r"it has no layer2\.1\.conv1\.offset_net\.fc1\.weight"):
        import_network(save(tmp_path / "x.pth", tensors), "tin-r18")


def test_weight_that_is_not_finite_is_refused(small_weights, tmp_path):
    tensors = as_mmaction({key: value.clone() for key, value in small_weights.items()})
    tensors["backbone.layer1.0.conv2.bn.running_var"][3] = float("nan")
    with pytest.raises(CheckpointError, match="not finite"):
        import_network(save(tmp_path / "x.pth", tensors), "tin-r18")


def test_checkpoint_without_head_needs_the_classes_named(small_weights, tmp_path):
    tensors = {key: value for key, value in as_mmaction(small_weights).items() if "cls_head" not in key}
    path = save(tmp_path / "x.pth", tensors)
    with pytest.raises(CheckpointError, match="name them with --classes"):
        import_network(path, "tin-r18")
    assert import_network(path, "tin-r18", classes=("a", "b")).network.fc.weight.shape == (2, 512)


def test_own_weights_are_sent_to_the_run_folder(tmp_path):
    save_file(build_model("tin-r18", width=16).state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="weights of this project; use its run folder"):
        import_network(tmp_path / "model.safetensors", "tin-r18")


def test_command_tells_errors_in_one_line(tmp_path):
    (tmp_path / "x.pth").write_text("no")
    command = [sys.executable, "-m", "trainer.cli", "import", "x.pth", "--model", "tin-r18", "--out", "run"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: x\.pth is damaged or no checkpoint[^\n]*\n", done.stderr)
    assert not (tmp_path / "run").exists()


def test_notes_and_options_survive_json(small_checkpoint, tmp_path):
    run_import(small_checkpoint, tmp_path / "run")
    content = json.loads((tmp_path / "run" / "run.json").read_text())
    assert content["model_options"] == {
        "pixel_mean": [pytest.approx(0.449)],
        "pixel_std": [pytest.approx(0.226)],
        "constant_plane": True,
    }
    assert content["recipe"]["checkpoint"] == "tin_r18.pth"
