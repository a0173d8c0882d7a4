"""Holds every engine of a bundle against FP32 PyTorch on clips that are in no bundle, such as one's own videos.

The parity gate looks at the bundle's few reference clips; this says how far an engine is off on others.
"""

import contextlib
import dataclasses
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track
from rich.table import Table

from edge.commandline import Parser, print_line, run_command
from edge.errors import ConfigError, EngineError
from engines import Bundle, Engine, load_bundle, load_engine
from engines.ranking import engines_here
from tools.calibration import read_clips

Float32Array = npt.NDArray[np.float32]
_REFERENCE = ("torch", "cpu", "fp32")


@dataclasses.dataclass(frozen=True, slots=True)
class Agreement:
    """How far one engine is off."""

    engine: str
    probability_max: float
    probability_mean: float
    """Over clips, of the largest difference of a class."""
    heatmap_max: float
    """As a fraction of the reference heatmaps' peak over all clips, as the parity gate has it."""
    top_class_share: float
    """Of the clips: those in which the top class is the same."""


def main() -> int:
    """Run the command."""
    return run_command(_run)


def compare(engine: Engine, clips: Float32Array, reference: tuple[Float32Array, Float32Array]) -> Agreement:
    """Run the clips, (n, T, C, H, W) in 0..1, and compare with what FP32 PyTorch made of them."""
    probabilities, heatmaps = run_clips(engine, clips)
    off = np.abs(probabilities - reference[0]).max(axis=1)
    return Agreement(
        engine=f"{engine.spec.backend} {engine.spec.device} {engine.spec.precision}",
        probability_max=float(off.max()),
        probability_mean=float(off.mean()),
        heatmap_max=float(np.abs(heatmaps - reference[1]).max() / (np.abs(reference[1]).max() or 1.0)),
        top_class_share=float((probabilities.argmax(1) == reference[0].argmax(1)).mean()),
    )


def run_clips(engine: Engine, clips: Float32Array) -> tuple[Float32Array, Float32Array]:
    """Return probabilities (n, K) and heatmaps (n, T, h, w)."""
    name, console = f"{engine.spec.backend} {engine.spec.precision}", Console(stderr=True)
    counted = track(clips, name, transient=True, console=console, disable=not console.is_terminal)
    outputs = [engine.run_clip(clip) for clip in counted]
    return np.stack([one.probabilities for one in outputs]), np.stack([one.heatmap for one in outputs])


def _run() -> int:
    parser = Parser(
        "python -m tools.agreement",
        "Compare all engines of a bundle with FP32 PyTorch on other clips; the last line is JSON.",
        "python -m tools.agreement my-bundle videos/manifest.csv --clips 150",
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument("source", metavar="SOURCE", help="a manifest (its training videos), a video or a recording")
    parser.add_argument("--clips", metavar="N", type=int, default=100, help="at most (default: %(default)s)")
    options = parser.parse_args()
    if options.clips < 1:
        raise ConfigError(f"--clips is {options.clips}; it must be 1 or more")
    bundle = load_bundle(options.bundle)
    clips = read_clips(bundle, options.source, options.clips)
    with contextlib.closing(load_engine(bundle, *_REFERENCE)) as engine:
        reference = run_clips(engine, clips)
    results = _all(bundle, clips, reference)
    shares = np.bincount(reference[0].argmax(1), minlength=len(bundle.classes)) / len(clips)
    told = ", ".join(f"{name} {share:.0%}" for name, share in zip(bundle.classes, shares, strict=True))
    _print(f"{bundle.name} on {len(clips)} clips of {options.source}: {told}", results)
    return 0


def _all(bundle: Bundle, clips: Float32Array, reference: tuple[Float32Array, Float32Array]) -> list[Agreement]:
    results = []
    for backend, device, precision in engines_here(bundle):
        if (backend, device, precision) == _REFERENCE:
            continue
        try:
            engine = load_engine(bundle, backend, device, precision)
        except EngineError as exc:
            print_line("warning", f"{backend} {precision} is left out: {exc}")
            continue
        with contextlib.closing(engine):
            results.append(compare(engine, clips, reference))
    return results


def _print(title: str, results: list[Agreement]) -> None:
    table = Table(title=title)
    for heading in ("engine", "probability, max", "mean", "heatmap, max of peak", "top class equal"):
        table.add_column(heading, justify="left" if heading == "engine" else "right")
    for one in results:
        values = (f"{one.probability_max:.4f}", f"{one.probability_mean:.4f}", f"{one.heatmap_max:.3f}")
        table.add_row(one.engine, *values, f"{one.top_class_share:.1%}")
    Console().print(table)
    print(json.dumps({"engines": [dataclasses.asdict(one) for one in results]}))


if __name__ == "__main__":
    raise SystemExit(main())
