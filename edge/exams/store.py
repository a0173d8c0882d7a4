"""The exam on disk, so that it outlives the daemon: each file is whole or not there."""

import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgpack

from edge.display.keyframes import Keyframes
from edge.errors import ConfigError, WireError
from edge.exams.keyframes import pack_keyframe, unpack_keyframe
from edge.exams.running import RunningExam, pack_exam, unpack_exam

_log = logging.getLogger(__name__)


def default_state_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return where state is kept: what systemd gives a service, else the user's own.

    Source: systemd.exec(5), StateDirectory; XDG Base Directory Specification, XDG_STATE_HOME.
    """
    if given := environment.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0])
    return Path(environment.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "edge-ultrasound"


class ExamStore:
    """One stream's exam in the state folder; readable by its owner alone, for it holds pictures.

    `STREAM.exam.json` is written every second, `STREAM.keyframes` when these change. A disk that fails is told once
    and ends nothing.
    """

    def __init__(self, folder: Path, stream: str) -> None:
        """Make the folder and take it for this stream.

        Raises:
            ConfigError: It cannot be written, or another daemon holds it.
        """
        self._exam, self._keyframes = folder / f"{stream}.exam.json", folder / f"{stream}.keyframes"
        self._troubles: dict[Path, str] = {}
        """By file."""
        self._lock = contextlib.ExitStack()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock_fd = os.open(folder / f"{stream}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._lock.callback(os.close, lock_fd)
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            self._lock.close()
            raise ConfigError(
                f"another edge-infer keeps the exams of stream {stream!r} in {folder}; give this one --stream NAME or "
                "--state DIR"
            ) from exc
        except OSError as exc:
            self._lock.close()
            raise ConfigError(f"--state {folder} cannot be written ({exc.strerror}); name another folder") from exc

    @property
    def trouble(self) -> str | None:
        """Why the exam would not outlive the daemon; None where it would."""
        return next(iter(self._troubles.values()), None)

    def save(self, exam: RunningExam, threshold: float) -> None:
        """Write all but the keyframes."""
        self._write(self._exam, lambda: json.dumps(pack_exam(exam, threshold)).encode())

    def save_keyframes(self, exam: RunningExam) -> None:
        """Write the keyframes."""
        packed = [pack_keyframe(keyframe) for keyframe in exam.keyframes.kept]
        self._write(self._keyframes, lambda: bytes(msgpack.packb({"id": exam.mark.id, "keyframes": packed})))

    def load(self) -> tuple[RunningExam, float, float] | None:
        """Return the exam, its threshold, and for how many seconds nobody kept it; None where there is none."""
        try:
            packed = json.loads(self._exam.read_bytes())
            exam = unpack_exam(packed)
            threshold, silent_s = float(packed["threshold"]), time.time() - int(packed["saved_wall_ns"]) / 1e9
        except FileNotFoundError:
            return None
        except (OSError, LookupError, TypeError, ValueError, OverflowError, RecursionError) as exc:
            _log.warning("the exam in %s cannot be read (%s); there is none now", self._exam, exc)
            return None
        exam.keyframes = self._load_keyframes(exam.mark.id)
        return exam, threshold, silent_s

    def close(self) -> None:
        """Give the folder up; idempotent."""
        self._lock.close()

    def _load_keyframes(self, exam_id: str) -> Keyframes:
        keyframes = Keyframes()
        try:
            packed = msgpack.unpackb(self._keyframes.read_bytes())
            if packed["id"] == exam_id:
                keyframes.kept = [unpack_keyframe(keyframe) for keyframe in packed["keyframes"]]
        except FileNotFoundError:
            pass
        except (OSError, LookupError, TypeError, ValueError, msgpack.UnpackException, WireError) as exc:
            _log.warning("the keyframes in %s cannot be read (%s)", self._keyframes, exc)
        return keyframes

    def _write(self, path: Path, content: Callable[[], bytes]) -> None:
        before = self.trouble
        try:
            write_whole(path, content(), mode=0o600)
            self._troubles.pop(path, None)
        except OSError as exc:
            self._troubles[path] = exc.strerror or str(exc)
        if self.trouble and self.trouble != before:
            _log.warning(
                "the exam cannot be kept in %s (%s): it would not outlive the daemon", path.parent, self.trouble
            )


def write_whole(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Write a file so that a reader, and a machine that loses its power, finds the old or the new content.

    Raises:
        OSError: The disk refuses.
    """
    temporary = path.with_name(path.name + ".tmp")

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_EXCL, mode)

    temporary.unlink(missing_ok=True)  # in a folder of somebody else's it may be a link to any file of ours
    with open(temporary, "wb", opener=opener) as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
