"""What all commands share: an argument parser whose errors are one line, and the last stop of every expected error."""

import argparse
import contextlib
import difflib
import errno
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TextIO

from edge import __version__
from edge.errors import ConfigError, EdgeError

NOTICE = "Research software, not a medical device."

_DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


_NO_NUMBER = {"int": "is no whole number", "float": "is no number"}


class Parser(argparse.ArgumentParser):
    """An argument parser that reports wrong usage as one `error:` line and exit code 2."""

    def __init__(self, prog: str, description: str, example: str) -> None:
        super().__init__(
            prog=prog,
            description=f"{description} {NOTICE}",
            epilog=f"example: {example}",
            allow_abbrev=False,
        )
        self.add_argument("--version", action="version", version=f"{prog.split()[0]} {__version__}. {NOTICE}")

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parse, and refuse empty words: a script's unset variable would name the working directory."""
        words = sys.argv[1:] if args is None else list(args)
        for before, word in zip(["", *words], words, strict=False):
            option, is_assigned, value = word.partition("=") if word.startswith("--") else (before, "=", word)
            if is_assigned and not value:
                what = option if option.startswith("-") else "an argument"
                raise ConfigError(f"{what} is ''; leave it out, or name something; see {self.prog} --help")
        return super().parse_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        said = re.sub(r"invalid (int|float) value: ('.*')", lambda match: f"{match[2]} {_NO_NUMBER[match[1]]}", message)
        raise ConfigError(f"{said}{self._hint(message)}; see {self.prog} --help")

    def _hint(self, message: str) -> str:
        """Return what was probably meant by an option that is not known, or by a value that looks like one."""
        if match := re.search(r"argument (--[a-z-]+): expected one argument", message):
            return f" (one that begins with '-' is written {match[1]}=VALUE)"
        if match := re.match(r"unrecognized arguments: (--[^\s=]+)", message):
            near = difflib.get_close_matches(match[1], self._option_string_actions, n=1)
            return f"; did you mean {near[0]}?" if near else ""
        if message.startswith("unrecognized arguments:") and "--source" in self._option_string_actions:
            return "; did you mean --source before it?"
        return ""


def run_command(main: Callable[[], int]) -> int:
    """Run a command's body; an expected error becomes one line on stderr and its exit code.

    A closed pipe (`edge-watch --json | head`) and Ctrl-C end quietly; so does a full disk, with one line and code 1.
    """
    _open_closed_streams()
    try:
        return main()
    except EdgeError as exc:
        print_line("error", str(exc))
        return exc.exit_code
    except (KeyboardInterrupt, BrokenPipeError):
        return 0
    except OSError as exc:
        if exc.errno not in _DISK_TROUBLE:
            raise
        print_line("error", f"{exc.filename or 'the output'} cannot be written ({exc.strerror}); make room on its disk")
        return 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            _flush_or_drop(stream)


def _open_closed_streams() -> None:
    """Let stdout and stderr lead nowhere where whoever started us had closed them.

    Python has None for them then: `write` would fail, and what `print` has for stderr would go to stdout.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115, open to the end


def _flush_or_drop(stream: TextIO) -> None:
    """Write what the stream holds; where it cannot, leave Python nothing to try again, and to fail of, at its end."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def interrupt_on_sigterm() -> None:
    """Let SIGTERM end a command as Ctrl-C does: with nothing left half done, and no child."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def ignore_signals() -> None:
    """Ignore what ends a command, as the last thing it does: all is done, and its exit code is to tell so."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def print_line(kind: str, text: str) -> None:
    """Print `kind: text` to stderr as one line, whatever the text holds."""
    log_line(f"{kind}: {one_line(text)}")


def log_line(line: str) -> None:
    """Print to stderr. A log whose disk is full, or whose reader has gone, must not end what it tells of."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def one_line(text: str) -> str:
    """Return the text without line breaks and with control characters escaped: names of files may hold any."""
    words = " ".join(text.split())
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in words)


class LineHandler(logging.Handler):
    """Prints log records as one line each: `warning: ...`, `error: ...`; plain text for information."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            print_line("error" if record.levelno >= logging.ERROR else "warning", record.getMessage())
        else:
            log_line(one_line(record.getMessage()))


def log_lines(level: int = logging.WARNING) -> None:
    """Print what the project's own loggers tell from this level on as lines of their own."""
    log = logging.getLogger("edge")
    log.handlers, log.propagate = [LineHandler()], False
    log.setLevel(level)
