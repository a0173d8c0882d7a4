"""The command `edge-infer`."""

import contextlib
import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

import cv2

from edge import __version__
from edge.commandline import NOTICE, LineHandler, run_command
from edge.config import Config, read_config
from edge.meters import Meters
from edge.pipeline import Pipeline
from edge.publish import Publisher
from edge.sources import open_source
from engines import load_bundle

_log = logging.getLogger("edge")

_HIGH_WATER_MARK_REALTIME = 1000
_HIGH_WATER_MARK_MAX = 50_000
"""At the pace "max" a slow reader may fall this many messages behind before it loses any."""
_SWITCH_INTERVAL_S = 0.0005
"""How soon a thread that waits for the interpreter gets it: Python's own 5 ms would be felt in the latency."""


def main() -> int:
    """Run the command."""
    exit_code = run_command(lambda: _run(read_config()))
    if any(thread.name in ("capture", "inference") for thread in threading.enumerate()):
        # a library call that cannot be interrupted still runs; nothing of ours is left to save
        sys.stderr.flush()
        os._exit(exit_code)
    return exit_code


def _run(config: Config) -> int:
    _set_up_logging(config.log_format)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    cv2.setNumThreads(1)  # the cores are the engine's; an image is small
    _log.info("edge-infer %s. %s", __version__, NOTICE)
    _log.info("configuration: %s", config.describe())
    stopper = _Stopper()
    meters = Meters()
    with contextlib.ExitStack() as stack:
        bundle = load_bundle(config.engine)
        source = open_source(config.source, loop=config.loop)
        stack.callback(source.close)
        publisher = Publisher(
            config.publish,
            config.stream,
            meters,
            high_water_mark=_HIGH_WATER_MARK_MAX if config.pace == "max" else _HIGH_WATER_MARK_REALTIME,
            curve_dir=Path(config.curve) if config.curve else None,
            is_insecure=config.insecure,
        )
        _log.info("publishing on %s as %s", publisher.address, config.stream)
        _log.info("source: %s %s", source.info.name, source.info.note)
        _log.info("bundle: %s. Intended use: %s", bundle.name, bundle.intended_use)
        pipeline = Pipeline(config, bundle, source, publisher, meters)
        stopper.attach(pipeline)
        pipeline.run()
    return 0


class _Stopper:
    """Turns SIGINT and SIGTERM into the pipeline's stop, also when they come before there is a pipeline."""

    def __init__(self) -> None:
        self._pipeline: Pipeline | None = None
        self._reason: str | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def attach(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        if self._reason is not None:
            pipeline.stop(self._reason)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._reason = f"stopped by {signal.Signals(number).name}"
        if self._pipeline is not None:
            self._pipeline.stop(self._reason)


class _JsonHandler(logging.Handler):
    """Prints log records as JSON, one a line."""

    def emit(self, record: logging.LogRecord) -> None:
        entry = {"time_s": record.created, "level": record.levelname.lower(), "message": record.getMessage()}
        print(json.dumps(entry, ensure_ascii=False), file=sys.stderr, flush=True)


def _set_up_logging(log_format: str) -> None:
    root = logging.getLogger("edge")
    root.handlers = [_JsonHandler() if log_format == "json" else LineHandler()]
    root.setLevel(logging.INFO)
    root.propagate = False


if __name__ == "__main__":
    raise SystemExit(main())
