"""Tensors out of a checkpoint file; nothing in the file is ever run."""

import pickle
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from edge.errors import ConfigError
from trainer.checkpoints.pickled_code import ALLOWED, first_import, named_by_torch

_WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Under which of these names training programs keep the weights, beside their own records."""
_PARALLEL = "module."
"""What data-parallel training puts before each name."""
_DAMAGE = (
    RuntimeError,
    EOFError,
    OSError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    IndexError,
    AssertionError,
    OverflowError,
    NotImplementedError,
    MemoryError,
    struct.error,
)
"""What torch's reader raises on a file that is cut short or is no checkpoint."""


class CheckpointError(ConfigError):
    """A checkpoint that cannot be read, holds more than tensors, or is another network's."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the named tensors of a `.pth`, `.pt`, `.ckpt`, `.bin` or `.safetensors` file, on the CPU.

    Raises:
        CheckpointError: The file is missing or damaged, or holds code or no tensors.
    """
    content = _load(path)
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; needed is a state dict: names with tensors")
    tensors = {str(name).removeprefix(_PARALLEL): value for name, value in content.items() if _is_plain(value)}
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors; needed is a state dict: names with tensors")
    return tensors


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized


def _load(path: Path) -> Any:
    try:
        path.open("rb").close()
    except OSError as exc:
        raise CheckpointError(f"the checkpoint {path} cannot be read: {exc.strerror}") from exc
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about the pickle's age
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as exc:
        not_tensors = f"{path} is damaged or no checkpoint: it is not a pickle of tensors; download it again"
        raise _code_in(path, str(exc)) or CheckpointError(not_tensors) from exc
    except (*_DAMAGE, SafetensorError) as exc:
        if (refusal := _code_in(path)) is not None:
            raise refusal from exc
        reason = (str(exc).splitlines() or [type(exc).__name__])[0].split(". ")[0][:120]
        raise CheckpointError(f"{path} is damaged or no checkpoint ({reason}); download it again") from exc


def _code_in(path: Path, message: str = "") -> CheckpointError | None:
    """Return the refusal of a file that would run code; None where it holds none, or nobody can tell."""
    named = named_by_torch(message) or first_import(path)
    if named is None:
        return None
    return CheckpointError(
        f"{path} holds more than tensors ({named}), which could run code when read, so it was not read; {ALLOWED}: "
        "save its state_dict alone"
    )
