"""Keeps the messages of C libraries from stderr while one of them works."""

import contextlib
import ctypes
import functools
import os
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_c_stderr() -> Iterator[None]:
    """Point C's `stderr` to nowhere; Python's own, which other threads may be writing to, stays as it is."""
    nowhere = _nowhere()
    if nowhere is None:
        yield
        return
    stderr = ctypes.c_void_p.in_dll(ctypes.CDLL(None), "stderr")
    before, stderr.value = stderr.value, nowhere
    try:
        yield
    finally:
        stderr.value = before


@functools.cache
def _nowhere() -> int | None:
    """Return the FILE pointer of an open /dev/null; None where the C library has no variable to point elsewhere."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "stderr") or not hasattr(libc, "fopen"):
        return None
    libc.fopen.restype = ctypes.c_void_p
    file: int | None = libc.fopen(os.fsencode(os.devnull), b"w")
    return file
