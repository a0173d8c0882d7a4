"""What TensorRT says and how far it is: its errors become ours, its build phases one share of progress."""

import collections
import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from typing import SupportsInt, TypeVar

import tensorrt as trt

from engines.build import Progress
from engines.errors import EngineError

T = TypeVar("T")

_log = logging.getLogger("edge.engines")
_MAX_ERRORS = 16
"""That are kept for a failure, which may never come."""
_ERRORS = (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR)


class Words(trt.ILogger):
    """Keeps what TensorRT calls errors until someone asks; all else goes to the debug log."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self._errors: collections.deque[str] = collections.deque(maxlen=_MAX_ERRORS)

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Take a message; TensorRT calls this, from any of its threads."""
        if severity in _ERRORS:
            self._errors.append(" ".join(msg.split()))
        _log.debug("TensorRT: %s", msg)

    def take(self) -> str:
        """Return the errors since the last call, as one line."""
        errors = list(self._errors)
        self._errors.clear()
        return "; ".join(dict.fromkeys(errors)) or "it gives no reason"

    def require(self, value: T | None, what: str) -> T:
        """Return the value unless it is TensorRT's None or False.

        Raises:
            EngineError: `what` TensorRT could not do, with its own words.
        """
        if value is None or value is False:
            raise self._error(what)
        return value

    def make(self, kind: Callable[..., T], what: str, *args: object) -> T:
        """Return a new object of TensorRT's. Where it gives none, its bindings raise TypeError and say nothing of why.

        Raises:
            EngineError: As `require`.
        """
        try:
            return kind(*args, self)
        except TypeError as exc:
            raise self._error(what) from exc

    def _error(self, what: str) -> EngineError:
        return EngineError(f"TensorRT cannot {what}: {self.take()}")


WORDS = Words()
"""The one logger of the process. TensorRT keeps the first that it is given for good, and writes to it from wherever it
has no other: a logger that was freed ends the process."""


class Monitor(trt.IProgressMonitor):
    """Turns nested build phases into one share that only grows; Ctrl-C ends the build at TensorRT's next step."""

    def __init__(self, progress: Progress) -> None:
        trt.IProgressMonitor.__init__(self)
        self._progress = progress
        self._phases: dict[str, _Phase] = {}
        self._share = 0.0
        self.is_interrupted = False

    @contextlib.contextmanager
    def catching_ctrl_c(self) -> Iterator[None]:
        """Remember Ctrl-C and SIGTERM: an exception would come up in one of TensorRT's calls, which swallows it."""
        if threading.current_thread() is not threading.main_thread():
            yield  # Python tells the main thread alone
            return

        def remember(*_: object) -> None:
            self.is_interrupted = True

        before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: SupportsInt) -> None:
        """Take the start of a phase; TensorRT calls this."""
        parent = self._phases.get(parent_phase or "")
        self._phases[phase_name] = _Phase(parent, max(1, int(num_steps)))
        self._tell(phase_name)

    def step_complete(self, phase_name: str, step: SupportsInt) -> bool:
        """Take a step's end, and say whether to go on."""
        if phase_name in self._phases:
            self._phases[phase_name].num_done = int(step) + 1
            self._tell(phase_name)
        return not self.is_interrupted

    def phase_finish(self, phase_name: str) -> None:
        """Take the end of a phase."""
        self._phases.pop(phase_name, None)

    def _tell(self, phase_name: str) -> None:
        self._share = max(self._share, min(1.0, self._phases[phase_name].end_share))
        try:
            self._progress(f"TensorRT: {phase_name.lower()}", self._share)
        except KeyboardInterrupt:
            self.is_interrupted = True  # an exception must not pass through TensorRT


class _Phase:
    """A phase takes the place of one step of its parent."""

    def __init__(self, parent: "_Phase | None", num_steps: int) -> None:
        self.num_steps, self.num_done = num_steps, 0
        self._start, self._length = parent.next_step if parent else (0.0, 1.0)

    @property
    def end_share(self) -> float:
        """The share of the whole that is done."""
        return self._start + self._length * min(1.0, self.num_done / self.num_steps)

    @property
    def next_step(self) -> tuple[float, float]:
        """Where the current step begins in the whole, and its length."""
        return self.end_share, self._length / self.num_steps
