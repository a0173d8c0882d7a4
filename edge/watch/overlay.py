"""`edge-watch --overlay`: hands a stream's messages to a thread that draws them into a video; never waits for it."""

import concurrent.futures
from collections.abc import Iterable, Iterator
from pathlib import Path

from edge.commandline import log_line, print_line
from edge.messages import AnyMessage, FrameMessage, StatusMessage
from edge.watch.backlog import Backlog
from edge.watch.film import Film

_MAX_WAITING_BYTES = 64 << 20
"""A quarter of a minute of large pictures; several minutes of small ones."""
_MANY_PICTURES = 100
"""Some seconds of drawing: worth a word."""


class OverlayVideo:
    """Writes one stream's video while its messages come.

    A picture takes longer to draw than to receive, and ZeroMQ drops what is not received in time, and the daemon's last
    word with it. So a thread draws; pictures that come faster than that are left out, the oldest first, and counted.
    """

    def __init__(self, path: Path) -> None:
        """Start the thread; the file is made with the first picture."""
        self._path = path
        self._stream_name: str | None = None
        self._state = "state not known"
        self._num_pictures = 0
        self._backlog = Backlog(_MAX_WAITING_BYTES)
        self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="overlay")
        self._drawn = self._executor.submit(_draw_all, self._backlog, Film(path))

    def follow(self, batches: Iterable[list[AnyMessage]]) -> Iterator[list[AnyMessage]]:
        """Pass batches on, and let be drawn what each brings.

        Raises:
            ConfigError: The file cannot be made.
            OSError: The disk refuses.
        """
        for batch in batches:
            for message in batch:
                self._add(message)
            if self._drawn.done():
                self._drawn.result()  # it ends before its time only where it fails
            yield batch

    def close(self) -> None:
        """Finish the file, and tell what it lacks; a signal (KeyboardInterrupt) leaves out what is not drawn yet.

        Raises:
            ConfigError: The file cannot be made.
            OSError: The disk refuses.
        """
        self._backlog.close()
        try:
            if (number := self._backlog.num_pictures) > _MANY_PICTURES and not self._drawn.done():
                log_line(f"drawing {number} pictures that came before the end; Ctrl-C leaves them out")
            concurrent.futures.wait([self._drawn])
        except KeyboardInterrupt:
            self._backlog.leave_out_all()
        self._executor.shutdown()
        self._tell(has_file=self._drawn.result())

    def _add(self, message: AnyMessage) -> None:
        """Take a message in; of several streams the first one that has pictures is drawn."""
        if self._stream_name not in (None, message.stream):
            return
        if isinstance(message, StatusMessage):
            self._state = str(message.state)
            return
        if isinstance(message, FrameMessage):
            self._stream_name = message.stream
            self._num_pictures += 1
        self._backlog.put((message, self._state))

    def _tell(self, *, has_file: bool) -> None:
        if not self._num_pictures:
            print_line("warning", f"no picture came: {self._path} is not written; start edge-infer with --frames 30")
        elif not has_file:
            print_line("warning", f"no picture could be drawn: {self._path} is not written")
        if number := self._backlog.num_left_out:
            print_line(
                "warning",
                f"{self._path} lacks {number} of {self._num_pictures} pictures, which came faster than they were drawn",
            )


def _draw_all(backlog: Backlog, film: Film) -> bool:
    """Draw until the backlog is closed and empty; return whether there is a file."""
    while (item := backlog.take()) is not None:
        film.add(*item)
    return film.close()
