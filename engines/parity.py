"""The parity gate: an engine proves itself on the bundle's reference before it is used."""

import dataclasses

import numpy as np

from engines.bundle import Bundle
from engines.engine import Engine
from engines.errors import ParityError


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
    probability_difference: float
    heatmap_difference: float
    """As a fraction of the reference heatmaps' peak."""


def check_parity(engine: Engine, bundle: Bundle) -> ParityResult:
    """Run the reference clips and compare; leaves the engine's ring empty.

    Raises:
        ParityError: A difference above the precision's tolerance, a NaN, another shape, or another top class.
    """
    reference = bundle.reference()
    outputs = [engine.run_clip(clip) for clip in reference.clips]
    probabilities = np.stack([output.probabilities for output in outputs])
    heatmaps = np.stack([output.heatmap for output in outputs])
    if probabilities.shape != reference.probabilities.shape or heatmaps.shape != reference.heatmaps.shape:
        raise _refusal(
            engine,
            bundle,
            f"outputs {probabilities.shape} and {heatmaps.shape} where the reference has "
            f"{reference.probabilities.shape} and {reference.heatmaps.shape}",
        )
    peak = float(np.abs(reference.heatmaps).max()) or 1.0
    result = ParityResult(
        num_clips=len(outputs),
        probability_difference=float(np.abs(probabilities - reference.probabilities).max()),
        heatmap_difference=float(np.abs(heatmaps - reference.heatmaps).max()) / peak,
    )
    _judge(engine, bundle, result, bool((probabilities.argmax(1) == reference.probabilities.argmax(1)).all()))
    return result


def _judge(engine: Engine, bundle: Bundle, result: ParityResult, is_top_class_equal: bool) -> None:
    tolerance = TOLERANCES[engine.spec.precision]
    # written so that a NaN fails
    is_close = result.probability_difference <= tolerance.probability and result.heatmap_difference <= tolerance.heatmap
    if is_close and is_top_class_equal:
        return
    raise _refusal(
        engine,
        bundle,
        f"probabilities differ by {result.probability_difference:.2g} (allowed {tolerance.probability:g}), "
        f"heatmaps by {result.heatmap_difference:.2g} of the peak (allowed {tolerance.heatmap:g}), "
        f"top class {'equal' if is_top_class_equal else 'not equal'}",
    )


def _refusal(engine: Engine, bundle: Bundle, difference: str) -> ParityError:
    spec = engine.spec
    name = next(file.name for file in bundle.files if file.sha256 == spec.sha256)
    return ParityError(
        f"{bundle.path / name} is refused on {spec.backend} {spec.precision}: {difference} over the clips of "
        f"{bundle.file('reference').name}; export the bundle again"
    )
