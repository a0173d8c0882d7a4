"""What a reader of the wire gets: predictions, status and frames, checked once when they come.

A publisher may be anybody's. Numbers that no stream of images has are refused here, before anything is drawn of them.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.errors import WireError
from edge.prediction import State
from edge.sources.base import MAX_IMAGE_PX, Rect
from edge.wire import MAX_TEXT, Header, Message
from engines import MAX_PROBABILITY

_MAX_SIDE_PX = 65_535
"""Of an image: no JPEG is longer."""
_MAX_CELLS = 512
"""Of a frame's heatmap, a side; of frames there are as many as a clip has."""


@dataclasses.dataclass(frozen=True, slots=True)
class Arrival:
    """When and where a message came in."""

    t_received_ns: int
    """This host's monotonic clock."""
    host: str
    """This host's boot id."""
    stale_after_ms: float
    """From this age on a prediction must not be believed."""


@dataclasses.dataclass(frozen=True, slots=True)
class HeatmapPlace:
    """Where a heatmap lies."""

    roi_px: Rect
    """The part of the source image that the heatmap covers, in source pixels."""
    keyframe: int
    """Offset in the window of the frame with the strongest evidence."""
    peak: float
    """The heatmap's maximum before any scaling."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class PredictionMessage:
    """One prediction."""

    stream: str
    seq: int
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    """In the order of `classes`; the positive class is the last."""
    threshold: float
    positive: bool
    first_index: int
    last_index: int
    """Index of the window's newest frame."""
    t_capture_ns: int
    t_wall_ns: int
    latency_ms: dict[str, float]
    heatmap: npt.NDArray[np.float16] | None
    """(T, h, w) float16 >= 0, a read-only view of the message."""
    place: HeatmapPlace | None
    sent_state: State
    header: Header = dataclasses.field(repr=False)
    """The wire's keys, unchanged."""
    arrival: Arrival = dataclasses.field(repr=False)

    @property
    def probability(self) -> float:
        """Of the positive class."""
        return self.probabilities[-1]

    @property
    def state(self) -> State:
        """The state now: STALE from `stale_after_ms` on."""
        return State.STALE if self.age_ms > self.arrival.stale_after_ms else self.sent_state

    @property
    def age_ms(self) -> float:
        """Time since capture; since receipt where the daemon runs on another host, whose clock says nothing here."""
        is_same_host = self.header["host"] == self.arrival.host
        # what says that it was captured later than it came would be new for ever
        start_ns = min(self.t_capture_ns, self.arrival.t_received_ns) if is_same_host else self.arrival.t_received_ns
        return (time.monotonic_ns() - start_ns) / 1e6


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class StatusMessage:
    """One status: every second, and on every change of state."""

    stream: str
    state: State
    reason: str
    counters: dict[str, int]
    latency_ms: dict[str, float]
    """Percentiles of the last minute: p50, p95, p99, max."""
    header: Header = dataclasses.field(repr=False)
    arrival: Arrival = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class FrameMessage:
    """One image, cut to the ROI."""

    stream: str
    index: int
    jpeg: bytes = dataclasses.field(repr=False)
    header: Header = dataclasses.field(repr=False)
    arrival: Arrival = dataclasses.field(repr=False)

    @property
    def roi_px(self) -> Rect | None:
        """Where the picture lies in the source image, in source pixels; None where the daemon does not say."""
        roi = self.header.get("roi_px")
        return None if roi is None else _rect(roi)

    @property
    def t_capture_ns(self) -> int:
        """On the monotonic clock of the daemon's host."""
        return int(self.header["t_capture_ns"])

    @property
    def t_wall_ns(self) -> int:
        """When it was captured, as people tell the time."""
        return int(self.header["t_wall_ns"])


AnyMessage = PredictionMessage | StatusMessage | FrameMessage


def read_message(message: Message, arrival: Arrival) -> AnyMessage:
    """Check a message's keys and types.

    Raises:
        WireError: A key is missing or of another type, or the kind is unknown.
    """
    reader = _READERS.get(message.kind)
    if reader is None:
        raise WireError(f"a message of kind {message.kind!r}; this reader knows {', '.join(_READERS)}")
    try:
        return reader(message, arrival)
    except (LookupError, TypeError, ValueError, OverflowError, AttributeError) as exc:
        raise WireError(f"a {message.kind} message is damaged ({type(exc).__name__}: {exc})") from exc


def _read_prediction(message: Message, arrival: Arrival) -> PredictionMessage:
    header = message.header
    heatmap = message.heatmap()
    classes, probabilities = _texts(header["classes"]), tuple(_probability(value) for value in header["probabilities"])
    if not probabilities or len(classes) != len(probabilities):
        raise ValueError(f"{len(probabilities)} probabilities for {len(classes)} classes")
    _text(header["host"])
    _check_tables(header, "engine", "exam")
    return PredictionMessage(
        stream=_text(header["stream"]),
        seq=_count(header["seq"]),
        classes=classes,
        probabilities=probabilities,
        threshold=_probability(header["threshold"]),
        positive=bool(header["positive"]),
        first_index=_count(header["window"]["first_index"]),
        last_index=_count(header["window"]["last_index"]),
        t_capture_ns=_count(header["t_capture_ns"]),
        t_wall_ns=_count(header["t_wall_ns"]),
        latency_ms=_numbers(header["latency_ms"]),
        heatmap=heatmap,
        place=None if heatmap is None else _read_place(header["heatmap"], heatmap.shape),
        sent_state=State(header["state"]),
        header=header,
        arrival=arrival,
    )


def _read_place(about: Any, shape_thw: tuple[int, ...]) -> HeatmapPlace:
    place = HeatmapPlace(_rect(about["roi_px"]), _count(about["keyframe"]), _number(about["peak"]))
    num_frames, *sides = shape_thw
    is_told = about["dtype"] == "float16" and about["shape"] == list(shape_thw)
    if not is_told or not place.keyframe < num_frames or not 1 <= min(sides) <= max(sides) <= _MAX_CELLS:
        raise ValueError(f"heatmap {about['dtype']} {about['shape']!r:.80} with keyframe {place.keyframe}")
    return place


def _read_status(message: Message, arrival: Arrival) -> StatusMessage:
    header = message.header
    _check_tables(header, "engine", "exam", "recording")
    for key in ("source", "exam_trouble"):
        _text(header.get(key) or "")
    for table, keys in (("engine", ("name", "backend", "precision")), ("recording", ("trouble",))):
        for key in keys:
            _text((header.get(table) or {}).get(key) or "")
    _numbers({"fps": header.get("fps")})
    return StatusMessage(
        stream=_text(header["stream"]),
        state=State(header["state"]),
        reason=_text(header.get("reason") or ""),
        counters={_text(key): _count(value) for key, value in header["counters"].items()},
        latency_ms=_numbers(header.get("latency_ms") or {}),
        header=header,
        arrival=arrival,
    )


def _read_frame(message: Message, arrival: Arrival) -> FrameMessage:
    header = message.header
    if header["encoding"] != "jpeg":
        raise ValueError(f"encoding {header['encoding']!r}; this reader knows jpeg")
    _count(header["t_capture_ns"])
    _count(header["t_wall_ns"])
    _check_tables(header, "exam")
    frame = FrameMessage(_text(header["stream"]), _count(header["index"]), message.buffers[0], header, arrival)
    _ = frame.roi_px
    return frame


_READERS: dict[str, Callable[[Message, Arrival], AnyMessage]] = {
    "prediction": _read_prediction,
    "status": _read_status,
    "frame": _read_frame,
}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is no text")
    if len(value) > MAX_TEXT:
        raise ValueError(f"a text of {len(value)} characters")
    return value


def _texts(values: Any) -> tuple[str, ...]:
    return tuple(_text(value) for value in values)


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:  # numpy takes True for no place
        raise ValueError(f"{value!r:.80} is no whole number from 0")
    return value


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{value!r:.80} is no number")
    return float(value)


def _numbers(values: Any) -> dict[str, float]:
    return {_text(key): _number(value) for key, value in values.items() if value is not None}


def _probability(value: Any) -> float:
    if not 0 <= _number(value) <= MAX_PROBABILITY:
        raise ValueError(f"{value!r} is no probability")
    return float(value)


def _rect(values: Any) -> Rect:
    x, y, width, height = (_count(value) for value in values)
    _check_size(x + width, y + height)
    if not width or not height:
        raise ValueError(f"{values!r} is no rectangle")
    return x, y, width, height


def _check_size(width: int, height: int) -> None:
    if max(width, height) > _MAX_SIDE_PX or width * height > MAX_IMAGE_PX:
        raise ValueError(f"an image of {width} x {height} pixels")


def _check_tables(header: Header, *keys: str) -> None:
    """Refuse what is there and no map; what a map holds is its readers' affair."""
    for key in keys:
        if not isinstance(header.get(key) or {}, dict):
            raise TypeError(f"{key} is no map")
