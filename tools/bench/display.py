"""The bedside page: from publication to pixels, its rate, its memory, and what readers cost the daemon."""

import contextlib
import dataclasses
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge.client import Subscriber
from edge.errors import EdgeError
from edge.messages import PredictionMessage
from tools.bench.display_movie import NUM_FRAMES, write_coded_movie
from tools.bench.display_page import Drawn, WatchedPage, watched_page
from tools.children import Child, rss_mb, running
from tools.measures import percentiles

_START_S, _WARMUP_S, _TICK_S = 60.0, 3.0, 1.0
_MIN_TENTH_S = 2.5
_NUM_TURNS = 4

Report = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DisplaySettings:
    """What to run."""

    engine: Path
    backend: str
    seconds: float
    num_readers: int


class _Listener:
    """Notes the daemon's predictions in a thread of its own."""

    def __init__(self, address: str) -> None:
        self.predictions: list[tuple[int, int, int, float]] = []
        """Newest frame's index, its capture and the publication in monotonic ns, latency in ms."""
        self._address, self._stop = address, threading.Event()
        self._thread = threading.Thread(target=self._listen, name="listener")
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _listen(self) -> None:
        with Subscriber(self._address) as subscriber:
            while not self._stop.is_set():
                message = subscriber.receive(0.2)
                if isinstance(message, PredictionMessage):
                    total_ms = message.latency_ms["total"]
                    published_ns = message.t_capture_ns + round(total_ms * 1e6)
                    self.predictions.append((message.last_index, message.t_capture_ns, published_ns, total_ms))


def measure_display(settings: DisplaySettings) -> Report:
    """Measure a page beside the daemon, and then the daemon's latency by turns without and with readers.

    Raises:
        EdgeError: The daemon or the display failed; or no picture came.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-bench-")))
        write_coded_movie(folder / "coded.mp4")
        address = f"ipc://{folder}/socket"
        daemon = stack.enter_context(running("edge.cli", *_daemon_arguments(settings, folder, address)))
        display = stack.enter_context(running("edge.display.cli", "--connect", address, "--http", "127.0.0.1:0"))
        url = display.stdout.readline().rpartition(" ")[2].strip()
        listener = _Listener(address)
        stack.callback(listener.close)
        with _told_of_the_end_of(daemon), watched_page(url) as page:
            drawn, memory = _watch(page, display, settings.seconds)
        with _told_of_the_end_of(daemon):
            turns = list(_take_turns(url, listener, settings))
    return _report(settings, drawn, listener.predictions) | memory | _readers_report(settings, turns)


def _daemon_arguments(settings: DisplaySettings, folder: Path, address: str) -> list[str]:
    source = ["--source", str(folder / "coded.mp4"), "--loop", "--roi", "full", "--frames", "30"]
    engine = ["--engine", str(settings.engine), "--backend", settings.backend]
    return [*source, *engine, "--publish", address, "--wait-subscribers", "1"]


@contextlib.contextmanager
def _told_of_the_end_of(daemon: Child) -> Iterator[None]:
    """Raise the daemon's own error, where it ended, in place of what followed from that."""
    try:
        yield
    finally:
        if daemon.process.poll() is not None:
            daemon.finish(_START_S)


def _watch(page: WatchedPage, display: Child, seconds: float) -> tuple[list[Drawn], Report]:
    page.wait(_WARMUP_S)
    page.take()
    drawn: list[Drawn] = []
    server_mb: list[float] = []
    heap_mb = [page.heap_mb()]
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        page.wait(min(_TICK_S, max(0.0, end_s - time.monotonic())))
        drawn += page.take()
        server_mb.append(rss_mb(display.process.pid))
    heap_mb.append(page.heap_mb())
    tenth = len(server_mb) // 10
    growth_mb = None
    if tenth * _TICK_S >= _MIN_TENTH_S:
        growth_mb = statistics.median(server_mb[-tenth:]) - statistics.median(server_mb[tenth : 2 * tenth])
    return drawn, {"server_rss_mb": max(server_mb), "server_rss_growth_mb": growth_mb, "page_heap_mb": heap_mb}


def _take_turns(url: str, listener: _Listener, settings: DisplaySettings) -> Iterator[tuple[bool, list[float]]]:
    """Yield whether readers were there, and the daemon's latencies in ms meanwhile."""
    for turn in range(_NUM_TURNS):
        with contextlib.ExitStack() as stack:
            if turn % 2:
                readers = running("tools.bench.display_readers", url, str(settings.num_readers))
                stack.enter_context(readers).stdout.readline()
            time.sleep(_WARMUP_S)
            start = len(listener.predictions)
            time.sleep(settings.seconds / _NUM_TURNS)
            yield bool(turn % 2), [entry[3] for entry in listener.predictions[start:]]


def _report(settings: DisplaySettings, drawn: list[Drawn], predictions: list[tuple[int, int, int, float]]) -> Report:
    if len(drawn) < 2:
        raise EdgeError("fewer than two pictures came onto the page; give more --seconds")
    times = {index: (captured_ns, published_ns) for index, captured_ns, published_ns, _ in predictions}
    known = [(picture.t_ns, *times[picture.index]) for picture in drawn if picture.index in times]
    return {
        "publish_to_pixels_ms": percentiles([(shown_ns - published_ns) / 1e6 for shown_ns, _, published_ns in known]),
        "capture_to_pixels_ms": percentiles([(shown_ns - captured_ns) / 1e6 for shown_ns, captured_ns, _ in known]),
        "pictures_per_s": (len(drawn) - 1) / ((drawn[-1].t_ns - drawn[0].t_ns) / 1e9),
        "pictures": len(drawn),
        "misread": sum(picture.code != picture.index % NUM_FRAMES for picture in drawn),
        "seconds": settings.seconds,
        "engine": str(settings.engine),
    }


def _readers_report(settings: DisplaySettings, turns: list[tuple[bool, list[float]]]) -> Report:
    if not all(values for _, values in turns):
        raise EdgeError("a turn without a prediction; give more --seconds")
    without, beside = (
        [value for has, values in turns if has is wanted for value in values] for wanted in (False, True)
    )
    return {
        "num_readers": settings.num_readers,
        "latency_alone_ms": percentiles(without),
        "latency_with_readers_ms": percentiles(beside),
        "turns_p50_ms": [statistics.median(values) for _, values in turns],
        "change": statistics.median(beside) / statistics.median(without) - 1,
    }
