"""Keeps a stream's strongest prediction and its frame, to draw one picture of them at the end."""

import collections
from collections.abc import Iterable, Iterator
from pathlib import Path

from edge.commandline import print_line
from edge.errors import ConfigError
from edge.evidence import Evidence, find_evidence
from edge.messages import AnyMessage, FrameMessage, PredictionMessage, StatusMessage
from edge.picture import draw
from edge.prediction import State

_NUM_FRAMES_KEPT, _MAX_KEPT_BYTES = 256, 128 << 20


class Snapshot:
    """Remembers the strongest prediction and the frame that it is about."""

    def __init__(self) -> None:
        self._frames: collections.OrderedDict[tuple[str, int], FrameMessage] = collections.OrderedDict()
        self._best: tuple[PredictionMessage, Evidence | None] | None = None
        self._best_frame: FrameMessage | None = None
        self._source = ""

    def add(self, messages: Iterable[AnyMessage]) -> None:
        """Take in messages, oldest first."""
        for message in messages:
            if isinstance(message, FrameMessage):
                self._frames[message.stream, message.index] = message
                self._forget_oldest()
            elif isinstance(message, PredictionMessage):
                self._consider(message)
            elif isinstance(message, StatusMessage):
                self._source = str(message.header.get("source") or "")

    def follow(self, batches: Iterable[list[AnyMessage]]) -> Iterator[list[AnyMessage]]:
        """Pass batches on, and take in each."""
        for batch in batches:
            self.add(batch)
            yield batch

    def write(self, path: Path) -> None:
        """Write the picture; a warning where no prediction came.

        Raises:
            ConfigError: The file cannot be written.
        """
        if self._best is None:
            print_line("warning", f"no prediction came: {path} is not written")
            return
        prediction, evidence = self._best
        picture = draw(prediction, evidence, self._best_frame, self._source)
        temporary = path.with_name(path.name + ".tmp")
        try:
            picture.save(temporary, format="PNG")
            temporary.replace(path)
        except OSError as exc:
            raise ConfigError(f"--snapshot {path} cannot be written ({exc.strerror}); choose another folder") from exc

    def _forget_oldest(self) -> None:
        num_bytes = sum(len(frame.jpeg) for frame in self._frames.values())
        while len(self._frames) > _NUM_FRAMES_KEPT or num_bytes > _MAX_KEPT_BYTES:
            num_bytes -= len(self._frames.popitem(last=False)[1].jpeg)

    def _consider(self, prediction: PredictionMessage) -> None:
        if prediction.sent_state is not State.LIVE:
            return
        if self._best is not None and _strength(prediction) <= _strength(self._best[0]):
            return
        self._best_frame = frame = self._picture_of(prediction)
        # not each frame has a picture: the map is that of the frame that is shown
        self._best = prediction, find_evidence(prediction, frame.index if frame else None)

    def _picture_of(self, prediction: PredictionMessage) -> FrameMessage | None:
        """Return the picture in the window that is nearest to the keyframe."""
        evidence = find_evidence(prediction)
        index = evidence.frame_index if evidence else prediction.last_index
        frames = [frame for (stream, _), frame in self._frames.items() if stream == prediction.stream]
        in_window = [frame for frame in frames if prediction.first_index <= frame.index <= prediction.last_index]
        return min(in_window, key=lambda frame: abs(frame.index - index), default=None)


def _strength(prediction: PredictionMessage) -> tuple[float, float]:
    return prediction.probability, prediction.place.peak if prediction.place else 0.0
