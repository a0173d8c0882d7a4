"""How an engine uses the machine, as one option tells it."""

from pathlib import Path

import pytest

from edge.config import read_config
from edge.errors import ConfigError
from edge.tuning import parse_tuning


def test_tuning_of_nothing_leaves_all_to_the_backend() -> None:
    assert parse_tuning("") == {}


def test_tuning_names_threads_pinning_and_cache() -> None:
    assert parse_tuning("threads=3,pinning=off,cache=/var/cache/a b") == {
        "num_threads": 3,
        "is_pinned": False,
        "cache_dir": Path("/var/cache/a b"),
    }


@pytest.mark.parametrize(
    "text", ["threads", "threads=0", "threads=-1", "threads=two", "pinning=yes", "cache=", "speed=max", "=", "a=b"]
)
def test_tuning_that_is_none_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--tune has .*; allowed are threads=N with N >= 1, pinning=on\|off, cache="):
        read_config(["--source", "demo", "--tune", text])
