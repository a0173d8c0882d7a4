"""What several test files share."""

import os
import signal
from pathlib import Path

import pytest
from hardware import skip_or_fail

from tools.phantom import DatasetSpec, write_dataset
from tools.trivial import write_trivial_bundle

# torch's threads would spin while they wait for each other, on cores that the other half of the tests needs
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_configure() -> None:
    """Let signals be heard that a shell's background or nohup have ignored: our programs would ignore them, too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)  # whoever is started from here has the default again


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine cannot run, with the reason, or fail it where the environment says that it must run."""
    skip_or_fail(mark.name for mark in item.iter_markers())


@pytest.fixture(scope="session")
def trivial_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle of the real clip size whose heatmap tells which frame stands in which place; do not change it."""
    return write_trivial_bundle(tmp_path_factory.mktemp("bundles") / "trivial")


@pytest.fixture(scope="session")
def phantom_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the manifest of eight small synthetic videos of eight patients, four of each class; do not change it."""
    folder = tmp_path_factory.mktemp("phantoms")
    rows = list(write_dataset(DatasetSpec(folder / "set", num_videos=8, seed=1, num_frames=24, size_wh=(128, 96))))
    lines = ["path,label,patient_id", *(f"set/{row['path']},{row['label']},{row['patient_id']}" for row in rows)]
    (folder / "manifest.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder / "manifest.csv"
