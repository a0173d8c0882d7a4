"""Recordings: what `--record` writes, that `--source` plays it to the same predictions, and what a kill leaves."""

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import av
import numpy as np
import pytest
from daemon import record, run_command
from media import write_images, write_video

from edge.errors import ConfigError, SourceError
from edge.frame import Frame
from edge.recording.layout import CODEC_NAMES, FrameTimes, pack_message, read_frame_times, read_messages, segments_of
from edge.recording.reader import Recording
from edge.recording.recorder import Recorder, RecordingSettings
from edge.recording.segment import SegmentWriter
from edge.sources import open_source

SIZE_WH, ROI = (64, 48), (8, 4, 33, 27)  # odd sizes: chroma planes would not fit
rng = np.random.default_rng(0)


def _settings(folder: Path, **changes: object) -> RecordingSettings:
    values = {"codec": CODEC_NAMES[0], "max_bytes": None, "max_age_s": None, "is_lossless": True, "channels": 1}
    return RecordingSettings(folder=folder, **{**values, **changes})


def _frame(index: int, *, is_rgb: bool = False) -> Frame:
    width, height = SIZE_WH
    pixels = rng.integers(0, 256, (height, width, 3) if is_rgb else (height, width), np.uint8)
    return Frame(pixels, index, index * 33_333_333, index, index)


def _roi(pixels: np.ndarray, roi: tuple[int, int, int, int] = ROI) -> np.ndarray:
    x, y, width, height = roi
    return pixels[y : y + height, x : x + width]


@pytest.mark.parametrize("is_rgb", [False, True])
@pytest.mark.parametrize("codec", CODEC_NAMES[:2])
def test_recorder_lossless_codec_keeps_every_pixel_and_time(tmp_path: Path, codec: str, is_rgb: bool) -> None:
    frames = [_frame(index, is_rgb=is_rgb) for index in range(70)]  # more than a group of pictures
    recorder = Recorder(_settings(tmp_path / "a", codec=codec, channels=3 if is_rgb else 1), {"source": "x"})
    for frame in frames:
        recorder.add_frame(frame, ROI)
    recorder.close()

    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700  # pictures are for their owner alone
    (segment,) = Recording(tmp_path / "a").segments
    images = list(segment.images())
    assert [times.t_media_ns for times, _ in images] == [frame.t_media_ns for frame in frames]
    for frame, (_, pixels) in zip(frames, images, strict=True):
        np.testing.assert_array_equal(pixels, _roi(frame.pixels))


def test_recorder_near_lossless_codec_is_smaller_and_near(tmp_path: Path) -> None:
    sizes = {}
    for codec in (CODEC_NAMES[0], CODEC_NAMES[2]):
        recorder = Recorder(_settings(tmp_path / codec, codec=codec), {})
        frames = list(itertools.islice(open_source("phantom:1").frames(), 20))
        for frame in frames:
            recorder.add_frame(frame, (0, 0, *frame.size_wh))
        recorder.close()
        (segment,) = Recording(tmp_path / codec).segments
        sizes[codec] = segment.paths.video.stat().st_size
        pairs = zip(frames, segment.images(), strict=True)
        errors = [np.abs(pixels.astype(int) - frame.pixels).mean() for frame, (_, pixels) in pairs]
        assert max(errors) <= (0 if codec == CODEC_NAMES[0] else 3)
    assert sizes[CODEC_NAMES[2]] < sizes[CODEC_NAMES[0]] / 2


def test_recording_whose_roi_changes_is_played_with_each_frames_own(tmp_path: Path) -> None:
    other = (0, 0, 20, 20)
    frames = [_frame(index) for index in range(6)]
    recorder = Recorder(_settings(tmp_path / "a"), {})
    for frame in frames:
        recorder.add_frame(frame, ROI if frame.index < 3 else other)
    recorder.close()

    played = list(open_source(str(tmp_path / "a")).frames())
    assert [frame.region for frame in played] == [ROI] * 3 + [other] * 3
    for frame, original in zip(played, frames, strict=True):
        assert frame.size_wh == SIZE_WH
        np.testing.assert_array_equal(_roi(frame.pixels, frame.region), _roi(original.pixels, frame.region))
        outside = frame.pixels.copy()
        _roi(outside, frame.region)[:] = 0
        assert not outside.any()  # what lay there was never written


def test_recording_of_a_loop_plays_its_seams_as_such(tmp_path: Path) -> None:
    recorder = Recorder(_settings(tmp_path / "a"), {})
    for index in range(6):
        recorder.add_frame(_frame(index).replace(is_seam=index == 4), ROI)
    recorder.close()
    frames = list(open_source(str(tmp_path / "a")).frames())
    assert [frame.is_seam for frame in frames] == [False] * 4 + [True, False]


def test_recorder_goes_on_in_an_earlier_recording(tmp_path: Path) -> None:
    for start in (0, 5):
        recorder = Recorder(_settings(tmp_path / "a"), {})
        for index in range(start, start + 5):
            recorder.add_frame(_frame(index), ROI)
        recorder.close()
    assert [segment.paths.number for segment in Recording(tmp_path / "a").segments] == [1, 2]
    assert len(list(open_source(str(tmp_path / "a")).frames())) == 10


def test_recorder_beyond_its_size_loses_the_oldest_segment(tmp_path: Path) -> None:
    recorder = Recorder(_settings(tmp_path / "a", max_bytes=4000), {})
    for index in range(12):
        recorder.add_frame(_frame(index), (index % 2, 0, 33, 27))  # each change of the ROI begins a segment
    recorder.close()
    numbers = [segment.number for segment in segments_of(tmp_path / "a")]
    assert numbers == list(range(numbers[0], 13))
    assert 1 < numbers[0] <= 12


def test_recorder_beyond_its_age_loses_the_old_segment(tmp_path: Path) -> None:
    for _ in range(2):
        recorder = Recorder(_settings(tmp_path / "a", max_age_s=3600.0), {})
        recorder.add_frame(_frame(0), ROI)
        recorder.close()
        old = tmp_path / "a" / "000001.json"
        if old.exists():
            os.utime(old, (0, 0))
    assert [segment.number for segment in segments_of(tmp_path / "a")] == [2]


def test_recorder_on_a_disk_that_hangs_bounds_what_waits_and_tells_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    goes_on = threading.Event()
    add_frame = SegmentWriter.add_frame

    def hang(segment: SegmentWriter, pixels: np.ndarray, times: FrameTimes) -> None:
        goes_on.wait(60)
        add_frame(segment, pixels, times)

    monkeypatch.setattr(SegmentWriter, "add_frame", hang)
    recorder = Recorder(_settings(tmp_path / "a", is_lossless=False), {})
    for index in range(100):
        recorder.add_frame(_frame(index), ROI)
    for number in range(2500):
        recorder.add_message([b"prediction.main", str(number).encode()])
    goes_on.set()
    recorder.close()
    recorder.close()
    (segment,) = Recording(tmp_path / "a").segments
    num_kept = len(list(segment.images())) + len(list(read_messages(segment.paths.messages)))
    assert recorder.num_left_out == 2600 - num_kept
    assert 500 <= recorder.num_left_out <= 700
    told = [entry.getMessage() for entry in caplog.records if entry.levelname == "WARNING"]
    assert ["is too slow" in told[0], f"lacks {recorder.num_left_out} frames and messages" in told[1]] == [True] * 2
    assert len(told) == 2


def test_recorder_on_a_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds other files"):
        Recorder(_settings(tmp_path), {})


def test_cut_files_are_read_up_to_the_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    times = FrameTimes(1, 2, 3, 4, is_seam=True)
    whole = times.pack() * 3
    (tmp_path / "a.frames").write_bytes(whole[:-5])
    assert read_frame_times(tmp_path / "a.frames") == [times] * 2
    packed = pack_message([b"topic", b"header", b""])
    for rest in (packed[:9], bytes(100), b"", b"\xff" * 30):  # a cut, a lost power, none, and garbage
        caplog.clear()
        (tmp_path / "a.messages").write_bytes(packed * 2 + rest)
        assert list(read_messages(tmp_path / "a.messages")) == [[b"topic", b"header", b""]] * 2
        told = [f"its last {len(rest)} bytes hold no whole message"] if rest else []
        assert [entry.getMessage().partition(": ")[2].partition(" and")[0] for entry in caplog.records] == told


@pytest.mark.parametrize(
    "damage",
    [
        b"\xff" * 30,
        bytes(100),
        pack_message([b"prediction.us", b"{}", b"x" * 50])[:30] * 3,
        b"prediction.us" * 5,
    ],
)
def test_messages_behind_damage_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: bytes) -> None:
    path = tmp_path / "a.messages"
    prediction, status = [b"prediction.us", b"{}", b"heatmap"], [b"status.us", b"{}"]
    whole = pack_message(status) + pack_message(prediction)
    path.write_bytes(whole + damage + pack_message(prediction) * 2 + pack_message(status) + damage[:3])
    assert list(read_messages(path)) == [status, prediction, prediction, prediction, status]
    assert [entry.getMessage() for entry in caplog.records] == [
        f"{path} was damaged: {len(damage)} bytes in its midst hold no whole message and are passed over",
        f"{path} was cut or damaged: its last 3 bytes hold no whole message and are passed over",
    ]


def test_messages_behind_damage_at_the_start_are_not_known(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.messages"
    path.write_bytes(b"\xff" * 8 + pack_message([b"status.us", b"{}"]))
    assert list(read_messages(path)) == []
    assert "its last 31 bytes hold no whole message" in caplog.text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not a readable recording"),
        ('{"schema_version": 2}', "schema_version 2"),
        ('{"schema_version": 1}', "without a frame"),
        ("[]", "schema_version None"),
    ],
)
def test_source_recording_that_is_damaged_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "recording.json").write_text(content)
    with pytest.raises(SourceError, match=said):
        open_source(str(tmp_path))


@pytest.mark.parametrize("about", ["[]", "{}", '{"size_wh": [64, 48], "roi_px": [40, 0, 33, 27]}'])
def test_source_recording_whose_segment_says_no_roi_is_refused(tmp_path: Path, about: str) -> None:
    _record_each(tmp_path / "a", range(2))
    (tmp_path / "a" / "000002.json").write_text(about)
    with pytest.raises(SourceError, match=r"not a readable recording \(000002.json"):
        open_source(str(tmp_path / "a"))


@pytest.mark.parametrize("suffix", ["frames", "mkv"])
def test_recording_of_which_a_segment_is_half_removed_plays_the_rest(tmp_path: Path, suffix: str) -> None:
    _record_each(tmp_path / "a", range(3))
    (tmp_path / "a" / f"000001.{suffix}").unlink()
    assert len(list(open_source(str(tmp_path / "a")).frames())) == 2


def _record_each(folder: Path, indices: range) -> None:
    """Record a frame a segment."""
    for index in indices:
        recorder = Recorder(_settings(folder), {})
        recorder.add_frame(_frame(index), ROI)
        recorder.close()


def test_infer_recording_played_again_gives_the_same_predictions(tmp_path: Path, trivial_bundle: Path) -> None:
    source = write_video(tmp_path / "Mustermann.mp4", 40)
    options = ("--engine", str(trivial_bundle), "--pace", "max")
    first = record("--source", str(source), "--record", str(tmp_path / "exam"), *options)
    again = record("--source", str(tmp_path / "exam"), *options)

    assert first.exit_code == again.exit_code == 0, first.stderr + again.stderr
    told = ("window", "probabilities", "positive", "heatmap", "seq", "state")
    assert len(first.predictions) == 25
    assert [[header[key] for key in told] for header in again.predictions] == [
        [header[key] for key in told] for header in first.predictions
    ]
    heatmaps = [[message.buffers for message in run.of("prediction")] for run in (first, again)]
    assert heatmaps[0] == heatmaps[1]
    recorded = list(Recording(tmp_path / "exam").messages())
    assert [message.header for message in recorded if message.kind == "prediction"] == first.predictions
    assert recorded[-1].header == first.messages[-1].header  # the last word, too
    about = json.loads((tmp_path / "exam" / "000001.json").read_text())
    assert about["engine"]["sha256"] == first.predictions[0]["engine"]["sha256"]
    assert len(about["bundle"]["manifest_sha256"]) == 64
    assert not any(b"Mustermann" in path.read_bytes() for path in (tmp_path / "exam").iterdir())


@pytest.mark.slow
def test_infer_recording_of_luma_gives_the_same_predictions_where_colour_flow_came(
    tmp_path: Path, trivial_bundle: Path
) -> None:
    source = _write_flow(tmp_path / "flow.mp4", num_frames=60, flow_from=24)
    options = ("--engine", str(trivial_bundle), "--pace", "max", "--roi", "full")
    first = record("--source", str(source), "--record", str(tmp_path / "exam"), *options)
    again = record("--source", str(tmp_path / "exam"), *options)

    assert "colour Doppler came on" in first.stderr
    told = ("window", "probabilities", "seq", "state")
    assert [[header[key] for key in told] for header in again.predictions] == [
        [header[key] for key in told] for header in first.predictions
    ]


def _write_flow(path: Path, *, num_frames: int, flow_from: int) -> Path:
    """Write a sweep over the phantom, on which colour flow comes on at a frame, and leaves the luma as it was."""
    frames = list(itertools.islice(open_source("phantom:1").frames(), num_frames))
    width, height = (size // 4 * 4 for size in frames[0].size_wh)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            chroma = np.full((2, height // 2, width // 2), 128, np.uint8)
            chroma[1, height // 8 : height // 4, width // 8 : width // 4] = 200 if frame.index >= flow_from else 128
            planes = [frame.pixels[:height, :width].reshape(-1, width), chroma.reshape(-1, width)]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.concatenate(planes), format="yuv420p")))
        container.mux(stream.encode(None))
    return path


def test_infer_killed_while_it_records_leaves_a_recording_that_plays(tmp_path: Path, trivial_bundle: Path) -> None:
    source = write_images(tmp_path / "images", [(320, 240)] * 60)
    address = f"ipc://{tmp_path}/socket"
    command = ["--source", str(source), "--engine", str(trivial_bundle), "--record", str(tmp_path / "exam"), "--loop"]
    command = [sys.executable, "-m", "edge.cli", *command, "--publish", address]
    daemon = subprocess.Popen(command, stderr=subprocess.PIPE)
    frames = tmp_path / "exam" / "000001.frames"
    try:
        run_command("--connect", address, "--count", "60", "--timeout", "30", module="edge.watch.cli")
    finally:
        daemon.send_signal(signal.SIGKILL)
        daemon.communicate()
    assert frames.stat().st_size >= 60 * 32
    again = record("--source", str(tmp_path / "exam"), "--engine", str(trivial_bundle), "--pace", "max")

    assert again.exit_code == 0, again.stderr
    assert len(again.predictions) >= 15  # a second may be lost, and the rest of a window


def test_infer_on_a_full_disk_goes_on_without_recording(trivial_bundle: Path, tmp_path: Path) -> None:
    # a file size limit stands for the full disk: the system refuses a write in the midst of the video
    source = write_images(tmp_path / "images", [(320, 240)] * 60)
    command = [sys.executable, "-m", "edge.cli", "--source", str(source), "--engine", str(trivial_bundle)]
    command += ["--pace", "max", "--record", str(tmp_path / "exam"), "--publish", f"ipc://{tmp_path}/socket"]
    command += ["--status-file", str(tmp_path / "status")]
    limited = ["bash", "-c", 'ulimit -f 20; trap "" XFSZ; exec "$@"', "-", *command]
    done = subprocess.run(limited, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr
    assert "error: recording into" in done.stderr
    assert "the stream goes on" in done.stderr
    assert "published 45" in done.stderr
    told = json.loads((tmp_path / "status").read_text())["recording"]
    assert told["trouble"] == os.strerror(errno.EFBIG)
