"""Grad-CAM by its definition, with a backward pass: for any network of `trainer.models` and any class."""

import torch
from torch import Tensor

from trainer.models.classifier import Classifier, spread_over_frames


def gradcam(model: Classifier, clip: Tensor, class_index: int = -1) -> Tensor:
    """Return where the evidence for a class lies.

    A step's map is the rectified sum of its feature maps, each times the mean over the step of the gradient of the
    class's logit. It is scaled by steps, height and width, as `Classifier.explain` scales it.

    Args:
        model: A network in evaluation mode.
        clip: (N, T, C, H, W) float32 in 0..1.
        class_index: Which logit; -1 is the positive class.

    Returns:
        (N, T, h, w) float32 >= 0.

    Source: Selvaraju et al., "Grad-CAM", 2017, equations 1 and 2.
    """
    with torch.no_grad():
        features = model.features(clip)
    with torch.enable_grad():
        features.requires_grad_()
        logits = model.classify(features, len(clip))
        (gradient,) = torch.autograd.grad(logits[:, class_index].sum(), features)
    num_steps = len(features) // len(clip)
    alpha = gradient.mean((2, 3), keepdim=True) * (num_steps * features[0, 0].numel())
    maps = (alpha * features.detach()).sum(1).relu()
    return spread_over_frames(maps.unflatten(0, (len(clip), num_steps)), clip.shape[1])
