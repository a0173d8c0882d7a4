"""Draws what edge-bench measured of a bundle's engines."""

from pathlib import Path
from typing import Any

from edge.errors import ConfigError
from tools.bench.tables import is_eager
from tools.measures import check_output

_SUFFIXES = (".png", ".svg", ".pdf")
_COLOURS = {"fp32": "#4c72b0", "fp16": "#55a868", "bf16": "#dd8452", "int8": "#c44e52"}


def check_plot(path: Path) -> None:
    """Refuse, before anything is measured, a file that could not be drawn in the end.

    Raises:
        ConfigError: Its folder or its format is not there or cannot be written, or matplotlib is not there.
    """
    if path.suffix not in _SUFFIXES:
        raise ConfigError(f"--plot {path}: allowed are {', '.join(_SUFFIXES)}")
    check_output("--plot", path)
    try:
        import matplotlib  # noqa: F401
    except ImportError as exc:
        raise ConfigError(f"--plot: {exc}; install it with `pip install matplotlib`") from exc


def plot_engines(path: Path, name: str, engines: list[dict[str, Any]]) -> None:
    """Draw each engine's rate, and its median latency with the reach to p99.

    Raises:
        ConfigError: The file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.6 + 0.5 * len(engines)), layout="constrained")
    rates, latencies = figure.subplots(1, 2, sharey=True)
    labels = [_label(engine) for engine in engines]
    colours = [_COLOURS[engine["precision"]] for engine in engines]
    bars = rates.barh(labels, [engine["windows_per_s"] for engine in engines], color=colours)
    rates.bar_label(bars, [_rate_label(engine) for engine in engines], padding=4)
    rates.set(xlabel="windows a second", title=name)
    rates.margins(x=0.3)
    medians = [engine["latency_ms"]["p50"] for engine in engines]
    reach = [engine["latency_ms"]["p99"] - engine["latency_ms"]["p50"] for engine in engines]
    latencies.barh(labels, medians, color=colours, xerr=[[0.0] * len(engines), reach], capsize=4)
    latencies.set(xlabel="ms a window: median, and the reach to p99")
    rates.invert_yaxis()
    for axes in (rates, latencies):
        axes.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(path, dpi=120)
    except OSError as exc:
        raise ConfigError(f"--plot {path} cannot be written ({exc.strerror}); choose another file") from exc


def _label(engine: dict[str, Any]) -> str:
    eager = ["eager"] if is_eager(engine) else []
    return " ".join([engine["backend"], engine["precision"], *eager, engine["device"]])


def _rate_label(engine: dict[str, Any]) -> str:
    parts = [f"{engine['windows_per_s']:.1f}"]
    if engine["speedup"] is not None:
        parts.append(f"{engine['speedup']:.2f} x")
    if engine["peak_share"] is not None:
        parts.append(f"{engine['peak_share']:.0%} of peak")
    return ", ".join(parts)
