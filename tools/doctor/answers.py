"""What edge-doctor's processes answer: `python -m tools.doctor.answers`, a question on stdin, an answer on stdout."""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from edge.commandline import run_command
from edge.errors import EdgeError
from engines import Engine

Answer = dict[str, Any]

SOURCE_WAIT_S = 5.0
"""How long a live source may be without an image."""
_NUM_TIMED = 5


def main() -> int:
    """Answer one question."""
    return run_command(_run)


def _run() -> int:
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as out:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints must not get into the answer
        question = json.loads(sys.stdin.readline())
        try:
            answer = _QUESTIONS[question.pop("question")](**question)
        except EdgeError as exc:
            answer = {"error": str(exc), "exit_code": exc.exit_code}
        print(json.dumps(answer), file=out)
    return 0


def _openvino() -> Answer:
    import openvino

    core = openvino.Core()
    devices = {
        name: {
            "name": str(core.get_property(name, "FULL_DEVICE_NAME")),
            "capabilities": list(core.get_property(name, "OPTIMIZATION_CAPABILITIES")),
        }
        for name in core.available_devices
    }
    return {"version": importlib.metadata.version("openvino"), "devices": devices}


def _onnxruntime() -> Answer:
    import onnxruntime

    return {"version": onnxruntime.__version__, "providers": onnxruntime.get_available_providers()}


def _cuda() -> Answer:
    from engines import cuda, host

    if (trouble := host.cuda_trouble()) is not None:
        return {"trouble": trouble, "needs": "driver"}
    if (trouble := cuda.probe()) is not None:
        return {"trouble": trouble, "needs": "bindings"}
    gpus: list[Answer] = []
    with contextlib.suppress(EdgeError):  # past the last one
        while True:
            gpus.append(dataclasses.asdict(cuda.describe_gpu(len(gpus))))
    return {"gpus": gpus}


def _tensorrt() -> Answer:
    from engines.tensorrt import engine as tensorrt_engine

    if (trouble := tensorrt_engine.probe()) is not None:  # it asks CUDA before TensorRT
        return {"trouble": trouble}
    import tensorrt

    return {"version": tensorrt.__version__}


def _bundle(path: str, backend: str, device: str | None, precision: str | None) -> Answer:
    """Check every hash, and have the engine that the daemon would take prove itself. Nothing is written."""
    from engines import load_bundle, load_engine
    from engines.parity import measure_parity

    bundle = load_bundle(path)
    size_bytes = sum(file.size_bytes for file in bundle.files)
    about = {"name": bundle.name, "num_files": len(bundle.files), "size_bytes": size_bytes}
    passed_over: list[str] = []
    start_s = time.monotonic()
    try:
        with _listening(passed_over):
            engine = load_engine(bundle, backend, device, precision)
    except EdgeError as exc:
        return {**about, "trouble": str(exc)}
    load_s = time.monotonic() - start_s
    with contextlib.closing(engine):
        ran = {key: getattr(engine.spec, key) for key in ("backend", "precision", "device")}
        figures = {"load_s": load_s, "infer_ms": _infer_ms(engine), "parity": measure_parity(engine, bundle).describe()}
    return {**about, **ran, **figures, "interval_ms": bundle.frame_interval_ms, "passed_over": passed_over}


@contextlib.contextmanager
def _listening(lines: list[str]) -> Iterator[None]:
    """Keep what the choice of an engine logs, and let none of it through."""

    def keep(record: logging.LogRecord) -> bool:
        lines.append(record.getMessage())
        return False

    log = logging.getLogger("edge.engines")
    log.setLevel(logging.INFO)
    log.addFilter(keep)
    try:
        yield
    finally:
        log.removeFilter(keep)


def _infer_ms(engine: Engine) -> float:
    """Return the time of the fastest of a few windows: our other processes work beside it."""
    for _ in range(engine.spec.clip_tchw[0]):
        engine.push(np.zeros(engine.spec.clip_tchw[1:], np.float32))
    times_s = []
    for _ in range(_NUM_TIMED):
        start_s = time.perf_counter()
        engine.infer()
        times_s.append(time.perf_counter() - start_s)
    engine.reset()
    return 1e3 * min(times_s)


def _source(uri: str, options: dict[str, Any]) -> Answer:
    """Open a source and wait for its first frame."""
    from edge.frame import Frame
    from edge.sources.options import SourceOptions
    from edge.sources.table import open_source

    if options["video_size"] is not None:
        options["video_size"] = tuple(options["video_size"])
    start_s = time.monotonic()
    source = open_source(uri, options=SourceOptions(**options))
    about = {"source": source.info.public_name, "is_live": source.info.is_live}
    if source.info.plays_objects:  # they are for the daemon alone: played is gone
        source.close()
        return {**about, "is_listener": True}
    reason = "it ended"
    for item in source.frames():
        if isinstance(item, Frame):
            return {**about, "size_wh": item.size_wh, "waited_s": time.monotonic() - start_s}
        reason = getattr(item, "reason", "") or reason
        if time.monotonic() - start_s > SOURCE_WAIT_S:
            break
    return {**about, "pause": reason, "waited_s": time.monotonic() - start_s}


_QUESTIONS: dict[str, Callable[..., Answer]] = {
    "openvino": _openvino,
    "onnxruntime": _onnxruntime,
    "cuda": _cuda,
    "tensorrt": _tensorrt,
    "bundle": _bundle,
    "source": _source,
}


if __name__ == "__main__":
    raise SystemExit(main())
