"""The command `edge-watch`: a daemon's predictions in the terminal, or as JSON lines."""

import contextlib
import dataclasses
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live

from edge.client import DEFAULT_ADDRESS, Subscriber
from edge.commandline import NOTICE, Parser, ignore_signals, print_line, run_command
from edge.errors import ConfigError, SourceError
from edge.messages import AnyMessage, FrameMessage, PredictionMessage
from edge.watch.snapshot import Snapshot
from edge.watch.state import WatchState, describe
from edge.watch.view import render
from edge.wire import strict_json

if TYPE_CHECKING:
    from edge.watch.overlay import OverlayVideo  # loads a video library that the terminal view does without

_VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov")
_TICK_S = 0.1  # ten pictures a second: more is not read, and each costs some milliseconds
_LINE_INTERVAL_S = 1.0
_HINT_AFTER_S = 3.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command line."""

    connect: str
    stream: str | None
    json: bool
    heatmap: bool
    count: int | None
    timeout: float | None
    curve: Path | None
    snapshot: Path | None
    overlay: Path | None

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise ConfigError(f"--count is {self.count}; it must be 1 or more")
        if self.timeout is not None and not 0 < self.timeout < math.inf:
            raise ConfigError(f"--timeout is {self.timeout}; it must be above 0 s")
        if self.heatmap and not self.json:
            raise ConfigError("--heatmap goes with --json; the terminal view always draws the heatmap")
        if self.snapshot is not None and (self.snapshot.suffix.lower() != ".png" or not self.snapshot.parent.is_dir()):
            raise ConfigError(f"--snapshot is {self.snapshot}; it must be a .png file in a folder that exists")
        is_video = self.overlay is None or self.overlay.suffix.lower() in _VIDEO_SUFFIXES
        if self.overlay is not None and not (is_video and self.overlay.parent.is_dir()):
            allowed = ", ".join(_VIDEO_SUFFIXES)
            raise ConfigError(f"--overlay is {self.overlay}; it must be a video ({allowed}) in a folder that exists")

    @property
    def is_bounded(self) -> bool:
        """Whether the user wants a run with an end, and not a view that outlives the daemon."""
        return self.json or self.count is not None or self.timeout is not None or self.has_pictures

    @property
    def has_pictures(self) -> bool:
        """Whether frames are needed, too."""
        return self.snapshot is not None or self.overlay is not None


def main() -> int:
    """Run the command."""
    exit_code = run_command(lambda: _run(_parse()))
    ignore_signals()
    return exit_code


def _parse() -> Options:
    parser = Parser(
        "edge-watch",
        "Show a daemon's predictions in the terminal, or print its messages as JSON lines.",
        "edge-watch --json --count 100 > predictions.jsonl",
    )
    add = parser.add_argument
    add(
        "--connect",
        metavar="ADDRESS",
        default=DEFAULT_ADDRESS,
        help="where edge-infer publishes (default: %(default)s)",
    )
    add("--stream", metavar="NAME", help="this stream alone (default: all)")
    add("--json", action="store_true", help="one prediction or status a line; ends when the daemon ends")
    add("--heatmap", action="store_true", help="with --json: add heatmap.values, the (T, h, w) nested lists")
    add("--count", metavar="N", type=int, help="end after N predictions")
    add("--timeout", metavar="S", type=float, help="give up, with exit code 3, after S seconds without a message")
    add("--curve", metavar="DIR", type=Path, help="keys from edge-keygen, for a daemon that asks for them")
    add(
        "--snapshot", metavar="PNG", type=Path, help="at the end draw the strongest prediction (edge-infer --frames 30)"
    )
    add("--overlay", metavar="MP4", type=Path, help="write each frame with its heatmap (edge-infer --frames 30)")
    return Options(**vars(parser.parse_args()))


def _run(options: Options) -> int:
    kinds = ("prediction", "status", "frame") if options.has_pictures else ("prediction", "status")
    console, stop, snapshot = Console(), _stop_event(), Snapshot()
    is_screen = console.is_terminal and not console.is_dumb_terminal and not options.json
    with Subscriber(options.connect, stream=options.stream, kinds=kinds, curve=options.curve) as subscriber:
        state = WatchState(subscriber)
        batches = _collect(state, options, stop, is_screen)
        if options.snapshot is not None:
            batches = snapshot.follow(batches)
        overlay = _open_overlay(options.overlay) if options.overlay is not None else None
        if overlay is not None:
            batches = overlay.follow(batches)
        try:
            if options.json:
                _print_json(batches, options.heatmap)
            elif is_screen:
                _show(batches, state, console)
            else:
                _print_lines(batches, state)
        finally:
            stop.set()  # from now on a single signal interrupts
            if options.snapshot is not None:
                snapshot.write(options.snapshot)
            if overlay is not None:
                overlay.close()
    return 0


def _open_overlay(path: Path) -> "OverlayVideo":
    from edge.watch.overlay import OverlayVideo

    return OverlayVideo(path)


def _stop_event() -> threading.Event:
    """Return what SIGINT and SIGTERM set; the second signal interrupts at once."""
    stop = threading.Event()

    def handle(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    return stop


def _collect(state: WatchState, options: Options, stop: threading.Event, is_screen: bool) -> Iterator[list[AnyMessage]]:
    """Yield what came, ten times a second or more often, until the end.

    Raises:
        SourceError: Silence for `--timeout`, or fewer predictions than `--count` when the daemon ended.
    """
    subscriber, is_lasting = state.subscriber, is_screen and not options.is_bounded
    left = options.count
    last_s = hint_s = time.monotonic()
    while not stop.is_set():
        first = subscriber.receive(_TICK_S)
        batch = _cut([] if first is None else [first, *subscriber.drain()], left)
        left = None if left is None else left - _num_predictions(batch)
        state.add(batch)
        yield batch
        if left == 0:
            return
        now_s = time.monotonic()
        last_s = now_s if batch else last_s
        if subscriber.has_ended and not is_lasting:
            _check_count(options.count, left, state)
            return
        if options.timeout is not None and now_s - last_s >= options.timeout:
            raise SourceError(subscriber.describe_silence(options.timeout))
        if not is_screen and now_s - max(last_s, hint_s) >= _HINT_AFTER_S:
            print_line("warning", f"{subscriber.describe_silence(_HINT_AFTER_S)}; waiting")
            hint_s = math.inf


def _cut(batch: list[AnyMessage], num_predictions: int | None) -> list[AnyMessage]:
    """Leave out what comes after the last prediction that is wanted."""
    if num_predictions is None:
        return batch
    places = [place for place, message in enumerate(batch) if isinstance(message, PredictionMessage)]
    return batch[: places[num_predictions - 1] + 1] if len(places) >= num_predictions else batch


def _num_predictions(batch: list[AnyMessage]) -> int:
    return sum(isinstance(message, PredictionMessage) for message in batch)


def _check_count(wanted: int | None, left: int | None, state: WatchState) -> None:
    if wanted is not None and left:
        reason = state.status.reason if state.status else ""
        raise SourceError(f"the daemon ended ({reason}) after {wanted - left} of the {wanted} predictions asked for")


def _print_json(batches: Iterator[list[AnyMessage]], has_heatmaps: bool) -> None:
    for batch in batches:
        for message in batch:
            if not isinstance(message, FrameMessage):
                sys.stdout.write(to_json(message, has_heatmaps) + "\n")
                sys.stdout.flush()


def to_json(message: AnyMessage, has_heatmap: bool) -> str:
    """Return the wire's keys as one line of strict JSON.

    `has_heatmap` adds `heatmap.values`, the array (T, h, w) as nested lists.
    """
    header = message.header
    if has_heatmap and isinstance(message, PredictionMessage) and message.heatmap is not None:
        header = {**header, "heatmap": {**header["heatmap"], "values": message.heatmap.tolist()}}
    return strict_json(header)


def _print_lines(batches: Iterator[list[AnyMessage]], state: WatchState) -> None:
    """Print a plain line a second, and one for each change of state."""
    print(f"edge-watch {state.subscriber.address}. {NOTICE}", flush=True)
    printed_s, printed_name = -math.inf, None
    for batch in batches:
        name, now_s = state.judge()[0], time.monotonic()
        if name != printed_name or (batch and now_s - printed_s >= _LINE_INTERVAL_S):
            print(describe(state), flush=True)
            printed_s, printed_name = now_s, name
    print(f"last: {describe(state)}", flush=True)


def _show(batches: Iterator[list[AnyMessage]], state: WatchState, console: Console) -> None:
    """Draw the view on the terminal's other screen, and leave one line behind."""
    drawn_s = -math.inf
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: print(f"{describe(state)} | {NOTICE}"))
        live = stack.enter_context(Live(console=console, screen=True, auto_refresh=False))
        for _ in batches:
            if time.monotonic() - drawn_s >= _TICK_S:
                live.update(render(state, console.width, console.height), refresh=True)
                drawn_s = time.monotonic()


if __name__ == "__main__":
    raise SystemExit(main())
