"""The capture thread's work, from a source in memory to the clip queue."""

import threading
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from edge.capture import CaptureLoop, CaptureSettings, RateLimiter, RoiChooser, encode_jpeg
from edge.errors import ConfigError
from edge.frame import Frame
from edge.health.meters import Meters
from edge.inference import ClipFrame, ClipQueue
from edge.pacing import Pacer
from edge.preprocess import preprocess
from edge.sources.base import Rect, SourceInfo
from engines import PreprocessSpec

SPEC = PreprocessSpec(resize_hw=(32, 32), crop_hw=(24, 24))
NUM_FRAMES = 4
GRID_MS = 40.0
SIZE_WH = (320, 240)
IMAGE: Rect = (80, 40, 160, 160)
"""Where the moving image lies on the screens that `_screen` draws."""


class MemorySource:
    """A source whose frames are given; `close` ends it before its next frame."""

    def __init__(self, frames: Sequence[Frame], *, is_live: bool = False, region: Rect | None = None) -> None:
        self.info = SourceInfo("memory", GRID_MS, is_live, region)
        self._frames = frames
        self._closed = threading.Event()

    def frames(self) -> Iterator[Frame]:
        for frame in self._frames:
            if self._closed.is_set():
                return
            yield frame.replace(t_capture_ns=time.monotonic_ns())

    def close(self) -> None:
        self._closed.set()


def _screen(index: int, size_wh: tuple[int, int] = SIZE_WH) -> np.ndarray:
    """Draw a scanner's screen: speckle that changes in `IMAGE`, and a bright label that does not."""
    width, height = size_wh
    pixels = np.zeros((height, width), np.uint8)
    pixels[5:20, 5:60] = 200
    x, y, image_width, image_height = IMAGE
    noise = np.random.default_rng(index).integers(20, 255, (image_height, image_width), np.uint8)
    pixels[y : y + image_height, x : x + image_width] = noise
    return pixels


def _frames(number: int, size_wh: tuple[int, int] = SIZE_WH, *, first: int = 0, interval_ms: float = 40) -> list[Frame]:
    return [
        Frame(_screen(index, size_wh), index, round(index * interval_ms * 1e6), 0, 0)
        for index in range(first, first + number)
    ]


def _run(
    frames: Sequence[Frame],
    *,
    roi: Rect | str = "full",
    region: Rect | None = None,
    is_live: bool = False,
    is_realtime: bool = False,
    frames_hz: float = 0.0,
    masks: tuple[Rect, ...] = (),
    meters: Meters | None = None,
    stop: threading.Event | None = None,
) -> tuple[list[ClipFrame], list[tuple[Frame, Rect, bytes]]]:
    """Run a capture loop over the frames; return what it put into the queue, and the JPEG frames."""
    queue = ClipQueue(len(frames) + 1, 1, is_lossless=False)
    jpegs: list[tuple[Frame, Rect, bytes]] = []
    settings = CaptureSettings(
        roi=roi,
        preprocess=SPEC,
        num_frames=NUM_FRAMES,
        frame_interval_ms=GRID_MS,
        hop=1,
        is_realtime=is_realtime,
        frames_hz=frames_hz,
        masks=masks,
    )
    source = MemorySource(frames, is_live=is_live, region=region)
    CaptureLoop(
        source,
        queue,
        meters or Meters(),
        settings,
        stop=stop or threading.Event(),
        on_frame=lambda *arguments: jpegs.append(arguments),
    ).run()
    queue.finish()
    taken = queue.take()
    return (taken[0] if taken else []), jpegs


def test_capture_puts_preprocessed_frames_with_their_windows_and_times() -> None:
    meters = Meters()
    frames = _frames(6)
    clip, _ = _run(frames, roi=IMAGE, meters=meters)
    assert len(clip) == 6
    for frame, clip_frame in zip(frames, clip, strict=True):
        np.testing.assert_array_equal(clip_frame.frame_chw, preprocess(frame.pixels, IMAGE, SPEC))
        assert clip_frame.visible_rect == (100, 60, 120, 120)
        assert clip_frame.capture_ms >= 0
        assert clip_frame.preprocess_ms > 0
        assert clip_frame.t_ready_ns > clip_frame.t_capture_ns > 0
    windows = [clip_frame.window for clip_frame in clip]
    assert windows[:3] == [None] * 3
    assert [(window.first_index, window.last_index) for window in windows[3:] if window] == [(0, 3), (1, 4), (2, 5)]
    assert (meters.counters["captured"], meters.counters["in_clip"], meters.counters["resets"]) == (6, 6, 0)


def test_capture_mask_that_hides_nothing_is_told_once_for_each_size(caplog: pytest.LogCaptureFixture) -> None:
    masks = ((0, 0, 400, 20), (0, 480, 640, 20))
    _run([*_frames(3), *_frames(3, (640, 512), first=3), *_frames(3, first=6)], masks=masks)
    told = [record.message for record in caplog.records if "mask" in record.message]
    assert told == ["the mask 0,480,640,20 lies outside the image of 320x240 pixels and hides nothing; see --mask"] * 2


def test_capture_frames_off_the_grid_are_counted_but_not_put() -> None:
    meters = Meters()
    clip, _ = _run(_frames(12, interval_ms=20), meters=meters)
    assert len(clip) == 6
    assert (meters.counters["captured"], meters.counters["in_clip"]) == (12, 6)


def test_capture_gap_marks_the_first_frame_after_it() -> None:
    meters = Meters()
    late = [frame.replace(t_media_ns=frame.t_media_ns + 10**10) for frame in _frames(5, first=5)]
    clip, _ = _run([*_frames(5), *late], meters=meters)
    assert [frame.reset_reason for frame in clip] == [None] * 5 + ["no frame came for 10040 ms"] + [None] * 4
    assert meters.counters["resets"] == 1


@pytest.mark.parametrize(
    ("wanted", "region", "expected"),
    [
        ((10, 20, 100, 90), (1, 2, 30, 40), (10, 20, 100, 90)),
        ("full", (1, 2, 30, 40), (0, 0, *SIZE_WH)),
        ("auto", (1, 2, 30, 40), (1, 2, 30, 40)),
    ],
)
def test_roi_is_the_users_before_the_sources(wanted: Rect | str, region: Rect, expected: Rect) -> None:
    assert RoiChooser(wanted, region).add(_frames(1)[0]) == expected


def test_roi_that_nobody_says_is_found_where_the_image_moves() -> None:
    chooser = RoiChooser("auto", None)
    rois = [chooser.add(frame) for frame in _frames(16)]
    assert rois[:15] == [None] * 15
    roi = rois[15]
    assert roi is not None
    assert all(type(value) is int for value in roi)  # what msgpack can write
    np.testing.assert_allclose(roi, IMAGE, atol=8)
    assert chooser.add(_frames(1)[0]) == roi


def test_roi_of_the_user_outside_the_image_is_refused() -> None:
    with pytest.raises(ConfigError, match="320"):
        _run(_frames(1), roi=(200, 0, 200, 100))


def test_roi_of_the_user_is_checked_again_at_a_new_size() -> None:
    with pytest.raises(ConfigError):
        _run([*_frames(3, (640, 480)), *_frames(3, SIZE_WH, first=3)], roi=(300, 200, 300, 200))


@pytest.mark.parametrize("number", [1, 10, 15, 16, 17, 40])
def test_capture_loses_no_frame_while_the_roi_is_looked_for(number: int) -> None:
    frames = _frames(number)
    clip, _ = _run(frames, roi="auto")
    assert len(clip) == number
    assert len({frame.visible_rect for frame in clip}) == 1
    assert [frame.window.last_index for frame in clip if frame.window] == list(range(NUM_FRAMES - 1, number))


@pytest.mark.parametrize(("num_before", "num_after"), [(5, 5), (16, 5), (30, 30)])
def test_capture_change_of_size_starts_the_clip_and_the_search_again(num_before: int, num_after: int) -> None:
    meters = Meters()
    frames = [*_frames(num_before), *_frames(num_after, (640, 480), first=num_before)]
    clip, _ = _run(frames, roi="auto", meters=meters)
    assert len(clip) == num_before + num_after
    reasons = [frame.reset_reason for frame in clip]
    assert reasons.pop(num_before) == "the image size changed from 320x240 to 640x480"
    assert set(reasons) == {None}
    assert all(
        frame.window.last_index < num_before or frame.window.first_index >= num_before for frame in clip if frame.window
    )
    assert meters.counters["resets"] == 1


def test_capture_sources_region_holds_for_its_first_size_alone() -> None:
    region = (10, 10, 64, 64)
    clip, _ = _run([*_frames(3), *_frames(16, (640, 480), first=3)], roi="auto", region=region)
    rects = [frame.visible_rect for frame in clip]
    assert set(rects[:3]) == {(18, 18, 48, 48)}
    assert not set(rects[3:]) & set(rects[:3])


def test_capture_stops_between_two_frames() -> None:
    stop = threading.Event()
    meters = Meters()

    class Stopping(list[Frame]):
        def __iter__(self) -> Iterator[Frame]:
            for frame in list.__iter__(self):
                if frame.index == 3:
                    stop.set()
                yield frame

    # live: a recording is read ahead, and would set the event before its earlier frames are processed
    clip, _ = _run(Stopping(_frames(10)), is_live=True, stop=stop, meters=meters)
    assert len(clip) == meters.counters["captured"] == 3


def test_capture_stopped_while_the_roi_is_looked_for_puts_nothing() -> None:
    stop = threading.Event()
    stop.set()
    assert _run(_frames(40), roi="auto", stop=stop) == ([], [])


def test_capture_of_no_frame_ends_quietly() -> None:
    assert _run([]) == ([], [])


def test_capture_realtime_plays_a_recording_on_its_own_time_grid() -> None:
    clip, _ = _run(_frames(6, interval_ms=40), is_realtime=True)
    late_ms = [(frame.t_capture_ns - clip[0].t_capture_ns) / 1e6 - 40 * place for place, frame in enumerate(clip)]
    assert all(0 <= late < 1000 for late in late_ms)  # how late depends on the machine's load; never early
    assert all(frame.capture_ms >= 0 for frame in clip)
    assert time.monotonic_ns() >= clip[0].t_capture_ns + 5 * 40_000_000


def test_capture_realtime_leaves_a_live_sources_times_alone() -> None:
    frames = _frames(3)
    far_away = [frame.replace(t_media_ns=frame.t_media_ns * 1000) for frame in frames]  # would take 80 s to play
    clip, _ = _run(far_away, is_live=True, is_realtime=True)
    assert len(clip) == 3


def test_capture_realtime_stops_in_the_middle_of_a_wait() -> None:
    stop = threading.Event()
    far_away = [frame.replace(t_media_ns=frame.t_media_ns * 1000) for frame in _frames(2)]
    capture = threading.Thread(target=_run, args=(far_away,), kwargs={"is_realtime": True, "stop": stop})
    capture.start()
    stop.set()
    capture.join(10)
    assert not capture.is_alive()


class Clock:
    """A clock that only waiting moves, in place of the `time` module and of the event that is waited on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns = 1_000_000_000_000
        clock = SimpleNamespace(monotonic_ns=lambda: self.now_ns, time_ns=lambda: 7)
        monkeypatch.setattr("edge.pacing.time", clock)

    def wait(self, timeout_s: float) -> None:
        self.now_ns += round(timeout_s * 1e9)


def _pace(clock: Clock, t_media_ms: float, decode_ms: float) -> float:
    """Decode for some time, pace, and return the capture time in ms since the clock's start."""
    clock.now_ns += round(decode_ms * 1e6)
    frame = Frame(np.zeros((2, 2), np.uint8), 0, round(t_media_ms * 1e6), clock.now_ns, 0)
    return (clock.pacer.pace(frame).t_capture_ns - 1_000_000_000_000) / 1e6  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("decoded", "expected_ms"),
    [
        ([(0, 0), (40, 5), (80, 5), (120, 39)], [0, 40, 80, 120]),  # decoded in time: the media's own grid
        ([(0, 0), (40, 60), (80, 5), (120, 5)], [0, 60, 80, 120]),  # one late frame: captured when it came
        ([(0, 0), (40, 1500), (80, 5), (120, 5)], [0, 1500, 1540, 1580]),  # over a second late: a new start
        ([(5000, 0), (5040, 0), (65_040, 0)], [0, 40, 60_040]),  # a media clock that starts anywhere; a long pause
    ],
    ids=["in time", "late", "very late", "odd clock"],
)
def test_pacer_capture_times(
    monkeypatch: pytest.MonkeyPatch, decoded: list[tuple[float, float]], expected_ms: list[float]
) -> None:
    clock = Clock(monkeypatch)
    clock.pacer = Pacer(clock, GRID_MS)  # type: ignore[attr-defined, arg-type]
    assert [_pace(clock, t_media_ms, decode_ms) for t_media_ms, decode_ms in decoded] == expected_ms


@pytest.mark.parametrize(
    ("decode_ms", "earliest_ms"),
    [(1, 37), (5, 33), (18, 20), (39, 0)],  # its own time and 2 ms before the frame is due, if that is not past
)
def test_pacer_decodes_shortly_before_the_frame_is_due(
    decode_ms: float, earliest_ms: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    asked_ns: list[int] = []

    def decode() -> Iterator[Frame]:
        for frame in _frames(10):
            asked_ns.append(clock.now_ns)
            clock.wait(decode_ms / 1e3)
            yield frame.replace(t_capture_ns=clock.now_ns)

    played = list(Pacer(clock, GRID_MS).play(decode()))  # type: ignore[arg-type]

    captured_ns = [frame.t_capture_ns for frame in played]
    assert np.diff(captured_ns).tolist() == [GRID_MS * 1e6] * 9
    after_the_last_ms = [(asked - due) / 1e6 for asked, due in zip(asked_ns[1:], captured_ns, strict=False)]
    assert after_the_last_ms == pytest.approx([earliest_ms] * 9, abs=0.01)


@pytest.mark.parametrize("rate_hz", [1, 5, 7, 10, 12.5, 29, 30])
@pytest.mark.parametrize("source_hz", [30, 29.97, 50, 60, 24])
def test_rate_limiter_keeps_the_mean_rate(source_hz: float, rate_hz: float) -> None:
    limiter = RateLimiter(rate_hz)
    num_let_through = sum(limiter.is_due(round(number * 1e9 / source_hz)) for number in range(round(60 * source_hz)))
    assert num_let_through == pytest.approx(60 * min(rate_hz, source_hz), abs=2)


def test_rate_limiter_after_a_pause_does_not_make_up_for_it() -> None:
    limiter = RateLimiter(10)
    times_ns = [number * 10**9 // 30 for number in range(30)]
    times_ns += [t_ns + 10**11 for t_ns in times_ns]
    assert sum(limiter.is_due(t_ns) for t_ns in times_ns) == pytest.approx(20, abs=2)


def test_capture_publishes_jpegs_of_the_roi_alone_at_the_rate_asked_for() -> None:
    frames = _frames(50, interval_ms=20)
    _, jpegs = _run(frames, roi=IMAGE, frames_hz=10)
    assert len(jpegs) == pytest.approx(10, abs=1)
    for frame, roi, jpeg in jpegs:
        assert roi == IMAGE
        assert cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_UNCHANGED).shape == (160, 160)
        assert frame.index % 5 in (0, 4)  # a quarter of an interval early is in time


def test_capture_publishes_no_picture_of_a_screen_on_which_nothing_moves() -> None:
    frames = [frame.replace(pixels=_screen(0)) for frame in _frames(40)]  # its label may be a name
    taken, jpegs = _run(frames, roi="auto", frames_hz=1000)
    assert len(taken) == 9  # then it counts as frozen
    assert jpegs == []


def test_capture_without_a_rate_publishes_no_jpeg() -> None:
    assert _run(_frames(10))[1] == []


def test_jpeg_keeps_colours_and_position() -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[16:48, 16:32] = (250, 10, 10)
    jpeg = encode_jpeg(Frame(pixels, 0, 0, 0, 0), (16, 16, 32, 32))
    image = cv2.cvtColor(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert image.shape == (32, 32, 3)
    np.testing.assert_allclose(image[16, 4], (250, 10, 10), atol=12)
    np.testing.assert_allclose(image[16, 28], (0, 0, 0), atol=12)


@pytest.mark.parametrize(
    ("chroma", "coloured_xy", "num_channels"),
    [(130, None, 1), (131, None, 3), (128, (31, 31), 3), (128, (32, 31), 1), (128, (8, 40), 1)],
    ids=["noise of coding", "a tint", "its last pixel", "right of it", "below it"],
)
def test_picture_is_coded_in_colour_only_where_its_part_of_the_image_has_some(
    chroma: int, coloured_xy: tuple[int, int] | None, num_channels: int
) -> None:
    planes = np.full((32, 32), chroma, np.uint8), np.full((32, 32), 128, np.uint8)
    if coloured_xy is not None:
        planes[1][coloured_xy[1] // 2, coloured_xy[0] // 2] = 200
    luma, rgb = np.full((64, 64), 100, np.uint8), np.full((64, 64, 3), 100, np.uint8)
    frame = Frame(luma, 0, 0, 0, 0, colour=lambda: rgb, chroma=lambda: planes)
    jpeg = np.frombuffer(encode_jpeg(frame, (0, 0, 32, 32)), np.uint8)
    decoded = cv2.imdecode(jpeg, cv2.IMREAD_UNCHANGED)
    assert decoded is not None
    assert (1 if decoded.ndim == 2 else decoded.shape[2]) == num_channels


def test_picture_whose_colour_cannot_be_told_beforehand_is_coded_in_colour() -> None:
    rgb = np.zeros((16, 16, 3), np.uint8)
    frame = Frame(np.zeros((16, 16), np.uint8), 0, 0, 0, 0, colour=lambda: rgb)
    decoded = cv2.imdecode(np.frombuffer(encode_jpeg(frame, (0, 0, 16, 16)), np.uint8), cv2.IMREAD_UNCHANGED)
    assert decoded is not None
    assert decoded.shape == (16, 16, 3)
