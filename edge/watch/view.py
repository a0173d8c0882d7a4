"""How edge-watch looks in a terminal: one screen, drawn from what is known."""

import itertools
import math
import time

import numpy as np
import numpy.typing as npt
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from edge.commandline import NOTICE
from edge.prediction import State
from edge.watch.state import WatchState, describe_evidence, printable

# colour never stands alone: the state is always there in words, with a sign of its own
_STATES = {
    State.LIVE: ("●", "bold green"),
    State.WARMUP: ("◌", "bold cyan"),
    State.FROZEN: ("❚❚", "bold blue"),
    State.STALE: ("▲", "bold yellow"),
    State.NO_SIGNAL: ("○", "bold yellow"),
    State.FAULT: ("✖", "bold red"),
}
_POSITIVE, _NEGATIVE, _DOUBTFUL = "bold magenta", "bold green", "dim"
_SHADES = " ░▒▓█"
_EIGHTHS = " ▁▂▃▄▅▆▇█"
_LARGE = {
    "0": "┏━┓┃ ┃┗━┛", "1": "  ╻  ┃  ╹", "2": "╺━┓┏━┛┗━╸", "3": "╺━┓╺━┫╺━┛", "4": "╻ ╻┗━┫  ╹",
    "5": "┏━╸┗━┓╺━┛", "6": "┏━╸┣━┓┗━┛", "7": "╺━┓  ┃  ╹", "8": "┏━┓┣━┫┗━┛", "9": "┏━┓┗━┫╺━┛",
    "-": "   ╺━╸   ", ".": "  ▪", "%": "  %",
}  # fmt: skip
_SECONDS_PER_COLUMN = 0.5
_MAX_GRID = 8
_ROWS_BESIDE_CHART = 18  # of a whole screen: all but the history's own rows


def render(state: WatchState, width: int, height: int) -> Panel:
    """Return the whole screen, `width` by `height` characters."""
    name, reason = state.judge()
    is_believed = name is State.LIVE
    chart_rows = max(2, min(24, height - _ROWS_BESIDE_CHART))
    body = Group(
        _head(state, name, reason),
        _probability(state, is_believed),
        Bar(state, is_believed),
        History(state, chart_rows),
        Text(),
        _details(state),
        _foot(state),
    )
    return Panel(
        body,
        title=f"[bold]edge-watch[/] {_escape(state.subscriber.address)}",
        subtitle=f"[bold]{NOTICE}[/]",
        width=width,
        height=height,
        border_style=_STATES[name][1] if name else "yellow",
    )


def _head(state: WatchState, name: State | None, reason: str) -> RenderableType:
    sign, style = _STATES[name] if name else ("○", "bold yellow")
    line = Table.grid(expand=True)
    line.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    line.add_column(justify="right", no_wrap=True)
    left = Text(f"{sign} {name or 'NO DAEMON'}", style=style).append(f"  {printable(reason)}", style="not bold default")
    right = []
    if state.prediction is not None:
        right.append(f"age {_duration(state.prediction.age_ms)}")
    if state.status is not None:
        right.append(f"{float(state.status.header.get('fps') or 0):.1f} frames/s")
    line.add_row(left, Text("   ".join(right)))
    return line


def _probability(state: WatchState, is_believed: bool) -> RenderableType:
    prediction = state.prediction
    style = _style(state, is_believed)
    line = Table.grid(padding=(0, 3))
    if prediction is None:
        line.add_row(_large("--.-%", _DOUBTFUL), Text("\nno prediction yet"))
        return line
    verdict = "POSITIVE" if prediction.positive else "NEGATIVE"
    words = Text(printable(prediction.classes[-1]), style="bold")
    words.append(f"\n{verdict}", style=style)
    words.append("" if is_believed else "  not current: do not rely on it", style="yellow")
    about = f"threshold {prediction.threshold:.1%}   stream {printable(prediction.stream)}   #{prediction.seq}"
    words.append(f"\n{about}", style="dim")
    line.add_row(_large(f"{100 * prediction.probability:.1f}%", style), words)
    return line


def _large(characters: str, style: str) -> Text:
    """Write digits three rows high; a glyph is three rows of one or three characters."""
    glyphs = [_LARGE[character] for character in characters]
    rows = [" ".join(glyph[row * (len(glyph) // 3) :][: len(glyph) // 3] for glyph in glyphs) for row in range(3)]
    return Text("\n".join(rows), style=style, no_wrap=True)


def _details(state: WatchState) -> RenderableType:
    table = Table.grid(expand=True, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(ratio=1, no_wrap=True)
    table.add_column(no_wrap=True, min_width=13)
    table.add_column(no_wrap=True, min_width=19)
    table.add_row(_grid(state), _evidence(state), _latency(state), _counters(state))
    return table


def _grid(state: WatchState) -> Text:
    """Draw the keyframe's heatmap, two characters a cell."""
    if state.evidence is None:
        return Text("\n".join(["· " * 7] * 7), style="dim")
    cells = _pool(state.evidence.map_hw)
    text = Text()
    for row in cells:
        for value in row:
            shade = _SHADES[min(len(_SHADES) - 1, math.ceil(float(value) * (len(_SHADES) - 1) - 0.25))]
            text.append(shade * 2 if shade != " " else "· ", style=_heat(float(value)))
        text.append("\n")
    text.rstrip()
    return text


def _pool(map_hw: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Shrink to at most 8 x 8 cells, each the maximum of what it covers."""
    for axis, length in enumerate(map_hw.shape):
        if length > _MAX_GRID:
            starts = np.linspace(0, length, _MAX_GRID, endpoint=False).astype(int)
            map_hw = np.maximum.reduceat(map_hw, starts, axis=axis)
    return map_hw


def _heat(value: float) -> str:
    return "bold red" if value > 0.8 else "yellow" if value > 0.4 else "dim yellow" if value > 0.1 else "dim"


def _evidence(state: WatchState) -> Text:
    text = Text("Evidence\n", style="bold")
    if state.evidence is None:
        return text.append("none in this window" if state.prediction else "", style="not bold dim")
    return text.append(
        describe_evidence(state.evidence).replace(", ", "\n") + "\nin the source image", style="not bold"
    )


def _latency(state: WatchState) -> Text:
    text = Text("Latency, ms\n", style="bold")
    latency_ms = state.status.latency_ms if state.status else {}
    rows = [f"{name:<4}{latency_ms[name]:9.1f}" for name in ("p50", "p95", "p99", "max") if name in latency_ms]
    if state.prediction is not None and "infer" in state.prediction.latency_ms:
        rows.append(f"{'infer':<5}{state.prediction.latency_ms['infer']:8.1f}")
    return text.append("\n".join(rows) or "none yet", style="not bold")


def _counters(state: WatchState) -> Text:
    text = Text("Counters\n", style="bold")
    counters = state.status.counters if state.status else {}
    shown: dict[str, int] = {
        name: counters[name] for name in ("captured", "published", "skipped", "reconnects") if name in counters
    }
    shown["lost here"] = state.subscriber.num_lost
    if state.subscriber.num_malformed:
        shown["malformed"] = state.subscriber.num_malformed
    return text.append("\n".join(f"{name:<10}{number:8d}" for name, number in shown.items()), style="not bold")


def _foot(state: WatchState) -> RenderableType:
    header = state.status.header if state.status else {}
    engine = header.get("engine") or (state.prediction.header.get("engine") if state.prediction else None) or {}
    words = (
        " ".join(str(engine[key]) for key in ("name", "backend", "precision") if engine.get(key)) or "not loaded yet"
    )
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(style="dim")
    table.add_column(no_wrap=True, overflow="ellipsis")
    table.add_row("engine", Text(printable(words)))
    table.add_row("source", Text(printable(str(header.get("source") or "not known yet"))))
    return table


class Bar:
    """The probability from 0 to 100 %, the threshold marked."""

    def __init__(self, state: WatchState, is_believed: bool) -> None:
        self._state = state
        self._style = _style(state, is_believed)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        prediction = self._state.prediction
        length = round(width * prediction.probability) if prediction else 0
        mark = _column(prediction.threshold, width) if prediction else None
        for column in range(width):
            if column == mark:
                yield Segment("┃", Style.parse("bold"))
            elif column < length:
                yield Segment("█", Style.parse(self._style))
            else:
                yield Segment("─", Style.parse("dim"))
        yield Segment.line()


class History:
    """The probability over the last seconds, newest at the right, the threshold as a line."""

    def __init__(self, state: WatchState, num_rows: int) -> None:
        self._state = state
        self._num_rows = num_rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        threshold = self._state.prediction.threshold if self._state.prediction else None
        columns = self._columns(width)
        for row in reversed(range(self._num_rows)):
            is_threshold_row = threshold is not None and row == _column(threshold, self._num_rows)
            for style, cells in itertools.groupby(columns, lambda value: _history_style(value, threshold)):
                text = "".join(_cell(value * self._num_rows - row, is_threshold_row) for value in cells)
                yield Segment(text, Style.parse(style))
            yield Segment.line()
        caption = f"last {width * _SECONDS_PER_COLUMN:.0f} s, highest in each half second"
        yield Segment(caption + (f"; ┄ threshold {threshold:.1%}" if threshold is not None else ""), Style.parse("dim"))
        yield Segment.line()

    def _columns(self, width: int) -> list[float]:
        """Return the highest probability in each column's time, -1 where there was none."""
        columns = [-1.0] * width
        # a grid that stands still in time: a value does not wander between two columns as the picture moves
        newest = int(time.monotonic() / _SECONDS_PER_COLUMN)
        for t_s, probability in self._state.history:
            column = width - 1 - (newest - int(t_s / _SECONDS_PER_COLUMN))
            if 0 <= column < width:
                columns[column] = max(columns[column], probability)
        return columns


def _history_style(value: float, threshold: float | None) -> str:
    if value < 0 or threshold is None:
        return "dim"
    return "magenta" if value >= threshold else "green"


def _cell(filled: float, is_threshold_row: bool) -> str:
    """Return the character of a cell that is filled from below to this fraction."""
    eighths = max(0, min(8, round(8 * filled)))
    if eighths == 0 and is_threshold_row:
        return "┄"
    return _EIGHTHS[eighths]


def _column(fraction: float, number: int) -> int:
    return max(0, min(number - 1, int(fraction * number)))


def _style(state: WatchState, is_believed: bool) -> str:
    if not is_believed or state.prediction is None:
        return _DOUBTFUL
    return _POSITIVE if state.prediction.positive else _NEGATIVE


def _duration(duration_ms: float) -> str:
    return f"{duration_ms:.0f} ms" if duration_ms < 1000 else f"{duration_ms / 1e3:.1f} s"


def _escape(text: str) -> str:
    return text.replace("[", "\\[")
