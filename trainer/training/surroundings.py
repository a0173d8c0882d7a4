"""On what a network was trained: software versions and hardware, for the record."""

import importlib.metadata
import platform
from typing import Any

import torch

from engines import host
from trainer.training.recipe import Recipe

PACKAGES = ("edge-ultrasound", "torch", "lightning", "monai", "numpy", "av", "opencv-python-headless")


def versions() -> dict[str, str]:
    """Return the version of Python and of each package that decides on the weights."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


def hardware(num_devices: int, num_nodes: int, precision: str) -> dict[str, Any]:
    """Return what computes."""
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "cpu": host.processor_name(),
        "num_cores": host.num_cores(),
        **gpu,
        "num_devices": num_devices,
        "num_nodes": num_nodes,
        "precision": precision,
    }


def default_precision(recipe: Recipe) -> str:
    """Return bfloat16 where the recipe wants it and the GPU has it, else float32, as Lightning names them."""
    has_bfloat16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return "bf16-mixed" if recipe.mixed_precision and has_bfloat16 else "32-true"
