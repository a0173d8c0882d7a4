"""The watched folder: each file is played once, whole, and also after a restart."""

import contextlib
import itertools
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.errors import ConfigError, SourceError
from edge.frame import Frame
from edge.sources import open_source, watch_folder
from edge.sources.base import Pause, RecordedSource, Trouble
from edge.sources.object_player import ObjectPlayer
from edge.sources.options import SourceOptions
from edge.sources.watch_folder import Ledger, WatchedFolder, WatchedQueue
from tests.dicom_peer import Consumer, small_cine
from tests.media import write_video
from tests.source_files import noise


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.setattr(watch_folder, "STABLE_S", 0.2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "export"
    path.mkdir()
    return path


@contextlib.contextmanager
def watching(folder: Path) -> Iterator[Consumer]:
    source = open_source(f"watch:{folder}", options=SourceOptions(is_realtime=False))
    assert isinstance(source, WatchedFolder)
    consumer = Consumer(source)  # type: ignore[arg-type]
    try:
        yield consumer
    finally:
        source.close()
        consumer.join()


def test_watched_folder_plays_what_is_there_and_what_comes(folder: Path) -> None:
    small_cine(folder / "a.dcm", 1)
    with watching(folder) as played:
        played.wait_for_objects(1)
        (folder / "2024").mkdir()
        small_cine(folder / "2024" / "b", 2)
        write_video(folder / "c.mp4", 7)
        played.wait_for_objects(3)
    assert len(played.frames) == 17
    assert len(set(played.object_ids)) == 3
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == ["a.dcm", "b", "c.mp4"]


def test_watched_folder_plays_each_file_once_also_after_a_restart(folder: Path) -> None:
    small_cine(folder / "a.dcm", 1)
    with watching(folder) as played:
        played.wait_for_objects(1)
    small_cine(folder / "b.dcm", 2, num_frames=3)
    with watching(folder) as played:
        played.wait_for_objects(1)
    assert len(played.frames) == 3


def test_watched_folder_plays_a_file_that_was_replaced(folder: Path) -> None:
    small_cine(folder / "a.dcm", 1)
    with watching(folder) as played:
        played.wait_for_objects(1)
        small_cine(folder / "a.dcm", 2, num_frames=3)
        played.wait_for_objects(2)
    assert len(played.frames) == 8


def test_watched_folder_waits_until_a_file_is_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_folder, "STABLE_S", 1.5)
    whole = small_cine(folder.parent / "whole.dcm").read_bytes()
    with watching(folder) as played:
        with (folder / "grows.dcm").open("wb", buffering=0) as file:
            for place in range(0, len(whole), len(whole) // 8):
                file.write(whole[place : place + len(whole) // 8])
                time.sleep(0.2)  # the time between writes is what is tested
        assert played.frames == []
        played.wait_for_objects(1)
    assert len(played.frames) == 5


def test_watched_folder_skips_what_is_no_object_and_goes_on(folder: Path) -> None:
    (folder / "notes.txt").write_text("hello")
    (folder / "broken.dcm").write_bytes(noise(1, 500).tobytes())
    (folder / "half.part").write_bytes(b"x")
    (folder / ".hidden").write_bytes(b"x")
    (folder / "empty.dcm").touch()
    small_cine(folder / "a.dcm")
    with watching(folder) as played:
        played.wait_for_objects(1)
        played.wait_for_trouble("bad_objects", 2)
    assert played.count("bad_objects") == 2


def test_watched_folder_that_goes_away_is_told_and_comes_back(folder: Path) -> None:
    with watching(folder) as played:
        folder.rename(folder.parent / "away")
        played.wait_for_trouble("bad_objects")
        (folder.parent / "away").rename(folder)
        small_cine(folder / "a.dcm")
        played.wait_for_objects(1)


def test_watched_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is no folder"):
        open_source(f"watch:{tmp_path / 'missing'}")


def test_watched_folder_tries_again_what_a_failing_drive_did_not_give(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_folder, "RETRY_S", 0.2)
    path = small_cine(folder / "a.dcm")
    whole, times_ns = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_bytes(bytes(len(whole)))
    os.utime(path, ns=times_ns)
    with watching(folder) as played:
        played.wait_for_trouble("bad_objects")
        path.write_bytes(whole)
        os.utime(path, ns=times_ns)
        played.wait_for_objects(1)


def test_watched_folder_gives_up_what_can_never_be_played(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_folder, "RETRY_S", 0.0)
    (folder / "notes.txt").write_text("hello")
    with watching(folder) as played:
        played.wait_for_trouble("bad_objects", 3)
        small_cine(folder / "a.dcm")
        played.wait_for_objects(1)
    with watching(folder) as again:
        small_cine(folder / "b.dcm", 2)
        again.wait_for_objects(1)
    assert (played.count("bad_objects"), again.count("bad_objects")) == (3, 0)


def test_watched_folder_never_tries_again_what_the_process_died_of(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_folder, "STABLE_S", 0.0)
    monkeypatch.setattr(watch_folder, "RETRY_S", 0.0)
    _die_of(small_cine(folder / "a.dcm"), tmp_path / "ledger")
    queue = WatchedQueue(folder, Ledger(tmp_path / "ledger"))
    player = ObjectPlayer(queue, _no_opener, is_realtime=False)
    assert "ended the process too often" in _only_trouble(player)
    assert WatchedQueue(folder, Ledger(tmp_path / "ledger")).take(0) is None


def test_watched_folder_never_tries_again_what_the_capture_died_of(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_folder, "STABLE_S", 0.0)
    monkeypatch.setattr(watch_folder, "RETRY_S", 0.0)
    small_cine(folder / "a.dcm")
    queue = WatchedQueue(folder, Ledger(tmp_path / "ledger"))
    player = ObjectPlayer(queue, lambda path: open_source(str(path)), is_realtime=False)  # type: ignore[arg-type, return-value]
    with contextlib.closing(player.frames()) as dying:  # type: ignore[type-var]
        assert isinstance(next(dying), Frame)
    assert "not tried again" in _only_trouble(player)
    assert WatchedQueue(folder, Ledger(tmp_path / "ledger")).take(0) is None


def test_watched_folder_whose_drive_comes_late_knows_what_the_process_died_of(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_folder, "STABLE_S", 0.0)
    _die_of(small_cine(folder / "a.dcm"), tmp_path / "ledger")
    folder.rename(folder.parent / "drive")
    folder.mkdir()
    assert WatchedQueue(folder, Ledger(tmp_path / "ledger")).take(0) is None
    folder.rmdir()
    (folder.parent / "drive").rename(folder)
    player = ObjectPlayer(WatchedQueue(folder, Ledger(tmp_path / "ledger")), _no_opener, is_realtime=False)
    assert "ended the process too often" in _only_trouble(player)


def test_watched_folder_plays_a_file_in_the_place_of_one_that_the_capture_died_of(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_folder, "STABLE_S", 0.0)
    small_cine(folder / "a.dcm", 1)
    queue = WatchedQueue(folder, Ledger(tmp_path / "ledger"))
    player = ObjectPlayer(queue, lambda path: open_source(str(path)), is_realtime=False)  # type: ignore[arg-type, return-value]
    with contextlib.closing(player.frames()) as dying:  # type: ignore[type-var]
        assert isinstance(next(dying), Frame)
    small_cine(tmp_path / "other.dcm", 2, num_frames=3).replace(folder / "a.dcm")
    frames = list(itertools.takewhile(lambda item: isinstance(item, Frame), player.frames()))
    player.close()
    assert len(frames) == 3


def _die_of(path: Path, ledger: Path) -> None:
    """Begin the only file of its folder three times, as processes that die of it do."""
    for _ in range(3):
        queue = WatchedQueue(path.parent, Ledger(ledger))
        assert queue.take(0) == path
        assert queue.begin(path) is not None


def _only_trouble(player: ObjectPlayer) -> str:
    """Return what the player tells before it waits, and close it."""
    items = player.frames()
    trouble = next(items)
    assert isinstance(trouble, Trouble)
    assert isinstance(next(items), Pause)
    player.close()
    return trouble.message


def _no_opener(path: Path) -> RecordedSource:
    raise AssertionError(f"{path} was opened")


def test_watched_folder_whose_drive_comes_late_is_not_played_anew(folder: Path) -> None:
    small_cine(folder / "a.dcm")
    with watching(folder) as played:
        played.wait_for_objects(1)
    folder.rename(folder.parent / "drive")
    folder.mkdir()
    small_cine(folder / "local.dcm", 3)
    with watching(folder) as played:
        played.wait_for_objects(1)
    shutil.rmtree(folder)
    (folder.parent / "drive").rename(folder)
    small_cine(folder / "b.dcm", 2, num_frames=3)
    with watching(folder) as played:
        played.wait_for_objects(1)
    assert len(played.frames) == 3


def test_watched_folder_list_of_played_files_holds_no_names_and_does_not_grow_for_ever(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_cine(folder / "DOE_JANE.dcm")
    with watching(folder) as played:
        played.wait_for_objects(1)
    [ledger] = (tmp_path / "state").iterdir()
    assert "DOE" not in ledger.name + ledger.read_text()
    (folder / "DOE_JANE.dcm").unlink()
    monkeypatch.setattr(watch_folder, "MAX_GONE", 0)
    with watching(folder):
        pass
    with watching(folder):
        pass
    assert ledger.read_text() == ""


def test_watched_folder_whose_list_cannot_be_written_is_played(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small_cine(folder / "a.dcm", 1)
    with watching(folder) as played:
        played.wait_for_objects(1)
    (ledger,) = (tmp_path / "state").glob("watched-*.txt")
    ledger.with_suffix(".tmp").mkdir()  # in place of the file that is to be written
    small_cine(folder / "b.dcm", 2)
    with watching(folder) as played:
        played.wait_for_objects(1)
    assert caplog.text.count("what was played cannot be noted") == 1


def test_watch_folder_and_source_together_are_refused() -> None:
    from edge.config import read_config

    with pytest.raises(ConfigError, match="leave --source out"):
        read_config(["--source", "demo", "--watch-folder", "x"])
    assert read_config(["--watch-folder", "x"]).source == "watch:x"
