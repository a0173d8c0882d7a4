"""The bare engine: push and infer in a loop, alone in a process of its own, so that memory and cores are its own.

Engines that are compared take turns, so that whatever else the machine does hits all of them alike.
"""

import contextlib
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edge.commandline import Parser, print_line, run_command
from edge.errors import EdgeError, EngineError
from edge.tuning import parse_tuning
from engines import Bundle, Engine, load_bundle, load_engine
from engines.cuda_engine import CudaEngine
from engines.torch.engine import COMPILED_KIND
from tools.bench.peaks import Peaks, peak_meter
from tools.children import Child, peak_rss_mb, running
from tools.measures import percentiles

_NUM_TURNS = 5
_MIN_WINDOWS = 3
READY_S = 600.0

Result = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineChoice:
    """What to measure."""

    backend: str = "auto"
    precision: str | None = None
    device: str | None = None
    is_for_throughput: bool = False
    """Several windows in flight, as at `--pace max`."""
    is_without_graphs: bool = False
    """On a CUDA device each kernel is started by itself: with the torch backend, PyTorch eager."""
    tune: str | None = None
    """As `edge-infer --tune` takes it."""

    @property
    def arguments(self) -> list[str]:
        """Return the child's arguments."""
        given = {"--backend": self.backend, "--precision": self.precision, "--device": self.device, "--tune": self.tune}
        switches = {"--throughput": self.is_for_throughput, "--no-graphs": self.is_without_graphs}
        pairs = [part for name, value in given.items() if value is not None for part in (name, value)]
        return [*pairs, *(name for name, is_on in switches.items() if is_on)]

    @property
    def name(self) -> str:
        """Return what it is called in a message."""
        graphs = "without graphs" if self.is_without_graphs else None
        return " ".join(filter(None, (self.backend, self.device, self.precision, graphs)))


def is_eager_on_gpu(bundle: Bundle, choice: EngineChoice) -> bool:
    """Whether the engine is PyTorch in FP16 on a GPU, which without graphs is what the others there are compared with.

    A program of torch-tensorrt, which takes its place where a bundle has one, is not.
    """
    is_torch = (choice.backend, choice.precision) == ("torch", "fp16") and str(choice.device).startswith("cuda")
    return is_torch and not bundle.has(COMPILED_KIND, "fp16")


class _Entrant(NamedTuple):
    """An engine that is measured."""

    choice: EngineChoice
    child: Child
    loaded: Result
    turns: list[Result]


def measure_engines(
    bundle: Path, choices: Sequence[EngineChoice], seconds: float, *, is_strict: bool, with_peaks: bool = True
) -> tuple[list[Result], dict[str, Peaks]]:
    """Load each engine in a child process, then let them and the devices' matrix products take turns.

    Args:
        bundle: The bundle's folder.
        choices: What to measure.
        seconds: How long each engine runs in all.
        is_strict: Whether an engine that cannot run, or dies as it runs, is an error; else it is told and left out.
        with_peaks: Whether the devices' matrix products are measured as well.

    Returns:
        For each engine that ran: `backend`, `precision`, `device`, `graphs` (of `engines.cuda_engine.GRAPHS`; None off
        the GPU), `windows_per_s`, `latency_ms`, `load_s`, `rss_mb`, `num_windows`, `is_for_throughput`. And for each
        device, in small letters, its matrix-multiply rates.

    Raises:
        EngineError: With `is_strict`, an engine was refused, failed or died.
    """
    with contextlib.ExitStack() as stack:
        entrants: list[_Entrant] = []
        for choice in choices:
            child = stack.enter_context(running("tools.bench.engine", str(bundle), *choice.arguments))
            with _left_out(choice, is_strict=is_strict):
                entrants.append(_Entrant(choice, child, child.ask(None, READY_S), []))
        devices = sorted({entrant.loaded["device"].lower() for entrant in entrants}) if with_peaks else []
        meters = {device: stack.enter_context(peak_meter(device)) for device in devices}
        for num_turns in range(1, _NUM_TURNS + 1):
            for entrant in entrants:
                with _left_out(entrant.choice, is_strict=is_strict):
                    entrant.turns.append(_take_turn(entrant.child, seconds / _NUM_TURNS))
            entrants = [entrant for entrant in entrants if len(entrant.turns) == num_turns]
            if not entrants:
                break
            for meter in filter(None, meters.values()):
                meter.take_turn(seconds / _NUM_TURNS)
        results = [_result(entrant.loaded, entrant.turns) for entrant in entrants]
        return results, {device: meter.rates() if meter else {} for device, meter in meters.items()}


@contextlib.contextmanager
def _left_out(choice: EngineChoice, *, is_strict: bool) -> Iterator[None]:
    """Go on without an engine that is refused or dies; its process may do so at any time, and says less of it then."""
    try:
        yield
    except EdgeError as exc:
        if is_strict:
            raise EngineError(f"{choice.name}: {exc}") from exc
        print_line("warning", f"{choice.name} is left out: {exc}")


def _take_turn(child: Child, seconds: float) -> Result:
    return child.ask(f"{seconds}", READY_S + 10 * seconds)


def measure_rate(engine: Child, seconds: float) -> float:
    """Return the windows a second of a loaded engine."""
    turn = _take_turn(engine, seconds)
    return len(turn["latencies_ms"]) / float(turn["elapsed_s"])


def _result(loaded: Result, turns: list[Result]) -> Result:
    latencies_ms = [value for turn in turns for value in turn["latencies_ms"]]
    return {
        **loaded,
        "windows_per_s": len(latencies_ms) / sum(turn["elapsed_s"] for turn in turns),
        "latency_ms": percentiles(latencies_ms),
        "num_windows": len(latencies_ms),
        "rss_mb": turns[-1]["rss_mb"],
    }


def main() -> int:
    """Run the child's side: one JSON line when the engine is loaded, then one for each line (seconds) on stdin."""
    return run_command(_run)


def _run() -> int:
    parser = Parser("bench_engine", "Measure one engine; what edge-bench starts.", "edge-bench engine engines/demo")
    parser.add_argument("bundle")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--precision")
    parser.add_argument("--device")
    parser.add_argument("--tune", default="")
    parser.add_argument("--throughput", action="store_true")
    parser.add_argument("--no-graphs", action="store_true")
    options = parser.parse_args()
    start_s = time.monotonic()
    bundle = load_bundle(options.bundle)
    engine = load_engine(
        bundle,
        options.backend,
        options.device,
        options.precision,
        is_for_throughput=options.throughput,
        **parse_tuning(options.tune),
    )
    with contextlib.closing(engine):
        if options.no_graphs and isinstance(engine, CudaEngine):
            engine.use_graphs("none")
        _tell(_describe(engine, time.monotonic() - start_s))
        clip_tchw = bundle.reference().clips[0]
        for line in sys.stdin:
            latencies_ms, elapsed_s = _loop(engine, clip_tchw, float(line))
            _tell({"latencies_ms": latencies_ms, "elapsed_s": elapsed_s, "rss_mb": peak_rss_mb()})
    return 0


def _describe(engine: Engine, load_s: float) -> Result:
    spec = engine.spec
    kept = {"backend": spec.backend, "precision": spec.precision, "device": spec.device, "graphs": _graphs_of(engine)}
    return {**kept, "is_for_throughput": engine.max_in_flight > 1, "load_s": load_s}


def _graphs_of(engine: Engine) -> str | None:
    return engine.graphs if isinstance(engine, CudaEngine) else None


def _tell(report: Result) -> None:
    print(json.dumps(report), flush=True)


def _loop(engine: Engine, clip_tchw: Any, seconds: float) -> tuple[list[float], float]:
    """Push one frame and run, again and again; return the times from window to window in ms and the whole time in s."""
    for frame_chw in clip_tchw:
        engine.push(frame_chw)
    engine.infer()
    in_flight = [engine.submit() for _ in range(engine.max_in_flight - 1)]
    frames = itertools.cycle(clip_tchw)

    def complete_one() -> float:
        engine.push(next(frames))
        in_flight.append(engine.submit())
        in_flight.pop(0)()
        return time.perf_counter()

    # what is in flight when the time begins must be as far as what is in flight when it ends
    times_s = [complete_one() for _ in range(engine.max_in_flight)][-1:]
    while times_s[-1] - times_s[0] < seconds or len(times_s) <= _MIN_WINDOWS:
        times_s.append(complete_one())
    for wait in in_flight:
        wait()
    return (np.diff(times_s) * 1e3).tolist(), times_s[-1] - times_s[0]


if __name__ == "__main__":
    raise SystemExit(main())
