"""Tests for hardware and libraries that few machines have: they skip with the reason, or fail where they must run."""

import os

import pytest

from engines import cuda, tensorrt_engine

REQUIREMENTS = {
    "gpu": ("REQUIRE_CUDA", cuda.probe),
    "tensorrt": ("REQUIRE_TENSORRT", tensorrt_engine.probe),
}
"""Mark to the environment variable that turns its skips into failures, and what says why it cannot run here."""


def skip_or_fail(mark: str) -> None:
    """Skip the running test where its hardware is missing; fail it where the environment says that it is there."""
    variable, probe = REQUIREMENTS[mark]
    if (trouble := probe()) is not None:
        missing(variable, f"marked {mark}: {trouble}")


def missing(variable: str, reason: str) -> None:
    """Skip with the reason; fail with it where the variable is 1."""
    if os.environ.get(variable) == "1":
        pytest.fail(f"{reason}; {variable}=1 asks for it")
    pytest.skip(reason)
