"""Decodes many videos in worker processes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnContext
from typing import Any

from rich.console import Console
from rich.progress import Progress

from edge.errors import EdgeError
from trainer.data.clip_entry import ClipCacheError
from trainer.data.decode import StopFlag
from trainer.data.video import Video

Get = Callable[[Video, StopFlag], Any]
"""Decodes one video into the cache."""

MIN_VIDEOS_EACH = 2
"""Fewer are decoded before a process has started."""

_get: Get
_stop: StopFlag


class SharedFlag:
    """A flag that all processes see. Without a lock: one that is killed would take it with it."""

    def __init__(self, context: SpawnContext) -> None:
        self._value = context.RawValue("b", 0)

    def set(self) -> None:
        self._value.value = 1

    def is_set(self) -> bool:
        return bool(self._value.value)


def decode_all(get: Get, videos: Sequence[Video], num_workers: int) -> dict[str, str]:
    """Decode the videos, with progress; Ctrl-C ends the workers soon.

    Returns:
        Why a video cannot be read, by its id, for those that cannot.

    Raises:
        ClipCacheError: The cache cannot be written, or a worker was killed.
    """
    console = Console(stderr=True)
    unreadable = {}
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for video, reason in progress.track(
            _results(get, videos, num_workers), total=len(videos), description="decoding videos"
        ):
            if reason is not None:
                unreadable[video.id] = reason
    return unreadable


def _results(get: Get, videos: Sequence[Video], num_workers: int) -> Iterator[tuple[Video, str | None]]:
    context = multiprocessing.get_context("spawn")
    stop = SharedFlag(context)
    num_workers = min(num_workers, len(videos) // MIN_VIDEOS_EACH)
    if num_workers < 2:
        yield from ((video, try_get(get, video, stop)) for video in videos)
        return
    with ProcessPoolExecutor(num_workers, context, _start, (get, stop)) as pool:
        futures: dict[Future[str | None], Video] = {pool.submit(_work, video): video for video in videos}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as exc:
            raise ClipCacheError(
                "a process that decodes videos was killed, perhaps for want of memory; what was decoded is kept: "
                "run the same command again"
            ) from exc
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _start(get: Get, stop: StopFlag) -> None:
    """Set up a worker: what it needs comes once, not with every video."""
    global _get, _stop
    _get, _stop = get, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    threading.Thread(target=_die_with_parent, name="parent watch", daemon=True).start()


def _die_with_parent() -> None:
    """End this worker when its parent was killed: it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(video: Video) -> str | None:
    return try_get(_get, video, _stop)


def try_get(get: Get, video: Video, stop: StopFlag) -> str | None:
    """Decode a video; return why it cannot be read, or None."""
    try:
        get(video, stop)
    except ClipCacheError:
        raise
    except EdgeError as exc:
        return str(exc)
    return None
