"""Runs `edge-train` in this process: many tests, and its libraries take seconds to load."""

import contextlib
import io
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from trainer.cli import main


def edge_train(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command; return its exit code and what it printed."""
    words = ["edge-train", *map(str, arguments)]
    out, error = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
        mock.patch.object(sys, "argv", words),
        _own_logging(),
    ):
        code = main()
    return subprocess.CompletedProcess(words, code, out.getvalue(), error.getvalue())


@contextlib.contextmanager
def _own_logging() -> Iterator[None]:
    """Take back how the command logs: the tests after it share the process."""
    log = logging.getLogger("edge")
    handlers, propagates, level = log.handlers, log.propagate, log.level
    try:
        yield
    finally:
        log.handlers, log.propagate = handlers, propagates
        log.setLevel(level)
