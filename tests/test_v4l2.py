"""Frame grabbers: a real `/dev/video0` in a virtual machine; see tests/rigs/v4l2vm/README.md."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engines import PreprocessSpec
from tools.trivial import write_trivial_bundle

ROOT = Path(__file__).parent.parent
RIG = Path(__file__).parent / "rigs" / "v4l2vm"
HOME = Path(os.environ.get("V4L2VM_HOME", Path.home() / ".cache" / "v4l2vm"))
NUM_CYCLES = int(os.environ.get("NUM_CYCLES", "30"))
"""How often the device is unplugged, stalled and broken in a row."""
BOOT_LIMIT_S = 1400 + 5 * NUM_CYCLES
TEST_LIMIT_S = BOOT_LIMIT_S + 300


def _why_not() -> str:
    """Return why the machine cannot be had here, or nothing."""
    if os.geteuid() != 0:
        return "the virtual machine needs root"
    release = Path("/etc/os-release").read_text(encoding="utf-8") if Path("/etc/os-release").exists() else ""
    return "" if "VERSION_CODENAME=bookworm" in release else "the virtual machine is set up from Debian 12's archive"


def _host_load() -> float:
    """Return how many times as much as it can this machine has to do."""
    return max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))


@pytest.mark.v4l2
@pytest.mark.slow
@pytest.mark.timeout(TEST_LIMIT_S)
@pytest.mark.skipif(_why_not() != "", reason=_why_not())
def test_v4l2_in_the_virtual_machine(tmp_path: Path) -> None:
    subprocess.run(["bash", str(RIG / "setup.sh"), "loopback"], check=True, capture_output=True, text=True)
    results = HOME / "share" / "results.json"
    results.unlink(missing_ok=True)
    # a small input, for the emulated processor takes half a second for one of the usual size
    write_trivial_bundle(HOME / "share" / "bundle", preprocess=PreprocessSpec((32, 32), (32, 32)))
    commands = tmp_path / "commands.sh"
    checks = RIG / "guest_checks.py"
    settings = f"NUM_CYCLES={NUM_CYCLES} HOST_LOAD={_host_load():.1f}"
    pytest_command = (
        f"{sys.executable} -m pytest -p no:cacheprovider --timeout {BOOT_LIMIT_S} -q -o testpaths= {checks}"
    )
    commands.write_text(f"cd {ROOT} && {settings} {pytest_command}\n", encoding="utf-8")
    booted = subprocess.run(
        ["bash", str(RIG / "boot.sh"), str(commands), str(BOOT_LIMIT_S)], capture_output=True, text=True, check=False
    )
    assert booted.returncode == 0, booted.stdout[-6000:]
    found = json.loads(results.read_text(encoding="utf-8"))
    print(json.dumps(found, indent=1))
    assert "daemon" in found
