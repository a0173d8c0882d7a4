"""What tests of `--backend auto` and of rankings share: a small bundle, what it chooses, and what it logs."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engines import Bundle, PreprocessSpec, load_engine
from engines.ranking import Ranked
from tools.trivial import write_trivial_bundle

SPEC = PreprocessSpec(resize_hw=(16, 16), crop_hw=(16, 16))
RANKED = (Ranked("onnxruntime", "CPU", "fp32", 9.5), Ranked("openvino", "CPU", "fp32", 9.9))


def write_small(folder: Path) -> Path:
    return write_trivial_bundle(folder, num_frames=4, preprocess=SPEC)


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """Return what is logged, as it comes."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("edge.engines")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(level)


def chosen(bundle: Bundle, **options: Any) -> tuple[str, str]:
    """Return backend and precision of what auto takes."""
    engine = load_engine(bundle, "auto", **options)
    engine.close()
    return engine.spec.backend, engine.spec.precision
