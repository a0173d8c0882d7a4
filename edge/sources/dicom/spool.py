"""A folder of objects that wait to be played: what is in it outlives the process."""

import contextlib
import dataclasses
import errno
import fcntl
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from edge.errors import ConfigError, SourceError

_log = logging.getLogger(__name__)

_MAX_TRIES = 3
"""An object that the process died of so often is not tried again: a decoder may crash on it."""
_MAX_BROKEN = 100
_FULL = (errno.ENOSPC, errno.EDQUOT)
MIB = 2**20


class SpoolFullError(Exception):
    """There is no room for the object; it is to be refused, and the sender to be told."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SpoolLimits:
    """How much is held."""

    max_object_bytes: int = 1024 * MIB
    max_waiting_bytes: int = 8192 * MIB
    """Of all objects together that are coming in or wait to be played."""
    max_waiting: int = 10_000
    """Number of objects that wait to be played."""
    keep: int = 0
    """How many played objects are kept, the newest ones."""


class Spool:
    """Objects on disk, played oldest first.

    Each is in one of four folders:

        incoming   not yet whole; thrown away at the next start
        waiting    whole and synced to disk, not yet played
        played     the newest `keep` ones
        broken     could not be played; the newest 100

    `incoming` objects come from any thread; `take`, `settle` and `reject` belong to the one that plays them.
    """

    def __init__(self, folder: Path, limits: SpoolLimits) -> None:
        """Take over the folder with what waits in it.

        Raises:
            ConfigError: Another process plays from it.
            SourceError: It cannot be written.
        """
        self._folder, self.limits = folder, limits
        self._changed = threading.Condition()
        self._is_closed = False
        self._resources = contextlib.ExitStack()
        try:
            self._open()
        except OSError as exc:
            raise SourceError(
                f"the spool {str(folder)!r} cannot be used ({exc.strerror}); give another folder: dicom://...?spool=DIR"
            ) from exc

    def _open(self) -> None:
        for name in ("incoming", "waiting", "played", "broken"):
            # patients' images: for nobody else's eyes
            (self._folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = self._resources.enter_context((self._folder / "lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            self._resources.close()
            raise ConfigError(
                f"the spool {str(self._folder)!r} is in use by another process; give each its own: dicom://...?spool=DIR"
            ) from exc
        for part in (self._folder / "incoming").iterdir():
            part.unlink()
        self._waiting = sorted(self._files("waiting"))
        self._sizes_bytes = {_number(path): path.stat().st_size for path in self._waiting}
        self._num_bytes = sum(self._sizes_bytes.values())
        numbers = [_number(path) for name in ("waiting", "played", "broken") for path in self._files(name)]
        self._next_number = max(numbers, default=0) + 1

    def _files(self, name: str) -> Iterator[Path]:
        return (self._folder / name).glob("[0-9]*.dcm")

    @property
    def num_waiting(self) -> int:
        """Number of objects that wait to be played."""
        return len(self._waiting)

    def incoming(self) -> "Incoming":
        """Begin an object.

        Raises:
            SpoolFullError: There is no room.
        """
        with self._changed:
            if len(self._waiting) >= self.limits.max_waiting:
                raise SpoolFullError(f"{len(self._waiting)} objects wait already")
            number, self._next_number = self._next_number, self._next_number + 1
        try:
            return Incoming(self, self._folder / "incoming" / f"{number:012d}.dcm")
        except OSError as exc:
            raise _full(exc) from exc

    def reserve(self, num_bytes: int) -> None:
        """Take room.

        Raises:
            SpoolFullError: There is none.
        """
        with self._changed:
            if self._num_bytes + num_bytes > self.limits.max_waiting_bytes:
                raise SpoolFullError(f"more than {self.limits.max_waiting_bytes // MIB} MiB would wait")
            self._num_bytes += num_bytes

    def release(self, num_bytes: int) -> None:
        """Give room back."""
        with self._changed:
            self._num_bytes -= num_bytes

    def add(self, part: Path, num_bytes: int) -> Path:
        """Let a whole object, which is synced to disk, wait to be played; it is then to be found after a power cut.

        Args:
            part: Its file among the incoming ones.
            num_bytes: The room that was taken for it.

        Raises:
            SpoolFullError: The folder's own entry could not be written.
        """
        path = self._folder / "waiting" / part.name
        try:
            part.rename(path)
            _sync_folder(path.parent)
        except OSError as exc:
            with contextlib.suppress(OSError):
                path.unlink()  # it is refused, and sent again: it must not be found at the next start as well
            raise _full(exc) from exc
        with self._changed:
            self._waiting.append(path)
            self._sizes_bytes[_number(path)] = num_bytes
            self._changed.notify_all()
        return path

    def take(self, timeout_s: float) -> Path | None:
        """Return the oldest object that waits; None after the time-out or when closed.

        It stays the oldest until it is settled, rejected or put back.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed, timeout_s)
            return None if self._is_closed or not self._waiting else self._waiting[0]

    def begin(self, path: Path) -> Path | None:
        """Note on disk that the oldest object is being played; return its new path.

        Returns:
            None where the process died of it too often.
        """
        num_tries = _num_tries(path) + 1
        if num_tries > _MAX_TRIES:
            return None
        return self._rename_oldest(f"{_number(path):012d}.try{num_tries}.dcm")

    def put_back(self) -> None:
        """Let the oldest object, which was not played to its end, be played again from its start."""
        with contextlib.suppress(OSError):  # then this try counts
            self._rename_oldest(f"{_number(self._waiting[0]):012d}.dcm")

    def _rename_oldest(self, name: str) -> Path:
        path = self._waiting[0]
        self._waiting[0] = path.rename(path.with_name(name))
        return self._waiting[0]

    def settle(self) -> None:
        """Remove the oldest object, which was played, or keep it among the newest ones."""
        self._finish_oldest("played", self.limits.keep)

    def reject(self) -> None:
        """Put the oldest object away: it cannot be played."""
        self._finish_oldest("broken", _MAX_BROKEN)

    def _finish_oldest(self, name: str, num_kept: int) -> None:
        path = self._waiting[0]
        is_there = False
        try:
            if num_kept:
                path.rename(self._folder / name / f"{_number(path):012d}.dcm")
            else:
                path.unlink()
            for old in sorted(self._files(name), reverse=True)[num_kept:]:
                old.unlink()
        except OSError as exc:
            is_there = os.path.lexists(path)  # Path.exists raises on a disk that fails
            if is_there or not isinstance(exc, FileNotFoundError):  # else someone took it away
                _log.warning("spool: a played object cannot be removed (%s); it will be played again", exc.strerror)
        with self._changed:
            self._waiting.pop(0)
            num_bytes = self._sizes_bytes.pop(_number(path))
            self._num_bytes -= 0 if is_there else num_bytes

    def close(self) -> None:
        """Wake `take`. Idempotent."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def unlock(self) -> None:
        """Leave the folder to another process. Idempotent."""
        self._resources.close()


class Incoming:
    """One object on its way to disk; belongs to one thread."""

    def __init__(self, spool: Spool, path: Path) -> None:
        self._spool = spool
        self.path = path
        self.num_bytes = 0
        self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")

    def write(self, data: bytes) -> None:
        """Append.

        Raises:
            SpoolFullError: The object is too large, or there is no room for it.
        """
        limit_bytes = self._spool.limits.max_object_bytes
        if self.num_bytes + len(data) > limit_bytes:
            raise SpoolFullError(f"it is larger than {limit_bytes // MIB} MiB")
        self._spool.reserve(len(data))
        self.num_bytes += len(data)
        try:
            self._file.write(data)
        except OSError as exc:
            raise _full(exc) from exc

    def finish(self) -> Path:
        """Write through to the disk itself; return the file, which can be read now.

        Raises:
            SpoolFullError: There is no room, or the disk failed.
        """
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as exc:
            raise _full(exc) from exc
        return self.path

    def commit(self) -> Path:
        """Let the finished object wait to be played; it belongs to the spool from now on."""
        return self._spool.add(self.path, self.num_bytes)

    def discard(self) -> None:
        """Throw it away."""
        with contextlib.suppress(OSError):  # what a full disk did not take is not missed
            self._file.close()
        self.path.unlink(missing_ok=True)
        self._spool.release(self.num_bytes)


def _number(path: Path) -> int:
    return int(path.name.split(".")[0])


def _num_tries(path: Path) -> int:
    middle = path.name.split(".")[1]
    return int(middle.removeprefix("try")) if middle.startswith("try") else 0


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _full(exc: OSError) -> SpoolFullError:
    reason = "the disk is full" if exc.errno in _FULL else f"the disk fails ({exc.strerror})"
    return SpoolFullError(reason)
