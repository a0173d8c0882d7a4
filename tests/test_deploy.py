"""What deploy/ holds is what systemd, udev and a container's builder take."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from edge.config import read_config

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
UNITS = ("edge-infer", "edge-display")
RULES = DEPLOY / "70-edge-ultrasound.rules"
BIN = "/opt/edge-ultrasound/.venv/bin/"


def _why_no_udevadm() -> str:
    """Return why rules cannot be checked here, or nothing."""
    if shutil.which("udevadm") is None:
        return "udevadm is not installed"
    version = subprocess.run(["udevadm", "--version"], capture_output=True, text=True, check=True).stdout
    return "" if int(version.split()[0].split(".")[0]) >= 254 else "udevadm verify came with systemd 254"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("name", UNITS)
def test_unit_is_one_that_systemd_takes(tmp_path: Path, name: str) -> None:
    text = (DEPLOY / f"{name}.service").read_text(encoding="utf-8")
    assert f"ExecStart={BIN}{name} " in text
    unit = tmp_path / f"{name}.service"
    for change, is_good in ((("", ""), True), (("[Service]", "[Service]\nRestrt=always"), False)):
        unit.write_text(text.replace(f"{BIN}{name}", "/bin/true").replace(*change), encoding="utf-8")
        done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
        complaints = [line for line in done.stderr.splitlines() if unit.name in line]
        assert (complaints == []) == is_good


@pytest.mark.parametrize("name", UNITS)
def test_unit_starts_its_command_with_options_that_it_has(name: str) -> None:
    text = (DEPLOY / f"{name}.service").read_text(encoding="utf-8")
    options = re.findall(r"--[a-z-]+", text.partition("ExecStart=")[2].splitlines()[0])
    module = {"edge-infer": "edge/config.py", "edge-display": "edge/display/cli.py"}[name]
    known = (ROOT / module).read_text(encoding="utf-8")
    assert options
    assert all(f'"{option}"' in known for option in options)


@pytest.mark.skipif(_why_no_udevadm() != "", reason=_why_no_udevadm())
def test_udev_rules_are_ones_that_udev_takes(tmp_path: Path) -> None:
    bad = tmp_path / "71-bad.rules"
    bad.write_text(RULES.read_text(encoding="utf-8").replace('LABEL="', 'LABEL="x'), encoding="utf-8")
    for path, is_good in ((RULES, True), (bad, False)):
        done = subprocess.run(["udevadm", "verify", str(path)], capture_output=True, text=True, check=False)
        assert (done.returncode == 0) == is_good, done.stdout + done.stderr


def test_udev_rules_come_after_those_that_ask_the_device_and_start_our_unit() -> None:
    assert RULES.name > "60-persistent-v4l.rules"
    text = RULES.read_text(encoding="utf-8")
    assert f'ENV{{SYSTEMD_WANTS}}+="{UNITS[0]}.service"' in text
    assert set(re.findall(r'GOTO="(\w+)"', text)) == set(re.findall(r'LABEL="(\w+)"', text))


def test_container_copies_every_package_and_runs_what_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    copied = set(re.findall(r"^COPY ([a-z]+) /src/\1$", text, re.MULTILINE))
    found = project["tool"]["setuptools"]["packages"]["find"]
    assert copied == {pattern.removesuffix("*") for pattern in found["include"]}
    # a folder without it would be left out of what is installed
    folders = {path.parent for name in copied for path in (ROOT / name).rglob("*.py")}
    assert found["namespaces"] is False
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []
    commands = set(re.findall(r"\bedge-(?:infer|display|doctor|keygen|watch|train)\b", text))
    assert commands <= project["project"]["scripts"].keys()
    assert re.search(r"^USER edge$", text, re.MULTILINE)


def test_reference_configuration_is_one_that_the_daemon_takes() -> None:
    config = read_config(["--config", os.fspath(DEPLOY / "edge-infer.toml")])
    assert config.source == "demo"
