"""One run of the daemon: what is opened, in which order, and closed in reverse."""

import contextlib
import hashlib
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2

from edge import __version__
from edge.commandline import NOTICE, LineHandler, log_line
from edge.config import Config
from edge.health.meters import Meters
from edge.health.troubles import RepeatFilter
from edge.pipeline import Pipeline
from edge.publish import Publisher
from edge.sources import open_source
from edge.sources.base import Source
from edge.terms import Terms
from engines import Bundle, load_bundle

if TYPE_CHECKING:
    from edge.exams.service import ExamService
    from edge.recording.recorder import Recorder

_log = logging.getLogger("edge")

_HIGH_WATER_MARK = 1000
_HIGH_WATER_MARK_MAX = 50_000
"""At the pace "max" a slow reader may fall this many predictions behind before it loses any: some 100 MB at most."""
_GATHER_S = 0.05
"""At the pace "max" of a recording: how long predictions wait to leave together."""
_SWITCH_INTERVAL_S = 0.0005
"""How soon a thread that waits for the interpreter gets it: Python's own 5 ms would be felt in the latency."""


def run_daemon(config: Config, attach: Callable[[Callable[[str], None]], None]) -> int:
    """Play the source to its end, or until stopped.

    Args:
        config: The effective configuration.
        attach: Is given the function that stops the run, `stop(reason)`, as soon as there is something to stop.

    Raises:
        EdgeError: What ended the run, if not the source's end or a stop.
    """
    _set_up_logging(config.log_format)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    cv2.setNumThreads(1)  # the cores are the engine's; an image is small
    _log.info("edge-infer %s. %s", __version__, NOTICE)
    _log.info("configuration: %s", config.describe())
    meters = Meters()
    with contextlib.ExitStack() as stack:
        bundle = load_bundle(config.engine)
        source = open_source(config.source, loop=config.loop, options=config.source_options())
        stack.callback(source.close)
        is_patient = config.pace == "max" and not config.frames
        publisher = Publisher(
            config.publish,
            config.stream,
            meters,
            high_water_mark=_HIGH_WATER_MARK_MAX if is_patient else _HIGH_WATER_MARK,
            gather_s=_GATHER_S if config.pace == "max" and not source.info.is_live else 0.0,
            curve_dir=Path(config.curve) if config.curve else None,
            is_insecure=config.insecure,
        )
        _log.info("publishing on %s as %s", publisher.address, config.stream)
        _log.info("source: %s %s", source.info.name, source.info.note)
        _log.info("bundle: %s. Intended use: %s", bundle.name, bundle.intended_use)
        recorder = _open_recorder(config, bundle, source) if config.record else None
        if recorder is not None:
            stack.callback(recorder.close)
        terms = Terms(bundle.threshold)
        exams = _open_exams(config, bundle, publisher, meters, terms) if config.keeps_exams else None
        if exams is not None:
            stack.callback(exams.close)
        pipeline = Pipeline(config, bundle, source, publisher, meters, recorder, terms)
        attach(pipeline.stop)
        pipeline.run()
        if exams is not None:
            if not pipeline.was_stopped:
                attach(lambda _reason: exams.hurry())
            exams.end_stream(was_stopped=pipeline.was_stopped, recorder=recorder)
    return 0


def _open_recorder(config: Config, bundle: Bundle, source: Source) -> "Recorder":
    from edge.recording.recorder import Recorder, RecordingSettings

    is_lossless = config.pace == "max" and not source.info.is_live
    settings = RecordingSettings(
        folder=Path(config.record or ""),
        codec=config.record_codec,
        max_bytes=None if config.record_max_gb is None else int(config.record_max_gb * 1e9),
        max_age_s=None if config.record_max_days is None else config.record_max_days * 86400,
        is_lossless=is_lossless,
        channels=bundle.preprocess.channels,
    )
    about = {
        "version": __version__,
        "stream": config.stream,
        "source": source.info.public_name,
        "frame_interval_ms": source.info.frame_interval_ms,
        "bundle": _describe(bundle),
        "configuration": {**config.given(), "source": source.info.public_name},
    }
    recorder = Recorder(settings, about)
    _log.info("recording the ROI into %s, %s", config.record, config.record_codec)
    return recorder


def _open_exams(config: Config, bundle: Bundle, publisher: Publisher, meters: Meters, terms: Terms) -> "ExamService":
    from edge.exams.service import open_exams

    exams = open_exams(config, _manifest_sha256(bundle), bundle.classes[-1], publisher, meters, terms)
    if exams.control_address is not None:
        _log.info("control socket on %s", exams.control_address)
    return exams


def _manifest_sha256(bundle: Bundle) -> str:
    return hashlib.sha256((bundle.path / "manifest.json").read_bytes()).hexdigest()


def _describe(bundle: Bundle) -> dict[str, Any]:
    return {
        "name": bundle.name,
        "manifest_sha256": _manifest_sha256(bundle),
        "classes": bundle.classes,
        "threshold": bundle.threshold,
        "intended_use": bundle.intended_use,
        "clip": {"num_frames": bundle.num_frames, "frame_interval_ms": bundle.frame_interval_ms},
    }


class _JsonHandler(logging.Handler):
    """Prints log records as JSON, one a line."""

    def emit(self, record: logging.LogRecord) -> None:
        entry = {"time_s": record.created, "level": record.levelname.lower(), "message": record.getMessage()}
        log_line(json.dumps(entry, ensure_ascii=False))


def _set_up_logging(log_format: str) -> None:
    root = logging.getLogger("edge")
    handler = _JsonHandler() if log_format == "json" else LineHandler()
    handler.addFilter(RepeatFilter())
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    root.propagate = False
