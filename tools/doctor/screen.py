"""What edge-doctor shows: lines for people, or one JSON object."""

import json
import platform
from collections import Counter
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edge import __version__
from edge.commandline import NOTICE
from tools.doctor.finding import Check, Finding, Verdict

Result = tuple[Check, Finding]

_STYLES = {
    Verdict.OK: "green",
    Verdict.NOTE: "cyan",
    Verdict.WARNING: "bold yellow",
    Verdict.PROBLEM: "bold white on red",
}
_WORD_WIDTH, _NAME_WIDTH = 9, 14


def exit_code(results: Iterable[Result]) -> int:
    """Return the code of the first problem; 0 where there is none."""
    return next((check.exit_code for check, finding in results if finding.verdict is Verdict.PROBLEM), 0)


def as_json(results: list[Result]) -> str:
    """Return all findings as one JSON object on one line."""
    counts = Counter(finding.verdict for _, finding in results)
    checks = [
        {
            "section": check.section,
            "name": finding.name,
            "verdict": finding.verdict.value,
            "found": _one_line(finding.found),
            "mend": finding.mend,
            "details": finding.details,
        }
        for check, finding in results
    ]
    document: dict[str, Any] = {
        "version": __version__,
        "python": platform.python_version(),
        "exit_code": exit_code(results),
        "counts": {verdict.value: counts[verdict] for verdict in Verdict},
        "checks": checks,
    }
    return json.dumps(document, allow_nan=False)


class Screen:
    """Prints findings as they come, section by section."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        if not self._console.is_terminal:  # nothing reflows a file: let a line be as long as it is
            self._console.width = 10_000
        self._section = ""

    def begin(self) -> None:
        """Print the head."""
        self._console.print(Text.assemble((f"edge-doctor {__version__}", "bold"), f"  {NOTICE}"))

    def show(self, check: Check, finding: Finding) -> None:
        """Print one finding, with the command that mends it below."""
        if check.section != self._section:
            self._section = check.section
            self._console.print(Text(f"\n{check.section}", "bold"))
        self._console.print(_line(finding))
        if finding.mend:
            self._show_mend(finding.mend)

    def _show_mend(self, mend: str) -> None:
        """Print a command on a line of its own, unbroken, so that it can be copied."""
        command, gap, comment = mend.partition("   #")
        text = Text.assemble(" " * (_WORD_WIDTH + 2), ("$ ", "dim"), (command, "bold"), (gap + comment, "dim"))
        self._console.print(text, soft_wrap=True)

    def end(self, results: list[Result]) -> None:
        """Print the sum."""
        counts = Counter(finding.verdict for _, finding in results)
        problems, warnings = counts[Verdict.PROBLEM], counts[Verdict.WARNING]
        words = "Nothing essential is missing." if not problems else f"{_count(problems, 'problem')} to mend first."
        style = _STYLES[Verdict.PROBLEM if problems else Verdict.WARNING if warnings else Verdict.OK]
        rest = f"  {counts[Verdict.OK]} ok, {_count(counts[Verdict.NOTE], 'note')}, {_count(warnings, 'warning')}."
        self._console.print(Text.assemble("\n", (words, style), rest))


def _line(finding: Finding) -> Table:
    """Return the line: the verdict as a word in its colour, what was looked at, what was found."""
    table = Table.grid(padding=(0, 1))
    table.add_column(width=_WORD_WIDTH, no_wrap=True)
    table.add_column(width=max(_NAME_WIDTH, len(finding.name)), no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    word = Text(f" {finding.verdict.value} ", _STYLES[finding.verdict])
    table.add_row(word, Text(finding.name), Text(_one_line(finding.found)))
    return table


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
