"""The whole pipeline: a real `edge-infer` process, and a real subscriber in another."""

import dataclasses
import json
import socket
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

from edge.errors import EdgeError
from tools.bench.engine import EngineChoice, measure_engine
from tools.bench.trace import Entry, received_ms, stage_durations_ms
from tools.children import peak_rss_mb, rss_mb, running
from tools.measures import percentiles

_BARE_S = 5.0
_START_S = 120.0
_WATCH_INTERVAL_S = 0.25  # a look at the daemon's memory takes time that is the daemon's
_MIN_TENTH_S = 2.5  # the start, when memory grows as it must, is over within the first tenth
_NUM_WARMUP = 16  # windows left out of the steady state, where there are enough

Report = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSettings:
    """What to run."""

    source: str
    engine: Path
    backend: str
    device: str | None
    pace: str
    hop: int
    seconds: float
    max_windows: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class Memory:
    """The daemon's resident memory in MB (10^6 bytes)."""

    peak_mb: float
    growth_mb: float | None
    """From the second tenth of the run to its last tenth, medians: what does not level off shows here.

    None of a run too short to tell.
    """


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PipelineRun:
    """What one run of the daemon gave."""

    predictions: list[Entry]
    counters: dict[str, int]
    num_lost: int
    memory: "Memory"
    first_prediction_s: float
    """From the start of the daemon's process to the first prediction in the subscriber's hands."""

    @property
    def steady(self) -> list[Entry]:
        """The predictions without the first ones."""
        return self.predictions[_NUM_WARMUP:] if len(self.predictions) > 4 * _NUM_WARMUP else self.predictions

    @property
    def windows_per_s(self) -> float:
        """Predictions received a second, in the steady state."""
        times_ns = [entry["t_received_ns"] for entry in self.steady]
        return (len(times_ns) - 1) / ((times_ns[-1] - times_ns[0]) / 1e9)

    @property
    def first_window_play_s(self) -> float:
        """Media time up to the newest frame of the first window."""
        window: dict[str, float] = self.predictions[0]["window"]
        num_intervals = max(1, window["last_index"] - window["first_index"])
        return window["span_ms"] / 1e3 * window["last_index"] / num_intervals


def measure_pipeline(settings: PipelineSettings) -> tuple[Report, PipelineRun]:
    """Measure the bare engine, the pipeline, and the bare engine again, so that a drift of the machine shows.

    The bare engine has as many windows in flight as the pipeline gives it: several at the pace "max".

    Raises:
        EdgeError: The daemon failed, with its own exit code; or fewer than two predictions came.
    """
    bare_s = min(_BARE_S, settings.seconds)
    choice = EngineChoice(backend=settings.backend, device=settings.device, is_for_throughput=settings.pace == "max")
    before = measure_engine(settings.engine, choice, bare_s)
    run = run_pipeline(settings)
    after = measure_engine(settings.engine, choice, bare_s)
    return _report(settings, run, [before["windows_per_s"], after["windows_per_s"]], before), run


def run_pipeline(settings: PipelineSettings) -> PipelineRun:
    """Run the daemon and the subscriber to their end."""
    address = f"tcp://127.0.0.1:{_free_port()}"
    with running("tools.bench.subscriber", address) as subscriber:
        subscriber.stdout.readline()  # it listens
        start_ns = time.monotonic_ns()
        with running("edge.cli", *_arguments(settings, address)) as daemon:
            memory = _watch(daemon.process, _START_S + settings.seconds)
            daemon.finish(_START_S)
        received = json.loads(subscriber.finish(_START_S).splitlines()[-1])
    predictions = received["predictions"]
    if len(predictions) < 2:
        raise EdgeError(f"{len(predictions)} predictions came; a rate needs 2 or more: give more --seconds")
    return PipelineRun(
        predictions=predictions,
        counters=received["status"]["counters"],
        num_lost=received["num_lost"],
        memory=memory,
        first_prediction_s=(predictions[0]["t_received_ns"] - start_ns) / 1e9,
    )


def _arguments(settings: PipelineSettings, address: str) -> list[str]:
    arguments = ["--source", settings.source, "--engine", str(settings.engine), "--publish", address, "--loop"]
    arguments += ["--backend", settings.backend, "--pace", settings.pace, "--hop", str(settings.hop)]
    arguments += ["--wait-subscribers", "1", "--duration", f"{settings.seconds}"]
    arguments += ["--device", settings.device] if settings.device else []
    arguments += ["--max-windows", str(settings.max_windows)] if settings.max_windows else []
    return arguments


def _watch(daemon: subprocess.Popen[str], limit_s: float) -> Memory:
    """Wait for the daemon's end and look at its memory, which can be read only while it runs."""
    deadline_s, peak_mb, series_mb = time.monotonic() + limit_s, 0.0, []
    while time.monotonic() < deadline_s:
        peak_mb = max(peak_mb, peak_rss_mb(daemon.pid))
        series_mb.append(rss_mb(daemon.pid))
        try:
            daemon.wait(_WATCH_INTERVAL_S)
        except subprocess.TimeoutExpired:
            continue
        return Memory(peak_mb, _growth_mb([value for value in series_mb if value]))
    raise EdgeError(f"edge-infer did not end within {limit_s:.0f} s and was stopped; try it alone")


def _growth_mb(series_mb: list[float]) -> float | None:
    tenth = len(series_mb) // 10
    if tenth * _WATCH_INTERVAL_S < _MIN_TENTH_S:
        return None
    return statistics.median(series_mb[-tenth:]) - statistics.median(series_mb[tenth : 2 * tenth])


def _report(settings: PipelineSettings, run: PipelineRun, bare: list[float], engine: Report) -> Report:
    steady = run.steady
    totals_ms = [entry["latency_ms"]["total"] for entry in steady]
    overheads_ms = [entry["latency_ms"]["total"] - entry["latency_ms"]["infer"] for entry in steady]
    stages = [stage_durations_ms(entry) for entry in steady]
    play_s = run.first_window_play_s if settings.pace == "realtime" else 0.0
    return {
        "windows_per_s": run.windows_per_s,
        "efficiency": run.windows_per_s / statistics.median(bare),
        "latency_ms": percentiles(totals_ms),
        "overhead_ms": percentiles(overheads_ms),
        "received_ms": percentiles([received_ms(entry) for entry in steady]),
        "stages_ms": {stage: percentiles([durations[stage] for durations in stages]) for stage in stages[0]},
        "rss_mb": run.memory.peak_mb,
        "rss_growth_mb": run.memory.growth_mb,
        "start_s": run.first_prediction_s - play_s,
        "first_prediction_s": run.first_prediction_s,
        "first_window_play_s": play_s,
        "skipped": run.counters["skipped"],
        "captured": run.counters["captured"],
        "published": run.counters["published"],
        "received": len(run.predictions),
        "lost": run.num_lost,
        "engine_windows_per_s": bare,
        "backend": engine["backend"],
        "precision": engine["precision"],
        "device": engine["device"],
        **{key: getattr(settings, key) for key in ("source", "pace", "hop")},
    }


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
