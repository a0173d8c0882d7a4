"""One precision built for two OpenVINO devices: each has a file of its own, and whoever names a device runs its file.

The second device is OpenVINO's own CPU plugin under another name, in a process of its own: a device stays registered.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from engines import PreprocessSpec, load_bundle
from engines.openvino.engine import file_for
from tools.trivial import write_trivial_bundle

TWIN = "TWINCPU"
WITH_TWIN = f"""
import sys
from engines.openvino.engine import shared_core
shared_core().register_plugin("openvino_intel_cpu_plugin", "{TWIN}")
from engines import load_bundle, load_engine
"""
BUILD = f"{WITH_TWIN}\nimport tools.build\nraise SystemExit(tools.build.main())"
LOAD = f"{WITH_TWIN}\nprint(load_engine(load_bundle(sys.argv[1]), *sys.argv[2:]).spec.device)"
CHECK = f"""{WITH_TWIN}
from tools.engine_check import check_here
from tools.parity_table import check_all
checks = check_all(load_bundle(sys.argv[1]), "openvino", None, check_here)
print(*(check.device for check in checks if check.result.is_within))
"""
NAMES = {None: "model.openvino-fp32.xml", TWIN: "model.openvino-fp32-twincpu.xml"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    spec = PreprocessSpec(resize_hw=(16, 16), crop_hw=(16, 16))
    return write_trivial_bundle(tmp_path / "bundle", num_frames=4, preprocess=spec)


def _run(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _build(folder: Path, *device: str) -> None:
    _run(BUILD, folder, "--backend", "openvino", "--precision", "fp32", *device)


def _built(folder: Path) -> dict[str, str]:
    """Return each engine's file and the device that it was built for."""
    return {file.name: file.build["device"] for file in load_bundle(folder).files if file.kind == "openvino"}


@pytest.mark.slow
@pytest.mark.parametrize("order", [(None, TWIN), (TWIN, None)])
def test_build_for_a_second_device_keeps_what_the_first_one_has(folder: Path, order: tuple[str | None, ...]) -> None:
    for device in order:
        _build(folder, *(("--device", device) if device else ()))
    assert _built(folder) == {NAMES[device]: device or "CPU" for device in order}
    bundle = load_bundle(folder)
    for device, name in ((TWIN, NAMES[TWIN]), (f"{TWIN}.1", NAMES[TWIN]), (None, NAMES[None]), ("CPU", NAMES[None])):
        assert file_for(bundle, "fp32", device).name == name
    for arguments, device in (((), "CPU"), ((TWIN,), TWIN)):
        assert _run(LOAD, folder, "openvino", *arguments).strip() == device
    assert sorted(_run(CHECK, folder).split()) == ["CPU", TWIN]


@pytest.mark.slow
def test_build_again_replaces_the_file_of_its_device_whatever_its_name(folder: Path) -> None:
    """A file of an older version: of another device, under the name that is the processor's now."""
    _build(folder, "--device", TWIN)
    for end in ("xml", "bin"):
        (folder / f"model.openvino-fp32-twincpu.{end}").rename(folder / f"model.openvino-fp32.{end}")
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace("fp32-twincpu.", "fp32."))
    _build(folder, "--device", TWIN.lower())
    assert _built(folder) == {NAMES[None]: TWIN}
    assert not list(folder.glob("*twin*"))
