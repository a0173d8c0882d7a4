"""edge-build killed, stopped, beside another or on a full disk: the bundle stays whole, and what is said of it true."""

import contextlib
import errno
import fcntl
import itertools
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_build import build_for_openvino, files_of, small_trivial

from engines import Bundle, build, load_bundle, load_engine
from engines.bundle import add_files, describe_file
from engines.errors import EngineError
from tools.rank import rank


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small_trivial(tmp_path / "bundle")


def _build_until(monkeypatch: pytest.MonkeyPatch, folder: Path, num_steps: int) -> None:
    """Build, and end as a process that is killed after so many steps of putting files in place."""
    steps = itertools.count()

    def counted(step: Callable[..., Any]) -> Callable[..., Any]:
        def do(*arguments: Any) -> Any:
            if next(steps) >= num_steps:
                raise KeyboardInterrupt
            return step(*arguments)

        return do

    with monkeypatch.context() as patch:
        for name in ("hardlink_to", "replace"):
            patch.setattr(Path, name, counted(getattr(Path, name)))
        with pytest.raises(KeyboardInterrupt):
            build_for_openvino(folder, "fp32")


@pytest.mark.parametrize(
    "num_steps", [*(pytest.param(number, marks=pytest.mark.slow) for number in (0, 1, 2, 4, 5)), 3]
)
def test_build_killed_between_two_steps_leaves_a_whole_bundle_with_an_engine(
    folder: Path, monkeypatch: pytest.MonkeyPatch, num_steps: int
) -> None:
    build_for_openvino(folder, "fp32")
    names = sorted(path.name for path in folder.iterdir())
    weights = folder / "model.openvino-fp32.bin"
    weights.write_bytes(b"of an older build")  # so that what is moved there has another hash
    older = add_files(load_bundle_unchecked(folder), describe_file(weights, "openvino-weights", "fp32"))
    _build_until(monkeypatch, folder, num_steps)
    left = load_bundle(folder)
    assert sorted(file.sha256 for file in left.files) == sorted(file.sha256 for file in older.files)
    build_for_openvino(folder, "fp32")
    load_engine(load_bundle(folder), "openvino").close()
    assert sorted(path.name for path in folder.iterdir()) == names
    assert {file.name for file in load_bundle(folder).files} < set(names)


@pytest.mark.slow
def test_build_on_a_drive_without_links_replaces_the_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    build_for_openvino(folder, "fp32")
    names = sorted(path.name for path in folder.iterdir())
    monkeypatch.setattr(Path, "hardlink_to", fail)
    build_for_openvino(folder, "fp32")
    load_engine(load_bundle(folder), "openvino").close()
    assert sorted(path.name for path in folder.iterdir()) == names


def load_bundle_unchecked(folder: Path) -> Bundle:
    """Return the bundle by a manifest that no longer fits its files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engines.bundle._check_file", lambda *_: None)
        return load_bundle(folder)


def test_build_beside_another_on_the_same_bundle_is_refused(folder: Path) -> None:
    (folder / ".build-of the other").mkdir()
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(EngineError, match=r"another edge-build is at work on .*bundle; let it end first"):
        build_for_openvino(folder, "fp32")
    assert (folder / ".build-of the other").exists()
    os.close(descriptor)
    build_for_openvino(folder, "fp32")
    assert not list(folder.glob(".build-*"))  # its process is gone


def test_command_that_is_terminated_leaves_the_bundle_as_it_was_and_says_so(folder: Path) -> None:
    before = files_of(folder)
    script = (
        "import os, signal, engines.openvino.build as module, tools.build\n"
        "module.quantize = lambda *_: os.kill(os.getpid(), signal.SIGTERM)\n"
        "raise SystemExit(tools.build.main())"
    )
    command = [sys.executable, "-c", script, str(folder), "--backend", "openvino", "--precision", "int8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == f"error: the build was stopped; {folder} has no new engine\n"
    assert files_of(folder) == before


@pytest.mark.parametrize(
    ("option", "within", "said"),
    [
        ("--rank", "tools.rank.measure_engines", "the timing was stopped; {} keeps no new order"),
        ("--check", "tools.engine_check.running", "the check was stopped; nothing is known of {}"),
    ],
)
def test_rank_or_check_that_is_terminated_tells_so_and_does_not_pass(
    folder: Path, option: str, within: str, said: str
) -> None:
    before = files_of(folder)
    module, _, name = within.rpartition(".")
    script = (
        f"import os, signal, {module} as module, tools.build\n"
        f"module.{name} = lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)\n"
        "raise SystemExit(tools.build.main())"
    )
    command = [sys.executable, "-c", script, str(folder), option]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (4, "", f"error: {said.format(folder)}\n")
    assert files_of(folder) == before


ENDED_WHEN_WRITTEN = """
import os, pathlib, signal, sys, tools.build, tools.rank
tools.rank._SECONDS = 0.1
replace, (number, held), sys.argv[1:] = pathlib.Path.replace, sys.argv[1:3], sys.argv[3:]
def replace_and_end(path, target):
    replace(path, target)
    target = pathlib.Path(target)
    if target.name == "manifest.json" and {"new": "fp32.xml", "order": "p50_ms"}.get(held, "") in target.read_text():
        os.kill(os.getpid(), int(number))
    return target
pathlib.Path.replace = replace_and_end
raise SystemExit(tools.build.main())
"""
"""Runs edge-build and ends it by a signal as soon as the manifest is written, and holds what is named."""


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("held", "said"),
    [
        ("new", "the build was stopped after model.openvino-fp32.xml was added to {}"),
        pytest.param("any", "the build was stopped; {} has no new engine", marks=pytest.mark.slow),
        ("order", "the timing was stopped after the new order was kept in {}"),
    ],
)
def test_command_stopped_after_it_has_written_the_manifest_says_what_is_there(
    folder: Path, held: str, said: str, number: signal.Signals
) -> None:
    if held == "any":
        build_for_openvino(folder, "fp32")
    arguments = ["--rank"] if held == "order" else ["--backend", "openvino", "--precision", "fp32"]
    command = [sys.executable, "-c", ENDED_WHEN_WRITTEN, str(int(number)), held, str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (4, "")
    *_, last = done.stderr.splitlines()
    assert last.startswith(f"error: {said.format(folder)}")
    bundle = load_bundle(folder)
    assert (bundle.has("openvino"), bool(bundle.rankings)) == (held != "order", held == "order")


def test_rank_beside_a_build_on_the_same_bundle_is_refused(folder: Path) -> None:
    with build.alone(folder), pytest.raises(EngineError, match="another edge-build is at work on"):
        rank(load_bundle(folder))


def test_build_on_a_full_disk_is_refused_in_one_line(folder: Path) -> None:
    before = files_of(folder)
    with full_disk(), pytest.raises(EngineError, match=r"OpenVINO cannot write model\.openvino-fp32\.xml .* make room"):
        build_for_openvino(folder, "fp32")
    assert files_of(folder) == before


def test_fp16_on_a_full_disk_is_refused_by_file_and_leaves_nothing(folder: Path) -> None:
    before, bundle = files_of(folder), load_bundle(folder)
    said = rf"model\.fp16\.onnx cannot be written into {folder} \(File too large\); make room"
    with full_disk(), pytest.raises(EngineError, match=said):
        build.build_engine(bundle, "onnx", "fp16", build.BuildOptions(), lambda *_: None)
    assert files_of(folder) == before


def test_manifest_on_a_full_disk_stays_and_leaves_nothing_beside_it(folder: Path) -> None:
    before, bundle = files_of(folder), load_bundle(folder)
    with full_disk(), pytest.raises(EngineError, match=r"manifest\.json cannot be written .*; give it room"):
        add_files(bundle, *bundle.files)
    assert files_of(folder) == before


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """Let no file of this process grow beyond 100 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
