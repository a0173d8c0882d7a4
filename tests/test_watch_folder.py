"""The watched folder: each file is played once, whole, and also after a restart; what waits in a spool outlives all."""

import contextlib
import errno
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
from edge.sources.spool import Spool, SpoolFullError, SpoolLimits
from edge.sources.watch_folder import Ledger, WatchedFolder, WatchedQueue
from tests.dicom_peer import Consumer, renamed
from tests.media import write_video
from tests.source_files import dataset, noise, write_dicom


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


def _cine(path: Path, number: int = 1, num_frames: int = 5) -> Path:
    return write_dicom(path, renamed(dataset(noise(num_frames, 16, 16, seed=number)), number))


def test_watched_folder_plays_what_is_there_and_what_comes(folder: Path) -> None:
    _cine(folder / "a.dcm", 1)
    with watching(folder) as played:
        played.wait_for_objects(1)
        (folder / "2024").mkdir()
        _cine(folder / "2024" / "b", 2)
        write_video(folder / "c.mp4", 7)
        played.wait_for_objects(3)
    assert len(played.frames) == 17
    assert len(set(played.object_ids)) == 3
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == ["a.dcm", "b", "c.mp4"]


def test_watched_folder_plays_each_file_once_also_after_a_restart(folder: Path) -> None:
    _cine(folder / "a.dcm", 1)
    with watching(folder) as played:
        played.wait_for_objects(1)
    _cine(folder / "b.dcm", 2, num_frames=3)
    with watching(folder) as played:
        played.wait_for_objects(1)
    assert len(played.frames) == 3


def test_watched_folder_plays_a_file_that_was_replaced(folder: Path) -> None:
    _cine(folder / "a.dcm", 1)
    with watching(folder) as played:
        played.wait_for_objects(1)
        _cine(folder / "a.dcm", 2, num_frames=3)
        played.wait_for_objects(2)
    assert len(played.frames) == 8


def test_watched_folder_waits_until_a_file_is_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_folder, "STABLE_S", 1.5)
    whole = _cine(folder.parent / "whole.dcm").read_bytes()
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
    _cine(folder / "a.dcm")
    with watching(folder) as played:
        played.wait_for_objects(1)
        played.wait_for_trouble("bad_objects", 2)
    assert played.count("bad_objects") == 2


def test_watched_folder_that_goes_away_is_told_and_comes_back(folder: Path) -> None:
    with watching(folder) as played:
        folder.rename(folder.parent / "away")
        played.wait_for_trouble("bad_objects")
        (folder.parent / "away").rename(folder)
        _cine(folder / "a.dcm")
        played.wait_for_objects(1)


def test_watched_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is no folder"):
        open_source(f"watch:{tmp_path / 'missing'}")


def test_watched_folder_tries_again_what_a_failing_drive_did_not_give(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_folder, "RETRY_S", 0.2)
    path = _cine(folder / "a.dcm")
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
        _cine(folder / "a.dcm")
        played.wait_for_objects(1)
    with watching(folder) as again:
        _cine(folder / "b.dcm", 2)
        again.wait_for_objects(1)
    assert (played.count("bad_objects"), again.count("bad_objects")) == (3, 0)


def test_watched_folder_never_tries_again_what_the_process_died_of(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_folder, "STABLE_S", 0.0)
    monkeypatch.setattr(watch_folder, "RETRY_S", 0.0)
    path = _cine(folder / "a.dcm")
    for _ in range(3):
        queue = WatchedQueue(folder, Ledger(tmp_path / "ledger"))
        assert queue.take(0) == path
        assert queue.begin(path) is not None  # and the process dies
    queue = WatchedQueue(folder, Ledger(tmp_path / "ledger"))
    player = ObjectPlayer(queue, _no_opener, is_realtime=False)
    items = player.frames()
    trouble = next(items)
    assert isinstance(trouble, Trouble)
    assert "ended the process too often" in trouble.message
    assert isinstance(next(items), Pause)
    player.close()
    assert WatchedQueue(folder, Ledger(tmp_path / "ledger")).take(0) is None


def test_watched_folder_never_tries_again_what_the_capture_died_of(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_folder, "STABLE_S", 0.0)
    monkeypatch.setattr(watch_folder, "RETRY_S", 0.0)
    _cine(folder / "a.dcm")
    queue = WatchedQueue(folder, Ledger(tmp_path / "ledger"))
    player = ObjectPlayer(queue, lambda path: open_source(str(path)), is_realtime=False)  # type: ignore[arg-type, return-value]
    with contextlib.closing(player.frames()) as dying:  # type: ignore[type-var]
        assert isinstance(next(dying), Frame)
    again = player.frames()
    trouble = next(again)
    assert isinstance(trouble, Trouble)
    assert "not tried again" in trouble.message
    assert isinstance(next(again), Pause)
    player.close()
    assert WatchedQueue(folder, Ledger(tmp_path / "ledger")).take(0) is None


def _no_opener(path: Path) -> RecordedSource:
    raise AssertionError(f"{path} was opened")


def test_watched_folder_whose_drive_comes_late_is_not_played_anew(folder: Path) -> None:
    _cine(folder / "a.dcm")
    with watching(folder) as played:
        played.wait_for_objects(1)
    folder.rename(folder.parent / "drive")
    folder.mkdir()
    _cine(folder / "local.dcm", 3)
    with watching(folder) as played:
        played.wait_for_objects(1)
    shutil.rmtree(folder)
    (folder.parent / "drive").rename(folder)
    _cine(folder / "b.dcm", 2, num_frames=3)
    with watching(folder) as played:
        played.wait_for_objects(1)
    assert len(played.frames) == 3


def test_watched_folder_list_of_played_files_holds_no_names_and_does_not_grow_for_ever(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _cine(folder / "DOE_JANE.dcm")
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
    _cine(folder / "a.dcm", 1)
    with watching(folder) as played:
        played.wait_for_objects(1)
    (ledger,) = (tmp_path / "state").glob("watched-*.txt")
    ledger.with_suffix(".tmp").mkdir()  # in place of the file that is to be written
    _cine(folder / "b.dcm", 2)
    with watching(folder) as played:
        played.wait_for_objects(1)
    assert caplog.text.count("what was played cannot be noted") == 1


def _put(spool: Spool, data: bytes) -> Path:
    incoming = spool.incoming()
    incoming.write(data)
    incoming.finish()
    return incoming.commit()


def test_spool_object_that_ends_the_process_is_given_up(tmp_path: Path) -> None:
    sound = _cine(tmp_path / "a.dcm").read_bytes()
    for _ in range(3):
        spool = Spool(tmp_path / "spool", SpoolLimits())
        if not spool.num_waiting:
            _put(spool, sound)
        path = spool.take(0)
        assert path is not None
        assert spool.begin(path) is not None
        spool.unlock()  # and the process dies
    spool = Spool(tmp_path / "spool", SpoolLimits())
    player = ObjectPlayer(spool, open_source, is_realtime=False)  # type: ignore[arg-type]
    items = player.frames()
    assert isinstance(next(items), Trouble)
    assert spool.num_waiting == 0
    player.close()
    spool.unlock()
    assert len(list((tmp_path / "spool" / "broken").iterdir())) == 1


def test_spool_number_of_objects_is_limited(tmp_path: Path) -> None:
    spool = Spool(tmp_path, SpoolLimits(max_waiting=2))
    _put(spool, b"1")
    _put(spool, b"2")
    with pytest.raises(SpoolFullError, match="2 objects wait"):
        spool.incoming()
    spool.settle()
    _put(spool, b"3")
    spool.unlock()


def test_spool_room_of_discarded_objects_is_given_back(tmp_path: Path) -> None:
    spool = Spool(tmp_path, SpoolLimits(max_waiting_bytes=100, max_object_bytes=1000))
    for _ in range(3):
        incoming = spool.incoming()
        incoming.write(bytes(90))
        with pytest.raises(SpoolFullError):
            incoming.write(bytes(20))
        incoming.discard()
    spool.unlock()


def test_spool_objects_taken_away_by_others_do_no_harm_and_take_no_room(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", SpoolLimits(max_waiting_bytes=10))
    _put(spool, bytes(10)).unlink()
    player = ObjectPlayer(spool, open_source, is_realtime=False)  # type: ignore[arg-type]
    items = player.frames()
    assert isinstance(next(items), Trouble)
    assert isinstance(next(items), Pause)
    _put(spool, bytes(10))
    player.close()
    spool.unlock()


def test_spool_object_that_cannot_be_put_away_is_told_and_takes_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path / "spool", SpoolLimits(max_waiting_bytes=10))
    _put(spool, bytes(10))
    (tmp_path / "spool" / "broken").rmdir()  # someone tidied up
    spool.reject()
    assert "cannot be removed" in caplog.text
    with pytest.raises(SpoolFullError):
        spool.reserve(1)
    spool.unlock()


def test_spool_on_a_disk_that_fails_is_played_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path / "spool", SpoolLimits())
    _put(spool, b"1")

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as failing:
        failing.setattr(Path, "unlink", fail)
        failing.setattr(Path, "stat", fail)
        spool.settle()
    assert spool.num_waiting == 0
    assert "Input/output error" in caplog.text
    spool.unlock()


def test_spool_object_that_is_refused_at_the_last_moment_is_not_found_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path / "spool", SpoolLimits())
    incoming = spool.incoming()
    incoming.write(b"x")
    incoming.finish()

    def fail(_: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("edge.sources.spool._sync_folder", fail)
    with pytest.raises(SpoolFullError):
        incoming.commit()
    incoming.discard()
    assert list((tmp_path / "spool" / "waiting").iterdir()) == []
    spool.unlock()


def test_player_at_its_own_speed_gives_each_frame_when_it_is_due(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", SpoolLimits())
    _put(spool, write_dicom(tmp_path / "a.dcm", dataset(noise(8, 16, 16), FrameTime=50)).read_bytes())
    player = ObjectPlayer(spool, lambda path: open_source(str(path)), is_realtime=True)  # type: ignore[arg-type, return-value]
    frames: list[Frame] = []
    t_start_s = time.monotonic()
    for item in player.frames():
        if isinstance(item, Pause) and item.is_end:
            player.close()
        elif isinstance(item, Frame):
            frames.append(item)
    assert time.monotonic() - t_start_s >= 7 * 0.05
    gaps_ms = [(b.t_capture_ns - a.t_capture_ns) / 1e6 for a, b in itertools.pairwise(frames)]
    assert gaps_ms == pytest.approx([50] * 7)
    assert spool.num_waiting == 1  # closed before it was settled
    spool.unlock()


def test_player_of_a_cine_of_years_gives_signs_of_life_and_ends(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", SpoolLimits())
    _put(spool, write_dicom(tmp_path / "a.dcm", dataset(noise(8, 16, 16), FrameTime=3_600_000)).read_bytes())
    player = ObjectPlayer(spool, lambda path: open_source(str(path)), is_realtime=True)  # type: ignore[arg-type, return-value]
    items = [item for item, _ in zip(player.frames(), range(3), strict=False)]
    assert isinstance(items[0], Frame)
    assert items[1] == Trouble("bad_objects", "an object is longer than 15 minutes; the rest of it is left out")
    spool.unlock()


def test_player_tells_troubles_while_an_object_plays(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", SpoolLimits())
    _put(spool, _cine(tmp_path / "a.dcm").read_bytes())
    player = ObjectPlayer(spool, lambda path: open_source(str(path)), is_realtime=False)  # type: ignore[arg-type, return-value]
    with contextlib.closing(player.frames()) as items:  # type: ignore[type-var]
        assert isinstance(next(items), Frame)
        player.report(Trouble("refused_objects", "the disk is full"))
        assert next(items) == Trouble("refused_objects", "the disk is full")
    spool.unlock()


def test_player_puts_away_an_object_of_which_the_capture_dies(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", SpoolLimits())
    for number in (1, 2):
        _put(spool, _cine(tmp_path / "a.dcm", number, num_frames=number).read_bytes())
    player = ObjectPlayer(spool, lambda path: open_source(str(path)), is_realtime=False)  # type: ignore[arg-type, return-value]
    with contextlib.closing(player.frames()) as dying:  # type: ignore[type-var]
        assert isinstance(next(dying), Frame)
    again = player.frames()
    trouble = next(again)
    assert isinstance(trouble, Trouble)
    assert "not tried again" in trouble.message
    assert [type(next(again)) for _ in range(3)] == [Frame, Frame, Pause]
    assert [path.name for path in (tmp_path / "spool" / "broken").iterdir()] == ["000000000001.dcm"]
    spool.unlock()


def test_watch_folder_and_source_together_are_refused() -> None:
    from edge.config import read_config

    with pytest.raises(ConfigError, match="leave --source out"):
        read_config(["--source", "demo", "--watch-folder", "x"])
    assert read_config(["--watch-folder", "x"]).source == "watch:x"
