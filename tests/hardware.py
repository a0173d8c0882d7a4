"""Tests for hardware and libraries that few machines have: they skip with the reason, or fail where they must run."""

import os
from collections.abc import Iterable

import pytest

from engines import cuda
from engines.tensorrt import engine as tensorrt_engine

REQUIREMENTS = {
    "gpu": ("REQUIRE_CUDA", cuda.probe),
    "tensorrt": ("REQUIRE_TENSORRT", tensorrt_engine.probe),
}
"""Mark to the environment variable that turns its skips into failures, and what says why it cannot run here."""


def skip_or_fail(marks: Iterable[str]) -> None:
    """Skip the running test where what one of its marks needs is missing; fail it where the environment asks for it."""
    needs = [REQUIREMENTS[mark] for mark in marks if mark in REQUIREMENTS]
    troubles = dict.fromkeys(trouble for _, probe in needs if (trouble := probe()) is not None)
    if troubles:
        missing([variable for variable, _ in needs], "; ".join(troubles))


def missing(variables: Iterable[str], reason: str) -> None:
    """Skip with the reason; fail with it where one of the variables is 1."""
    for variable in variables:
        if os.environ.get(variable) == "1":
            pytest.fail(f"{variable}=1 asks for what is not here: {reason}")
    pytest.skip(reason)
