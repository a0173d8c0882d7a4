"""TIN against an independent implementation, published parameter counts, and the shifts it is built from."""

import pytest
import torch
from reference_tin import real_shift, reference_logits
from small_bundle import randomised
from torch import nn

from trainer.models import build_model
from trainer.models.resnet import ResNet
from trainer.models.tin import TIN, InterlacedConv2d


@pytest.mark.parametrize(
    ("depth", "width", "num_frames", "seed"),
    [(18, 64, 16, 0), (18, 64, 8, 1), (18, 16, 16, 2), (34, 16, 8, 0), (50, 32, 8, 0), (50, 16, 16, 1), (50, 16, 8, 2)],
)
def test_logits_same_weights_equal_the_reference(depth, width, num_frames, seed):
    model = randomised(TIN(depth, num_classes=3, num_frames=num_frames, width=width), seed)
    clips = torch.rand(2, num_frames, 1, 40, 33, generator=torch.Generator().manual_seed(seed + 100))
    with torch.inference_mode():
        logits = model(clips)
        expected = reference_logits(clips, model.state_dict(), depth)
    assert expected.std() > 0.1, "logits that hardly vary prove nothing"
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_logits_in_double_precision_equal_the_reference_to_rounding():
    model = randomised(TIN(50, num_frames=8, width=16), seed=5).double()
    clips = torch.rand(1, 8, 1, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    with torch.inference_mode():
        torch.testing.assert_close(
            model(clips), reference_logits(clips, model.state_dict(), 50), atol=1e-11, rtol=1e-11
        )


def test_logits_depend_on_the_order_of_frames():
    model = randomised(TIN(18, width=16), seed=0)
    clips = torch.rand(1, 16, 1, 48, 48, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert (model(clips) - model(clips.flip(1))).abs().max() > 1e-3


@pytest.mark.parametrize("offset", [-1.75, -1.0, -0.3, 0.0, 0.5, 1.0, 1.9])
def test_change_of_a_known_offset_scatters_forward_in_time(offset):
    conv = InterlacedConv2d(16, 4, 3, padding=1, num_frames=5)
    logit = torch.logit(torch.tensor(offset / 4 + 0.5, dtype=torch.float64)).float()
    for parameter in (*conv.offset_net.parameters(), *conv.weight_net.parameters()):
        nn.init.zeros_(parameter)
    nn.init.constant_(conv.offset_net.fc2.bias, logit.item())
    frames = torch.randn(5, 16, 3, 3, generator=torch.Generator().manual_seed(0))
    signs = torch.tensor([1.0, 1.0, -1.0, -1.0])
    expected = [real_shift(frames[:, g : g + 1], signs[g] * offset) - frames[:, g : g + 1] for g in range(4)]
    torch.testing.assert_close(conv.change(frames), torch.cat(expected, dim=1), atol=2e-6, rtol=0)


def test_gradients_reach_every_parameter_of_offsets_and_weights():
    model = randomised(TIN(18, width=16), seed=3)
    clips = torch.rand(2, 16, 1, 48, 48, generator=torch.Generator().manual_seed(4))
    model(clips)[:, -1].sum().backward()
    convs = [module for module in model.modules() if isinstance(module, InterlacedConv2d)]
    assert len(convs) == 8
    for conv in convs:
        for name, parameter in (*conv.offset_net.named_parameters(), *conv.weight_net.named_parameters()):
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        assert conv.offset_net.fc2.bias.grad.abs().min() > 0
        assert conv.weight_net.conv.bias.grad.abs().min() > 0


def test_gradient_of_the_offset_equals_a_finite_difference():
    conv = InterlacedConv2d(16, 4, 1, num_frames=6).double()
    frames = torch.randn(6, 16, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    bias = conv.offset_net.fc2.bias

    def loss() -> torch.Tensor:
        return conv(frames).square().sum()

    loss().backward()
    step = 1e-6
    with torch.no_grad():
        bias[0] += step
        above = loss()
        bias[0] -= 2 * step
        slope = (above - loss()) / (2 * step)
    torch.testing.assert_close(bias.grad[0], slope, rtol=1e-6, atol=0)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("depth", "published"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032)])
def test_parameters_of_plain_resnet_equal_the_published_counts(depth, published):
    backbone = ResNet(depth, in_channels=3)
    assert count(backbone) + count(nn.Linear(backbone.num_features, 1000)) == published


def block_inputs(depth: int) -> list[int]:
    """Channels that enter each block: the stem's 64, then each stage's own."""
    nums_blocks, expansion = {18: ((2, 2, 2, 2), 1), 34: ((3, 4, 6, 3), 1), 50: ((3, 4, 6, 3), 4)}[depth]
    leaving = [64 * 2**stage * expansion for stage, num in enumerate(nums_blocks) for _ in range(num)]
    return [64, *leaving[:-1]]


@pytest.mark.parametrize("depth", [18, 34, 50])
@pytest.mark.parametrize("num_frames", [8, 16])
def test_parameters_of_tin_add_one_interlace_a_block(depth, num_frames):
    def interlace(channels: int) -> int:
        conv, weight = 3 * channels // 4 + 1, 2 * (3 * channels // 4 + 1)
        return conv + num_frames * (num_frames + 1) + 2 * (num_frames + 1) + weight

    model = build_model(f"tin-r{depth}", num_classes=1000, num_frames=num_frames, in_channels=3)
    plain = count(ResNet(depth, in_channels=3)) + count(model.fc)
    assert count(model) == plain + sum(map(interlace, block_inputs(depth)))


def test_start_values_are_those_of_the_reference_implementation():
    conv = InterlacedConv2d(64, 64, 3, num_frames=16)
    assert conv.offset_net.fc2.bias.tolist() == pytest.approx([0.5108, 0.5108])
    assert conv.weight_net.conv.bias.tolist() == [0.0, 0.0]


def test_interlaced_convolution_of_indivisible_channels_is_refused():
    with pytest.raises(ValueError, match="24 channels do not divide into 4 x 4 groups"):
        InterlacedConv2d(24, 24, 3, num_frames=16)


def test_dropout_acts_in_training_only():
    model = TIN(18, width=16)
    clips = torch.rand(1, 16, 1, 32, 32)
    model.backbone.eval()
    assert not torch.equal(model(clips), model(clips))
    model.eval()
    assert torch.equal(model(clips), model(clips))
