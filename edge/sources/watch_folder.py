"""Plays each object that is put into a folder, once."""

import contextlib
import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from edge.errors import SourceError
from edge.sources.base import LiveItem, SourceInfo, Trouble
from edge.sources.dicom.address import state_folder
from edge.sources.object_player import ObjectPlayer, Opener
from edge.sources.stored import DEFAULT_INTERVAL_MS

_log = logging.getLogger(__name__)

_POLL_S = 0.5
STABLE_S = 2.0
"""A file that has not changed for so long is whole. Looking again and again also works where other machines write, of
which inotify hears nothing."""
_MAX_TRIES = 3
RETRY_S = 60.0
"""A file that cannot be played is tried again after so long: a network drive may have failed meanwhile."""
MAX_GONE = 100_000
"""Files that are remembered although they are not there: the drive with them may only be late."""
_UNFINISHED = (".part", ".tmp", ".filepart", ".crdownload")


class Ledger:
    """Remembers on disk which files were played: one line a file, with no name in it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._told: str | None = None
        self._num_tries: dict[str, int] = {}
        self._played: set[str] = set()
        if path.exists():
            for line in path.read_text(encoding="ascii").splitlines():
                self._read(line)

    def _read(self, line: str) -> None:
        word, _, key = line.partition(" ")
        if word == "played":
            self._played.add(key)
        elif word in ("begun", "back"):
            self._num_tries[key] = self._num_tries.get(key, 0) + (1 if word == "begun" else -1)

    def is_played(self, key: str) -> bool:
        """Whether it was played or given up."""
        return key in self._played

    def num_tries(self, key: str) -> int:
        """How often it was begun, and neither played to its end nor put back in order."""
        return self._num_tries.get(key, 0)

    def write(self, word: str, key: str) -> None:
        """Note "begun", "back" or "played"."""
        self._read(f"{word} {key}")
        with self._telling(), self._path.open("a", encoding="ascii") as file:
            file.write(f"{word} {key}\n")
            file.flush()
            os.fsync(file.fileno())

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Tell, once, that the disk is full or fails: that must not end the stream."""
        try:
            yield
        except OSError as exc:
            if exc.strerror != self._told:
                _log.warning("what was played cannot be noted (%s); after a restart it is played again", exc.strerror)
            self._told = exc.strerror

    def tidy(self, keys: set[str]) -> None:
        """Write the list anew without what no longer matters, so that it does not grow for ever.

        Args:
            keys: Of the files that are there.
        """
        gone = (self._played | self._num_tries.keys()) - keys
        if len(gone) > MAX_GONE:
            self._played -= gone
            self._num_tries = {key: number for key, number in self._num_tries.items() if key in keys}
        self._num_tries = {key: number for key, number in self._num_tries.items() if number}
        lines = [f"played {key}\n" for key in sorted(self._played)]
        lines += [f"begun {key}\n" * number for key, number in self._num_tries.items()]
        temporary = self._path.with_suffix(".tmp")
        with self._telling():
            temporary.write_text("".join(lines), encoding="ascii")
            temporary.replace(self._path)


class WatchedQueue:
    """The files of a folder and its subfolders that were not played yet, in the order in which they were written."""

    def __init__(self, folder: Path, ledger: Ledger) -> None:
        self._folder = folder
        self._ledger = ledger
        self._closed = threading.Event()
        self._since_s: dict[str, float] = {}
        """By key, which holds size and time of change: since when the file is as it is."""
        self._rejected: dict[str, tuple[int, float]] = {}
        """By key: how often it could not be played, and when it is tried again."""
        self._oldest: tuple[Path, str] | None = None
        self._is_first_look = True
        self.trouble: str | None = None
        """Why the folder cannot be read, if so."""

    def take(self, timeout_s: float) -> Path | None:
        """Return the oldest file that is whole; None after a wait."""
        if self._oldest is None:
            self._oldest = self._look()
        if self._oldest is None:
            self._closed.wait(min(timeout_s, _POLL_S))
            return None
        return self._oldest[0]

    def _look(self) -> tuple[Path, str] | None:
        """Look through the folder; remember since when each file is as it is."""
        now_s = time.monotonic()
        found = {key: (mtime_ns, path) for path, key, mtime_ns in self._files()}
        if self._is_first_look and self.trouble is None:
            self._is_first_look = False
            self._ledger.tidy(set(found))
        self._since_s = {key: self._since_s.get(key, now_s) for key in found}
        self._rejected = {key: value for key, value in self._rejected.items() if key in found}
        whole = [(mtime_ns, path, key) for key, (mtime_ns, path) in found.items() if self._is_whole(key, now_s)]
        return min(whole)[1:] if whole else None

    def _is_whole(self, key: str, now_s: float) -> bool:
        t_retry_s = self._rejected.get(key, (0, now_s))[1]
        return not self._ledger.is_played(key) and now_s - self._since_s[key] >= STABLE_S and now_s >= t_retry_s

    def _files(self) -> Iterator[tuple[Path, str, int]]:
        self.trouble = None
        for folder, subfolders, names in os.walk(self._folder, onerror=self._note):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            for name in names:
                path = Path(folder, name)
                if name.startswith(".") or name.lower().endswith(_UNFINISHED):
                    continue
                try:
                    about = path.lstat()
                except OSError:  # it was taken away since
                    continue
                if path.is_file() and about.st_size:
                    yield path, _key(path, about), about.st_mtime_ns

    def _note(self, error: OSError) -> None:
        if error.filename == str(self._folder):
            self.trouble = error.strerror

    def begin(self, path: Path) -> Path | None:
        """Note that it is being played; None if the process died of it too often."""
        assert self._oldest is not None
        key = self._oldest[1]
        if self._ledger.num_tries(key) >= _MAX_TRIES:
            return None
        self._ledger.write("begun", key)
        return path

    def settle(self) -> None:
        """It was played. The file stays where it is: it belongs to whoever put it there."""
        self._leave("played")

    def reject(self) -> None:
        """It cannot be played; after some tries, or at once where the process may die of it, it is left alone."""
        assert self._oldest is not None
        key = self._oldest[1]
        num_rejected = self._rejected.get(key, (0, 0.0))[0] + 1
        self._rejected[key] = num_rejected, time.monotonic() + RETRY_S
        is_harmless = self._ledger.num_tries(key) == 1  # begun just now, and never before without an end
        self._leave("back" if is_harmless and num_rejected < _MAX_TRIES else "played")

    def put_back(self) -> None:
        """It was not played to its end."""
        self._leave("back")

    def _leave(self, word: str) -> None:
        assert self._oldest is not None
        self._ledger.write(word, self._oldest[1])
        self._oldest = None

    def close(self) -> None:
        """Wake `take`."""
        self._closed.set()


def _key(path: Path, about: os.stat_result) -> str:
    text = f"{path}\0{about.st_size}\0{about.st_mtime_ns}".encode("utf-8", "surrogateescape")
    return hashlib.blake2b(text, digest_size=16).hexdigest()


class WatchedFolder:
    """A source whose objects are put into a folder: DICOM files, videos and pictures. Each is played once."""

    def __init__(self, folder: Path, opener: Opener, *, is_realtime: bool) -> None:
        """Look at the folder.

        Raises:
            SourceError: It cannot be read, or what was played cannot be noted.
        """
        folder = folder.absolute()
        if not folder.is_dir():
            raise SourceError(f"--watch-folder {str(folder)!r} is no folder that can be read; make it, or give another")
        name = hashlib.blake2b(os.fsencode(folder), digest_size=8).hexdigest()
        ledger_path = state_folder() / f"watched-{name}.txt"
        try:
            ledger_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            ledger = Ledger(ledger_path)
        except (OSError, ValueError) as exc:
            raise SourceError(
                f"the list of played files {str(ledger_path)!r} cannot be used ({exc}); "
                "set STATE_DIRECTORY to another folder"
            ) from exc
        self._queue = WatchedQueue(folder, ledger)
        self._player = ObjectPlayer(self._queue, opener, is_realtime=is_realtime)
        self._info = SourceInfo(
            name=str(folder),
            frame_interval_ms=DEFAULT_INTERVAL_MS,
            is_live=True,
            plays_objects=True,
            kind="watched folder",
            note=f"(each file is played once; the list of played files is {ledger_path})",
        )
        self._told: str | None = None

    @property
    def info(self) -> SourceInfo:
        return self._info

    def frames(self) -> Iterator[LiveItem]:
        """Yield the frames of the files in the order in which they were written; see `Source.frames`."""
        for item in self._player.frames():
            yield item
            if self._queue.trouble and self._queue.trouble != self._told:
                yield Trouble("bad_objects", f"the watched folder cannot be read: {self._queue.trouble}")
            self._told = self._queue.trouble

    def close(self) -> None:
        """End a running `frames()` before its next item."""
        self._player.close()
        self._queue.close()
