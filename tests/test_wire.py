"""The wire: header keys as documented, messages that come back unchanged, and damage that ends in `WireError` alone."""

import contextlib
import dataclasses
from typing import Any

import msgpack
import numpy as np
import pytest

from edge import wire
from edge.errors import WireError
from edge.prediction import Latency, Prediction, State
from edge.window import Window
from edge.wire import Message, StreamIdentity
from engines import EngineSpec

ENGINE = EngineSpec("tin", "cd" * 32, "openvino", "fp32", "CPU", (16, 1, 224, 224), ("benign", "metastasis"))
IDENTITY = StreamIdentity("room-1.left", ENGINE.classes, 0.5, ENGINE)
NUM_FUZZED = 3000


def _prediction(probability: float = 0.75, **changes: Any) -> Prediction:
    heatmap = np.random.default_rng(1).random((16, 7, 7), np.float32)
    heatmap[11, 3, 2] = 2.5
    prediction = Prediction(
        window=Window(10, 25, 500.25, 33.5),
        num_skipped=3,
        probabilities=np.array([1 - probability, probability], np.float32),
        heatmap=heatmap,
        visible_rect=(132, 114, 448, 896),
        t_capture_ns=123_456_789_012_345,
        t_wall_ns=1_700_000_000_000_000_000,
        latency_ms=Latency(capture=0.5, preprocess=1.25, queue=0.125, infer=12.0),
    )
    return dataclasses.replace(prediction, **changes)


def _parts(prediction: Prediction | None = None) -> wire.Parts:
    prediction = prediction or _prediction()
    header = wire.prediction_header(prediction, IDENTITY, 7, "boot")
    return wire.encode("prediction", header, wire.heatmap_buffer(prediction.heatmap))


def test_prediction_header_has_exactly_the_documented_keys_and_values() -> None:
    prediction = _prediction()
    header = msgpack.unpackb(_parts(prediction)[1])
    assert header.pop("probabilities") == pytest.approx([0.25, 0.75])
    assert header == {
        "v": 1,
        "stream": "room-1.left",
        "seq": 7,
        "state": "LIVE",
        "classes": ["benign", "metastasis"],
        "threshold": 0.5,
        "positive": True,
        "window": {"first_index": 10, "last_index": 25, "span_ms": 500.25, "max_gap_ms": 33.5, "num_skipped": 3},
        "t_capture_ns": 123_456_789_012_345,
        "t_wall_ns": 1_700_000_000_000_000_000,
        "host": "boot",
        # "total" is added by the publisher, see test_publish.py
        "latency_ms": {"capture": 0.5, "preprocess": 1.25, "queue": 0.125, "infer": 12.0},
        "engine": {"name": "tin", "sha256": "cd" * 32, "backend": "openvino", "precision": "fp32"},
        "heatmap": {
            "shape": [16, 7, 7],
            "dtype": "float16",
            "roi_px": [132, 114, 448, 896],
            "keyframe": 11,
            "peak": 2.5,
        },
    }


def test_encode_parts_are_topic_header_buffer() -> None:
    topic, header, buffer = _parts()
    assert topic == b"prediction.room-1.left"
    assert msgpack.unpackb(header)["v"] == 1
    assert len(buffer) == 2 * 16 * 7 * 7


def test_encode_text_that_is_no_unicode_is_replaced() -> None:
    # a file name in Latin-1 comes from the operating system as surrogates, which UTF-8 does not have
    name = b"\xdcbung.mp4".decode("utf-8", "surrogateescape")
    message = wire.decode(wire.encode("status", {"v": 1, "stream": "main", "source": name, "reason": "Übung 転移"}))
    assert message.header["source"] == "?bung.mp4"
    assert message.header["reason"] == "Übung 転移"


@pytest.mark.parametrize(("probability", "positive"), [(0.5, True), (0.4999, False), (1.0, True), (0.0, False)])
def test_prediction_is_positive_from_the_threshold_on(probability: float, positive: bool) -> None:
    assert wire.prediction_header(_prediction(probability), IDENTITY, 0, "boot")["positive"] is positive


@pytest.mark.parametrize("state", [State.LIVE, State.FROZEN])
def test_prediction_state_is_text(state: State) -> None:
    assert wire.prediction_header(_prediction(state=state), IDENTITY, 0, "boot")["state"] == state.value


def test_decode_gives_what_was_encoded() -> None:
    prediction = _prediction()
    message = wire.decode(_parts(prediction))
    heatmap = message.heatmap()
    assert (message.kind, message.header["seq"], len(message.buffers)) == ("prediction", 7, 1)
    assert heatmap is not None
    assert (heatmap.dtype, heatmap.shape) == (np.float16, (16, 7, 7))
    assert not heatmap.flags.writeable
    np.testing.assert_allclose(heatmap, prediction.heatmap, rtol=1e-3, atol=1e-4)


def test_decode_keeps_unknown_keys_and_buffers() -> None:
    message = wire.decode([b"prediction.main", msgpack.packb({"v": 1, "new": {"a": [1]}}), b"one", b"two"])
    assert message.header == {"v": 1, "new": {"a": [1]}}
    assert message.buffers == (b"one", b"two")
    assert message.heatmap() is None


@pytest.mark.parametrize("kind", ["status", "frame"])
def test_message_of_other_kind_has_no_heatmap(kind: str) -> None:
    assert Message(kind, {"v": 1, "heatmap": {"shape": [1]}}, (b"ab",)).heatmap() is None


@pytest.mark.parametrize("version", [2, 10**9, "1", None, 1.0, [1]])
def test_decode_other_version_is_refused_with_both(version: Any) -> None:
    with pytest.raises(WireError, match=r"wire version .* up to 1; update it"):
        wire.decode([b"status.main", msgpack.packb({"v": version})])


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [b"status.main"],
        [b"\xff\xfe", msgpack.packb({"v": 1})],
        [b"status.main", b""],
        [b"status.main", msgpack.packb([1, 2])],
        [b"status.main", msgpack.packb("v")],
        [b"status.main", msgpack.packb({"w": 1})],
        [b"status.main", msgpack.packb({"v": 1}) + b"more"],
        [b"status.main", msgpack.packb({"v": 1})[:-1]],
        [b"status.main", b"\x91" * 100_000],
        [b"status.main", b"\x81\x91\x01\x01"],
        [b"status.main", b"\xdf\xff\xff\xff\xff"],
    ],
)
def test_decode_garbage_is_refused_in_one_line(parts: list[bytes]) -> None:
    with pytest.raises(WireError) as caught:
        wire.decode(parts)
    assert "\n" not in str(caught.value)


def test_decode_random_bytes_gives_nothing_but_wire_errors() -> None:
    rng = np.random.default_rng(5)
    for _ in range(NUM_FUZZED):
        parts = [rng.bytes(int(rng.integers(40))) for _ in range(rng.integers(4))]
        _decode_or_refuse(parts)


def test_decode_damaged_message_gives_nothing_but_wire_errors() -> None:
    rng = np.random.default_rng(6)
    whole = _parts()
    for _ in range(NUM_FUZZED):
        parts = [bytearray(part) for part in whole]
        for part in parts:
            for place in rng.integers(len(part), size=rng.integers(3)):
                part[place] = rng.integers(256)
        _decode_or_refuse([bytes(part[: len(part) - int(rng.choice([0, 0, 0, 1]))]) for part in parts])


def _decode_or_refuse(parts: list[bytes]) -> None:
    with contextlib.suppress(WireError):
        wire.decode(parts).heatmap()


BAD_HEATMAPS: list[tuple[Any, tuple[bytes, ...]]] = [
    ({"shape": [2, 2, 2]}, ()),
    ({"shape": [2, 2, 2]}, (b"x" * 15,)),
    ({"shape": [2, 2, 2]}, (b"x" * 18,)),
    ({"shape": "abc"}, (b"x" * 16,)),
    ({"shape": None}, (b"x" * 16,)),
    ({"shape": [-1, 2, 2]}, (b"x" * 16,)),
    ({"shape": [2**70]}, (b"x" * 16,)),
    ({}, (b"x" * 16,)),
    ("text", (b"x" * 16,)),
    (3, (b"x" * 16,)),
]


@pytest.mark.parametrize(("about", "buffers"), BAD_HEATMAPS)
def test_heatmap_that_does_not_fit_its_header_is_refused(about: Any, buffers: tuple[bytes, ...]) -> None:
    with pytest.raises(WireError, match="does not fit its header"):
        Message("prediction", {"v": 1, "heatmap": about}, buffers).heatmap()


def test_heatmap_buffer_is_little_endian_c_order() -> None:
    heatmap = np.arange(8, dtype=np.float32).reshape(2, 2, 2).transpose(2, 1, 0)
    values = np.frombuffer(wire.heatmap_buffer(heatmap), "<f2")
    assert values.tolist() == [0, 4, 2, 6, 1, 5, 3, 7]


def test_heatmap_buffer_holds_values_beyond_float16_at_its_largest() -> None:
    heatmap = np.array([[[0.0, 65503.0, 65519.0, 65520.0, 1e30]]], np.float32)
    values = np.frombuffer(wire.heatmap_buffer(heatmap), "<f2")
    assert values.tolist() == [0.0, 65504.0, 65504.0, 65504.0, 65504.0]


def test_prediction_keyframe_is_the_first_frame_of_the_peak() -> None:
    heatmap = np.zeros((4, 2, 2), np.float32)
    assert (_prediction(heatmap=heatmap).keyframe, _prediction(heatmap=heatmap).peak) == (0, 0.0)
    heatmap[2, 1, 0] = heatmap[3, 0, 0] = 70_000.0
    assert (_prediction(heatmap=heatmap).keyframe, _prediction(heatmap=heatmap).peak) == (2, 70_000.0)


def test_boot_id_is_the_hosts() -> None:
    assert wire.boot_id() == wire.boot_id()
    assert len(wire.boot_id()) == 36
