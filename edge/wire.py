"""The wire, version 1: ZeroMQ multipart `[topic, header, buffer...]`, the header one msgpack map.

Topics: `prediction.<stream>`, `status.<stream>`, `frame.<stream>`. A prediction's buffer is its heatmap, a frame's the
JPEG of the ROI.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from edge.errors import WireError
from edge.prediction import Prediction
from edge.terms import ExamMark, Terms
from engines import Bundle, EngineSpec

VERSION = 1
MAX_PART_BYTES = 2**25
"""Of one part of a message: several times what the largest picture takes."""
MAX_TEXT = 4096
"""Characters of one text: readers leave out a message with a longer one."""

_MAX_DEPTH = 16
_MAX_TEXT_BYTES, _MAX_BYTES, _MAX_ELEMENTS = 2**16, 2**20, 2**12
"""Of what a header holds."""

Header = dict[str, Any]
Parts = list[bytes]


@dataclasses.dataclass(frozen=True, slots=True)
class StreamIdentity:
    """What the predictions of one daemon share."""

    stream: str
    classes: tuple[str, ...]
    threshold: float
    engine: EngineSpec
    exam: ExamMark | None = None
    """The exam that is open now."""

    @classmethod
    def of(cls, stream: str, bundle: Bundle, engine: EngineSpec, terms: Terms) -> "StreamIdentity":
        """Put together what a bundle and its engine say, and what holds now."""
        return cls(stream, bundle.classes, terms.threshold, engine, terms.exam)


def boot_id() -> str:
    """Return the host's boot id: monotonic times compare only within it."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def engine_header(engine: EngineSpec) -> Header:
    """Return the `engine` map of predictions and status."""
    return {
        "name": engine.name,
        "sha256": engine.sha256,
        "backend": engine.backend,
        "precision": engine.precision,
    }


def prediction_header(prediction: Prediction, identity: StreamIdentity, seq: int, host: str) -> Header:
    """Return a prediction's header, all but `latency_ms.total`, which the publisher adds last."""
    window, latency = prediction.window, prediction.latency_ms
    positive_probability = float(prediction.probabilities[-1])
    extra: Header = {} if prediction.object_id is None else {"object": prediction.object_id}
    if identity.exam is not None and window.first_index >= identity.exam.first_index:
        extra["exam"] = identity.exam.header()
    return extra | {
        "v": VERSION,
        "stream": identity.stream,
        "seq": seq,
        "state": str(prediction.state),
        "classes": list(identity.classes),
        "probabilities": prediction.probabilities.tolist(),
        "threshold": identity.threshold,
        "positive": positive_probability >= identity.threshold,
        "window": {
            "first_index": window.first_index,
            "last_index": window.last_index,
            "span_ms": window.span_ms,
            "max_gap_ms": window.max_gap_ms,
            "num_skipped": prediction.num_skipped,
        },
        "t_capture_ns": prediction.t_capture_ns,
        "t_wall_ns": prediction.t_wall_ns,
        "host": host,
        "latency_ms": {
            "capture": latency.capture,
            "preprocess": latency.preprocess,
            "queue": latency.queue,
            "infer": latency.infer,
        },
        "engine": engine_header(identity.engine),
        "heatmap": {
            "shape": list(prediction.heatmap.shape),
            "dtype": "float16",
            "roi_px": list(prediction.visible_rect),
            "keyframe": prediction.keyframe,
            "peak": prediction.peak,
        },
    }


def heatmap_buffer(heatmap: npt.NDArray[np.float32]) -> bytes:
    """Return the heatmap as little-endian float16, C order; values beyond float16 are held at its largest."""
    return np.minimum(heatmap, np.float32(np.finfo(np.float16).max)).astype("<f2").tobytes()


def encode(kind: str, header: Header, *buffers: bytes) -> Parts:
    """Return the message's parts; `kind` is prediction, status or frame."""
    # a name may hold what UTF-8 has no code for: Python's stand-ins for the bytes of a Latin-1 file name
    packed = msgpack.packb(header, unicode_errors="replace")
    return [f"{kind}.{header['stream']}".encode(), packed, *buffers]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Message:
    """One message as a subscriber gets it."""

    kind: str
    """"prediction", "status" or "frame"."""
    header: Header
    """The wire's keys, unchanged; unknown ones are left in."""
    buffers: tuple[bytes, ...] = ()

    def heatmap(self) -> npt.NDArray[np.float16] | None:
        """Return a prediction's heatmap (T, h, w) float16, a read-only view of the message; None where it has none."""
        about = self.header.get("heatmap")
        if self.kind != "prediction" or about is None:
            return None
        try:
            num_frames, height, width = (int(side) for side in about["shape"])
            buffer = self.buffers[0]
            if len(buffer) != 2 * num_frames * height * width:
                raise ValueError(f"{len(buffer)} bytes for {about['shape']}")
            return np.frombuffer(buffer, "<f2").reshape(num_frames, height, width)
        except (IndexError, KeyError, TypeError, ValueError) as exc:
            raise WireError(f"a prediction's heatmap buffer does not fit its header ({exc})") from exc


def decode(parts: Sequence[bytes]) -> Message:
    """Read a message.

    Raises:
        WireError: It is not of this form, or of a higher version.
    """
    try:
        kind = bytes(parts[0]).decode().split(".", 1)[0]
        header = unpack_header(parts[1])
        version = header["v"]
    except (IndexError, KeyError, TypeError, ValueError, msgpack.UnpackException) as exc:
        raise WireError(f"not a message of this wire format ({type(exc).__name__}: {exc})") from exc
    if not isinstance(version, int) or version > VERSION:
        raise WireError(f"the message has wire version {version!r}; this reader knows up to {VERSION}; update it")
    return Message(kind, header, tuple(parts[2:]))


def unpack_header(packed: bytes) -> Any:
    """Read a message's header, of bounded size: an empty list is one byte of it, and sixty in memory.

    Raises:
        ValueError, TypeError, msgpack.UnpackException: It is damaged, or beyond the bounds.
    """
    if len(packed) > _MAX_BYTES:
        raise ValueError(f"a header of {len(packed)} bytes")
    return unpack(packed)


def unpack(packed: bytes, max_bytes: int = _MAX_BYTES) -> Any:
    """Read somebody else's msgpack, of bounded length and depth.

    Args:
        packed: One value.
        max_bytes: The longest byte string in it.

    Raises:
        ValueError, TypeError, msgpack.UnpackException: It is damaged, or beyond the bounds.
    """
    value = msgpack.unpackb(
        packed,
        max_str_len=_MAX_TEXT_BYTES,
        max_bin_len=max_bytes,
        max_ext_len=max_bytes,
        max_array_len=_MAX_ELEMENTS,
        max_map_len=_MAX_ELEMENTS,
    )
    level: list[Any] = [value]
    for _ in range(_MAX_DEPTH + 1):
        inner = [each for each in level if isinstance(each, dict | list)]
        if not inner:
            return value
        level = [each for values in inner for each in (values.values() if isinstance(values, dict) else values)]
    raise ValueError(f"more than {_MAX_DEPTH} levels")  # those who walk through it would run out of stack


def strict_json(value: Any) -> str:
    """Return a header, or what holds parts of one, as one line of JSON that every reader takes.

    Numbers that are not finite become null, bytes their hexadecimal digits: keys of later versions may hold them.
    """
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return json.dumps(_plain(value), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return value.hex()
    return value if isinstance(value, str | int | None) else str(value)
