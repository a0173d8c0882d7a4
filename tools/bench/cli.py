"""The command `edge-bench`: latency and throughput, as a table and as one JSON line."""

import argparse
import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from edge.commandline import Parser, interrupt_on_sigterm, print_line, run_command
from edge.config import DEMO_BUNDLE
from edge.errors import ConfigError, EngineError
from edge.tuning import parse_tuning
from engines import BACKENDS, Bundle, load_bundle
from engines.load import backend_module, engines_of
from tools.bench.display import DisplaySettings, measure_display
from tools.bench.engine import EngineChoice, is_eager_on_gpu, measure_engines
from tools.bench.flops import count_gflop
from tools.bench.pipeline import PipelineSettings, Report, measure_pipeline
from tools.bench.plot import check_plot, plot_engines
from tools.bench.tables import print_display, print_engines, print_pipeline, with_rates
from tools.bench.trace import write_trace
from tools.measures import check_output, describe_hardware


def main() -> int:
    """Run the command."""
    interrupt_on_sigterm()
    return run_command(_run)


def _run() -> int:
    options = _parse()
    if not 0 < options.seconds < math.inf:
        raise ConfigError(f"--seconds is {options.seconds}; it must be above 0")
    report = {"engine": _bench_engine, "pipeline": _bench_pipeline, "display": _bench_display}[options.what](options)
    print(json.dumps({**report, "hardware": describe_hardware()}, allow_nan=False))
    return 0


def _parse() -> argparse.Namespace:
    parser = Parser(
        "edge-bench",
        "Measure a bundle alone, the whole pipeline to a subscriber, or the bedside page; the last line is JSON.",
        "edge-bench pipeline --source demo --seconds 30",
    )
    commands = parser.add_subparsers(dest="what", required=True, metavar="engine|pipeline|display", parser_class=Parser)
    engine = commands.add_parser(
        "engine",
        help="the bundle alone: push a frame, run the window",
        description="Measure all engines of a bundle side by side, each in a process of its own, by turns.",
        example="edge-bench engine engines/demo --plot engines.png",
    )
    engine.add_argument("bundle", metavar="BUNDLE", type=Path)
    engine.add_argument(
        "--backend", metavar="B", nargs="+", action="extend", help=f"of {', '.join(BACKENDS)} (default: all)"
    )
    engine.add_argument(
        "--precision", metavar="P", nargs="+", action="extend", help="of what the bundle has (default: all)"
    )
    engine.add_argument("--seconds", metavar="S", type=float, default=10.0, help="for each engine (default: 10)")
    engine.add_argument(
        "--tune", metavar="K=V,...", help="as edge-infer takes it: threads=N, pinning=on|off, cache=DIR"
    )
    engine.add_argument(
        "--throughput", action="store_true", help="with several windows in flight, as at --pace max, where it can"
    )
    engine.add_argument("--plot", metavar="FILE", type=Path, help="draw rates and latencies into a .png, .svg or .pdf")
    pipeline = commands.add_parser(
        "pipeline",
        help="edge-infer in one process, a subscriber in another",
        description="Measure the whole pipeline: edge-infer in one process, a subscriber in another.",
        example="edge-bench pipeline --source cine.mp4 --pace max --trace trace.json",
    )
    add = pipeline.add_argument
    add("--source", metavar="URI", required=True, help="as edge-infer takes it; played again and again")
    add("--engine", metavar="BUNDLE", type=Path, default=DEMO_BUNDLE, help="(default: the demo bundle)")
    add("--backend", metavar="B", default="auto", help="(default: auto)")
    add("--pace", choices=("realtime", "max"), default="realtime", help="(default: realtime)")
    add("--hop", metavar="N", type=int, default=1, help="new clip frames between two windows (default: 1)")
    add("--seconds", metavar="S", type=float, default=20.0, help="how long to play (default: 20)")
    add("--max-windows", metavar="N", type=int, help="end after N predictions, if that is sooner")
    add("--trace", metavar="FILE", type=Path, help="write a trace for ui.perfetto.dev or chrome://tracing")
    display = commands.add_parser(
        "display",
        help="edge-infer, edge-display and a headless browser",
        description="Measure the bedside page in a headless Chromium beside the daemon.",
        example="edge-bench display --seconds 60",
    )
    add = display.add_argument
    add("--engine", metavar="BUNDLE", type=Path, default=DEMO_BUNDLE, help="(default: the demo bundle)")
    add("--backend", metavar="B", default="auto", help="(default: auto)")
    add("--seconds", metavar="S", type=float, default=60.0, help="each for the page and for the readers (default: 60)")
    add("--readers", metavar="N", type=int, default=10, help="browsers that draw nothing (default: 10)")
    for command, default in ((engine, "all that are here"), (pipeline, "its own choice")):
        command.add_argument("--device", metavar="D", help=f"the backend's device (default: {default})")
    return parser.parse_args()


def _bench_engine(options: argparse.Namespace) -> Report:
    parse_tuning(options.tune or "")
    if options.plot is not None:
        check_plot(options.plot)
    bundle = load_bundle(options.bundle)
    choices = list(_choices(bundle, options))
    with _waiting(f"measuring {len(choices)} engines"):
        results, peaks = measure_engines(
            options.bundle, choices, options.seconds, is_strict=options.backend is not None
        )
        if not results:
            raise EngineError(f"no engine of {options.bundle} runs here; why each is left out stands above")
        gflop = count_gflop(bundle)
    print(describe_hardware())
    engines = with_rates(results, gflop, peaks)
    print_engines(bundle.name, engines, gflop, peaks)
    if options.plot is not None:
        plot_engines(options.plot, bundle.name, engines)
    return {"bundle": bundle.name, "gflop_per_window": gflop, "peak_gflops": peaks, "engines": engines}


def _waiting(what: str) -> contextlib.AbstractContextManager[object]:
    """Tell that it takes a while, on a terminal alone."""
    console = Console(stderr=True)
    return console.status(what) if console.is_terminal else contextlib.nullcontext()


def _choices(bundle: Bundle, options: argparse.Namespace) -> Iterator[EngineChoice]:
    """Yield every engine of the bundle that is asked for; a backend that cannot run here only if it is named."""
    for backend in options.backend or BACKENDS:
        module = backend_module(backend)
        if (trouble := module.probe()) is not None and not options.backend:
            print_line("warning", f"{backend} is left out: {trouble}")
            continue
        there = engines_of(bundle, backend, options.device) if trouble is None else ()
        asked = [one for one in there if not options.precision or one[1] in options.precision]
        # one that no engine here has is measured all the same, for its error
        for device, precision in asked or [(options.device, one) for one in options.precision or (None,)]:
            choice = EngineChoice(
                backend=backend,
                precision=precision,
                device=device,
                is_for_throughput=options.throughput,
                tune=options.tune,
            )
            yield choice
            if is_eager_on_gpu(bundle, choice):
                yield dataclasses.replace(choice, is_without_graphs=True)


def _bench_pipeline(options: argparse.Namespace) -> Report:
    if options.trace is not None:
        check_output("--trace", options.trace)
    settings = PipelineSettings(
        source=options.source,
        engine=options.engine,
        backend=options.backend,
        device=options.device,
        pace=options.pace,
        hop=options.hop,
        seconds=options.seconds,
        max_windows=options.max_windows,
    )
    with _waiting("measuring the pipeline and the bare engine beside it"):
        report, run = measure_pipeline(settings)
    print(describe_hardware())
    if options.trace is not None:
        write_trace(options.trace, run.predictions)
    print_pipeline(report)
    return report


def _bench_display(options: argparse.Namespace) -> Report:
    if options.readers < 1:
        raise ConfigError(f"--readers is {options.readers}; it must be 1 or more")
    load_bundle(options.engine)
    settings = DisplaySettings(
        engine=options.engine, backend=options.backend, seconds=options.seconds, num_readers=options.readers
    )
    with _waiting("measuring a page, and the daemon without and with readers"):
        report = measure_display(settings)
    print(describe_hardware())
    print_display(report)
    return report


if __name__ == "__main__":
    raise SystemExit(main())
