"""What the display knows of each stream, and what it tells the browsers. Lives in the event loop."""

import collections
import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from edge.display.clients import Clients
from edge.display.keyframes import Keyframe, Keyframes
from edge.display.views import Pairing, View
from edge.messages import AnyMessage, FrameMessage, PredictionMessage, StatusMessage
from edge.prediction import State
from edge.wire import strict_json

HISTORY_S = 60.0
_MAX_HISTORY = 100_000
"""Of a minute: more than any daemon publishes, also where its times lie in the future."""
_MAX_STREAMS = 16
"""Of one daemon, which has one: whoever names more fills the page and the memory."""
_CURRENT_NS = 1_500_000_000
"""A daemon that lives says its status every second."""

Facts = dict[str, Any]


@dataclasses.dataclass(slots=True, eq=False)
class Stream:
    """One stream of one daemon."""

    id: str
    address: str
    name: str
    pairing: Pairing = dataclasses.field(default_factory=Pairing)
    keyframes: Keyframes = dataclasses.field(default_factory=Keyframes)
    history: collections.deque[tuple[int, float]] = dataclasses.field(
        default_factory=lambda: collections.deque(maxlen=_MAX_HISTORY)
    )
    """(monotonic ns of capture, as the page is told it, and probability), oldest first."""
    prediction: PredictionMessage | None = None
    status: StatusMessage | None = None
    t_message_ns: int = 0
    exam_id: str | None = None
    """Of the exam that the keyframes are of."""
    is_result_cut: bool = False
    """Whether something else than a freeze came after the last prediction: it is not that of a frozen image."""


class Hub:
    """Takes the daemons' messages in and hands the browsers what to show."""

    def __init__(self, clients: Clients) -> None:
        self.streams: dict[str, Stream] = {}
        self.connections: dict[str, tuple[bool, str]] = {}
        """Address to (is up, why not), in the order in which they were named."""
        self.exams: dict[str, bytes] = {}
        """Address of a daemon with a control socket to what the browsers are told of its exam."""
        self._clients = clients
        self._t_up_ns: dict[str, int] = {}
        """When the connection to an address came up: what was heard before may be another run's."""

    def connection(self, address: str, is_up: bool, reason: str) -> None:
        """Note that a daemon came or went."""
        if is_up and not self.connections.get(address, (False, ""))[0]:
            self._t_up_ns[address] = time.monotonic_ns()
        self.connections[address] = is_up, reason
        self.tick()

    def message(self, address: str, message: AnyMessage) -> None:
        """Take a message in."""
        stream = self._stream(address, message.stream)
        if stream is None:
            return
        stream.t_message_ns = message.arrival.t_received_ns
        self._follow_exam(stream, message)
        if isinstance(message, FrameMessage):
            self._show(stream, stream.pairing.add_frame(message))
        elif isinstance(message, PredictionMessage):
            self._predicted(stream, message)
        else:
            is_change = stream.status is None or stream.status.state is not message.state
            stream.status = message
            stream.is_result_cut |= message.state not in (State.LIVE, State.FROZEN)
            if is_change:
                self.tick()

    def tick(self) -> None:
        """Tell every browser that the server lives, and the state of each stream; called four times a second too."""
        for stream in self.streams.values():
            self._show(stream, stream.pairing.overdue())
        self._clients.send("tick", encode({"kind": "tick", "streams": self._states()}))

    def greeting(self) -> list[tuple[str, bytes]]:
        """Return what a browser that comes now must be told, by slot."""
        messages = [("tick", encode({"kind": "tick", "streams": self._states()}))]
        messages += [(f"exam {address}", message) for address, message in self.exams.items()]
        for stream in self.streams.values():
            past = [[round(t_ns / 1e6), probability] for t_ns, probability in stream.history]
            messages.append((f"history {stream.id}", encode({"kind": "history", "stream": stream.id, "past": past})))
            messages.append((f"keyframes {stream.id}", _encode_keyframes(stream)))
            if stream.prediction is not None:
                messages.append((f"prediction {stream.id}", _encode_prediction(stream, stream.prediction)))
        return messages

    def exam(self, address: str, exam: Facts | None, trouble: str) -> None:
        """Tell the browsers of a daemon's exam, or why it is not known."""
        self.exams[address] = encode({"kind": "exam", "address": address, "exam": exam, "trouble": trouble})
        self._clients.send(f"exam {address}", self.exams[address])

    def runs(self, address: str) -> set[str]:
        """Return what the daemon at an address calls its run; nothing where it has not just said so."""
        if not self.connections[address][0]:
            return set()
        oldest_ns = max(time.monotonic_ns() - _CURRENT_NS, self._t_up_ns[address])
        streams = [stream for stream in self.streams.values() if stream.address == address]
        heard = [stream.status.header for stream in streams if stream.status and stream.t_message_ns > oldest_ns]
        return {str(header["run"]) for header in heard if header.get("run")}

    def restore_keyframes(self, address: str, exam_id: str, keyframes: Sequence[Keyframe]) -> None:
        """Show keyframes that the daemon kept: this server was not there when they came."""
        if not keyframes:
            return
        stream = self._stream(address, keyframes[0].view.frame.stream)
        if stream is None:
            return
        if stream.exam_id != exam_id or not stream.keyframes.kept:
            stream.exam_id = exam_id
            stream.keyframes.restore(keyframes)
            self._clients.send(f"keyframes {stream.id}", _encode_keyframes(stream))

    def _follow_exam(self, stream: Stream, message: AnyMessage) -> None:
        """Forget the keyframes when a new exam begins."""
        exam = message.header.get("exam")
        exam_id = exam.get("id") if isinstance(exam, dict) else None
        if exam_id is not None and exam_id != stream.exam_id:
            stream.exam_id = exam_id
            stream.keyframes.clear()
            self._clients.send(f"keyframes {stream.id}", _encode_keyframes(stream))

    def keyframe(self, keyframe_id: int) -> Keyframe | None:
        """Return a keyframe that is still kept."""
        kept = (keyframe for stream in self.streams.values() for keyframe in stream.keyframes.kept)
        return next((keyframe for keyframe in kept if keyframe.id == keyframe_id), None)

    def _stream(self, address: str, name: str) -> Stream | None:
        """Return what is known of a stream, new where it is; None where its daemon has named too many."""
        stream_id = f"{address} {name}"
        if stream_id not in self.streams:
            if sum(stream.address == address for stream in self.streams.values()) >= _MAX_STREAMS:
                return None
            self.streams[stream_id] = Stream(stream_id, address, name)
            self.tick()
        return self.streams[stream_id]

    def _predicted(self, stream: Stream, prediction: PredictionMessage) -> None:
        stream.prediction, stream.is_result_cut = prediction, False
        views = stream.pairing.add_prediction(prediction)
        now_ns = time.monotonic_ns()
        stream.history.append((now_ns - round(prediction.age_ms * 1e6), prediction.probability))
        while stream.history and stream.history[0][0] < now_ns - HISTORY_S * 1e9:
            stream.history.popleft()
        self._clients.send(f"prediction {stream.id}", _encode_prediction(stream, prediction))
        self._show(stream, views)
        if stream.exam_id is not None and not prediction.header.get("exam"):
            return  # the exam has ended: what comes now is none of its windows
        if stream.keyframes.add(prediction, stream.pairing.frames, stream.pairing.scale()):
            self._clients.send(f"keyframes {stream.id}", _encode_keyframes(stream))

    def _show(self, stream: Stream, views: list[View]) -> None:
        for view in views:
            self._clients.send(f"view {stream.id}", _encode_view(stream, view), depth=2)

    def _states(self) -> list[Facts]:
        """Return what is known of each stream, in the order in which the daemons were named: a tile keeps its place."""
        names = collections.Counter(stream.name for stream in self.streams.values())
        states = []
        for address, connection in self.connections.items():
            streams = [stream for stream in self.streams.values() if stream.address == address]
            states += [_state(stream, connection, names) for stream in sorted(streams, key=lambda stream: stream.name)]
            states += [] if streams else [_silent_state(address, *connection)]
        return states


def encode(facts: Facts, *blobs: bytes) -> bytes:
    """Return one message for the browser: length of the JSON, the JSON, and blobs whose sizes it tells.

    Times `t_*_ms` are on the server's monotonic clock; `t_wall_ms` is for people.
    """
    text = strict_json({**facts, "blobs": [len(blob) for blob in blobs]}).encode()
    return b"".join((len(text).to_bytes(4, "little"), text, *blobs))


def _state(stream: Stream, connection: tuple[bool, str], names: Mapping[str, int]) -> Facts:
    # daemons that were given no name are all called the same
    name = stream.name if names[stream.name] == 1 else f"{stream.name} at {stream.address}"
    status = stream.status
    header = status.header if status else {}
    return {
        "id": stream.id,
        "name": name,
        "address": stream.address,
        "is_connected": connection[0],
        "refusal": connection[1],
        "t_message_ms": stream.t_message_ns / 1e6,
        "state": str(status.state) if status else None,
        "reason": status.reason if status else "",
        "is_result_cut": stream.is_result_cut,
        "latency_ms": status.latency_ms if status else {},
        "fps": header.get("fps"),
        "source": header.get("source"),
        "engine": header.get("engine"),
        "recording": header.get("recording"),
        "exam_trouble": header.get("exam_trouble"),
        "has_pictures": bool(stream.pairing.frames),
    }


def _silent_state(address: str, is_up: bool, refusal: str) -> Facts:
    return {
        "id": address,
        "name": address,
        "address": address,
        "is_connected": is_up,
        "refusal": refusal,
        "t_message_ms": None,
        "state": None,
        "reason": "",
        "latency_ms": {},
        "has_pictures": False,
    }


def _encode_prediction(stream: Stream, prediction: PredictionMessage) -> bytes:
    return encode(
        {
            "kind": "prediction",
            "stream": stream.id,
            "seq": prediction.seq,
            "state": str(prediction.sent_state),
            "class": prediction.classes[-1],
            "probability": prediction.probability,
            "threshold": prediction.threshold,
            "positive": prediction.positive,
            "t_ms": time.monotonic_ns() / 1e6 - prediction.age_ms,
            "total_ms": prediction.latency_ms.get("total"),
            "object": prediction.header.get("object"),
        }
    )


def _encode_view(stream: Stream, view: View) -> bytes:
    t_ms = view.frame.arrival.t_received_ns / 1e6
    facts = {"kind": "view", "stream": stream.id, "index": view.frame.index, "t_ms": t_ms, **view_facts(view)}
    return encode(facts, view.frame.jpeg, *([view.heat.map_hw.tobytes()] if view.heat else []))


def view_facts(view: View) -> Facts:
    """Return where a picture and its heatmap lie, in source pixels."""
    heat = view.heat
    return {
        "frame_px": view.frame.roi_px,
        "heat": {"hw": list(heat.map_hw.shape), "roi_px": list(heat.roi_px)} if heat else None,
    }


def _encode_keyframes(stream: Stream) -> bytes:
    kept = [
        {
            "id": keyframe.id,
            "probability": keyframe.probability,
            "positive": keyframe.positive,
            "t_wall_ms": keyframe.t_wall_ns / 1e6,
            "index": keyframe.view.frame.index,
        }
        for keyframe in stream.keyframes.kept
    ]
    return encode({"kind": "keyframes", "stream": stream.id, "keyframes": kept})
