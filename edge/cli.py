"""The command `edge-infer`: signals, then the daemon."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

_OPENING_LIMIT_S = 1.6
"""How long after a signal the files may still be opened before there is something to stop."""


class _Stopper:
    """Turns SIGINT, SIGTERM and a closed terminal's SIGHUP into the daemon's stop.

    Also when they come before there is anything to stop.
    """

    def __init__(self) -> None:
        self._stop: Callable[[str], None] | None = None
        self._reason: str | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)
        if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # nohup ignores it
            signal.signal(signal.SIGHUP, self._handle)
        signal.signal(signal.SIGALRM, self._give_up)

    def attach(self, stop: Callable[[str], None]) -> None:
        self._stop = stop
        signal.setitimer(signal.ITIMER_REAL, 0)
        if self._reason is not None:
            stop(self._reason)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        is_first = self._reason is None
        self._reason = f"stopped by {signal.Signals(number).name}"
        if self._stop is not None:
            self._stop(self._reason)
        elif is_first:
            signal.setitimer(signal.ITIMER_REAL, _OPENING_LIMIT_S)

    def _give_up(self, _number: int, _frame: FrameType | None) -> None:
        """End what waits for a file that never comes, say a pipe that nobody writes: Python would wait on."""
        os.write(2, f"ended: {self._reason}\n".encode())  # print() must not be entered a second time
        os._exit(0)


def main() -> int:
    """Run the command."""
    stopper = _Stopper()
    # imported only now: a signal that comes while the libraries load must not end in a traceback
    from edge.commandline import ignore_signals, run_command
    from edge.config import read_config
    from edge.daemon import run_daemon

    exit_code = run_command(lambda: run_daemon(read_config(), stopper.attach))
    ignore_signals()
    if any(thread.name in ("capture", "inference", "publish", "network") for thread in threading.enumerate()):
        # a library call that cannot be interrupted still runs; nothing of ours is left to save
        os._exit(exit_code)
    return exit_code


if __name__ == "__main__":
    raise SystemExit(main())
