"""Counters, the frame rate, and the latencies of the last minute."""

import threading
import time

import numpy as np
import pytest

from edge.health.meters import COUNTERS, Meters

SECOND_NS = 10**9


def test_meters_start_at_zero_with_all_counters() -> None:
    meters = Meters()
    assert meters.counters == dict.fromkeys(COUNTERS, 0)
    assert {"captured", "inferred", "published", "skipped", "reconnects"} <= set(COUNTERS)
    assert (meters.fps(), meters.latency_percentiles_ms()) == (0.0, None)
    assert 0 <= meters.uptime_s < 10


def test_count_adds_up_and_refuses_an_unknown_name() -> None:
    meters = Meters()
    meters.count("skipped")
    meters.count("skipped", 4)
    assert meters.counters["skipped"] == 5
    with pytest.raises(KeyError):
        meters.count("skiped")


def test_trouble_counter_begins_with_its_first() -> None:
    meters = Meters()
    meters.count_trouble("bad_objects")
    meters.count_trouble("bad_objects")
    assert meters.counters["bad_objects"] == 2


def test_latency_percentiles_equal_numpys() -> None:
    meters = Meters()
    latencies_ms = np.random.default_rng(2).exponential(10, 1000)
    now_ns = time.monotonic_ns()
    for latency_ms in latencies_ms:
        meters.published(now_ns, float(latency_ms))
    expected = np.percentile(latencies_ms, (50, 95, 99, 100))
    percentiles = meters.latency_percentiles_ms()
    assert percentiles is not None
    assert list(percentiles) == ["p50", "p95", "p99", "max"]
    np.testing.assert_allclose(list(percentiles.values()), expected)
    assert meters.counters["published"] == 1000


def test_latency_percentiles_leave_out_what_is_older_than_a_minute() -> None:
    meters = Meters()
    now_ns = time.monotonic_ns()
    meters.published(now_ns - 61 * SECOND_NS, 500.0)
    assert meters.latency_percentiles_ms() is None
    meters.published(now_ns - 50 * SECOND_NS, 20.0)
    assert meters.latency_percentiles_ms() == {"p50": 20.0, "p95": 20.0, "p99": 20.0, "max": 20.0}


def test_latency_percentiles_over_many_predictions_hold_the_newest() -> None:
    meters = Meters()
    now_ns = time.monotonic_ns()
    for number in range(100_000):
        meters.published(now_ns, float(number))
    percentiles = meters.latency_percentiles_ms()
    assert percentiles is not None
    assert percentiles["max"] == 99_999
    assert percentiles["p50"] == pytest.approx(100_000 - (1 << 15) / 2, abs=1)


@pytest.mark.parametrize("rate_hz", [10, 30, 60])
def test_fps_is_the_rate_of_the_last_five_seconds(rate_hz: int) -> None:
    meters = Meters()
    now_ns = time.monotonic_ns()
    for number in range(20 * rate_hz, -1, -1):
        meters.captured(now_ns - number * SECOND_NS // rate_hz)
    assert meters.fps() == pytest.approx(rate_hz, rel=0.05)
    assert meters.counters["captured"] == 20 * rate_hz + 1


def test_fps_of_a_single_frame_just_captured_is_zero() -> None:
    meters = Meters()
    meters.captured(time.monotonic_ns())
    assert meters.fps() == 0.0


def test_fps_falls_when_frames_stop_coming() -> None:
    meters = Meters()
    now_ns = time.monotonic_ns()
    for number in range(61):
        meters.captured(now_ns - 4 * SECOND_NS + number * SECOND_NS // 30)  # two seconds at 30 Hz, two of silence
    assert meters.fps() == pytest.approx(15, rel=0.05)
    silent = Meters()
    silent.captured(now_ns - 6 * SECOND_NS)
    silent.captured(now_ns - 6 * SECOND_NS + 1)
    assert silent.fps() == 0.0


def test_meters_read_while_they_are_written_stay_sound() -> None:
    meters = Meters()
    is_over = threading.Event()

    def write() -> None:
        for _ in range(20_000):
            now_ns = time.monotonic_ns()
            meters.captured(now_ns)
            meters.published(now_ns, 1.0)
        is_over.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not is_over.is_set():
        assert meters.fps() >= 0
        assert meters.latency_percentiles_ms() in (None, {"p50": 1.0, "p95": 1.0, "p99": 1.0, "max": 1.0})
    writer.join()
    assert (meters.counters["captured"], meters.counters["published"]) == (20_000, 20_000)
