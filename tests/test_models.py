"""The networks beside TIN: against independent implementations, published sizes and names, and what all must do."""

import copy
import functools

import pytest
import torch
from gradcam import gradcam
from reference_networks import (
    inception_frame_logits,
    normalised,
    resnet50_frame_logits,
    vgg19_frame_logits,
    video_logits,
)
from small_bundle import randomised
from torch import Tensor, nn

from edge.errors import ConfigError
from trainer.models import MODELS, build_model
from trainer.models.classifier import Classifier, PooledClassifier, spread_over_frames

NUM_FRAMES = 8
STATIC = [name for name, info in MODELS.items() if info.is_static]
VIDEO = [name for name in MODELS if name not in STATIC]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small tensors on many threads wait for each other, above all where other work takes the cores."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@functools.cache
def _small(name: str, **options: object) -> Classifier:
    sizes = {"vgg19": {"width": 8, "hidden": 32}, "inception-v3": {}}.get(
        name, {"width": 16 if name.startswith("tin") else 8}
    )
    frames = 1 if name in STATIC else NUM_FRAMES
    return randomised(build_model(name, num_classes=3, num_frames=frames, **sizes, **options), seed=3)


def small(name: str, **options: object) -> Classifier:
    """Return a small network whose every part matters, one's own."""
    return copy.deepcopy(_small(name, **options))


def clips_for(name: str, side_px: int = 0, num_clips: int = 2, channels: int = 1) -> Tensor:
    num_frames = 3 if name in STATIC else NUM_FRAMES
    side_px = side_px or {"inception-v3": 112, "vgg19": 80}.get(name, 40)
    generator = torch.Generator().manual_seed(0)
    return torch.rand(num_clips, num_frames, channels, side_px, side_px, generator=generator)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "num_classes", "published"),
    [
        # torchvision states these of its weights
        ("r2plus1d-18", 400, 31_505_325),
        ("resnet3d-18", 400, 33_371_472),
        ("resnet50", 1000, 25_557_032),
        ("inception-v3", 1000, 27_161_264),
        ("vgg19", 1000, 143_667_240),
        # of the public R(2+1)D-34 trained on IG-65M and Kinetics-400 (63.7 million in Tran et al. 2018)
        ("r2plus1d-34", 400, 63_697_175),
        # mmaction2's tin_r50_1x1x8_40e_sthv1_rgb, 8 frames
        ("tin-r50", 174, 23_895_566),
    ],
)
def test_parameters_equal_the_published_count(name, num_classes, published):
    with torch.device("meta"):
        model = build_model(name, num_classes=num_classes, num_frames=8, in_channels=3)
    assert count(model) == published


def monai_resnet50(num_classes: int, widen_factor: float) -> nn.Module:
    from monai.networks.nets import ResNet
    from monai.networks.nets.resnet import ResNetBottleneck

    channels = [64, 128, 256, 512]
    stem = {"n_input_channels": 3, "conv1_t_size": (7, 7, 7), "conv1_t_stride": (1, 2, 2)}
    return ResNet(
        ResNetBottleneck, [3, 4, 6, 3], channels, **stem, widen_factor=widen_factor, num_classes=num_classes,
        bias_downsample=False,
    )  # fmt: skip


def test_resnet3d_50_parameters_equal_those_of_another_implementation():
    with torch.device("meta"):
        expected = count(monai_resnet50(400, 1.0))
        assert count(build_model("resnet3d-50", num_classes=400, in_channels=3)) == expected == 47_018_576


def test_resnet3d_50_same_weights_equal_another_implementation():
    from trainer.checkpoints.names import HARA, find_origin

    theirs = randomised(monai_resnet50(3, 0.25), seed=2)
    mine = build_model("resnet3d-50", num_classes=3, in_channels=3, width=16, pixel_mean=HARA.mean, pixel_std=HARA.std)
    tensors = find_origin(theirs.state_dict(), "resnet3d-50").rename(theirs.state_dict())
    missing, unexpected = mine.load_state_dict(tensors, strict=False)
    assert (missing, unexpected) == (["pixel_mean", "pixel_std"], [])
    clip = clips_for("resnet3d-50", channels=3)
    with torch.inference_mode():
        expected = theirs(mine.normalise(clip).transpose(1, 2))
        assert expected.std() > 0.1, "logits that hardly vary prove nothing"
        torch.testing.assert_close(mine.eval()(clip), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "eps"), [("r2plus1d-18", 1e-5), ("r2plus1d-34", 1e-3), ("resnet3d-18", 1e-5)])
def test_video_logits_same_weights_equal_the_reference(name, eps):
    model = small(name).double()
    clip = clips_for(name).double()
    with torch.inference_mode():
        expected = video_logits(clip, model.state_dict(), eps)
        assert expected.std() > 0.1, "logits that hardly vary prove nothing"
        torch.testing.assert_close(model(clip), expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "frame_logits"),
    [
        ("resnet50", resnet50_frame_logits),
        ("vgg19", vgg19_frame_logits),
        ("inception-v3", lambda images, weights: inception_frame_logits(images, weights)[0]),
    ],
)
def test_static_logits_are_the_mean_of_the_reference_over_frames(name, frame_logits):
    model = small(name).double()
    clip = clips_for(name, num_clips=1).double()
    with torch.inference_mode():
        images = normalised(clip, model.state_dict()).flatten(0, 1)
        expected = frame_logits(images, model.state_dict()).unflatten(0, clip.shape[:2])
        assert expected.std() > 0.01, "logits that hardly vary prove nothing"
        torch.testing.assert_close(model(clip), expected.mean(1), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("side_px", [96, 299])
def test_inception_trains_both_heads_and_adds_the_auxiliary_at_its_weight(side_px):
    model = small("inception-v3")
    clip = clips_for("inception-v3", side_px=side_px, num_clips=1)[:, :1]
    with torch.inference_mode():
        (logits, weight), (aux, aux_weight) = model.training_logits(clip)
        torch.testing.assert_close(logits, model(clip))
        _, middle = inception_frame_logits(normalised(clip, model.state_dict()).flatten(0, 1), model.state_dict())
        torch.testing.assert_close(aux, model.aux(middle).mean(0, keepdim=True), atol=1e-4, rtol=1e-4)
    assert (weight, aux_weight) == (1.0, 0.4)
    assert side_px != 299 or middle.shape[-1] == 17


@pytest.mark.parametrize(
    ("name", "key", "shape"),
    [
        ("r2plus1d-18", "stem.0.weight", (45, 3, 1, 7, 7)),
        ("r2plus1d-18", "stem.4.running_var", (64,)),
        ("r2plus1d-18", "layer1.0.conv1.0.0.weight", (144, 64, 1, 3, 3)),
        ("r2plus1d-18", "layer2.0.conv2.0.3.weight", (128, 230, 3, 1, 1)),
        ("r2plus1d-34", "layer2.0.conv2.0.3.weight", (128, 288, 3, 1, 1)),
        ("r2plus1d-18", "layer4.0.downsample.0.weight", (512, 256, 1, 1, 1)),
        ("resnet3d-18", "stem.0.weight", (64, 3, 3, 7, 7)),
        ("resnet3d-18", "layer3.1.conv2.1.weight", (256,)),
        ("resnet50", "layer3.5.conv3.weight", (1024, 256, 1, 1)),
        ("resnet50", "layer2.0.downsample.1.running_mean", (512,)),
        ("inception-v3", "Mixed_6e.branch7x7dbl_5.conv.weight", (192, 192, 1, 7)),
        ("inception-v3", "Mixed_7c.branch3x3dbl_3b.bn.running_var", (384,)),
        ("inception-v3", "AuxLogits.conv1.conv.weight", (768, 128, 5, 5)),
        ("vgg19", "features.34.weight", (512, 512, 3, 3)),
        ("vgg19", "classifier.3.weight", (4096, 4096)),
    ],
)
def test_tensor_has_the_name_and_shape_of_torchvision(name, key, shape):
    from trainer.checkpoints.names import find_origin

    with torch.device("meta"):
        own = build_model(name, in_channels=3).state_dict()
    (new_name,) = find_origin({key: torch.empty(0)}, name).rename({key: torch.empty(0)})
    assert own[new_name].shape == shape


@torch.no_grad()
def balance_evidence(model: Classifier, clip: Tensor) -> None:
    """Turn the last layer so that these clips hold evidence for the last class."""
    if isinstance(model, PooledClassifier):
        mean = model.features(clip).mean((0, 2, 3))
        model.fc.weight -= torch.outer(model.fc.weight @ mean, mean) / mean.dot(mean)
    else:
        model.classifier[6].weight[-1] *= -1


@pytest.mark.parametrize("name", MODELS)
def test_explain_equals_the_network_and_autograd(name):
    model = small(name).double()
    clip = clips_for(name).double()
    balance_evidence(model, clip)
    maps = []
    hook = model.backbone.register_forward_hook(lambda module, args, output: maps.append(output))
    logits = model(clip)
    hook.remove()
    (gradient,) = torch.autograd.grad(logits[:, -1].sum(), maps[0])
    maps, gradient = (x.transpose(1, 2).flatten(0, 1) if x.ndim == 5 else x for x in (maps[0], gradient))
    maps = maps.detach()
    num_steps = len(maps) // len(clip)
    alpha = gradient.mean((2, 3)) * num_steps * maps[0, 0].numel()
    expected = torch.einsum("sf,sfhw->shw", alpha, maps).relu().unflatten(0, (len(clip), -1))
    with torch.inference_mode():
        explained, heatmap = model.explain(clip)
        expected = spread_over_frames(expected, clip.shape[1])
    assert heatmap.shape[:2] == clip.shape[:2]
    assert expected.max() > 0
    torch.testing.assert_close(explained, logits, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(heatmap, expected, atol=1e-9 * float(expected.max()), rtol=0)
    torch.testing.assert_close(gradcam(model, clip), heatmap, atol=1e-9 * float(expected.max()), rtol=0)


def test_gradcam_of_another_class_follows_that_class():
    model = small("resnet50")
    clip = clips_for("resnet50", side_px=80)
    balance_evidence(model, clip)
    first, last = gradcam(model, clip, class_index=0), gradcam(model, clip)
    with torch.no_grad():
        model.fc.weight[[0, 2]] = model.fc.weight[[2, 0]]
    torch.testing.assert_close(gradcam(model, clip, class_index=0), last)
    torch.testing.assert_close(gradcam(model, clip), first)
    assert (first - last).abs().max() > 0.1 * last.max() > 0


@pytest.mark.parametrize("name", MODELS)
def test_training_step_reaches_every_parameter(name):
    model = small(name, dropout=0.0).train()
    clip = clips_for(name)
    labels = torch.tensor([0, 2])
    sum(
        weight * nn.functional.cross_entropy(logits, labels) for logits, weight in model.training_logits(clip)
    ).backward()
    unreached = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert unreached == []
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", STATIC)
def test_static_network_ignores_the_order_of_frames(name):
    model = small(name)
    clip = clips_for(name)
    with torch.inference_mode():
        torch.testing.assert_close(model(clip.flip(1)), model(clip))


@pytest.mark.parametrize("name", VIDEO)
def test_video_network_sees_the_order_of_frames(name):
    model = small(name)
    clip = clips_for(name)
    with torch.inference_mode():
        assert (model(clip.flip(1)) - model(clip)).abs().max() > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_network_takes_colour_and_a_constant_plane(name):
    for options in ({"in_channels": 3}, {"constant_plane": True}):
        model = small(name, **options)
        clip = clips_for(name, channels=options.get("in_channels", 1), num_clips=1)
        with torch.inference_mode():
            assert model(clip).shape == (1, 3)


def test_steps_are_spread_linearly_over_the_frames_they_stand_for():
    steps = torch.tensor([0.0, 8.0]).view(1, 2, 1, 1)
    assert spread_over_frames(steps, 4).flatten().tolist() == [0, 2, 6, 8]
    assert spread_over_frames(steps, 2) is steps
    one = torch.full((1, 1, 2, 2), 3.0)
    assert (spread_over_frames(one, 5) == 3).all()
    values = torch.rand(1, 3, 1, 1)
    expected = nn.functional.interpolate(values.view(1, 1, 3), size=16, mode="linear").flatten()
    torch.testing.assert_close(spread_over_frames(values, 16).flatten(), expected)


def test_unknown_network_is_refused_with_the_allowed():
    with pytest.raises(ConfigError, match=r"model 'resnet51' is unknown; allowed are tin-r18, .*vgg19"):
        build_model("resnet51")


def test_network_names_are_known_without_torch():
    import subprocess
    import sys

    program = "import sys, trainer.models; assert 'torch' not in sys.modules and 'vgg19' in trainer.models.MODELS"
    subprocess.run([sys.executable, "-c", program], check=True)
