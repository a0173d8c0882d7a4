"""What the control socket can be asked for."""

from collections.abc import Mapping

from edge.control import Command
from edge.errors import ConfigError
from edge.exams.keeper import ExamKeeper
from edge.wire import Header


def commands_of(keeper: ExamKeeper) -> Mapping[str, Command]:
    """Return every command by its name."""

    def exam(request: Header) -> Header:
        with_keyframes = request.get("keyframes", True)
        if not isinstance(with_keyframes, bool):
            raise ConfigError(f"keyframes is {with_keyframes!r:.40}; it must be true or false")
        return {"exam": keeper.summary(with_keyframes=with_keyframes)}

    def threshold(request: Header) -> Header:
        keeper.set_threshold(request.get("threshold"))
        return {"threshold": request["threshold"]}

    return {
        "status": lambda _: {"status": keeper.last_status()},
        "exam-start": lambda request: {"exam": keeper.begin(request.get("note"))},
        "exam-stop": lambda _: {"exam": keeper.end()},
        "exam-note": lambda request: {"exam": keeper.note(request.get("note"))},
        "exam": exam,
        "snapshot": lambda _: keeper.snapshot(),
        "threshold": threshold,
    }
