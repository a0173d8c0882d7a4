"""The clip cache: the daemon's frames and windows, byte for byte; whole or not there, whatever happens."""

import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pydicom.examples
import pytest
from daemon import record
from media import write_images
from PIL import Image
from source_files import noise, write_movie
from trainer_files import coded_video

from edge.errors import ConfigError, SourceError
from edge.preprocess import preprocess
from edge.sources import open_source
from engines import PreprocessSpec
from tools.trivial import write_trivial_bundle
from trainer.data import content
from trainer.data.clips import ClipCacheError, ClipStore, VideoFrames, default_cache_dir
from trainer.data.video import Video

SPEC = PreprocessSpec(resize_hw=(64, 64), crop_hw=(48, 56))
RGB = dataclasses.replace(SPEC, channels=3)


def _store(folder: Path, spec: PreprocessSpec = SPEC, num_frames: int = 4, interval_ms: float = 40.0) -> ClipStore:
    return ClipStore(folder / "cache", spec, num_frames, interval_ms)


def _entries(store: ClipStore) -> list[str]:
    return sorted(path.name for path in store.cache_dir.iterdir()) if store.cache_dir.exists() else []


def _same_sized(folder: Path) -> Path:
    return coded_video(folder, 12).path


def _with_gap(folder: Path) -> Path:
    times = [*range(0, 40, 4), *range(140, 180, 4)]  # 1/100 s; a second's pause in the middle
    return write_movie(folder / "gap.mkv", noise(20, 48, 64), times=times)


def _changing_size(folder: Path) -> Path:
    return write_images(folder / "images", [(96, 80)] * 15 + [(120, 90)] * 13)


def _freezing_and_changing(folder: Path) -> Path:
    first, second = (noise(1, 48, 300, seed=seed)[0] for seed in (1, 2))
    moving = [[speckle[:, 4 * n : 4 * n + 64] for n in range(40)] for speckle in (first, second)]
    frames = [*moving[0][:20], *[moving[0][20]] * 30, *moving[0][20:], *moving[1]]
    smooth = [cv2.GaussianBlur(frame, (0, 0), 2) for frame in frames]
    return write_movie(folder / "states.mkv", np.stack([cv2.convertScaleAbs(frame, alpha=1.5) for frame in smooth]))


def _dicom(_folder: Path) -> Path:
    return Path(pydicom.examples.get_path("ybr_color"))


@pytest.mark.parametrize(
    ("make", "interval_ms"),
    [(_same_sized, 70.0), (_with_gap, 40.0), (_changing_size, 70.0), (_freezing_and_changing, 40.0), (_dicom, 40.0)],
)
def test_clips_are_the_windows_of_the_daemon(tmp_path: Path, make: object, interval_ms: float) -> None:
    path = make(tmp_path)  # type: ignore[operator]
    bundle = write_trivial_bundle(
        tmp_path / "bundle", num_frames=4, preprocess=SPEC, frame_interval_ms=interval_ms, threshold=0.5
    )
    recording = record("--source", str(path), "--engine", str(bundle), "--pace", "max", "--hop", "1")
    frames = _store(tmp_path, interval_ms=interval_ms).get(Video("v", path, 0, "p"))

    firsts, lasts = frames.frame_indices[frames.window_starts], frames.frame_indices[frames.window_starts + 3]
    assert list(zip(firsts, lasts, strict=True)) == recording.windows
    assert len(recording.windows) >= 2
    # the trivial network's probability is the mean of its clip
    means = [(frames.clip(start) / 255).mean() for start in frames.window_starts]
    np.testing.assert_allclose(means, [header["probabilities"][-1] for header in recording.predictions], atol=1e-5)


@pytest.mark.parametrize("spec", [SPEC, RGB, PreprocessSpec()], ids=["gray", "rgb", "default"])
@pytest.mark.parametrize("make", [_same_sized, _dicom])
def test_clip_over_255_is_preprocess_byte_for_byte(tmp_path: Path, make: object, spec: PreprocessSpec) -> None:
    path = make(tmp_path)  # type: ignore[operator]
    frames = _store(tmp_path, spec).get(Video("v", path, 0, "p"))

    by_index = {frame.index: frame for frame in open_source(str(path)).frames()}
    cached = np.multiply(frames.clip(2), np.float32(1 / 255), dtype=np.float32)
    for place, image in enumerate(cached, start=2):
        frame = by_index[int(frames.frame_indices[place])]
        pixels = frame.pixels if spec.channels == 1 else frame.rgb()
        np.testing.assert_array_equal(image, preprocess(pixels, tuple(frames.rois[place].tolist()), spec))


def test_clip_frames_have_shape_dtype_and_facts(tmp_path: Path) -> None:
    frames = _store(tmp_path, RGB).get(coded_video(tmp_path, 30, size_wh=(320, 240), fps=25))
    assert (frames.frames.shape, frames.frames.dtype) == ((30, 64, 64, 3), np.uint8)
    assert not frames.frames.flags.writeable
    assert frames.clip(0).shape == (4, 3, 48, 56)
    assert frames.window_starts.tolist() == list(range(27))
    assert frames.frame_indices.tolist() == list(range(30))
    assert (frames.size_wh, frames.num_source_frames, frames.source_interval_ms) == ((320, 240), 30, 40.0)
    assert frames.warnings == ()


def test_clips_of_any_length_share_an_entry_and_other_pixels_do_not(tmp_path: Path) -> None:
    video = coded_video(tmp_path, 20)
    assert len(_store(tmp_path).get(video).window_starts) == 17
    assert len(_store(tmp_path, num_frames=1).get(video).window_starts) == 20
    smaller = dataclasses.replace(SPEC, crop_hw=(32, 32))
    assert _store(tmp_path, smaller).get(video).clip(0).shape == (4, 1, 32, 32)
    store = _store(tmp_path)
    assert len(_entries(store)) == 1
    _store(tmp_path, RGB).get(video)
    _store(tmp_path, interval_ms=80.0).get(video)
    store.get(dataclasses.replace(video, roi=(0, 0, 100, 100)))
    assert len(_entries(store)) == 4


def test_clip_roi_of_the_manifest_is_used(tmp_path: Path) -> None:
    video = dataclasses.replace(coded_video(tmp_path, 6), roi=(10, 20, 200, 150))
    assert np.unique(_store(tmp_path).get(video).rois, axis=0).tolist() == [[10, 20, 200, 150]]


def test_clip_content_changed_in_place_is_decoded_anew(tmp_path: Path) -> None:
    video = coded_video(tmp_path, 10)
    before = _store(tmp_path).get(video)
    coded_video(tmp_path, 14)
    assert (len(before.frames), len(_store(tmp_path).get(video).frames)) == (10, 14)


def test_clip_of_a_folder_with_an_image_changed_is_decoded_anew(tmp_path: Path) -> None:
    video = Video("images", write_images(tmp_path / "images", [(96, 80)] * 6), 0, "p")
    _store(tmp_path).get(video)
    Image.fromarray(np.zeros((80, 96), np.uint8)).save(tmp_path / "images" / "frame_3.png")
    store = _store(tmp_path)
    store.get(video)
    assert len(_entries(store)) == 2


def test_clip_decoded_by_other_software_is_decoded_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = coded_video(tmp_path, 10)
    _store(tmp_path).get(video)
    monkeypatch.setattr("trainer.data.content.FRAME_CODE", ("capture.py",))  # as if another file had changed
    store = _store(tmp_path)
    store.get(video)
    assert len(_entries(store)) == 2


@pytest.mark.parametrize(
    "name", ["area_resize.py", "capture.py", "recording/reader.py", "sources/video.py", "sources/dicom/pixels.py"]
)
def test_software_that_makes_frames_in_any_room_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    edge = shutil.copytree(Path(content.edge.__file__).parent, tmp_path / "edge")
    monkeypatch.setattr(content.edge, "__file__", str(edge / "__init__.py"))
    before = content.software()
    with (edge / name).open("a", encoding="utf-8") as module:
        module.write("# another way to make frames\n")
    assert content.software()[:-1] == before[:-1]
    assert content.software()[-1] != before[-1]


def test_clip_same_content_under_another_name_is_decoded_once(tmp_path: Path) -> None:
    video = coded_video(tmp_path, 10)
    copy = dataclasses.replace(video, path=video.path.rename(tmp_path / "renamed.mp4"))
    store = _store(tmp_path)
    store.get(copy)
    entry = store.cache_dir / _entries(store)[0] / "frames.u8"
    written_ns = entry.stat().st_mtime_ns
    copy.path.rename(video.path)
    _store(tmp_path).get(video)
    assert entry.stat().st_mtime_ns == written_ns


def test_clip_frames_sent_to_another_process_read_from_disk(tmp_path: Path) -> None:
    frames = _store(tmp_path).get(coded_video(tmp_path, 30))
    sent = pickle.dumps(frames)
    assert len(sent) < 2000
    received = pickle.loads(sent)
    assert isinstance(received, VideoFrames)
    np.testing.assert_array_equal(received.clip(3), frames.clip(3))


def test_prepare_decodes_in_processes_and_names_what_is_left_out(tmp_path: Path) -> None:
    good = [coded_video(tmp_path, 20 + n, f"good{n}.mp4") for n in range(3)]
    short = coded_video(tmp_path, 3, "short.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    text = Video("text.mp4", tmp_path / "text.mp4", 0, "p")
    outside = dataclasses.replace(good[0], id="outside", roi=(0, 0, 5000, 10))
    (tmp_path / "stream.sdp").write_text("v=0")
    stream = Video("stream.sdp", tmp_path / "stream.sdp", 0, "p")
    gone = Video("gone.mp4", tmp_path / "gone.mp4", 0, "p")
    store = _store(tmp_path)

    prepared = store.prepare([*good, short, text, outside, gone, stream], num_workers=2)

    assert list(prepared.short) == ["short.mp4"]
    assert "no 4 frames in a row: 3 lie on the time grid of 40 ms" in prepared.short["short.mp4"]
    assert set(prepared.unreadable) == {"text.mp4", "outside", "gone.mp4", "stream.sdp"}
    assert "cannot be opened" in prepared.unreadable["text.mp4"]
    assert "reaches outside the image of 320x240" in prepared.unreadable["outside"]
    assert "is a stream, not a recording" in prepared.unreadable["stream.sdp"]
    assert "No such file" in prepared.unreadable["gone.mp4"]
    assert set(prepared.left_out) == {"short.mp4", *prepared.unreadable}
    assert len(_entries(store)) == 4
    assert [len(store.get(video).frames) for video in good] == [20, 21, 22]


def test_prepare_again_decodes_nothing(tmp_path: Path) -> None:
    videos = [coded_video(tmp_path, 20, f"{n}.mp4", fps=20 + n) for n in range(2)]
    store = _store(tmp_path)
    store.prepare(videos)
    times_ns = [(store.cache_dir / name).stat().st_mtime_ns for name in _entries(store)]
    assert _store(tmp_path).prepare(videos).left_out == {}
    assert [(store.cache_dir / name).stat().st_mtime_ns for name in _entries(store)] == times_ns


def test_clip_damage_is_kept_with_the_frames_and_not_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_movie(tmp_path / "whole.mpeg", noise(40, 48, 64), codec="mpeg2video")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + b"\0" * 20_000 + data[len(data) // 2 + 20_000 :])
    for _ in range(2):
        frames = _store(tmp_path).get(Video("v", path, 0, "p"))
        assert any("is damaged" in warning for warning in frames.warnings)
    assert capfd.readouterr().err == ""


def test_clip_of_a_still_video_tells_the_trainers_user_what_helps(tmp_path: Path) -> None:
    path = write_movie(tmp_path / "still.mp4", np.full((30, 48, 64), 90, np.uint8))
    warnings = [text for text in _store(tmp_path).get(Video("v", path, 0, "p")).warnings if "nothing moves" in text]
    assert warnings == ["ROI: nothing moves: full frame; give the image's X,Y,W,H in the manifest's column roi"]


@pytest.mark.parametrize("name", ["frames.u8", "meta.npz"])
@pytest.mark.parametrize("damage", ["truncated", "emptied", "removed"])
def test_clip_entry_damaged_on_disk_is_made_anew(tmp_path: Path, name: str, damage: str) -> None:
    video = coded_video(tmp_path, 10)
    store = _store(tmp_path)
    expected = np.array(store.get(video).frames)
    file = store.cache_dir / _entries(store)[0] / name
    if damage == "removed":
        file.unlink()
    else:
        os.truncate(file, 0 if damage == "emptied" else file.stat().st_size // 2)

    np.testing.assert_array_equal(_store(tmp_path).get(video).frames, expected)
    assert len(_entries(store)) == 1


def test_clip_decoding_stopped_leaves_nothing(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    store = _store(tmp_path)
    with pytest.raises(SourceError, match="stopped"):
        store.get(coded_video(tmp_path, 10), stop)
    assert _entries(store) == []


def test_clips_decoded_by_several_threads_at_once_are_whole(tmp_path: Path) -> None:
    video = coded_video(tmp_path, 40)
    results: list[np.ndarray] = []
    threads = [
        threading.Thread(target=lambda: results.append(np.array(_store(tmp_path).get(video).frames))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(one, other) for one, other in itertools.pairwise(results))
    assert (len(results), len(_entries(_store(tmp_path)))) == (4, 1)


_MARK = "EDGE_TRAIN_TEST_FOLDER"
_PREPARE = """
import sys
from pathlib import Path
from engines import PreprocessSpec
from trainer.data.clips import ClipStore
from trainer.data.video import Video
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    videos = [Video(path.name, path, 0, "p") for path in sorted(folder.glob("*.mp4"))]
    ClipStore(folder / "cache", PreprocessSpec((64, 64), (48, 56)), 4, 40.0).prepare(videos, num_workers=2)
"""


def _start_preparing(folder: Path, num_videos: int) -> subprocess.Popen[bytes]:
    for n in range(num_videos):
        coded_video(folder, 60, f"{n}.mp4", size_wh=(320, 240 + 2 * n))
    program = folder / "prepare.py"
    program.write_text(_PREPARE)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), _MARK: str(folder)}
    return subprocess.Popen([sys.executable, str(program), str(folder)], env=environment, stderr=subprocess.DEVNULL)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGKILL, id="killed"), pytest.param(signal.SIGINT, id="interrupted")],
)
def test_prepare_ended_at_any_moment_leaves_whole_entries_and_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    num_videos = 16
    process = _start_preparing(tmp_path, num_videos)
    store = _store(tmp_path)
    _wait_until(lambda: any(not name.startswith(".") for name in _entries(store)))
    process.send_signal(number)
    process.communicate(timeout=30)
    _wait_until(lambda: not _processes_with(f"{_MARK}={tmp_path}"))  # no worker stays behind

    whole = [name for name in _entries(store) if not name.startswith(".")]
    assert 1 <= len(whole) < num_videos
    videos = [Video(path.name, path, 0, "p") for path in sorted(tmp_path.glob("*.mp4"))]
    assert store.prepare(videos).left_out == {}
    fresh = ClipStore(tmp_path / "other", SPEC, 4, 40.0)
    for video in videos[:: num_videos // 4]:
        np.testing.assert_array_equal(store.get(video).frames, fresh.get(video).frames)


def _wait_until(condition: object, deadline_s: float = 30.0) -> None:
    end_s = time.monotonic() + deadline_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end_s
        threading.Event().wait(0.02)


def _processes_with(text: str) -> list[int]:
    """Return the processes whose environment holds the text: workers inherit it."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended, or is not ours
            if text.encode() in (path / "environ").read_bytes().split(b"\0"):
                found.append(int(path.name))
    return found


def test_prepare_whose_worker_is_killed_says_so_and_keeps_what_is_whole(tmp_path: Path) -> None:
    videos = [coded_video(tmp_path, 60, f"{n}.mp4", size_wh=(320, 240 + 2 * n)) for n in range(16)]
    store = _store(tmp_path)
    errors: list[Exception] = []

    def prepare() -> None:
        try:
            store.prepare(videos, num_workers=2)
        except ClipCacheError as exc:
            errors.append(exc)

    thread = threading.Thread(target=prepare)
    thread.start()
    _wait_until(lambda: any(not name.startswith(".") for name in _entries(store)))
    multiprocessing.active_children()[0].kill()
    thread.join(30)
    assert len(errors) == 1
    assert "was killed" in str(errors[0])
    assert store.prepare(videos).left_out == {}


def test_clip_cache_on_a_full_disk_is_an_error_and_leaves_nothing_half(tmp_path: Path) -> None:
    video = coded_video(tmp_path, 60)
    store = _store(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # a write beyond fails as on a full disk
    try:
        with pytest.raises(ClipCacheError, match=r"cannot be written \(File too large\).*--cache"):
            store.get(video)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert _entries(store) == []
    assert len(store.get(video).frames) == 60


def test_clip_cache_that_cannot_be_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(ClipCacheError, match="cannot be written") as caught:
        _store(tmp_path).prepare([coded_video(tmp_path, 10)])
    assert isinstance(caught.value, ConfigError)


def test_prepare_removes_what_was_half_written_long_ago_and_leaves_what_is_new(tmp_path: Path) -> None:
    store = _store(tmp_path)
    for name in (".tmp-old", ".tmp-new"):
        (store.cache_dir / name).mkdir(parents=True)
    two_days_ago_s = time.time() - 2 * 24 * 3600
    os.utime(store.cache_dir / ".tmp-old", (two_days_ago_s, two_days_ago_s))
    store.prepare([])
    assert _entries(store) == [".tmp-new"]


def test_default_cache_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "edge-train"
