"""Whether Python, its packages and its locale are as pyproject.toml asks."""

import importlib.metadata
import locale
import platform
import sys
import tomllib
from collections.abc import Iterator
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tools.doctor.finding import ROOT, Finding, Verdict, pip_install, pip_install_extra

_PROJECT = "edge-ultrasound"
_SERVES = {
    "build": "edge-build, for OpenVINO and ONNX Runtime",
    "train": "edge-train",
    "tensorrt": "engines on NVIDIA GPUs",
}
"""Group of optional packages to what it is for. Those of the tests are no concern of a machine beside a scanner."""


class Needs(NamedTuple):
    """What the project asks for."""

    python: SpecifierSet
    packages: list[Requirement]
    extras: dict[str, list[Requirement]]


class State(NamedTuple):
    """Requirements, by what is here of them."""

    fitting: list[str]
    missing: list[Requirement]
    wrong: dict[str, Requirement]
    """The version that is installed, with the package's name, to what is asked for."""


def read_needs() -> Needs:
    """Read them from the checkout's pyproject.toml, or from what was installed."""
    path = ROOT / "pyproject.toml"
    if not path.is_file():
        return _installed_needs()
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    return Needs(
        SpecifierSet(project["requires-python"]),
        [Requirement(line) for line in project["dependencies"]],
        {name: [Requirement(line) for line in project["optional-dependencies"][name]] for name in _SERVES},
    )


def _installed_needs() -> Needs:
    about = importlib.metadata.metadata(_PROJECT)
    groups: dict[str, list[Requirement]] = {name: [] for name in ("", *_SERVES)}
    for line in importlib.metadata.requires(_PROJECT) or []:
        one = Requirement(line)
        marker, one.marker = one.marker, None
        group = next((name for name in groups if marker is None or marker.evaluate({"extra": name})), None)
        if group is not None:
            groups[group].append(one)
    return Needs(SpecifierSet(about["Requires-Python"]), groups.pop(""), groups)


def check_python() -> Iterator[Finding]:
    """Compare Python's version."""
    allowed, here = read_needs().python, platform.python_version()
    is_good = allowed.contains(here, prereleases=True)
    yield Finding(
        "Python",
        Verdict.OK if is_good else Verdict.PROBLEM,
        f"{here} in {sys.prefix}" + ("" if is_good else f"; needed is {allowed}"),
        "" if is_good else "make install PYTHON=python3.11   # in the checkout; apt-get install python3.11-venv",
    )


def check_packages() -> Iterator[Finding]:
    """Compare the versions of all packages that every command needs, then the optional groups."""
    needs = read_needs()
    state = compare(needs.packages)
    lacks = [*state.missing, *state.wrong.values()]
    details = {"fitting": state.fitting}
    if lacks:
        yield Finding("packages", Verdict.PROBLEM, _tell(state), pip_install([str(one) for one in lacks]), details)
    else:
        yield Finding("packages", Verdict.OK, f"all {len(state.fitting)} have the versions asked for", "", details)
    for extra, requirements in needs.extras.items():
        yield _judge_extra(extra, compare(requirements))


def _judge_extra(extra: str, state: State) -> Finding:
    name, serves = f"[{extra}]", _SERVES[extra]
    mend = pip_install_extra(extra, [str(one) for one in (*state.missing, *state.wrong.values())])
    details = {"fitting": state.fitting}
    if state.wrong:
        return Finding(name, Verdict.WARNING, f"{serves}: {_tell(state)}", mend, details)
    if state.missing:
        return Finding(name, Verdict.NOTE, f"{serves}; {_tell(state)}", mend, details)
    return Finding(name, Verdict.OK, f"{serves}; all {len(state.fitting)} packages", "", details)


def compare(requirements: list[Requirement]) -> State:
    """Compare requirements with what is installed."""
    state = State([], [], {})
    for one in requirements:
        if one.name == _PROJECT or (one.marker is not None and not one.marker.evaluate({"extra": ""})):
            continue
        try:
            version = importlib.metadata.version(one.name)
        except importlib.metadata.PackageNotFoundError:
            state.missing.append(one)
            continue
        if one.specifier.contains(version, prereleases=True):
            state.fitting.append(f"{one.name} {version}")
        else:
            state.wrong[f"{one.name} {version}"] = one
    return state


def _tell(state: State) -> str:
    wrong = [f"{there} is installed, needed is {one}" for there, one in state.wrong.items()]
    missing = [f"not installed: {', '.join(one.name for one in state.missing)}"] if state.missing else []
    return "; ".join([*wrong, *missing])


def check_locale() -> Iterator[Finding]:
    """See that text is UTF-8, for names of files, patients' folders and the terminal view."""
    encodings = {locale.getencoding(), sys.getfilesystemencoding(), sys.stdout.encoding or "utf-8"}
    if all(one.lower().replace("-", "") == "utf8" for one in encodings):
        yield Finding("locale", Verdict.OK, "UTF-8")
        return
    told = f"text is {', '.join(sorted(encodings))}; names of files beyond ASCII will fail"
    yield Finding("locale", Verdict.WARNING, told, "export LC_ALL=C.UTF-8")
