"""Files that are whole or not there, whatever happens while they are written."""

import contextlib
import errno
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from trainer.errors import TrainingError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_atomic(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file in one piece: a reader, or whoever comes after a kill, finds the old content or all of the new.

    Raises:
        TrainingError: No room on the disk, or the file cannot be written; the old content is still there.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_beside_and_rename(path, content)
    except OSError as exc:
        raise unwritable(path, exc, len(content)) from exc


def _write_beside_and_rename(path: Path, content: bytes) -> None:
    descriptor, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(beside).chmod(0o644)
        Path(beside).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(beside).unlink(missing_ok=True)
        raise


def unwritable(path: Path, exc: OSError, num_bytes: int = 0) -> TrainingError:
    """Return the error for people: the disk is full, or what else the system said."""
    if exc.errno in _NO_ROOM:
        needed = f" for {_size(num_bytes)}" if num_bytes else ""
        return TrainingError(f"the disk is full: no room{needed} to write {path} ({exc.strerror}); make room there")
    return TrainingError(f"cannot write {path}: {exc.strerror or exc}")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e6 else f"{math.ceil(num_bytes / 1e3)} kB"


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write JSON in one piece; a number that is none becomes null, as JSON has no word for it."""
    text = json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(path, f"{text}\n".encode())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
