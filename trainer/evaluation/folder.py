"""The folder of an evaluation: what evaluate writes there, and an end to what an earlier one left."""

import contextlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from edge.errors import ConfigError, EdgeError
from trainer.evaluation import plots
from trainer.files import unwritable, write_json

METRICS_NAME = "metrics.json"
PREDICTIONS_NAME = "predictions.csv"
READERS_NAME = "readers.csv"
TRAINING_NAME = "training.csv"
"""The run's metrics.csv, so that a report needs no run."""
WINDOWS_NAME, KEYFRAMES_NAME = "windows.csv", "keyframes.csv"
TABLES = ("roc.csv", "pr.csv", "decision.csv", "calibration.csv", "subgroups.csv", "table1.csv")
CASES_NAME = "cases"
CASE_KINDS, NUM_CASES_A_KIND = ("tp", "fp", "fn", "tn"), 3

_MODEL_NAMES = ("manifest.json", "run.json", "crossval.json")
"""Of a bundle, a run and a cross-validation."""
_NUM_NAMED = 3


def case_name(kind: str, number: int) -> str:
    """Return the picture of a case, relative to the folder; numbers start at 1."""
    return f"{CASES_NAME}/{kind}-{number}.png"


def own_names() -> tuple[str, ...]:
    """Return every name that an evaluation may write, relative to its folder; metrics.json first."""
    cases = (case_name(kind, number + 1) for kind in CASE_KINDS for number in range(NUM_CASES_A_KIND))
    named = (PREDICTIONS_NAME, READERS_NAME, TRAINING_NAME, WINDOWS_NAME, KEYFRAMES_NAME)
    return (METRICS_NAME, *named, *TABLES, "roc.png", *plots.PICTURES, *cases)


def make_folder(out: Path) -> None:
    """Make a folder that is written to.

    Raises:
        ConfigError: It cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(f"--out {out} cannot be made ({exc.strerror}); choose a folder that you may write") from exc


def check_folder(out: Path, inputs: Iterable[Path | None] = ()) -> None:
    """Refuse a folder whose files would be taken for an evaluation's, before anything is measured.

    Args:
        out: An empty or missing folder, one with an earlier evaluation, or one with files of other names.
        inputs: What the evaluation reads; it may lie there.

    Raises:
        ConfigError: It holds a model, or files of an evaluation's names that none has written.
    """
    models = [name for name in _MODEL_NAMES if (out / name).exists()]
    if models:
        raise ConfigError(f"--out {out} holds a model ({models[0]}); give a folder of its own to the evaluation")
    read = _resolved(inputs)
    own = _written(out)
    others = [name for name in _there(out) if name not in own and (out / name).resolve() not in read]
    if others:
        more = f" and {len(others) - _NUM_NAMED} more" if len(others) > _NUM_NAMED else ""
        raise ConfigError(
            f"--out {out} holds {', '.join(others[:_NUM_NAMED])}{more}, which by its {METRICS_NAME} no evaluation "
            "wrote: they would be replaced or mixed with the new; give another folder, or remove them"
        )


@contextlib.contextmanager
def new_evaluation(out: Path, inputs: Iterable[Path | None] = ()) -> Iterator[Path]:
    """Give a folder to write an evaluation into; once all of it is there, put it in the place of an earlier one.

    What the earlier one wrote goes, so that nothing of it is taken for a part of the new; other files stay. Where the
    new one fails, the earlier one stands.

    Args:
        out: As `check_folder` takes it.
        inputs: What was read; it is neither removed nor replaced.

    Raises:
        ConfigError: As `check_folder`, or the folder cannot be made.
        TrainingError: It cannot be written to.
    """
    inputs = list(inputs)
    check_folder(out, inputs)
    make_folder(out)
    try:
        with tempfile.TemporaryDirectory(prefix=".evaluation.", dir=out) as beside:
            yield Path(beside)
            read = _resolved(inputs)
            kept = {name for name in _there(out) if (out / name).resolve() in read}
            _clear(out, kept)
            _move(Path(beside), out, kept)
    except OSError as exc:
        if isinstance(exc, EdgeError):
            raise
        raise unwritable(out, exc) from exc


def _clear(out: Path, kept: set[str]) -> None:
    own = _written(out)
    for name in _there(out):  # metrics.json goes first: what is left without it is no evaluation
        if name in own and name not in kept:
            (out / name).unlink()
    with contextlib.suppress(OSError):  # not there, or somebody's own pictures lie in it
        (out / CASES_NAME).rmdir()


def _move(source: Path, out: Path, kept: set[str]) -> None:
    names = [name for name in _there(source) if name not in kept]
    unknown = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()} - set(own_names())
    assert not unknown, unknown  # they would be lost
    metrics = json.loads((source / METRICS_NAME).read_text(encoding="utf-8"))
    write_json(source / METRICS_NAME, {**metrics, "files": names})
    for name in reversed(names):  # metrics.json comes last: where it stands, all of it stands
        (out / name).parent.mkdir(exist_ok=True)
        (source / name).replace(out / name)


def _there(folder: Path) -> list[str]:
    return [name for name in own_names() if (folder / name).exists()]


def _resolved(inputs: Iterable[Path | None]) -> set[Path]:
    return {path.resolve() for path in inputs if path is not None}


def _written(out: Path) -> set[str]:
    """Return what the evaluation wrote that lies in a folder; nothing where none does."""
    try:
        content = json.loads((out / METRICS_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return set()
    if not isinstance(content, dict) or not {"notice", "counts", "model", "data"} <= content.keys():
        return set()
    return set(content.get("files", own_names()))  # earlier versions did not say
