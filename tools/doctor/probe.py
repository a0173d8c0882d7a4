"""Asks native libraries, each in a process of its own: where one crashes or hangs, that is an answer."""

import contextlib
import json
import signal
import time
from collections.abc import Mapping
from typing import Any

from edge.errors import EdgeError
from tools.children import Child, running

Answer = dict[str, Any]

LIMIT_S = 20.0
"""For an answer; a library that is cold on a slow disk takes seconds."""


class ProbeError(EdgeError):
    """There was no answer, or it is an error; the text says which."""


class Probes:
    """Processes that have been asked; on leaving, all are ended."""

    def __init__(self, questions: Mapping[str, Mapping[str, Any]]) -> None:
        """Keep the questions: name in `tools.doctor.answers` to arguments, as JSON has them."""
        self._questions = questions
        self._children: dict[str, Child] = {}
        self._answers: dict[str, Answer] = {}
        self._resources = contextlib.ExitStack()

    def __enter__(self) -> "Probes":
        """Start them all, so that they work while other things are looked at."""
        with contextlib.ExitStack() as stack:
            for name, arguments in self._questions.items():
                child = self._children[name] = stack.enter_context(running("tools.doctor.answers"))
                # not on the command line, which all can read: a source may hold a password
                with contextlib.suppress(BrokenPipeError):
                    print(json.dumps({"question": name, **arguments}), file=child.process.stdin, flush=True)
            self._resources = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def answer(self, name: str, limit_s: float = LIMIT_S) -> Answer:
        """Wait for an answer; one that has been given is given again.

        Raises:
            ProbeError: The process crashed or was too slow, or the answer is an error, whose exit code it has.
        """
        if name in self._answers:
            return self._answers[name]
        child, start_s = self._children[name], time.monotonic()
        try:
            answer = child.ask(None, limit_s)
        except EdgeError as exc:
            raise ProbeError(_why_silent(child, exc, time.monotonic() - start_s, limit_s)) from exc
        if "error" in answer:
            error = ProbeError(answer["error"])
            error.exit_code = answer["exit_code"]
            raise error
        self._answers[name] = answer
        return answer


def _why_silent(child: Child, error: EdgeError, waited_s: float, limit_s: float) -> str:
    code = child.process.wait()
    if code == -signal.SIGKILL and waited_s >= limit_s:
        return f"it does not answer within {limit_s:g} s"
    if code < 0:
        return f"it ends its process ({signal.Signals(-code).name})"
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), "it gives no reason")
