"""Video files: pixels, times, damage, and closing while they play."""

import threading
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from source_files import noise, play, write_movie

from edge.errors import SourceError
from edge.sources.video import FrameConverter, VideoFile

KINDS = {
    "a.mp4": "libx264",
    "a.mov": "mpeg4",
    "a.mpeg": "mpeg2video",
    "a.avi": "mpeg4",
    "a.mkv": "libx264",
    "a.webm": "libvpx",
    "a.ts": "libx264",
    "a.m4v": "mpeg4",
}


def _gradient(num_frames: int) -> np.ndarray:
    """Return (n, 64, 96, 3) uint8 smooth enough for a codec to keep: red grows to the right, blue downwards."""
    rows, columns = np.mgrid[:64, :96]
    pictures = [np.stack([columns * 2, np.full_like(rows, 5 * n), rows * 3], axis=-1) for n in range(num_frames)]
    return np.array(pictures, np.uint8)


@pytest.mark.parametrize("name", KINDS)
def test_video_each_container_gives_rgb_and_times(tmp_path: Path, name: str) -> None:
    pictures = _gradient(12)
    source = VideoFile(write_movie(tmp_path / name, pictures, codec=KINDS[name]))
    frames = play(source)
    assert len(frames) == 12
    assert source.info.frame_interval_ms == pytest.approx(40)
    assert frames[11].t_media_ns / 1e6 == pytest.approx(440, abs=2)
    for frame, picture in zip(frames, pictures, strict=True):
        assert frame.rgb().shape == (64, 96, 3)
        # What the codec loses is a few gray values; swapped colours would be tens.
        assert np.abs(frame.rgb().astype(int) - picture).mean() < 8
        gray = frame.pixels if frame.pixels.ndim == 2 else cv2.cvtColor(frame.pixels, cv2.COLOR_RGB2GRAY)
        assert np.abs(gray.astype(int) - cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)).mean() < 4


@pytest.mark.parametrize("size_hw", [(33, 35), (64, 96), (240, 322)])
def test_video_lossless_gray_is_exact(tmp_path: Path, size_hw: tuple[int, int]) -> None:
    pictures = noise(4, *size_hw)
    frames = play(VideoFile(write_movie(tmp_path / "a.mkv", pictures, codec="ffv1", pix_fmt="gray")))
    np.testing.assert_array_equal([frame.pixels for frame in frames], pictures)


def test_video_lossless_colour_is_exact(tmp_path: Path) -> None:
    pictures = noise(4, 33, 35, 3)
    frames = play(VideoFile(write_movie(tmp_path / "a.mkv", pictures, codec="ffv1", pix_fmt="bgr0")))
    np.testing.assert_array_equal([frame.pixels for frame in frames], pictures)


@pytest.mark.parametrize(
    ("pix_fmt", "is_limited", "black", "white", "is_gray"),
    [
        ("yuv420p", True, 16, 235, False),
        ("yuv420p", False, 0, 255, False),
        ("yuvj420p", False, 0, 255, False),
        ("yuv444p", True, 16, 235, False),
        ("nv12", True, 16, 235, False),
        ("gray", True, 16, 235, True),
        ("gray", False, 0, 255, True),
    ],
)
def test_frame_converter_black_and_white_fill_the_range(
    pix_fmt: str, is_limited: bool, black: int, white: int, is_gray: bool
) -> None:
    for luma, expected in ((black, 0), (white, 255)):
        frame = av.VideoFrame(35, 33, pix_fmt)
        for index, plane in enumerate(frame.planes):
            plane.update(bytes([luma if index == 0 else 128]) * plane.buffer_size)
        frame.color_range = 1 if is_limited else 2
        image = FrameConverter()(frame)
        if is_gray:
            np.testing.assert_array_equal(image, np.full((33, 35), expected))
        else:
            np.testing.assert_array_equal(image.luma, np.full((33, 35), expected))
            np.testing.assert_array_equal(image.rgb(), np.full((33, 35, 3), expected))


@pytest.mark.parametrize("is_limited", [True, False])
def test_frame_converter_luma_is_ffmpegs_gray(is_limited: bool) -> None:
    frame = av.VideoFrame(256, 16, "yuv420p")
    frame.planes[0].update(np.tile(np.arange(256, dtype=np.uint8), (16, 1)).tobytes())
    for plane in frame.planes[1:]:
        plane.update(bytes([128]) * plane.buffer_size)
    frame.color_range = 1 if is_limited else 2
    expected = frame.to_ndarray(format="gray").astype(int)
    assert np.abs(FrameConverter()(frame).luma - expected).max() <= 1


@pytest.mark.parametrize("pix_fmt", ["yuv420p10le", "yuv422p10le", "uyvy422", "p010le"])
@pytest.mark.parametrize("is_limited", [True, False])
def test_frame_converter_deep_and_packed_video_is_as_bright_as_other(pix_fmt: str, is_limited: bool) -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint8), (16, 1))
    color_range = 1 if is_limited else 2
    whole = av.VideoFrame.from_ndarray(np.dstack([ramp] * 3), format="rgb24")
    image = FrameConverter()(whole.reformat(format=pix_fmt, dst_color_range=color_range))
    for brightness in (image.luma, image.rgb()[..., 1]):
        difference = brightness.astype(int) - ramp
        assert np.abs(difference).max() <= 2
        assert abs(difference.mean()) < 1


def test_video_variable_rate_keeps_its_times(tmp_path: Path) -> None:
    times = [0, 4, 8, 30, 34, 35]
    frames = play(VideoFile(write_movie(tmp_path / "a.mkv", _gradient(6), times=times)))
    assert [round(frame.t_media_ns / 1e7) for frame in frames] == times


def test_video_two_sizes_keep_their_sizes(tmp_path: Path) -> None:
    small = write_movie(tmp_path / "small.ts", _gradient(10)).read_bytes()
    large = write_movie(tmp_path / "large.ts", noise(10, 120, 160)).read_bytes()
    path = tmp_path / "both.ts"
    path.write_bytes(small + large)
    sizes = [frame.size_wh for frame in play(VideoFile(path))]
    # The last packet before the seam may count as damaged: the stream's packet numbers jump there.
    assert sizes[:9] == [(96, 64)] * 9
    assert sizes[-10:] == [(160, 120)] * 10


@pytest.mark.parametrize("is_cut", [False, True])
def test_video_played_again_is_equal(tmp_path: Path, is_cut: bool) -> None:
    path = write_movie(tmp_path / "a.ts", noise(40, 120, 160))
    if is_cut:
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    source = VideoFile(path)
    first, *others = ([frame.pixels for frame in play(source)] for _ in range(8))
    assert all(np.array_equal(first, other) for other in others)


def test_video_cut_off_plays_what_is_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_movie(tmp_path / "cut.mp4", noise(60, 48, 64), movflags="faststart")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    frames = play(VideoFile(path))
    assert 20 < len(frames) < 35
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith("'cut.mp4' is damaged: it ends after ")
    assert f"of 60 frames; 1 frame could not be decoded; {len(frames)} frames played" in record.getMessage()


@pytest.mark.parametrize("name", ["cut.mkv", "cut.avi", "cut.ts", "cut.mpeg"])
def test_video_cut_off_in_other_containers_warns(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_movie(tmp_path / name, noise(100, 48, 64), codec="mpeg2video")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10 + 5])
    frames = play(VideoFile(path))
    assert 40 < len(frames) < 65
    assert [record.getMessage()[: len(name) + 13] for record in caplog.records] == [f"'{name}' is damaged"]
    assert capfd.readouterr().err == ""


def test_video_cut_off_without_its_index_is_refused(tmp_path: Path) -> None:
    path = write_movie(tmp_path / "cut.mp4", noise(60, 48, 64))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SourceError, match=r"'cut.mp4' cannot be opened .* cut off before its index was written"):
        VideoFile(path)


def test_video_damaged_inside_leaves_out_the_bad_frames(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_movie(tmp_path / "bad.mp4", noise(60, 48, 64))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = bytes(3000)
    path.write_bytes(content)
    frames = play(VideoFile(path))
    assert 50 < len(frames) < 60
    [record] = caplog.records
    assert "'bad.mp4' is damaged: " in record.getMessage()
    assert "could not be decoded" in record.getMessage()
    assert capfd.readouterr().err == ""


def test_video_whole_file_gives_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, codec in KINDS.items():
        play(VideoFile(write_movie(tmp_path / name, noise(20, 48, 64), codec=codec)))
    assert caplog.records == []


def test_video_edit_list_that_skips_the_start_gives_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "trimmed.mp4"
    write_movie(path, noise(30, 48, 64), options={"bf": "0"})
    content = path.read_bytes()
    at = content.index(b"elst") + 8
    # One entry (duration, start, rate): play from the middle on, as a telephone's trimming writes it.
    duration, timescale = int.from_bytes(content[at + 4 : at + 8]), 12800
    entry = (duration // 2).to_bytes(4) + (15 * timescale // 25).to_bytes(4)
    path.write_bytes(content[: at + 4] + entry + content[at + 12 :])
    assert len(play(VideoFile(path))) < 30
    assert caplog.records == []


def test_video_without_frames_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "none.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 25)
        container.start_encoding()
    with pytest.raises(SourceError, match=r"'none.mp4'"):
        play(VideoFile(path))


def test_video_with_sound_only_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48_000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 48_000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(SourceError, match="holds no video stream"):
        VideoFile(path)


def test_video_closed_by_another_thread_ends(tmp_path: Path) -> None:
    source = VideoFile(write_movie(tmp_path / "a.mp4", noise(250, 48, 64)))
    started, closed = threading.Event(), threading.Event()
    num_seen = 0

    def read() -> None:
        nonlocal num_seen
        for frame in source.frames():
            num_seen = frame.index + 1
            started.set()
            closed.wait(10)

    thread = threading.Thread(target=read)
    thread.start()
    assert started.wait(10)
    source.close()
    source.close()
    closed.set()
    thread.join(10)
    assert not thread.is_alive()
    assert num_seen == 1
    assert list(source.frames()) == []
