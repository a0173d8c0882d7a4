"""Bundles on disk and the engines that run them. Stands on nothing else of this project."""

import sys

from engines.bundle import Bundle, PreprocessSpec, load_bundle
from engines.engine import Engine, EngineOutput, EngineSpec
from engines.load import BACKENDS, load_engine
from engines.parity import TOLERANCES
from engines.reference import MAX_PROBABILITY

PRECISIONS = tuple(TOLERANCES)
"""What a network may be computed in."""

# OpenVINO and NNCF report to Google Analytics that they were imported, without asking, where this package of theirs can
# be imported; it comes with OpenVINO. A machine beside a scanner calls nobody.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

__all__ = [
    "BACKENDS",
    "MAX_PROBABILITY",
    "PRECISIONS",
    "Bundle",
    "Engine",
    "EngineOutput",
    "EngineSpec",
    "PreprocessSpec",
    "load_bundle",
    "load_engine",
]
