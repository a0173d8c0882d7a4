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
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Child:
    """A process `python -m module` of ours; its stderr goes to a file, so that it never waits for a reader."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._module = module
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
        if not line:
            raise self._failure(self.process.wait())
        return dict(json.loads(line))

    @contextlib.contextmanager
    def _killed_after(self, timeout_s: float) -> Iterator[None]:
        timer = threading.Timer(timeout_s, self.process.kill)
        try:  # a signal may come while it starts, and a timer that goes on would hold up our own end
            timer.start()
            yield
        finally:
            timer.cancel()

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

    def _failure(self, code: int) -> EdgeError:
        self._stderr.seek(0)
        text = self._stderr.read().decode(errors="replace")
        told = [line.partition("error: ")[2] for line in text.splitlines() if line.startswith("error: ")]
        error = EdgeError(told[-1] if told else text.strip()[-300:] or f"{self._module} ended with code {code}")
        error.exit_code = code if code > 0 else 1
        return error


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
