"""The sampler's time grid: which frames enter the clip, when windows are due, and what empties the clip."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from edge.window import NEW_OBJECT, Choice, Window, WindowSampler

GRID_30_MS = 1000 / 30
SIZE = (640, 480)
NUM_FRAMES = 16


@dataclasses.dataclass
class Played:
    """What became of a stream."""

    choices: list[Choice]
    clip: list[int]
    """Indices of the frames that entered the clip."""
    windows: list[Window]
    resets: list[str]


def _play(
    times_ms: Sequence[float] | np.ndarray,
    grid_ms: float,
    *,
    num_frames: int = NUM_FRAMES,
    hop: int = 1,
    sampler: WindowSampler | None = None,
) -> Played:
    sampler = sampler or WindowSampler(num_frames, grid_ms, hop)
    choices = [sampler.add(index, round(t_ms * 1e6), SIZE) for index, t_ms in enumerate(times_ms)]
    return Played(
        choices,
        clip=[index for index, choice in enumerate(choices) if choice.is_in_clip],
        windows=[choice.window for choice in choices if choice.window is not None],
        resets=[choice.reset_reason for choice in choices if choice.reset_reason is not None],
    )


def _regular_ms(rate_hz: float, num_frames: int = 2000) -> np.ndarray:
    return np.arange(num_frames) * (1000 / rate_hz)


@pytest.mark.parametrize(
    ("times_ms", "in_clip_ms"),
    [
        ([0, 20, 40, 60, 80], [0, 40, 80]),
        ([0, 30, 60, 90, 120], [0, 30, 90, 120]),
        ([0, 50, 100], [0, 50, 100]),
    ],
)
def test_sampler_docstring_examples_hold(times_ms: list[float], in_clip_ms: list[float]) -> None:
    assert [times_ms[index] for index in _play(times_ms, 40).clip] == in_clip_ms


@pytest.mark.parametrize("grid_ms", [GRID_30_MS, 40.0, 1000 / 15])
@pytest.mark.parametrize("rate_hz", [100, 60, 59.94, 50, 33, 30.001, 30, 29.97, 25, 24, 15, 10])
def test_sampler_window_spans_the_grid_within_one_source_frame(rate_hz: float, grid_ms: float) -> None:
    source_ms = 1000 / rate_hz
    played = _play(_regular_ms(rate_hz), grid_ms)
    expected_ms = (NUM_FRAMES - 1) * max(grid_ms, source_ms)
    assert played.windows
    assert not played.resets
    for window in played.windows:
        assert window.span_ms == pytest.approx(expected_ms, abs=source_ms + 1e-6)
        assert window.max_gap_ms < grid_ms + source_ms + 1e-6


@pytest.mark.parametrize(("rate_hz", "grid_ms"), [(29.97, GRID_30_MS), (25, GRID_30_MS), (24, 40.0), (1, 40.0)])
def test_sampler_source_slower_than_the_grid_gives_each_frame_once(rate_hz: float, grid_ms: float) -> None:
    played = _play(_regular_ms(rate_hz), grid_ms)
    assert played.clip == list(range(2000))
    assert {(window.last_index - window.first_index) for window in played.windows} == {NUM_FRAMES - 1}


def test_sampler_source_equal_to_the_grid_gives_each_frame_despite_rounding() -> None:
    times_ms = np.round(_regular_ms(30))  # containers often store whole milliseconds: 0, 33, 67, 100
    assert _play(times_ms, GRID_30_MS).clip == list(range(2000))


def test_sampler_over_100000_frames_of_29_97_hz_does_not_drift() -> None:
    times_ms = _regular_ms(30000 / 1001, 100_000)
    played = _play(times_ms, GRID_30_MS)
    assert len(played.clip) == 100_000
    spans_ms = np.array([window.span_ms for window in played.windows])
    np.testing.assert_allclose(spans_ms, 15 * 1001 / 30, atol=1e-5)


def test_sampler_over_100000_faster_frames_keeps_to_the_grids_mean_rate() -> None:
    played = _play(_regular_ms(60, 100_000), 40.0)
    assert len(played.clip) == pytest.approx(100_000 * (1000 / 60) / 40, abs=1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("rate_hz", "jitter_ms"), [(30, 8.0), (60, 4.0), (50, 6.0), (100, 4.0), (33, 5.0)])
def test_sampler_jittered_source_keeps_the_span(rate_hz: float, jitter_ms: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    source_ms = 1000 / rate_hz
    times_ms = _regular_ms(rate_hz) + rng.uniform(-jitter_ms, jitter_ms, 2000)
    played = _play(times_ms, GRID_30_MS)
    assert not played.resets
    for window in played.windows:  # the two ends each bring a jitter of their own
        assert window.span_ms == pytest.approx(15 * GRID_30_MS, abs=source_ms + 2 * jitter_ms)


@pytest.mark.parametrize("seed", range(5))
def test_sampler_30_hz_with_jitter_loses_no_frame_on_a_30_hz_grid(seed: int) -> None:
    jitter_ms = np.random.default_rng(seed).uniform(-7, 7, 2000)
    jitter_ms[:NUM_FRAMES] = 7  # the grid starts on a late frame: the worst case
    assert len(_play(_regular_ms(30) + jitter_ms, GRID_30_MS).clip) == 2000


@pytest.mark.parametrize("hop", [1, 2, 5, 16, 40])
def test_sampler_windows_come_every_hop_clip_frames_from_the_first_full_clip(hop: int) -> None:
    played = _play(_regular_ms(30, 300), GRID_30_MS, hop=hop)
    assert [window.last_index for window in played.windows] == list(range(NUM_FRAMES - 1, 300, hop))
    assert {window.last_index - window.first_index for window in played.windows} == {NUM_FRAMES - 1}


def test_sampler_hop_counts_clip_frames_and_not_source_frames() -> None:
    played = _play(_regular_ms(60, 300), GRID_30_MS, hop=4)
    assert np.diff([window.last_index for window in played.windows]).tolist() == [8] * (len(played.windows) - 1)


def test_sampler_clip_of_one_frame_spans_nothing() -> None:
    window = _play([0, 40], 40, num_frames=1).windows[1]
    assert window == Window(first_index=1, last_index=1, span_ms=0.0, max_gap_ms=0.0)


def test_sampler_window_tells_its_first_and_last_frame_and_longest_gap() -> None:
    times_ms = [0, 40, 80, 190, 230]
    windows = _play(times_ms, 40, num_frames=4).windows
    assert windows == [Window(0, 3, 190.0, 110.0), Window(1, 4, 190.0, 110.0)]


def _assert_no_window_spans(played: Played, first_new: int) -> None:
    """The clip starts again at frame `first_new`: no window holds frames of both sides, and both sides have windows."""
    assert all(window.last_index < first_new or window.first_index >= first_new for window in played.windows)
    assert {window.first_index >= first_new for window in played.windows} == {False, True}


@pytest.mark.parametrize("seed", range(20))
def test_sampler_gap_empties_the_clip(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rate_hz, first_new = rng.uniform(10, 100), int(rng.integers(200, 300))
    times_ms = _regular_ms(rate_hz, 600) + rng.uniform(0, 1, 600)
    gap_ms = max(10 * GRID_30_MS, 4 * 1000 / rate_hz) * rng.uniform(1.1, 50)
    times_ms[first_new:] += gap_ms
    played = _play(times_ms, GRID_30_MS, hop=int(rng.integers(1, 5)))
    assert len(played.resets) == 1
    assert "no frame came for" in played.resets[0]
    assert played.choices[first_new].reset_reason is not None
    _assert_no_window_spans(played, first_new)


def test_sampler_first_window_after_a_reset_comes_num_frames_later() -> None:
    times_ms = _regular_ms(30, 100)
    times_ms[50:] += 5000
    played = _play(times_ms, GRID_30_MS, hop=3)
    after = [window.last_index for window in played.windows if window.first_index >= 50]
    assert after[:2] == [50 + NUM_FRAMES - 1, 50 + NUM_FRAMES + 2]


def test_sampler_short_pause_is_told_in_the_window_and_empties_nothing() -> None:
    times_ms = _regular_ms(30, 100)
    times_ms[50:] += 200
    played = _play(times_ms, GRID_30_MS)
    assert not played.resets
    assert max(window.max_gap_ms for window in played.windows) == pytest.approx(200 + GRID_30_MS)


def test_sampler_source_that_stays_slower_is_no_gap_for_ever() -> None:
    times_ms = np.concatenate([_regular_ms(30, 100), 100 * GRID_30_MS + 500 * np.arange(1, 61)])
    played = _play(times_ms, GRID_30_MS)
    assert 1 <= len(played.resets) <= 8
    assert played.windows[-1].last_index == 159
    assert played.windows[-1].span_ms == pytest.approx(15 * 500)


@pytest.mark.parametrize("back_ms", [0.0, 1.0, 1e6])
def test_sampler_clock_that_does_not_go_on_empties_the_clip(back_ms: float) -> None:
    times_ms = _regular_ms(30, 100)
    times_ms[50:] += times_ms[49] - times_ms[50] - back_ms
    played = _play(times_ms, GRID_30_MS)
    assert played.resets == [f"the source's clock went back by {back_ms:.0f} ms"]
    _assert_no_window_spans(played, 50)


def test_sampler_change_of_size_empties_the_clip_and_names_both_sizes() -> None:
    sampler = WindowSampler(NUM_FRAMES, GRID_30_MS, 1)
    before = _play(_regular_ms(30, 50), GRID_30_MS, sampler=sampler)
    choice = sampler.add(50, round(50 * GRID_30_MS * 1e6), (800, 600))
    assert before.windows
    assert choice == Choice(is_in_clip=True, reset_reason="the image size changed from 640x480 to 800x600")
    later = [sampler.add(index, round(index * GRID_30_MS * 1e6), (800, 600)).window for index in range(51, 66)]
    assert later[:14] == [None] * 14
    assert later[14] is not None
    assert (later[14].first_index, later[14].last_index) == (50, 65)


def test_sampler_new_object_starts_a_clip_at_a_rate_of_its_own() -> None:
    sampler = WindowSampler(2, 40.0, 1)
    fast = [sampler.add(n, 10_000_000 * n, SIZE, "a") for n in range(100)]
    slow = [sampler.add(100 + n, 1_000_000_000 + 30_000_000 * n, SIZE, "b") for n in range(2)]
    assert {choice.reset_reason for choice in fast} == {None}
    assert [choice.reset_reason for choice in slow] == [NEW_OBJECT, None]
    assert [choice.is_in_clip for choice in slow] == [True, True]  # with the first one's rate 30 ms would be too early
    assert [choice.window is not None for choice in slow] == [False, True]


def test_sampler_interruption_empties_the_clip_once_with_its_reason() -> None:
    sampler = WindowSampler(2, 40.0, 1)
    times_ns = [40_000_000 * n for n in range(6)]
    before = [sampler.add(n, times_ns[n], SIZE) for n in range(3)]
    sampler.interrupt("the picture stood still")
    after = [sampler.add(n, times_ns[n], SIZE) for n in range(3, 6)]
    assert [choice.reset_reason for choice in (*before, *after)] == [None] * 3 + ["the picture stood still", None, None]
    assert [choice.window is not None for choice in after] == [False, True, True]


@pytest.mark.parametrize("seed", range(10))
def test_sampler_random_streams_keep_the_rules(seed: int) -> None:
    """Whatever comes: windows are whole, in order, in one piece, every hop frames; a reset frame is in the clip."""
    rng = np.random.default_rng(seed)
    num_frames, hop = int(rng.integers(1, 20)), int(rng.integers(1, 8))
    sampler = WindowSampler(num_frames, float(rng.uniform(10, 100)), hop)
    t_ns, size, clip = 0, SIZE, []
    for index in range(3000):
        t_ns += int(rng.choice([rng.exponential(3e7), 5e9, -2e9], p=[0.99, 0.005, 0.005]))
        size = SIZE if rng.random() < 0.99 else (int(rng.integers(1, 9)), 8)
        choice = sampler.add(index, t_ns, size)
        if choice.reset_reason is not None:
            assert choice.is_in_clip
            clip = []
        if choice.is_in_clip:
            clip.append((index, t_ns / 1e6))
        is_due = choice.is_in_clip and len(clip) >= num_frames and (len(clip) - num_frames) % hop == 0
        assert (choice.window is not None) == is_due
        if choice.window is not None:
            indices, times_ms = zip(*clip[-num_frames:], strict=True)
            assert (choice.window.first_index, choice.window.last_index) == (indices[0], indices[-1])
            assert choice.window.span_ms == pytest.approx(times_ms[-1] - times_ms[0])
            assert choice.window.max_gap_ms == pytest.approx(max(np.diff(times_ms), default=0.0))
