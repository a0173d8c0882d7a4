"""Exams on the page: asks the daemons' control sockets every second, and hands on what people press."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from edge.control_client import ControlClient
from edge.display.hub import Facts, Hub
from edge.errors import EdgeError, WireError
from edge.exams.keyframes import unpack_keyframe

_log = logging.getLogger(__name__)

COMMANDS = ("exam-start", "exam-stop", "exam-note")
_INTERVAL_S = 1.0
_TIMEOUT_S = 2.0


class ExamDesk:
    """The control sockets of the daemons that have one. Lives in the event loop."""

    def __init__(self, hub: Hub, controls: Mapping[str, str], curve: Path | None) -> None:
        """Connect to nothing yet.

        Args:
            hub: Is told each daemon's exam.
            controls: Control address by the address where the same daemon publishes.
            curve: Key folder for daemons that ask for keys.
        """
        self._hub = hub
        self._desks = {address: _Desk(hub, address, control, curve) for address, control in controls.items()}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep asking meanwhile.

        Raises:
            ConfigError: A control address or the keys cannot be used.
        """
        for desk in self._desks.values():
            desk.open()
        tasks = [asyncio.create_task(desk.follow()) for desk in self._desks.values()]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for desk in self._desks.values():
                await desk.close()

    async def act(self, address: str, command: str, note: str | None) -> None:
        """Do what was pressed for the daemon that publishes at an address.

        Raises:
            EdgeError: There is no such daemon or command, it does not answer, or it refuses.
        """
        desk = self._desks.get(address)
        if desk is None or command not in COMMANDS:
            raise EdgeError(f"no daemon with a control socket, or no command {command!r:.40}")
        arguments = {"note": note} if command == "exam-note" else {}
        await desk.check()
        await desk.ask(command, **arguments)
        await desk.tell()


class _Desk:
    """One daemon's control socket."""

    def __init__(self, hub: Hub, address: str, control: str, curve: Path | None) -> None:
        self._hub, self._address, self._control, self._curve = hub, address, control, curve
        self._client: ControlClient | None = None
        self._turn = asyncio.Lock()
        self._restored: str | None = None

    def open(self) -> None:
        self._client = ControlClient(self._control, timeout_s=_TIMEOUT_S, curve=self._curve)

    async def close(self) -> None:
        async with self._turn:  # a thread may still wait for an answer
            if self._client is not None:
                self._client.close()

    async def follow(self) -> None:
        while True:
            try:
                await self.tell()
            except EdgeError as exc:
                self._hub.exam(self._address, None, str(exc))
            except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as exc:
                told = f"{self._control} gave an answer that lacks something ({type(exc).__name__})"
                self._hub.exam(self._address, None, told)
            await asyncio.sleep(_INTERVAL_S)

    async def ask(self, command: str, **arguments: Any) -> Facts:
        async with self._turn:
            assert self._client is not None
            asking = asyncio.create_task(asyncio.to_thread(self._client.ask, command, **arguments))
            try:
                return await asyncio.shield(asking)
            except asyncio.CancelledError:
                await asyncio.wait([asking])  # the socket is its thread's until then
                asking.exception()  # nobody waits for it any more: asyncio would print it with its traceback
                raise

    async def check(self) -> None:
        """See that the control socket is that of the daemon whose picture is shown.

        Raises:
            EdgeError: It is another's: the exam would be that of another patient.
        """
        status = (await self.ask("status"))["status"] or {}
        runs = self._hub.runs(self._address)
        if runs and "run" in status and status["run"] not in runs:
            raise EdgeError(
                f"--control {self._control} is another daemon's than {self._address}; give edge-display both in the "
                "same order"
            )

    async def tell(self) -> None:
        """Ask for the exam, and tell the hub; with its keyframes when this server sees it for the first time."""
        await self.check()
        exam = (await self.ask("exam", keyframes=False))["exam"]
        if exam is not None and exam["ended_wall_ns"] is None and exam["id"] != self._restored:
            await self._restore()
            self._restored = exam["id"]
        self._hub.exam(self._address, None if exam is None else _facts(exam), "")

    async def _restore(self) -> None:
        exam = (await self.ask("exam"))["exam"]
        if exam is None:
            return
        try:
            keyframes = [unpack_keyframe(packed) for packed in exam["keyframes"]]
        except WireError as exc:
            _log.warning("%s: %s", self._control, exc)
            return
        self._hub.restore_keyframes(self._address, exam["id"], keyframes)


def _facts(exam: Facts) -> Facts:
    """Return what the page shows: no word of the notes, for they may name the patient."""
    ended_wall_ns = exam["ended_wall_ns"]
    kept = ("id", "num_windows", "finding", "probability", "interval", "threshold", "positive")
    return {
        **{key: exam[key] for key in kept},
        "is_open": ended_wall_ns is None,
        "span_s": ((ended_wall_ns or time.time_ns()) - exam["started_wall_ns"]) / 1e9,
        "num_notes": len(exam["notes"]),
    }
