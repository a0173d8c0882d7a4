"""`edge-train export`: a run becomes a bundle, which edge-infer plays and edge-build compiles."""

import argparse
import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edge.commandline import print_line
from edge.errors import ConfigError, EdgeError

if TYPE_CHECKING:
    from trainer.models.classifier import Classifier
    from trainer.runs import Run

DESCRIPTION = (
    "Turn a run (of a cross-validation: its best fold) into a bundle, and prove it on each backend. The reference "
    "clips in it are synthetic unless --reference names a manifest, whose images then travel with the bundle."
)
EXAMPLE = "export runs/first --out bundles/first"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="what edge-train fit, crossval or import wrote")
    parser.add_argument("--out", required=True, metavar="BUNDLE", type=Path, help="the bundle's folder")
    parser.add_argument("--name", help="the model's name, for people (default: that of BUNDLE)")
    parser.add_argument("--reference", metavar="MANIFEST", type=Path, help="take the reference clips from its videos")


def run(options: argparse.Namespace) -> int:
    """Export and say where the bundle is."""
    _check_out(options.out)
    from trainer.runs import load_run, warn_of_unfinished

    source = load_run(options.run)
    network = source.network()
    warn_of_unfinished(source)
    from trainer.reference_clips import manifest_clips, phantom_clips

    clips = phantom_clips(source) if options.reference is None else manifest_clips(source, options.reference)
    with _progress(source.model), _written_beside(options.out) as folder, _weaknesses_told_once(folder, options.out):
        _export(source, network, clips, folder, options.name or options.out.resolve().name)
    num_bytes = sum(path.stat().st_size for path in options.out.iterdir())
    print(f"wrote {options.out}: {source.model}, {num_bytes / 1e6:.1f} MB; play it with")
    print(f"  edge-infer --source VIDEO --engine {options.out}")
    return 0


def _export(source: "Run", network: "Classifier", clips: npt.NDArray[np.float32], folder: Path, name: str) -> None:
    from trainer.export import export_bundle

    export_bundle(
        network,
        folder,
        classes=source.classes,
        threshold=source.threshold,
        preprocess=source.preprocess,
        frame_interval_ms=source.frame_interval_ms,
        reference_clips=clips,
        name=name,
        intended_use=intended_use(source),
        training=training_summary(source),
        temperature=source.temperature,
    )


@contextlib.contextmanager
def _progress(model: str) -> Iterator[None]:
    """Say what takes so long, where somebody can see it."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status(f"exporting {model}, proving each file") if console.is_terminal else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _written_beside(out: Path) -> Iterator[Path]:
    """Give a folder next to the bundle's, and put it in its place once all is written and proven.

    Raises:
        TrainingError: The disk is full, or the place cannot be written to; a bundle that was there still is.
    """
    from trainer.files import unwritable

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as beside:
            yield Path(beside) / "new"
            if out.exists():
                out.rename(Path(beside) / "old")
            (Path(beside) / "new").rename(out)
    except OSError as exc:
        if isinstance(exc, EdgeError):
            raise
        raise unwritable(out, exc) from exc


@contextlib.contextmanager
def _weaknesses_told_once(folder: Path, out: Path) -> Iterator[None]:
    """Tell what the proof of each engine warns of once, and of the bundle's own place."""
    from trainer.collected import collected_warnings

    messages: list[str] = []
    try:
        with collected_warnings() as messages:
            yield
    finally:
        for message in dict.fromkeys(messages):
            print_line("warning", message.replace(str(folder.resolve()), str(out)).replace(str(folder), str(out)))


def intended_use(run: "Run") -> str:
    """Return the sentence that travels with the bundle."""
    data = f"videos like those of {run.manifest['name']}" if run.manifest else "no ultrasound video yet"
    return (
        f"Research software, not a medical device; not for diagnosis. Says how likely {run.classes[-1]!r} is; "
        f"trained on {data}."
    )


def training_summary(run: "Run") -> dict[str, Any]:
    """Return what the manifest says about data, method and measured figures; counts and digests, no video's name."""
    summary = {
        "model": run.model,
        "model_options": dict(run.model_options),
        "data": dict(run.manifest),
        "video_digests": {part: list(digests) for part, digests in run.video_digests.items()},
        "num_videos": {part: len(ids) for part, ids in run.split.items()},
        "fold": run.fold,
        "seed": run.seed,
        "recipe": dict(run.recipe),
        "temperature": run.temperature,
        "validation": dict(run.validation),
        "versions": dict(run.versions),
        "hardware": dict(run.hardware),
        "wall_time_s": run.wall_s,
        "state": run.state,
    }
    return {key: value for key, value in summary.items() if value not in ({}, None)}


def _check_out(folder: Path) -> None:
    """Refuse a folder that holds something other than a bundle."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"--out {folder} is a file; give a folder")
    if any(folder.iterdir()) and not _is_bundle(folder):
        raise ConfigError(f"--out {folder} holds other files; give an empty or a new folder, or a bundle to replace")


def _is_bundle(folder: Path) -> bool:
    try:
        return "schema_version" in json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False
