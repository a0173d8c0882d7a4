"""Which source a URI opens, and what is said of one that cannot be opened."""

import itertools
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from media import write_video
from PIL import Image
from source_files import dataset, noise, play, write_dicom, write_movie

from edge.errors import ConfigError, EdgeError, SourceError
from edge.sources import open_source
from edge.sources.looped import LoopedSource
from edge.sources.options import SourceOptions


def test_demo_plays_on_and_on() -> None:
    source = open_source("demo")
    assert source.info.region == (42, 15, 256, 192)  # the whole sector and none of the scanner's words
    assert source.info.frame_interval_ms == pytest.approx(33.333)
    assert not source.info.is_live
    frames = list(itertools.islice(source.frames(), 65))
    assert [frame.index for frame in frames] == list(range(65))
    np.testing.assert_array_equal(frames[0].pixels, frames[30].pixels)
    np.testing.assert_array_equal(frames[4].pixels, frames[64].pixels)
    assert (frames[0].pixels != frames[1].pixels).any()
    steps_ms = np.diff([frame.t_media_ns for frame in frames]) / 1e6
    assert steps_ms == pytest.approx(np.full(64, 33.333), abs=0.01)


@pytest.mark.parametrize("name", ["a video.mp4", "Größe übung 超音波.mkv", "12:30 %03d.avi", "UPPER.MP4"])
def test_video_odd_name_is_opened(tmp_path: Path, name: str) -> None:
    source = open_source(str(write_movie(tmp_path / name, noise(3, 48, 64))))
    assert source.info.name == name
    assert len(play(source)) == 3


@pytest.mark.parametrize("name", ["IM_0001", "Größe übung 超音波.dcm", "1.2.840.10008", "cine.DCM"])
def test_dicom_odd_name_is_opened(tmp_path: Path, name: str) -> None:
    source = open_source(str(write_dicom(tmp_path / name, dataset(noise(3, 8, 8)))))
    assert source.info.name == name
    assert len(play(source)) == 3


def test_phantom_seed_is_opened() -> None:
    source = open_source("phantom:3")
    frame = next(iter(source.frames()))
    assert frame.index == 0
    assert "synthetic" in source.info.note


@pytest.mark.parametrize(
    ("uri", "error", "words"),
    [
        ("no/such/file.mp4", SourceError, "there is no file or folder 'no/such/file.mp4'"),
        ("no-such-word", SourceError, "demo, phantom:SEED, /dev/video0"),
        ("/dev/video99", SourceError, "there is no device /dev/video99; plug it in, or see edge-infer --list-sources"),
        ("/dev/null", SourceError, "/dev/null is no V4L2 device"),
        ("gopher://user:secret@host/path", ConfigError, "the kind 'gopher://' is not supported"),
        ("rtsp:/user:secret@host/path", ConfigError, "begins with 'rtsp:', but a URL must with 'rtsp://'"),
        ("dicom://host", ConfigError, "needs dicom://HOST:PORT"),
        ("phantom:", ConfigError, "for example phantom:7"),
        ("phantom:-1", ConfigError, "for example phantom:7"),
        ("phantom:three", ConfigError, "for example phantom:7"),
    ],
)
def test_uri_not_usable_is_refused(uri: str, error: type[EdgeError], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)) as caught:
        open_source(uri)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_file_of_unknown_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a video")
    with pytest.raises(ConfigError, match=r"its suffix '.txt' is not known; allowed are a video file"):
        open_source(str(path))


@pytest.mark.parametrize("name", ["empty.mp4", "empty.dcm", "empty.png"])
def test_file_without_content_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(SourceError, match=f"{name}' is empty"):
        open_source(str(tmp_path / name))


@pytest.mark.parametrize("name", ["garbage.mp4", "garbage.avi", "garbage.mpeg", "garbage.mkv", "garbage.dcm"])
def test_file_of_random_bytes_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(noise(1, 50_000).tobytes())
    with pytest.raises(SourceError, match="give another"):
        play(open_source(str(tmp_path / name)))


def test_file_without_permission_is_refused() -> None:
    # Root may read everything, so a child process asks as a user without rights.
    program = (
        "import os, sys\n"
        "import edge.sources\n"
        "from edge.errors import SourceError\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "try: edge.sources.open_source(sys.argv[1])\n"
        "except SourceError as error: print(error)"
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = write_movie(Path(folder) / "cine.mp4", noise(3, 48, 64))
        path.chmod(0)
        command = [sys.executable, "-c", program, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "cannot be read: Permission denied" in done.stdout
    assert done.stderr == ""


def test_recording_is_not_waited_for() -> None:
    with pytest.raises(ConfigError, match="--wait-source waits for a device or a stream"):
        open_source("demo", options=SourceOptions(is_awaited=True))


def test_loop_of_a_single_frame_goes_on(tmp_path: Path) -> None:
    Image.fromarray(noise(1, 8, 8)[0]).save(tmp_path / "one.png")
    source = open_source(str(tmp_path / "one.png"), loop=True)
    frames = list(itertools.islice(source.frames(), 50))
    assert [frame.index for frame in frames] == list(range(50))
    steps_ms = np.diff([frame.t_media_ns for frame in frames]) / 1e6
    assert steps_ms == pytest.approx(np.full(49, 1000 / 30), abs=0.01)


def test_loop_closed_by_its_reader_ends(tmp_path: Path) -> None:
    source = open_source(str(write_movie(tmp_path / "a.mp4", noise(5, 48, 64))), loop=True)
    count = 0
    for frame in source.frames():
        count = frame.index
        if count == 12:
            source.close()
    assert count == 12
    assert source.info.num_frames is None
    source.close()


def test_loop_damaged_file_warns_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_dicom(tmp_path / "a.dcm", dataset(noise(3, 8, 8), NumberOfFrames=5))
    frames = list(itertools.islice(open_source(str(path), loop=True).frames(), 10))
    assert len(frames) == 10
    assert len(caplog.records) == 1


def test_loop_of_a_short_recording_decodes_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = LoopedSource(open_source(str(write_video(tmp_path / "short.mp4", 5))))
    rounds: list[int] = []
    decode = source._source.frames
    monkeypatch.setattr(source._source, "frames", lambda: rounds.append(1) or decode())

    frames = list(itertools.islice(source.frames(), 20))

    assert len(rounds) == 1
    assert [frame.index for frame in frames] == list(range(20))
    for place in range(5, 20):
        np.testing.assert_array_equal(frames[place].pixels, frames[place - 5].pixels)
        assert frames[place].t_capture_ns > frames[place - 1].t_capture_ns
        assert frames[place].t_media_ns - frames[place - 1].t_media_ns == pytest.approx(1e9 / 30, rel=1e-3)


def test_loop_of_a_long_recording_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.sources.looped.MAX_KEPT_BYTES", 4 * 320 * 240 * 3)
    source = LoopedSource(open_source(str(write_video(tmp_path / "long.mp4", 5))))

    frames = list(itertools.islice(source.frames(), 12))

    assert source._kept is None
    np.testing.assert_array_equal(frames[11].pixels, frames[1].pixels)
