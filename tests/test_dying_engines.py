"""Engines whose libraries end the process or raise what they should not, as they are timed or checked: others go on."""

import json
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from daemon import DEADLINE_S, run_command

from edge.errors import EdgeError
from engines import PreprocessSpec, load_bundle
from engines.bundle import add_files, describe_file, read_manifest
from engines.errors import EngineError
from tools.bench.peaks import peak_meter
from tools.children import running
from tools.rank import rank
from tools.trivial import write_trivial_bundle

LIBRARIES = {"onnxruntime": ("InferenceSession", "run", 10), "openvino": ("InferRequest", "infer", 40)}
"""What runs a network, and after how many runs it dies: more than loading and proving take, less than five turns do."""

DYING = """
import itertools, os, signal, sys
if {{"tools.bench.engine", "tools.engine_check"}} & {{*sys.orig_argv}} and {library!r} in sys.orig_argv:
    import {library} as library
    run, runs = library.{owner}.{method}, itertools.count()
    def run_or_die(*arguments, **options):
        if next(runs) >= {num_runs}:
            {end}
        return run(*arguments, **options)
    library.{owner}.{method} = run_or_die
"""

END_BY = "print('out of tensors', file=sys.stderr, flush=True); os.kill(os.getpid(), signal.{})"
RAISE = "raise ValueError('no kernel\\nfor this layer')"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    spec = PreprocessSpec(resize_hw=(16, 16), crop_hw=(16, 16))
    return write_trivial_bundle(tmp_path / "bundle", num_frames=4, preprocess=spec)


def _let_die(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, *libraries: str, num_runs: int | None = None
) -> None:
    """Let the libraries end every engine's process in mid-run, or after so many runs."""
    parts = []
    for library in libraries:
        owner, method, num_mid_run = LIBRARIES[library]
        limit = num_mid_run if num_runs is None else num_runs
        parts.append(DYING.format(library=library, owner=owner, method=method, num_runs=limit, end=end))
    (tmp_path / "sitecustomize.py").write_text("".join(parts))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path) + os.pathsep + os.environ.get("PYTHONPATH", ""))
    monkeypatch.setattr("tools.rank._SECONDS", 0.2)


def _bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_command("engine", *arguments, "--seconds", "0.2", module="tools.bench.cli")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("library", "end", "said"),
    [
        (
            "onnxruntime",
            END_BY.format("SIGSEGV"),
            "SIGSEGV ended tools.bench.engine; the last it wrote: out of tensors",
        ),
        (
            "onnxruntime",
            END_BY.format("SIGKILL"),
            "SIGKILL ended tools.bench.engine (as the system ends one where memory runs out); the last",
        ),
        ("onnxruntime", RAISE, "ONNX Runtime failed to run trivial-mean: for this layer"),
        ("openvino", RAISE, "ValueError: no kernel for this layer"),
    ],
    ids=["segfault", "out of memory", "error", "traceback"],
)
def test_bench_engine_leaves_out_one_that_dies_in_mid_run_and_measures_the_others(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, end: str, said: str
) -> None:
    _let_die(tmp_path, monkeypatch, end, library)
    done = _bench(str(folder))
    (line,) = [line for line in done.stderr.splitlines() if line.startswith(f"warning: {library} CPU fp32")]
    assert line.startswith(f"warning: {library} CPU fp32 is left out: {said}")
    assert "error" not in done.stderr
    measured = {engine["backend"] for engine in json.loads(done.stdout.splitlines()[-1])["engines"]}
    assert measured == LIBRARIES.keys() - {library}
    assert done.returncode == 0


@pytest.mark.slow
def test_bench_engine_that_is_named_and_dies_in_mid_run_is_an_error_by_its_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _let_die(tmp_path, monkeypatch, END_BY.format("SIGSEGV"), "onnxruntime")
    done = _bench(str(folder), "--backend", "onnxruntime", "openvino")
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith("error: onnxruntime CPU fp32: SIGSEGV ended tools.bench.engine")
    assert len(done.stderr.splitlines()) == 1


def test_rank_leaves_out_an_engine_that_dies_in_mid_run_and_keeps_the_order_of_the_others(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _let_die(tmp_path, monkeypatch, END_BY.format("SIGABRT"), "onnxruntime")
    assert rank(load_bundle(folder)) == 0
    assert "warning: onnxruntime CPU fp32 is left out: SIGABRT ended" in capsys.readouterr().err
    (ranking,) = load_bundle(folder).rankings
    assert [engine["backend"] for engine in ranking["engines"]] == ["openvino"]


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (END_BY.format("SIGSEGV"), "SIGSEGV ended tools.engine_check; the last it wrote: out of tensors"),
        pytest.param("os._exit(0)", "tools.engine_check ended without an answer", marks=pytest.mark.slow),
    ],
    ids=["segfault", "quiet end"],
)
def test_check_refuses_an_engine_that_dies_and_checks_the_others(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, said: str
) -> None:
    _let_die(tmp_path, monkeypatch, end, "onnxruntime", num_runs=1)
    done = run_command(str(folder), "--check", module="tools.build")
    lines = [line.split("\u2502") for line in done.stdout.splitlines() if line.startswith("\u2502")]
    verdicts = {line[1].strip(): line[-2].strip() for line in lines}
    assert (verdicts["openvino"], verdicts["onnxruntime"]) == ("passed", "refused")
    assert f"error: onnxruntime fp32: {said}" in done.stderr.splitlines()
    assert done.returncode == 4


def test_check_tells_once_what_its_engines_warn_of(folder: Path) -> None:
    reference = dict(np.load(folder / "reference.npz"))
    np.savez(folder / "reference.npz", **{name: np.repeat(array[:1], 2, 0) for name, array in reference.items()})
    add_files(read_manifest(folder), describe_file(folder / "reference.npz", "reference", None))
    done = run_command(str(folder), "--check", module="tools.build")
    assert done.returncode == 0
    warned = [line for line in done.stderr.splitlines() if "holds no two different clips" in line]
    (line,) = warned
    assert line.startswith(f"warning: {folder / 'reference.npz'} holds no two different clips, which proves little")


def test_rank_where_every_engine_dies_is_an_error_and_keeps_no_order(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _let_die(tmp_path, monkeypatch, END_BY.format("SIGSEGV"), *LIBRARIES)
    with pytest.raises(EngineError, match=r"^no engine of .*bundle runs here; why each is left out stands above$"):
        rank(load_bundle(folder))
    assert {line.split()[1] for line in capsys.readouterr().err.splitlines()} == LIBRARIES.keys()
    assert load_bundle(folder).rankings == ()


@pytest.mark.slow
def test_peak_whose_process_dies_in_mid_run_is_left_out_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    with peak_meter("cpu") as meter:
        assert meter is not None
        meter.take_turn(0.01)
        meter._child.process.kill()
        meter.take_turn(0.01)
        meter.take_turn(0.01)
        assert meter.rates() == {}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: the matrix-multiply peak of cpu is not measured: SIGKILL ended tools.bench.peaks")


@pytest.mark.parametrize(
    ("body", "limit_s", "said"),
    [
        (
            "import os; os.write(1, b'{\"rates\": [1'); os.kill(os.getpid(), signal.SIGSEGV)",
            DEADLINE_S,
            "SIGSEGV ended dies",
        ),
        ("os.kill(os.getpid(), signal.SIGRTMIN + 3)", DEADLINE_S, f"signal {signal.SIGRTMIN + 3} ended dies"),
        ("signal.pause()", 0.1, "dies did not answer within 0.1 s"),
        ("os._exit(7)", DEADLINE_S, "dies ended with code 7"),
        ("raise ValueError('no\\nkernel')", DEADLINE_S, "ValueError: no kernel"),
    ],
)
def test_child_that_dies_instead_of_an_answer_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, limit_s: float, said: str
) -> None:
    (tmp_path / "dies.py").write_text(f"import os, signal\n{body}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with running("dies") as child, pytest.raises(EdgeError) as caught:
        child.ask(None, limit_s)
    assert str(caught.value) == said
