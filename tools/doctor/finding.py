"""What edge-doctor finds, and how the check that finds it is run: one that fails itself is a finding, too."""

import dataclasses
import enum
import os
import pwd
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edge.errors import EdgeError

ROOT = Path(__file__).resolve().parents[2]
"""The checkout, or where the packages are installed."""


class Verdict(enum.StrEnum):
    """How much a finding matters, the least first."""

    OK = "ok"
    NOTE = "note"
    """Not here, and not needed for what most do."""
    WARNING = "warning"
    """It runs, but not as it could."""
    PROBLEM = "problem"
    """Something essential is missing."""


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One line on the screen."""

    name: str
    """What was looked at, in a word or two."""
    verdict: Verdict
    found: str
    """One line for people."""
    mend: str = ""
    """A command for the shell, with a comment behind it where one is needed; empty where nothing is to mend."""
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """For `--json` alone."""


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """Looks at one part of the machine."""

    section: str
    name: str
    exit_code: int
    """What the command ends with where this check finds a problem."""
    run: Callable[[], Iterable[Finding]]


def examine(checks: Iterable[Check]) -> Iterator[tuple[Check, Finding]]:
    """Run the checks in their order and yield what they find, as soon as it is found."""
    for check in checks:
        for finding in _findings(check):
            yield check, finding


def _findings(check: Check) -> Iterator[Finding]:
    try:
        yield from check.run()
    except EdgeError as exc:
        yield Finding(check.name, Verdict.PROBLEM, f"could not be looked at: {exc}", _REPORT)
    except Exception as exc:  # a strange machine must not keep the other checks from being made
        told = f"could not be looked at: the check itself failed ({type(exc).__name__}: {exc})"
        yield Finding(check.name, Verdict.PROBLEM, told, _REPORT, {"traceback": traceback.format_exc()})


def as_root(command: str) -> str:
    """Return the command as this user must write it."""
    return command if os.geteuid() == 0 else f"sudo {command}"


def user_name() -> str:
    """Return this user's name; its number where it has none, as in a container."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def pip_install(requirements: Sequence[str], *options: str) -> str:
    """Return the command that installs into the environment that runs us."""
    return shlex.join([sys.executable, "-m", "pip", "install", *options, *requirements])


def pip_install_extra(extra: str, lacks: Sequence[str]) -> str:
    """Return the command that installs what is lacking of a group of optional packages."""
    is_checkout = (ROOT / "pyproject.toml").is_file()
    return pip_install([f"{ROOT}[{extra}]"], "-e") if is_checkout else pip_install(lacks)


_REPORT = "edge-doctor --json > doctor.json   # holds more of it; send it with your report"
