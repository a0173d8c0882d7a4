"""What the benches print for people."""

import statistics
from typing import Any

from rich.console import Console
from rich.table import Table

from tools.bench.peaks import Peaks

_PERCENTILES = ("p50", "p95", "p99", "max")
_LEFT = ("backend", "precision", "device", "stage")
_MAX_SPREAD = 1.1
_BEYOND_NOISE = 1.1
"""A share of the peak that says something of the peak."""

Result = dict[str, Any]


def with_rates(results: list[Result], gflop: float, peaks: dict[str, Peaks]) -> list[Result]:
    """Add to each engine its `gflops`, the `peak_share` of its device's peak in its precision, and the `speedup`.

    Args:
        results: From `measure_engines`.
        gflop: Of one window.
        peaks: Device, in small letters, to its matrix-multiply rates.

    Returns:
        New ones; `peak_share` is None where no peak was measured, `speedup` where eager PyTorch was not: in FP16 on the
        same GPU for engines there, in FP32 on the CPU for the others.
    """
    eager = {_place(result): result["windows_per_s"] for result in results if is_eager(result)}
    enriched = []
    for result in results:
        gflops = result["windows_per_s"] * gflop
        peak = peaks.get(result["device"].lower(), {}).get(result["precision"])
        enriched.append(
            {
                **result,
                "gflops": gflops,
                "peak_share": gflops / peak if peak else None,
                "speedup": result["windows_per_s"] / eager[place] if (place := _place(result)) in eager else None,
            }
        )
    return enriched


def is_eager(result: Result) -> bool:
    """Whether it is PyTorch eager, which is what speed is compared with."""
    return _key(result) == ("torch", "fp32", "cpu") or (result["backend"], result["graphs"]) == ("torch", "none")


def _place(result: Result) -> str:
    """Return which eager PyTorch an engine is compared with."""
    device = result["device"].lower()
    return device if device.startswith("cuda:") else {"cuda": "cuda:0"}.get(device, "cpu")


def _key(result: Result) -> tuple[str, str, str]:
    return result["backend"], result["precision"], result["device"]


def print_engines(name: str, engines: list[Result], gflop: float, peaks: dict[str, Peaks]) -> None:
    """Print one row an engine."""
    table = _table(f"{name}: {gflop:.3g} GFLOP a window; latencies in ms")
    columns = ("backend", "precision", "device", "windows/s", *_PERCENTILES, "GFLOP/s", "of peak", "speed-up", "MB")
    _add_columns(table, (*columns, "load s"))
    for engine in engines:
        share, speedup = engine["peak_share"], engine["speedup"]
        backend, *rest = _key(engine)
        table.add_row(
            f"{backend}, eager" if is_eager(engine) else backend,
            *rest,
            f"{engine['windows_per_s']:.2f}",
            *_cells(engine["latency_ms"]),
            f"{engine['gflops']:.1f}",
            "-" if share is None else f"{share:.0%}",
            "-" if speedup is None else f"{speedup:.2f}",
            f"{engine['rss_mb']:.0f}",
            f"{engine['load_s']:.1f}",
        )
    _print(table)
    for device, rates in peaks.items():
        listed = ", ".join(f"{precision} {rate:.0f}" for precision, rate in rates.items())
        print(f"matrix-multiply peak of {device} here, GFLOP/s: {listed or 'not measured'}")
    if any(engine["speedup"] for engine in engines):
        on_gpu = "; for engines on a GPU in FP16 there" if any(engine["graphs"] for engine in engines) else ""
        print(f"speed-up: over PyTorch eager FP32 on the CPU{on_gpu}, measured by turns in this run")
    if any((engine["peak_share"] or 0) > _BEYOND_NOISE for engine in engines):
        print("above 100% of the peak: square products in that precision are slower here than the engine: no bound")


def print_pipeline(report: Result) -> None:
    """Print one row a stage, and what else the run gave."""
    table = _table("ms a window, from capture on")
    _add_columns(table, ("stage", *_PERCENTILES))
    for stage, values in report["stages_ms"].items():
        table.add_row(stage, *_cells(values))
    table.add_section()
    table.add_row("total: capture to publish", *_cells(report["latency_ms"]))
    table.add_row("overhead: total less infer", *_cells(report["overhead_ms"]))
    table.add_row("received: capture to receipt", *_cells(report["received_ms"]))
    _print(table)
    for line in _summary(report):
        print(line)


def print_display(report: Result) -> None:
    """Print what a page and its readers gave."""
    table = _table("ms")
    _add_columns(table, ("stage", *_PERCENTILES))
    table.add_row("publication of the result to pixels", *_cells(report["publish_to_pixels_ms"]))
    table.add_row("capture to pixels", *_cells(report["capture_to_pixels_ms"]))
    table.add_section()
    table.add_row("daemon: capture to publish, alone", *_cells(report["latency_alone_ms"]))
    table.add_row(f"the same with {report['num_readers']} readers", *_cells(report["latency_with_readers_ms"]))
    _print(table)
    heap = " and ".join(f"{size_mb:.1f}" for size_mb in report["page_heap_mb"])
    print(f"{report['pictures_per_s']:.1f} pictures/s; {report['misread']} of {report['pictures']} misread")
    print(f"{report['num_readers']} readers change the daemon's median latency by {report['change']:+.1%}")
    print(f"edge-display: {report['server_rss_mb']:.0f} MB{_growth(report['server_rss_growth_mb'])}")
    print(f"the page's heap at the start and at the end: {heap} MB")


def _summary(report: Result) -> list[str]:
    limit = (
        "the source's rate is the limit" if report["pace"] == "realtime" and not report["skipped"] else "at full load"
    )
    return [
        f"{report['windows_per_s']:.2f} windows/s; {efficiency_in_words(report)} ({limit})",
        f"captured {report['captured']} frames, published {report['published']}, received {report['received']}, "
        f"lost {report['lost']}, skipped {report['skipped']} windows",
        f"first prediction {report['first_prediction_s']:.2f} s after the start of the process: "
        f"{report['first_window_play_s']:.2f} s of playing and {report['start_s']:.2f} s beyond it",
        f"largest resident memory of edge-infer: {report['rss_mb']:.0f} MB{_growth(report['rss_growth_mb'])}",
    ]


def efficiency_in_words(report: Result) -> str:
    """Return the efficiency, or that the machine was not quiet enough to tell it."""
    rates = report["engine_windows_per_s"]
    if len(rates) > 2:  # by turns with the pipeline, which what else the machine does hits alike
        mean = statistics.fmean(rates)
        return f"the bare engine {mean:.2f} in {len(rates)} turns with it: efficiency {report['efficiency']:.1%}"
    bare = f"the bare engine {' and '.join(f'{rate:.2f}' for rate in rates)} before and after"
    if max(rates) > _MAX_SPREAD * min(rates):
        low, high = (report["windows_per_s"] / rate for rate in (max(rates), min(rates)))
        return f"{bare}: too far apart to tell the efficiency ({low:.0%} to {high:.0%}); something else was running"
    return f"{bare}: efficiency {report['efficiency']:.1%}"


def _growth(growth_mb: float | None) -> str:
    if growth_mb is None:
        return ""
    return f"; grown by {growth_mb:.1f} MB from the second to the last tenth of the run"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left")


def _add_columns(table: Table, names: tuple[str, ...]) -> None:
    for name in names:
        table.add_column(name, justify="left" if name in _LEFT else "right")


def _cells(values: dict[str, Any]) -> list[str]:
    return [f"{values[name]:.2f}" for name in _PERCENTILES]


def _print(table: Table) -> None:
    # a table in a pipe or a narrow window must not lose figures
    Console(width=max(140, Console().width)).print(table)
