"""The command `edge-bench`: latency and throughput, as a table and as one JSON line."""

import argparse
import json
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table

from edge.commandline import Parser, print_line, run_command
from edge.config import DEMO_BUNDLE
from edge.errors import ConfigError, EdgeError, EngineError
from engines import BACKENDS, load_bundle
from tools.bench_engine import Result, measure_engine
from tools.bench_pipeline import PipelineSettings, Report, measure_pipeline
from tools.flops import count_gflop
from tools.measures import describe_hardware, measure_peak_gflops
from tools.trace import write_trace

_PERCENTILES = ("p50", "p95", "p99", "max")


def main() -> int:
    """Run the command."""
    signal.signal(signal.SIGTERM, _interrupt)  # so that the children are ended too
    return run_command(_run)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _run() -> int:
    options = _parse()
    if not 0 < options.seconds < math.inf:
        raise ConfigError(f"--seconds is {options.seconds}; it must be above 0")
    hardware = describe_hardware()
    print(hardware)
    report = _bench_engine(options) if options.what == "engine" else _bench_pipeline(options)
    print(json.dumps({**report, "hardware": hardware}, allow_nan=False))
    return 0


def _parse() -> argparse.Namespace:
    parser = Parser(
        "edge-bench",
        "Measure a bundle alone, or the whole pipeline from a source to a subscriber; the last line is JSON.",
        "edge-bench pipeline --source demo --seconds 30",
    )
    commands = parser.add_subparsers(dest="what", required=True, metavar="engine|pipeline", parser_class=Parser)
    engine = commands.add_parser(
        "engine",
        help="the bundle alone: push a frame, run the window",
        description="Measure a bundle alone, each backend in a process of its own.",
        example="edge-bench engine engines/demo --backend openvino",
    )
    engine.add_argument("bundle", metavar="BUNDLE", type=Path)
    engine.add_argument(
        "--backend", metavar="B", nargs="+", action="extend", help=f"of {', '.join(BACKENDS)} (default: all)"
    )
    engine.add_argument("--seconds", metavar="S", type=float, default=10.0, help="for each backend (default: 10)")
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
    for command in (engine, pipeline):
        command.add_argument("--device", metavar="D", help="the backend's device (default: its own choice)")
    return parser.parse_args()


def _bench_engine(options: argparse.Namespace) -> Report:
    bundle = load_bundle(options.bundle)
    results = list(_measure_engines(options))
    if not results:
        raise EngineError(f"no backend can run {options.bundle} here; edge-bench engine BUNDLE --backend B says why")
    gflop, peak_gflops = count_gflop(bundle), measure_peak_gflops()
    engines = [_with_rates(result, gflop, peak_gflops) for result in results]
    _print_engines(bundle.name, engines, gflop, peak_gflops)
    return {"bundle": bundle.name, "gflop_per_window": gflop, "peak_gflops": peak_gflops, "engines": engines}


def _measure_engines(options: argparse.Namespace) -> Iterator[Result]:
    """Yield each backend's figures; one that was not asked for by name and cannot run is told and left out."""
    for backend in options.backend or BACKENDS:
        try:
            yield measure_engine(options.bundle, backend, options.device, options.seconds)
        except EdgeError as exc:
            if options.backend:
                raise
            print_line("warning", f"{backend} is left out: {exc}")


def _with_rates(result: Result, gflop: float, peak_gflops: float) -> Result:
    """Add GFLOP/s, and its share of the processor's FP32 peak where that is what the engine ran on."""
    gflops = result["windows_per_s"] * gflop
    is_comparable = result["device"].lower() == "cpu" and result["precision"] == "fp32"
    return {**result, "gflops": gflops, "peak_share": gflops / peak_gflops if is_comparable else None}


def _bench_pipeline(options: argparse.Namespace) -> Report:
    if options.trace is not None and not options.trace.parent.is_dir():
        raise ConfigError(f"--trace {options.trace}: there is no folder {options.trace.parent}")
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
    report, run = measure_pipeline(settings)
    if options.trace is not None:
        write_trace(options.trace, run.predictions)
    _print_pipeline(report)
    return report


def _print_engines(name: str, engines: list[Result], gflop: float, peak_gflops: float) -> None:
    table = _table(f"{name}: {gflop:.3g} GFLOP a window; FP32 matrix-multiply peak here {peak_gflops:.0f} GFLOP/s")
    for column in ("backend", "precision", "device", "windows/s", *_PERCENTILES, "GFLOP/s", "of peak", "MB"):
        table.add_column(column, justify="left" if column in ("backend", "precision", "device") else "right")
    for result in engines:
        share = result["peak_share"]
        table.add_row(
            result["backend"],
            result["precision"],
            result["device"],
            f"{result['windows_per_s']:.2f}",
            *_cells(result["latency_ms"]),
            f"{result['gflops']:.1f}",
            "-" if share is None else f"{share:.0%}",
            f"{result['rss_mb']:.0f}",
        )
    _print(table)


def _print_pipeline(report: Report) -> None:
    table = _table("ms a window, from capture on")
    for column in ("stage", *_PERCENTILES):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage, values in report["stages_ms"].items():
        table.add_row(stage, *_cells(values))
    table.add_section()
    table.add_row("total: capture to publish", *_cells(report["latency_ms"]))
    table.add_row("overhead: total less infer", *_cells(report["overhead_ms"]))
    table.add_row("received: capture to receipt", *_cells(report["received_ms"]))
    _print(table)
    for line in _summary(report):
        print(line)


def _summary(report: Report) -> list[str]:
    bare = " and ".join(f"{rate:.2f}" for rate in report["engine_windows_per_s"])
    limit = (
        "the source's rate is the limit" if report["pace"] == "realtime" and not report["skipped"] else "at full load"
    )
    return [
        f"{report['windows_per_s']:.2f} windows/s; the bare engine {bare} before and after: "
        f"efficiency {report['efficiency']:.1%} ({limit})",
        f"captured {report['captured']} frames, published {report['published']}, received {report['received']}, "
        f"lost {report['lost']}, skipped {report['skipped']} windows",
        f"first prediction {report['first_prediction_s']:.2f} s after the start of the process: "
        f"{report['first_window_play_s']:.2f} s of playing and {report['start_s']:.2f} s beyond it",
        f"largest resident memory of edge-infer: {report['rss_mb']:.0f} MB{_growth(report['rss_growth_mb'])}",
    ]


def _growth(growth_mb: float | None) -> str:
    if growth_mb is None:
        return ""
    return f"; grown by {growth_mb:.1f} MB from the second to the last tenth of the run"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left")


def _cells(values: dict[str, Any]) -> list[str]:
    return [f"{values[name]:.2f}" for name in _PERCENTILES]


def _print(table: Table) -> None:
    # a table in a pipe or a narrow window must not lose figures
    Console(width=max(110, Console().width)).print(table)


if __name__ == "__main__":
    raise SystemExit(main())
