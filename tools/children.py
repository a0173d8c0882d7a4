"""Child processes that never outlive the bench."""

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from edge.errors import EdgeError

_END_S = 5.0
_MAX_SAID = 300
"""Characters of the last that a process wrote."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Child:
    """A process `python -m module` of ours; its stderr goes to a file, so that it never waits for a reader."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._module = module
        self._killed_for: str | None = None
        self._stderr = tempfile.TemporaryFile(prefix="edge-bench-")  # noqa: SIM115  end() closes it
        command = [sys.executable, "-m", module, *arguments]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, text=True
        )

    @property
    def stdout(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout

    def finish(self, timeout_s: float) -> str:
        """Wait for the end and return what it wrote to stdout since the last read.

        Raises:
            EdgeError: It failed, with its own message and exit code; or it did not end in time.
        """
        with self._killed_after(timeout_s):
            out = self.stdout.read()
            code = self.process.wait()
        if code != 0:
            raise self._failure(code)
        return out

    def warnings(self) -> tuple[str, ...]:
        """Return what a process that has ended warned of."""
        return tuple(line.partition("warning: ")[2] for line in self._said() if line.startswith("warning: "))

    def ask(self, question: str | None, timeout_s: float) -> dict[str, Any]:
        """Write a line to its stdin, where there is one to write, and return the JSON line that it answers.

        Raises:
            EdgeError: It ended instead, with its own message and exit code; or it did not answer in time.
        """
        with self._killed_after(timeout_s):
            if question is not None:
                with contextlib.suppress(BrokenPipeError):
                    print(question, file=self.process.stdin, flush=True)
            line = self.stdout.readline()
            code = None if line.endswith("\n") else self.process.wait()  # it may die within a line
        if code is not None:
            raise self._failure(code)
        return dict(json.loads(line))

    @contextlib.contextmanager
    def _killed_after(self, timeout_s: float) -> Iterator[None]:
        timer = threading.Timer(timeout_s, self._kill_for, [f"{self._module} did not answer within {timeout_s:g} s"])
        try:  # a signal may come while it starts, and a timer that goes on would hold up our own end
            timer.start()
            yield
        finally:
            timer.cancel()

    def _kill_for(self, reason: str) -> None:
        self._killed_for = reason
        self.process.kill()

    def end(self) -> None:
        """End the process, gently and then not, and reap it; idempotent."""
        if self.process.poll() is None:
            self.process.terminate()
            self.stdout.close()  # nobody reads it any more, and one that writes much there would wait for a reader
            try:
                self.process.wait(_END_S)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self._stderr.close()

    def _said(self) -> list[str]:
        """Return what it wrote to stderr, by lines; not before it has ended, for it writes where we read."""
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace").splitlines()

    def _failure(self, code: int) -> EdgeError:
        """Return why it ended, in one line: its own error, our limit, the signal, or the last that it wrote."""
        lines = self._said()
        told = [line.partition("error: ")[2] for line in lines if line.startswith("error: ")]
        error = EdgeError(told[-1] if told else self._killed_for or _end_in_words(self._module, code, _last_of(lines)))
        error.exit_code = code if code > 0 else 1
        return error


def _last_of(lines: list[str]) -> str:
    """Return the last line, or of a traceback the error, whose text may have several."""
    starts = [place for place, line in enumerate(lines) if line.startswith("Traceback ")]
    ends = [line for line in lines[starts[-1] + 1 :] if not line.startswith(" ")] if starts else lines[-1:]
    return " ".join(" ".join(ends).split())[:_MAX_SAID]


def _end_in_words(module: str, code: int, last: str) -> str:
    if code >= 0:
        return last or f"{module} ended with code {code}"
    name = next((known.name for known in signal.Signals if known == -code), f"signal {-code}")
    hint = " (as the system ends one where memory runs out)" if name == "SIGKILL" else ""
    return f"{name} ended {module}{hint}" + (f"; the last it wrote: {last}" if last else "")


@contextlib.contextmanager
def running(module: str, *arguments: str) -> Iterator[Child]:
    """Run `python -m module` beside us; on leaving, end it."""
    with contextlib.ExitStack() as stack:
        with _deferred_signals():
            child = Child(module, *arguments)
            stack.callback(child.end)
        yield child


@contextlib.contextmanager
def _deferred_signals() -> Iterator[None]:
    """Hold back SIGINT and SIGTERM: one that comes while a process starts would leave it without an owner."""
    came: list[int] = []
    before = {number: signal.signal(number, lambda signal_number, _: came.append(signal_number)) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for signal_number in came:
        signal.raise_signal(signal_number)


def peak_rss_mb(pid: int | str = "self") -> float:
    """Return a running process's largest resident memory so far, in MB (10^6 bytes); 0 where it has ended."""
    return _memory_mb(pid, "VmHWM:")


def rss_mb(pid: int) -> float:
    """Return a running process's resident memory now, in MB (10^6 bytes); 0 where it has ended."""
    return _memory_mb(pid, "VmRSS:")


def _memory_mb(pid: int | str, key: str) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0.0
    sizes_kib = [int(line.split()[1]) for line in lines if line.startswith(key)]
    return sizes_kib[0] * 1024 / 1e6 if sizes_kib else 0.0
