"""The training step, the optimizer and the validation, as Lightning calls them."""

import math
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from trainer.errors import TrainingError
from trainer.training.recipe import Recipe


class Training(pl.LightningModule):
    """A network in training.

    Args:
        network: Clips (N, T, C, H, W) to logits (N, K), with `training_logits`.
        recipe: How.
        seed: Of what chance the network itself takes, its dropout.
        class_weights: (K,) weight of each class in the loss.
        validation_labels: (videos,) of the validation videos.
    """

    def __init__(
        self, network: nn.Module, recipe: Recipe, seed: int, class_weights: Tensor, validation_labels: list[int]
    ) -> None:
        super().__init__()
        self.network = network.to(memory_format=_fastest_format(network))
        self._recipe = recipe
        self._seed = seed
        self.register_buffer("_class_weights", class_weights, persistent=False)
        self._validation_labels = np.array(validation_labels)
        self._logit_sums = torch.empty(0)
        self._window_counts = torch.empty(0)

    def on_train_epoch_start(self) -> None:
        # every epoch begins from a state that the seed and the epoch alone decide: resuming needs no other
        sequence = np.random.SeedSequence((self._seed, self.current_epoch, self.global_rank))
        torch.manual_seed(int(sequence.generate_state(1)[0]))

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_index: int) -> Tensor:
        clips, labels, _ = batch
        heads = self.network.training_logits(clips)
        loss = sum(weight * self._loss(logits, labels) for logits, weight in heads)
        self._check_finite(
            loss, f"step {self.global_step + 1} (epoch {self.current_epoch + 1}, batch {batch_index + 1})"
        )
        accuracy = (heads[0][0].detach().argmax(1) == labels).float().mean()
        how = {"on_step": False, "on_epoch": True, "batch_size": len(labels), "sync_dist": True}
        self.log_dict({"train_loss": loss.detach(), "train_accuracy": accuracy}, **how)
        return loss

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        smoothing = self._recipe.label_smoothing
        return functional.cross_entropy(logits.float(), labels, self._class_weights, label_smoothing=smoothing)

    def _check_finite(self, loss: Tensor, where: str) -> None:
        if not bool(torch.isfinite(loss)):
            raise TrainingError(
                f"the loss is {loss.item()} at {where}: training diverged with learning_rate "
                f"{self._recipe.learning_rate:g}; begin anew with a lower --set learning_rate, longer warmup_epochs, "
                "or gradient_clip=1"
            )

    def on_validation_epoch_start(self) -> None:
        shape = (len(self._validation_labels), self._class_weights.numel())
        self._logit_sums = torch.zeros(shape, device=self.device)
        self._window_counts = torch.zeros(shape[0], device=self.device)

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_index: int) -> None:
        clips, _, videos = batch
        self._logit_sums.index_add_(0, videos, self.network(clips).float())
        self._window_counts.index_add_(0, videos, torch.ones(len(videos), device=self.device))

    def on_validation_epoch_end(self) -> None:
        sums = self.trainer.strategy.reduce(self._logit_sums, reduce_op="sum")
        counts = self.trainer.strategy.reduce(self._window_counts, reduce_op="sum")
        logits = (sums / counts[:, None]).double().cpu()
        self._check_finite(logits.sum(), f"the validation after epoch {self.current_epoch + 1}")
        measured = validation_metrics(logits, self._validation_labels)
        self.log_dict({f"val_{name}": value for name, value in measured.items()}, sync_dist=True)

    def configure_optimizers(self) -> dict[str, Any]:
        recipe = self._recipe
        groups = parameter_groups(self.network, recipe.weight_decay)
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
        optimizer = kind(groups, lr=recipe.learning_rate)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps, recipe))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def validation_metrics(logits: Tensor, labels: np.ndarray) -> dict[str, float]:
    """Return loss, accuracy and AUC (last class against the rest; NaN where one side is missing) of videos.

    Args:
        logits: (videos, K) mean over each video's windows.
        labels: (videos,).
    """
    positive = labels == logits.shape[1] - 1
    both = 0 < positive.sum() < len(labels)
    score = logits.softmax(1)[:, -1].numpy()
    return {
        "loss": float(functional.cross_entropy(logits, torch.from_numpy(labels))),
        "accuracy": float(np.mean(logits.argmax(1).numpy() == labels)),
        "auc": float(roc_auc_score(positive, score)) if both else math.nan,
    }


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return weights with decay, and biases and normalisation's scales without."""
    decayed = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    plain = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def learning_rate_factor(step: int, num_steps: int, recipe: Recipe) -> float:
    """Return what the learning rate is multiplied by: a linear rise, then constant or half a cosine down to 0.

    Args:
        step: Steps done.
        num_steps: Of the whole training.
        recipe: `epochs`, `warmup_epochs` and `schedule` count.
    """
    warmup = min(recipe.warmup_epochs / recipe.epochs, 1) * num_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if recipe.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, num_steps - warmup)))


def _fastest_format(network: nn.Module) -> torch.memory_format:
    """Return the layout with the channels last: of videos where the network convolves over time, else of images."""
    is_3d = any(weights.dim() == 5 for weights in network.parameters())
    return torch.channels_last_3d if is_3d else torch.channels_last
