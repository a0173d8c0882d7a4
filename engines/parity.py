"""The parity gate: an engine proves itself on the bundle's reference before it is used."""

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from engines.bundle import Bundle, BundleFile
from engines.engine import Engine, EngineOutput
from engines.errors import ParityError
from engines.reference import Reference

_log = logging.getLogger("edge.engines")

_FEW_CLIPS = 2


@dataclasses.dataclass(frozen=True, slots=True)
class Tolerance:
    """The largest allowed difference from FP32 PyTorch."""

    probability: float
    heatmap: float
    """As a fraction of the reference heatmap's peak over all clips."""


TOLERANCES = {
    "fp32": Tolerance(probability=1e-4, heatmap=1e-3),
    "fp16": Tolerance(probability=1e-2, heatmap=2e-2),
    "bf16": Tolerance(probability=2e-2, heatmap=5e-2),
    "int8": Tolerance(probability=2e-2, heatmap=1e-1),
}


@dataclasses.dataclass(frozen=True, slots=True)
class ParityResult:
    """Measured differences over all reference clips."""

    num_clips: int
    """Different ones: the same clip twice proves no more than once."""
    probability_difference: float
    heatmap_difference: float
    """As a fraction of the reference heatmaps' peak."""
    is_top_class_equal: bool
    """Of every clip."""
    tolerance: Tolerance

    @property
    def is_within(self) -> bool:
        """Whether the engine may be used. Written so that a NaN fails."""
        return (
            self.is_top_class_equal
            and self.probability_difference <= self.tolerance.probability
            and self.heatmap_difference <= self.tolerance.heatmap
        )

    def describe(self) -> str:
        """Return the differences and what is allowed."""
        return (
            f"probabilities differ by {self.probability_difference:.2g} (allowed {self.tolerance.probability:g}), "
            f"heatmaps by {self.heatmap_difference:.2g} of the peak (allowed {self.tolerance.heatmap:g}), "
            f"top class {'equal' if self.is_top_class_equal else 'not equal'}"
        )

    def as_json(self) -> dict[str, Any]:
        """Return what a manifest keeps of it."""
        return {
            "num_clips": self.num_clips,
            "probability_difference": self.probability_difference,
            "heatmap_difference": self.heatmap_difference,
        }


def check_parity(engine: Engine, bundle: Bundle) -> ParityResult:
    """Run the reference clips and compare; leaves the engine's ring empty.

    Raises:
        ParityError: A difference above the precision's tolerance, a NaN, another shape, or another top class.
    """
    result = measure_parity(engine, bundle)
    if not result.is_within:
        raise _refusal(engine, bundle, result.describe())
    return result


def measure_parity(engine: Engine, bundle: Bundle) -> ParityResult:
    """Run the reference clips and say how far the outputs are off; leaves the engine's ring empty.

    Raises:
        ParityError: The outputs have other shapes than the reference, or there is no tolerance for the precision.
    """
    if engine.spec.precision not in TOLERANCES:
        raise ParityError(
            f"{bundle.path} in precision {engine.spec.precision!r} is refused: there is a tolerance for "
            f"{', '.join(TOLERANCES)} alone; export the bundle again"
        )
    reference = bundle.reference()
    outputs = [
        engine.run_clip(clip, num_before) for clip, num_before in zip(reference.clips, _starts(reference), strict=True)
    ]
    probabilities, heatmaps = _stack(outputs)
    if probabilities.shape != reference.probabilities.shape or heatmaps.shape != reference.heatmaps.shape:
        raise _refusal(
            engine,
            bundle,
            f"outputs {probabilities.shape} and {heatmaps.shape} where the reference has "
            f"{reference.probabilities.shape} and {reference.heatmaps.shape}",
        )
    num_clips = len({clip.tobytes() for clip in reference.clips})
    peak = float(np.abs(reference.heatmaps).max())
    for lack in _lacks(reference, num_clips, peak, TOLERANCES[engine.spec.precision]):
        _log.warning(
            "%s holds no %s, which proves little of an engine; export the bundle again from a manifest with several "
            "videos of all classes",
            (bundle.path / bundle.file("reference").name).resolve(),
            lack,
        )
    return ParityResult(
        num_clips=num_clips,
        probability_difference=float(np.abs(probabilities - reference.probabilities).max()),
        heatmap_difference=float(np.abs(heatmaps - reference.heatmaps).max()) / (peak or 1.0),
        is_top_class_equal=bool((probabilities.argmax(1) == reference.probabilities.argmax(1)).all()),
        tolerance=TOLERANCES[engine.spec.precision],
    )


def _lacks(reference: Reference, num_clips: int, peak: float, tolerance: Tolerance) -> Iterator[str]:
    """Yield what a reference has not, by which an engine would have to show that it looks at its input."""
    if num_clips < _FEW_CLIPS:
        yield "two different clips"
    elif (
        np.ptp(reference.probabilities, axis=0).max() <= tolerance.probability
        and np.ptp(reference.heatmaps, axis=0).max() <= tolerance.heatmap * peak
    ):
        yield "two clips whose outputs differ by more than what is allowed"
    if peak == 0:
        yield "heatmap but empty ones"


def _starts(reference: Reference) -> list[int]:
    """Return where in the ring each clip's window is to start, spread out: engines have a way of their own for each."""
    num_clips, num_frames = reference.clips.shape[:2]
    return [place * num_frames // num_clips % num_frames for place in range(num_clips)]


def _stack(outputs: list[EngineOutput]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    return np.stack([output.probabilities for output in outputs]), np.stack([output.heatmap for output in outputs])


def _refusal(engine: Engine, bundle: Bundle, difference: str) -> ParityError:
    spec = engine.spec
    alike = [file for file in bundle.files if file.sha256 == spec.sha256]  # what was built for two devices may be so
    file = max(alike, key=lambda one: (one.build or {}).get("device") == spec.device)
    return ParityError(
        f"{bundle.path / file.name} is refused on {spec.backend} {spec.precision}: {difference} over the clips of "
        f"{bundle.file('reference').name}; {cure(bundle, file)}"
    )


def cure(bundle: Bundle, file: BundleFile) -> str:
    """Return what to do about a file that cannot be used here."""
    return rebuild_command(bundle, file) if file.build else "export the bundle again"


def rebuild_command(bundle: Bundle, file: BundleFile) -> str:
    """Return the words that tell how to compile a file anew on this machine."""
    build = file.build or {}
    # what a kind of file is built by has the kind's name
    command = f"edge-build {bundle.shell_path} --backend {build.get('builder', file.kind)} --precision {file.precision}"
    device = build.get("device")
    if device not in (None, "CPU", "cuda:0"):  # what builders take by themselves
        command += f" --device {device}"
    return f"build it again on this machine: {command}"
