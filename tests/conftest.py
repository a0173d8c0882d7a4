"""What several test files share."""

from pathlib import Path

import pytest

from tools.trivial import write_trivial_bundle


@pytest.fixture(scope="session")
def trivial_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle of the real clip size whose heatmap tells which frame stands in which place; do not change it."""
    return write_trivial_bundle(tmp_path_factory.mktemp("bundles") / "trivial")
