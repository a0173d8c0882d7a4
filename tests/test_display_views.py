"""Which heatmap belongs to which picture, and which windows are kept."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edge import wire
from edge.display.keyframes import NUM_KEPT, Keyframes
from edge.display.views import Pairing, View, heat_of
from edge.messages import Arrival, FrameMessage, PredictionMessage, read_message
from edge.prediction import Latency, Prediction, State
from edge.window import Window
from engines import EngineSpec

ENGINE = EngineSpec("small", "ab" * 32, "openvino", "fp32", "CPU", (4, 1, 224, 224), ("benign", "metastasis"))
MS = 1_000_000
ROI = (10, 20, 70, 50)


def _frame(index: int, t_ms: float = 0.0) -> FrameMessage:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), index % 256).save(buffer, "jpeg")
    header = {"v": 1, "stream": "main", "index": index, "encoding": "jpeg", "roi_px": [0, 0, 8, 8]}
    header |= {"t_capture_ns": round(t_ms * MS), "t_wall_ns": 0}
    return _received("frame", header, buffer.getvalue(), t_ms)


def _prediction(
    first: int, last: int, t_ms: float = 0.0, probability: float = 0.5, maps: np.ndarray | None = None, **changes: Any
) -> PredictionMessage:
    """Return a prediction of four clip frames; without `maps`, map k is k + 1 all over."""
    heatmap = (
        np.arange(1, 5, dtype=np.float32)[:, None, None] * np.ones((1, 3, 5), np.float32) if maps is None else maps
    )
    prediction = Prediction(
        window=Window(first, last, 100.0, 40.0),
        num_skipped=0,
        probabilities=np.array([1 - probability, probability], np.float32),
        heatmap=heatmap,
        visible_rect=ROI,
        t_capture_ns=round(t_ms * MS),
        t_wall_ns=0,
        latency_ms=Latency(capture=0.5, preprocess=1.0, queue=0.1, infer=12.0),
    )
    identity = wire.StreamIdentity("main", ENGINE.classes, 0.5, ENGINE)
    header = wire.prediction_header(prediction, identity, 0, "host") | changes
    return _received("prediction", header, wire.heatmap_buffer(heatmap), t_ms)


def _received(kind: str, header: wire.Header, buffer: bytes, t_ms: float) -> Any:
    """Send a message over the wire's format."""
    parts = wire.encode(kind, header, buffer)
    return read_message(wire.decode(parts), Arrival(round(t_ms * MS), "host", 500.0))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list whose only entry is the time in ms that the pairing sees."""
    now_ms = [100_000.0]
    monkeypatch.setattr("edge.display.views.time.monotonic_ns", lambda: round(now_ms[0] * MS))
    return now_ms


def _slots(views: list[View]) -> list[tuple[int, int | None]]:
    """Return (frame, which map of the window it has) of each view; the strongest map is 255."""
    return [
        (view.frame.index, None if view.heat is None else round(view.heat.map_hw.mean() * 4 / 255) - 1)
        for view in views
    ]


def test_heatmap_of_a_frame_is_the_map_of_its_own_place_in_the_window() -> None:
    prediction = _prediction(10, 13)
    maps = [heat_of(prediction, index, scale=4.0) for index in range(9, 15)]
    assert maps[0] is None
    assert maps[5] is None
    means = [float(heat.map_hw.mean()) for heat in maps if heat is not None]
    assert means == pytest.approx([255 * part for part in (0.25, 0.5, 0.75, 1.0)], abs=1)


def test_heatmap_of_a_source_faster_than_the_clip_is_the_nearest_map() -> None:
    prediction = _prediction(10, 16)  # every second frame is in the clip
    means = [heat_of(prediction, index, scale=4.0).map_hw.mean() for index in (10, 12, 14, 16)]  # type: ignore[union-attr]
    assert means == pytest.approx([255 * part for part in (0.25, 0.5, 0.75, 1.0)], abs=1)


def test_heatmap_lies_where_the_daemon_says_with_its_cells_in_place() -> None:
    maps = np.zeros((4, 3, 5), np.float32)
    maps[2, 1, 4] = 2.0
    heat = heat_of(_prediction(0, 3, maps=maps), 2, scale=2.0)
    assert heat is not None
    assert heat.roi_px == ROI
    height, width = heat.map_hw.shape
    row, column = np.unravel_index(heat.map_hw.argmax(), heat.map_hw.shape)
    assert ((row + 0.5) / height * 3, (column + 0.5) / width * 5) == pytest.approx((1.5, 4.5), abs=0.5)
    assert heat.map_hw.max() > 240
    assert not heat.map_hw[:, : width // 2].any()


@pytest.mark.parametrize("peak", [0.0, np.inf, np.nan])
def test_heatmap_without_a_finite_scale_is_none(peak: float) -> None:
    assert heat_of(_prediction(0, 3), 2, scale=peak) is None


def test_pairing_picture_waits_for_the_prediction_that_saw_it(clock: list[float]) -> None:
    pairing = Pairing()
    assert pairing.add_prediction(_prediction(0, 3, clock[0])) == []
    assert [pairing.add_frame(_frame(index)) for index in (4, 5, 6)] == [[], [], []]
    clock[0] += 40
    assert _slots(pairing.add_prediction(_prediction(2, 5, clock[0]))) == [(4, 2), (5, 3)]
    clock[0] += 40
    assert _slots(pairing.add_prediction(_prediction(3, 6, clock[0]))) == [(6, 3)]


def test_pairing_picture_that_no_prediction_saw_has_no_heatmap(clock: list[float]) -> None:
    pairing = Pairing()
    pairing.add_prediction(_prediction(0, 3, clock[0]))
    pairing.add_frame(_frame(4))
    clock[0] += 40
    assert _slots(pairing.add_prediction(_prediction(20, 23, clock[0]))) == [(4, None)]


def test_pairing_without_predictions_shows_pictures_at_once(clock: list[float]) -> None:
    assert _slots(Pairing().add_frame(_frame(0))) == [(0, None)]


def test_pairing_when_predictions_stop_shows_what_waits(clock: list[float]) -> None:
    pairing = Pairing()
    for _ in range(2):
        pairing.add_prediction(_prediction(0, 3, clock[0]))
        clock[0] += 40
    pairing.add_frame(_frame(4))
    clock[0] += 200
    assert pairing.overdue() == []
    clock[0] += 60
    assert _slots(pairing.overdue()) == [(4, None)]
    assert pairing.overdue() == []


def test_pairing_of_a_slow_engine_still_waits_for_its_heatmap(clock: list[float]) -> None:
    pairing = Pairing()
    for last in (3, 15, 27):
        for index in range(last - 3, last + 1):
            shown = pairing.add_frame(_frame(index))
            assert shown == [] or last == 3  # before the first prediction nobody knows when it comes
            clock[0] += 125
        assert [
            index
            for index, slot in _slots(pairing.add_prediction(_prediction(last - 3, last, clock[0])))
            if slot is None
        ] == []


def test_pairing_that_is_patient_waits_for_the_prediction_however_late(clock: list[float]) -> None:
    pairing = Pairing(is_patient=True)
    pairing.add_prediction(_prediction(0, 3, clock[0]))
    clock[0] += 60_000  # a video is drawn more slowly than its messages come
    assert pairing.add_frame(_frame(4)) == pairing.add_frame(_frame(5)) == []
    assert _slots(pairing.add_prediction(_prediction(2, 5, clock[0]))) == [(4, 2), (5, 3)]
    views = [view for index in range(6, 136) for view in pairing.add_frame(_frame(index))]
    assert _slots(views) == [(6, None), (7, None), (8, None)]  # none is lost where nothing comes
    assert len(pairing.add_frame(_frame(0))) == 127  # nor where the daemon starts again


def test_pairing_after_a_restart_of_the_daemon_forgets_its_old_pictures(clock: list[float]) -> None:
    pairing = Pairing()
    pairing.add_prediction(_prediction(900, 903, clock[0]))
    pairing.add_frame(_frame(1000))
    pairing.add_frame(_frame(2))
    assert _slots(pairing.add_prediction(_prediction(0, 3, clock[0]))) == [(2, 2)]


def test_pairing_scale_is_the_strongest_of_the_last_minute(clock: list[float]) -> None:
    pairing, maps = Pairing(), np.ones((4, 3, 5), np.float32)
    pairing.add_prediction(_prediction(0, 3, clock[0], maps=8 * maps))
    pairing.add_prediction(_prediction(1, 4, clock[0] + 1000, maps=2 * maps))
    pairing.add_frame(_frame(4))
    (view,) = pairing.add_prediction(_prediction(2, 5, clock[0] + 2000, maps=4 * maps))
    assert view.heat is not None
    assert view.heat.map_hw.mean() == pytest.approx(127, abs=1)
    pairing.add_prediction(_prediction(3, 6, clock[0] + 61_000, maps=1 * maps))
    assert pairing.scale() == 4.0


def _keep(keyframes: Keyframes, t_ms: float, probability: float, **changes: Any) -> bool:
    prediction = _prediction(0, 3, t_ms, probability, **changes)
    return keyframes.add(prediction, [_frame(index) for index in range(4)], scale=4.0)


def test_keyframes_keep_the_strongest_and_one_a_second() -> None:
    keyframes = Keyframes()
    assert _keep(keyframes, 1000, 0.5)
    assert not _keep(keyframes, 1500, 0.4)
    assert _keep(keyframes, 1600, 0.6)
    assert [round(kept.probability, 1) for kept in keyframes.kept] == [0.6]
    for number in range(20):
        _keep(keyframes, 10_000 + 2000 * number, number / 20)
    strongest = [0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6]
    assert [kept.probability for kept in keyframes.kept] == pytest.approx(strongest)
    assert len(keyframes.kept) == NUM_KEPT
    assert len({kept.id for kept in keyframes.kept}) == NUM_KEPT
    assert not _keep(keyframes, 90_000, 0.1)


def test_keyframe_shows_the_frame_of_the_strongest_evidence_with_its_map() -> None:
    keyframes, maps = Keyframes(), np.zeros((4, 3, 5), np.float32)
    maps[1, 0, 0] = 4.0
    assert _keep(keyframes, 1000, 0.5, maps=maps)
    view = keyframes.kept[0].view
    assert view.frame.index == 1
    assert view.heat is not None
    assert view.heat.map_hw[:8, :8].max() > 240


@pytest.mark.parametrize("state", [state for state in State if state not in (State.LIVE, State.STALE)])
def test_keyframes_leave_out_what_was_not_live(state: State) -> None:
    assert not _keep(Keyframes(), 1000, 0.9, state=str(state))


def test_keyframes_without_pictures_keep_nothing() -> None:
    assert not Keyframes().add(_prediction(0, 3), [], scale=4.0)
    assert not Keyframes().add(_prediction(10, 13), [_frame(4)], scale=4.0)
