"""The networks that can be trained, by the names that the commands know."""

from collections.abc import Callable
from functools import partial

from torch import nn

from trainer.models.tin import TIN

MODELS: dict[str, Callable[..., nn.Module]] = {
    "tin-r18": partial(TIN, 18),
    "tin-r34": partial(TIN, 34),
    "tin-r50": partial(TIN, 50),
}
