"""What all commands share: an argument parser whose errors are one line, and the last stop of every expected error."""

import argparse
import difflib
import logging
import os
import re
import sys
from collections.abc import Callable
from typing import NoReturn

from edge import __version__
from edge.errors import ConfigError, EdgeError

NOTICE = "Research software, not a medical device."


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

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}{self._hint(message)}; see {self.prog} --help")

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

    A closed pipe (`edge-watch --json | head`) and Ctrl-C end quietly.
    """
    try:
        return main()
    except EdgeError as exc:
        print_line("error", str(exc))
        return exc.exit_code
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:
        # Python flushes stdout once more at exit: give it somewhere to write
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def print_line(kind: str, text: str) -> None:
    """Print `kind: text` to stderr as one line, whatever the text holds."""
    print(f"{kind}: {_one_line(text)}", file=sys.stderr, flush=True)


def _one_line(text: str) -> str:
    """Return the text without line breaks and with control characters escaped: names of files may hold any."""
    words = " ".join(text.split())
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in words)


class LineHandler(logging.Handler):
    """Prints log records as one line each: `warning: ...`, `error: ...`; plain text for information."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            print_line("error" if record.levelno >= logging.ERROR else "warning", record.getMessage())
        else:
            print(_one_line(record.getMessage()), file=sys.stderr, flush=True)
