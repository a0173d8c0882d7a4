"""The whole pipeline: a real `edge-infer` process, and a real subscriber in another."""

import dataclasses
import json
import select
import socket
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

from edge.errors import EdgeError
from tools.bench.engine import READY_S, EngineChoice, measure_rate
from tools.bench.trace import Entry, received_ms, stage_durations_ms
from tools.bench.turns import Span, Turns, can_take_turns, rate_outside, rate_within, undisturbed
from tools.children import Child, peak_rss_mb, rss_mb, running
from tools.measures import percentiles

_BARE_S = 5.0
_START_S = 120.0
_WATCH_INTERVAL_S = 0.25  # a look at the daemon's memory takes time that is the daemon's
_MIN_TENTH_S = 2.5  # the start, when memory grows as it must, is over within the first tenth
_MIN_TURNS = 3  # fewer tell no rate
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
    spans: list[Span]
    """When the daemon ran between two turns of the bare engine; empty where it was never stopped."""
    stops: list[Span]
    """When it was stopped."""
    engine_rates: list[float]
    """Windows a second of the bare engine's turns."""

    @property
    def steady(self) -> list[Entry]:
        """The predictions without the first ones, and without those that a stop held up."""
        return undisturbed(self.stops, self._later) or self._later

    @property
    def _later(self) -> list[Entry]:
        return self.predictions[_NUM_WARMUP:] if len(self.predictions) > 4 * _NUM_WARMUP else self.predictions

    @property
    def is_by_turns(self) -> bool:
        """Whether there were enough turns to compare rates."""
        return len(self.spans) >= _MIN_TURNS

    @property
    def windows_per_s(self) -> float:
        """Predictions a second, in the steady state: completed while the daemon ran, or received."""
        if self.is_by_turns:
            return rate_within(self.spans, self.predictions)
        return rate_outside(self.stops, self._later)

    @property
    def first_window_play_s(self) -> float:
        """Media time up to the newest frame of the first window."""
        window: dict[str, float] = self.predictions[0]["window"]
        num_intervals = max(1, window["last_index"] - window["first_index"])
        return window["span_ms"] / 1e3 * window["last_index"] / num_intervals


def measure_pipeline(settings: PipelineSettings) -> tuple[Report, PipelineRun]:
    """Measure the pipeline and the bare engine beside it, so that a drift of the machine shows.

    At the pace "max" they take turns, and the bare engine has as many windows in flight as the pipeline gives it; in
    real time, and where the run is too short or the engine too slow for that, the engine runs before and after.

    Raises:
        EdgeError: The daemon or the engine failed, with its own exit code; or fewer than two predictions came.
    """
    bare_s = min(_BARE_S, settings.seconds)
    choice = EngineChoice(backend=settings.backend, device=settings.device, is_for_throughput=settings.pace == "max")
    with running("tools.bench.engine", str(settings.engine), *choice.arguments) as bare:
        engine = bare.ask(None, READY_S)
        before = measure_rate(bare, bare_s)
        is_by_turns = settings.pace == "max" and can_take_turns(before)
        run = run_pipeline(settings, bare if is_by_turns else None)
        rates = run.engine_rates if run.is_by_turns else [before, measure_rate(bare, bare_s)]
    return _report(settings, run, rates, engine), run


def run_pipeline(settings: PipelineSettings, bare: Child | None) -> PipelineRun:
    """Run the daemon and the subscriber to their end, and the bare engine by turns with them where it is given."""
    address = f"tcp://127.0.0.1:{_free_port()}"
    with running("tools.bench.subscriber", address) as subscriber:
        subscriber.stdout.readline()  # it listens
        start_ns = time.monotonic_ns()
        seconds = settings.seconds * (1 if bare is None else 2)
        with running("edge.cli", *_arguments(settings, address, seconds)) as daemon:
            turns = None if bare is None else Turns(daemon.process, bare, settings.seconds)
            memory = _watch(daemon.process, subscriber, turns, _START_S + seconds)
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
        spans=turns.spans if turns else [],
        stops=turns.stops if turns else [],
        engine_rates=turns.engine_rates if turns else [],
    )


def _arguments(settings: PipelineSettings, address: str, seconds: float) -> list[str]:
    arguments = ["--source", settings.source, "--engine", str(settings.engine), "--publish", address, "--loop"]
    arguments += ["--backend", settings.backend, "--pace", settings.pace, "--hop", str(settings.hop)]
    arguments += ["--wait-subscribers", "1", "--duration", f"{seconds}"]
    arguments += ["--device", settings.device] if settings.device else []
    arguments += ["--max-windows", str(settings.max_windows)] if settings.max_windows else []
    return arguments


def _watch(daemon: subprocess.Popen[str], subscriber: Child, turns: Turns | None, limit_s: float) -> Memory:
    """Wait for the daemon's end and look at its memory, which can be read only while it runs."""
    deadline_s, peak_mb, series_mb = time.monotonic() + limit_s, 0.0, []
    has_begun = False
    while time.monotonic() < deadline_s:
        if turns is not None and not has_begun and select.select([subscriber.stdout], [], [], 0)[0]:
            has_begun = True
            if subscriber.stdout.readline():  # the first prediction is there; else the subscriber has died
                turns.begin()
        peak_mb = max(peak_mb, peak_rss_mb(daemon.pid))
        series_mb.append(rss_mb(daemon.pid))
        try:
            daemon.wait(_WATCH_INTERVAL_S)
        except subprocess.TimeoutExpired:
            if turns is not None:
                turns.take_if_due()
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
        "efficiency": run.windows_per_s / statistics.fmean(bare),
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
