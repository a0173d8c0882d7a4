"""Bundles on disk and the engines that run them. Stands on nothing else of this project."""

from engines.bundle import Bundle, PreprocessSpec, load_bundle
from engines.engine import Engine, EngineOutput, EngineSpec
from engines.load import BACKENDS, load_engine

__all__ = [
    "BACKENDS",
    "Bundle",
    "Engine",
    "EngineOutput",
    "EngineSpec",
    "PreprocessSpec",
    "load_bundle",
    "load_engine",
]
