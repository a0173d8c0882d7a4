"""A second TIN, written from mmaction2's description and as plainly as possible, to hold the fast one against.

It scatters each frame to where its offset takes it, group by group and sample by sample, splits real offsets into
their two whole neighbours, and joins the shifted channels with the others before an ordinary convolution.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as fn

Weights = dict[str, Tensor]
NUMS_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


def conv1d_same(x_ct: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Kernel 3, zero padding: (C, T) to (O, T), tap by tap."""
    num_frames = x_ct.shape[1]
    columns = []
    for t in range(num_frames):
        column = bias.clone()
        for tap in range(3):
            if 0 <= t + tap - 1 < num_frames:
                column = column + weight[:, :, tap] @ x_ct[:, t + tap - 1]
        columns.append(column)
    return torch.stack(columns, dim=1)


def whole_shift(frames_tchw: Tensor, shift: int) -> Tensor:
    """Put frame t at t + shift; what leaves the clip is lost, what is not reached is zero."""
    out = torch.zeros_like(frames_tchw)
    for t in range(len(frames_tchw)):
        if 0 <= t + shift < len(frames_tchw):
            out[t + shift] = frames_tchw[t]
    return out


def real_shift(frames_tchw: Tensor, offset: Tensor) -> Tensor:
    """Mix the two whole shifts around a real offset."""
    below = math.floor(offset.item())
    share_above = offset - below
    return (1 - share_above) * whole_shift(frames_tchw, below) + share_above * whole_shift(frames_tchw, below + 1)


def interlace_sample(x_tchw: Tensor, weights: Weights, prefix: str) -> Tensor:
    """Interlace one clip's feature map (T, C, H, W)."""
    num_folds = x_tchw.shape[1] // 4
    folds = x_tchw[:, :num_folds]
    pooled_ct = folds.mean(dim=(2, 3)).T
    offset_net, weight_net = f"{prefix}.offset_net", f"{prefix}.weight_net"

    hidden = conv1d_same(pooled_ct, weights[f"{offset_net}.conv.weight"], weights[f"{offset_net}.conv.bias"])[0]
    hidden = torch.relu(weights[f"{offset_net}.fc1.weight"] @ hidden + weights[f"{offset_net}.fc1.bias"])
    hidden = weights[f"{offset_net}.fc2.weight"] @ hidden + weights[f"{offset_net}.fc2.bias"]
    learned = 4 * (torch.sigmoid(hidden) - 0.5)
    offsets = [learned[0], learned[1], -learned[0], -learned[1]]

    frame_weights = 2 * torch.sigmoid(
        conv1d_same(pooled_ct, weights[f"{weight_net}.conv.weight"], weights[f"{weight_net}.conv.bias"])
    )
    groups = []
    for group, (part, offset) in enumerate(zip(folds.chunk(4, dim=1), offsets, strict=True)):
        groups.append(real_shift(part, offset) * frame_weights[group % 2][:, None, None, None])
    return torch.cat([*groups, x_tchw[:, num_folds:]], dim=1)


def interlace(x: Tensor, weights: Weights, prefix: str, num_frames: int) -> Tensor:
    return torch.cat([interlace_sample(sample, weights, prefix) for sample in x.split(num_frames)])


def conv_bn(x: Tensor, weights: Weights, conv: str, bn: str, stride: int = 1) -> Tensor:
    weight = weights[f"{conv}.weight"]
    x = fn.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
    statistics = weights[f"{bn}.running_mean"], weights[f"{bn}.running_var"]
    return fn.batch_norm(x, *statistics, weights[f"{bn}.weight"], weights[f"{bn}.bias"])


def residual_block(x: Tensor, weights: Weights, name: str, stride: int, num_frames: int) -> Tensor:
    """Run a basic block or a bottleneck, whichever the weights belong to."""
    is_bottleneck = f"{name}.conv3.weight" in weights
    y = interlace(x, weights, f"{name}.conv1", num_frames)
    y = torch.relu(conv_bn(y, weights, f"{name}.conv1", f"{name}.bn1", 1 if is_bottleneck else stride))
    y = conv_bn(y, weights, f"{name}.conv2", f"{name}.bn2", stride if is_bottleneck else 1)
    if is_bottleneck:
        y = conv_bn(torch.relu(y), weights, f"{name}.conv3", f"{name}.bn3")
    if f"{name}.downsample.0.weight" in weights:
        x = conv_bn(x, weights, f"{name}.downsample.0", f"{name}.downsample.1", stride)
    return torch.relu(y + x)


def reference_logits(clip: Tensor, weights: Weights, depth: int) -> Tensor:
    """Logits (N, K) of clips (N, T, C, H, W) in 0..1, with the state dict of the network under test."""
    num_clips, num_frames = clip.shape[:2]
    x = torch.cat(list((clip - weights["pixel_mean"]) / weights["pixel_std"]))
    x = torch.relu(conv_bn(x, weights, "backbone.conv1", "backbone.bn1", stride=2))
    x = fn.max_pool2d(x, 3, stride=2, padding=1)
    for stage, num_blocks in enumerate(NUMS_BLOCKS[depth], start=1):
        for block in range(num_blocks):
            stride = 2 if stage > 1 and block == 0 else 1
            x = residual_block(x, weights, f"backbone.layer{stage}.{block}", stride, num_frames)
    frame_logits = x.mean(dim=(2, 3)) @ weights["fc.weight"].T + weights["fc.bias"]
    return torch.stack([frame_logits[i * num_frames : (i + 1) * num_frames].mean(0) for i in range(num_clips)])
