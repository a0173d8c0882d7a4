"""Trainings that are killed, damaged or mistaken for another, and go on."""

import csv
import dataclasses
import errno
import functools
import os
import pickle
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_training import environment, fit_command, fit_options, is_equal, run_command, trained_state

from trainer.errors import RunError
from trainer.files import unwritable, write_atomic
from trainer.training.checkpointing import checkpoint_path, latest_checkpoint, read_checkpoint
from trainer.training.fit import fit

SETTINGS = ("epochs=4", "ema_decay=0.9", "speckle=0.1", "dropout=0.3")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tests share the cores; and with as many threads as the killed processes have, sums are made in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def uninterrupted(phantom_manifest: Path, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """Return a run that nothing disturbed; do not change it."""
    return fit(fit_options(phantom_manifest, tmp_path_factory.mktemp("runs") / "whole", *SETTINGS)).path


@pytest.fixture
def interrupted(uninterrupted: Path, tmp_path: Path) -> Path:
    """Return the run as it was after three epochs."""
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    checkpoint_path(run, 4).unlink()
    text = (run / "run.json").read_text(encoding="utf-8").replace('"state": "finished"', '"state": "training"')
    (run / "run.json").write_text(text, encoding="utf-8")
    return run


def figures(run: Path) -> list[dict[str, str]]:
    """Return metrics.csv without the times."""
    with (run / "metrics.csv").open(encoding="utf-8") as file:
        return [{name: value for name, value in row.items() if name != "wall_s"} for row in csv.DictReader(file)]


def assert_same_training(run: Path, whole: Path) -> None:
    assert is_equal(trained_state(run, 4), trained_state(whole, 4))
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert (run / "predictions.csv").read_bytes() == (whole / "predictions.csv").read_bytes()
    assert figures(run) == figures(whole)


@pytest.mark.slow
def test_killed_training_goes_on_to_the_same_weights(
    phantom_manifest: Path, tmp_path: Path, uninterrupted: Path
) -> None:
    run = tmp_path / "run"
    command = fit_command(phantom_manifest, run, *SETTINGS)
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if line.startswith("epoch 2/4"))
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert latest_checkpoint(run) in (checkpoint_path(run, 2), checkpoint_path(run, 3))
    done = run_command([*command, "--resume"])
    assert done.returncode == 0, done.stderr
    assert "epoch 1/4" not in done.stdout
    assert_same_training(run, uninterrupted)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_training_killed_at_any_moment_goes_on_to_the_same_weights(
    phantom_manifest: Path, tmp_path: Path, uninterrupted: Path
) -> None:
    start_s = time.monotonic()
    assert run_command(fit_command(phantom_manifest, tmp_path / "timed", *SETTINGS)).returncode == 0
    whole_s = time.monotonic() - start_s  # imports and four epochs
    run, chance, num_kills = tmp_path / "run", random.Random(3), 0
    command = [*fit_command(phantom_manifest, run, *SETTINGS), "--resume"]
    while num_kills < 8:
        process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
        try:
            process.wait(chance.uniform(0.4 * whole_s, 0.9 * whole_s))
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            num_kills += 1
    assert num_kills > 0
    assert run_command(command).returncode == 0
    assert_same_training(run, uninterrupted)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_stopped_training_says_where_it_goes_on_and_leaves_no_process(
    phantom_manifest: Path, tmp_path: Path, name: str
) -> None:
    command = fit_command(phantom_manifest, tmp_path / "run", "epochs=500")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # where the tests run in the background, a shell has SIGINT ignored
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, env=environment(), start_new_session=True, preexec_fn=heed, **pipes) as process:
        next(line for line in process.stdout if line.startswith("epoch 2/"))
        os.killpg(process.pid, getattr(signal, name))  # as a terminal and a service manager do
        # ends when the last process that holds the pipe does
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.startswith("error: training was stopped; the last good checkpoint is")
    assert len(said.splitlines()) == 1


def test_resume_of_nothing_begins_and_of_a_finished_run_changes_nothing(phantom_manifest: Path, tmp_path: Path) -> None:
    options = fit_options(phantom_manifest, tmp_path / "run", "epochs=1", resume=True)
    first = fit(options)
    before = {path: path.stat().st_mtime_ns for path in first.path.rglob("*") if path.is_file()}
    assert fit(options) == first
    assert {path: path.stat().st_mtime_ns for path in first.path.rglob("*") if path.is_file()} == before
    with pytest.raises(RunError, match="its threshold chosen by youden; give that --threshold-rule"):
        fit(dataclasses.replace(options, threshold_rule="sensitivity=0.9"))


def test_resume_of_a_finished_run_without_its_weights_makes_them_again(
    phantom_manifest: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    (run / "model.safetensors").unlink()
    fit(fit_options(phantom_manifest, run, *SETTINGS, resume=True))
    assert_same_training(run, uninterrupted)


@pytest.mark.parametrize(
    ("settings", "changes", "said"),
    [
        (("epochs=5",), {}, "epochs 4, not 5"),
        ((), {"seed": 1}, "seed 0, not 1"),
        ((), {"model": "tin-r34"}, "model tin-r18, not tin-r34"),
        ((), {"fold": 1}, "fold None, not 1; other videos"),
    ],
)
def test_resume_of_another_training_is_refused(
    phantom_manifest: Path, interrupted: Path, settings: tuple[str, ...], changes: dict, said: str
) -> None:
    with pytest.raises(RunError, match=f"is another training: {said}.*the same command as before"):
        fit(fit_options(phantom_manifest, interrupted, *SETTINGS, *settings, resume=True, **changes))


def test_checkpoint_of_another_training_is_refused(phantom_manifest: Path, interrupted: Path, tmp_path: Path) -> None:
    fit(fit_options(phantom_manifest, tmp_path / "other", "epochs=1"))
    shutil.copy(checkpoint_path(tmp_path / "other", 1), checkpoint_path(interrupted, 9))
    with pytest.raises(RunError, match=r"epoch-00009.ckpt is another training: .*epochs 1, not 4"):
        fit(fit_options(phantom_manifest, interrupted, *SETTINGS, resume=True))


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "text"])
def test_damaged_checkpoint_is_named_and_the_one_before_serves(
    phantom_manifest: Path, interrupted: Path, uninterrupted: Path, damage: str
) -> None:
    last = checkpoint_path(interrupted, 3)
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 0x10
    last.write_bytes(
        {"cut": content[: len(content) // 2], "bit": content, "empty": b"", "text": b"not a checkpoint"}[damage]
    )
    with pytest.raises(
        RunError, match=r"epoch-00003.ckpt is damaged or no checkpoint .*remove it.*goes on from"
    ) as info:
        fit(fit_options(phantom_manifest, interrupted, *SETTINGS, resume=True))
    assert info.value.exit_code == 2
    assert "\n" not in str(info.value)


def test_checkpoint_that_holds_code_is_refused_and_not_run(phantom_manifest: Path, interrupted: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(interrupted / "run-by-pickle"),)

    torch.save({"state_dict": Code()}, checkpoint_path(interrupted, 3))
    with pytest.raises(RunError, match=r"refused \(it would import \w+\.mkdir, which could run code.*remove it"):
        fit(fit_options(phantom_manifest, interrupted, *SETTINGS, resume=True))
    checkpoint_path(interrupted, 3).write_bytes(pickle.dumps(Code()))
    with pytest.raises(RunError, match=r"refused \(it would import \w+\.mkdir, which could run code.*remove it"):
        read_checkpoint(checkpoint_path(interrupted, 3))
    assert not (interrupted / "run-by-pickle").exists()


@pytest.mark.parametrize(
    ("num_bytes", "said"), [(0, "no room to write"), (12, "no room for 1 kB to"), (2_500_000, "no room for 2.5 MB to")]
)
def test_full_disk_is_told_with_what_is_needed(num_bytes: int, said: str) -> None:
    error = unwritable(Path("run.json"), OSError(errno.ENOSPC, "No space left on device"), num_bytes)
    assert said in str(error)


def test_write_atomic_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    with pytest.raises(TypeError):
        write_atomic(path, None)  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert [other.name for other in tmp_path.iterdir()] == ["file"]
