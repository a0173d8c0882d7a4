"""Runs the real `edge-infer` as a process, with a real subscriber that misses nothing."""

import contextlib
import dataclasses
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import zmq

from edge import wire

DEADLINE_S = 60.0


@dataclasses.dataclass
class Recording:
    """All that one run of the daemon said."""

    messages: list[wire.Message]
    exit_code: int
    stderr: str

    def of(self, kind: str) -> list[wire.Message]:
        return [message for message in self.messages if message.kind == kind]

    @property
    def predictions(self) -> list[wire.Header]:
        return [message.header for message in self.of("prediction")]

    @property
    def states(self) -> list[tuple[str, str]]:
        """State and reason of the status messages, repetitions left out."""
        told = [(message.header["state"], message.header["reason"]) for message in self.of("status")]
        return [entry for place, entry in enumerate(told) if place == 0 or told[place - 1] != entry]

    @property
    def windows(self) -> list[tuple[int, int]]:
        return [(header["window"]["first_index"], header["window"]["last_index"]) for header in self.predictions]


def run_command(*arguments: str, module: str = "edge.cli", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        cwd=cwd,
        check=False,
    )


class RunningDaemon:
    """A daemon process and a subscriber that was there before its first frame."""

    def __init__(self, *arguments: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="edge-test-")
        self.address = f"ipc://{self._folder.name}/socket"
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 10)
        self._socket.subscribe(b"")
        self._socket.connect(self.address)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edge.cli", "--publish", self.address, "--wait-subscribers", "1", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.messages: list[wire.Message] = []

    def receive(self, until: str) -> wire.Message:
        """Receive up to and with the next message of this kind."""
        deadline_s = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline_s:
            if self._socket.poll(100):
                self.messages.append(wire.decode(self._socket.recv_multipart()))
                if self.messages[-1].kind == until:
                    return self.messages[-1]
            elif self.process.poll() is not None:
                break
        raise AssertionError(f"no {until} message came; stderr: {self.process.communicate()[1]}")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def finish(self) -> Recording:
        """Wait for the end and return all that was said."""
        deadline_s = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline_s:
            has_ended = self.process.poll() is not None  # asked first: what was sent before the end is then received
            while self._socket.poll(100):
                self.messages.append(wire.decode(self._socket.recv_multipart()))
            if has_ended:
                break
        _, stderr = self.process.communicate(timeout=DEADLINE_S)
        return Recording(self.messages, self.process.returncode, stderr)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        self._socket.close(linger=0)
        self._context.term()
        self._folder.cleanup()


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[RunningDaemon]:
    """Start a daemon; end it whatever happens."""
    daemon = RunningDaemon(*arguments)
    try:
        yield daemon
    finally:
        daemon.close()


def record(*arguments: str) -> Recording:
    """Run a daemon to its end and return all that it said."""
    with running(*arguments) as daemon:
        return daemon.finish()
