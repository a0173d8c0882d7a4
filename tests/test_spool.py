"""What waits in a spool outlives the process and takes its room; and how it is played."""

import contextlib
import errno
import itertools
import time
from pathlib import Path

import pytest

from edge.frame import Frame
from edge.sources.base import Pause, Trouble
from edge.sources.dicom.file import DicomFile
from edge.sources.dicom.spool import Spool, SpoolFullError, SpoolLimits
from edge.sources.object_player import ObjectPlayer
from tests.dicom_peer import small_cine
from tests.source_files import dataset, noise, write_dicom


def _put(spool: Spool, data: bytes) -> Path:
    incoming = spool.incoming()
    incoming.write(data)
    incoming.finish()
    return incoming.commit()


def test_spool_object_that_ends_the_process_is_given_up(tmp_path: Path) -> None:
    sound = small_cine(tmp_path / "a.dcm").read_bytes()
    for _ in range(3):
        spool = Spool(tmp_path / "spool", SpoolLimits())
        if not spool.num_waiting:
            _put(spool, sound)
        path = spool.take(0)
        assert path is not None
        assert spool.begin(path) is not None
        spool.unlock()  # and the process dies
    spool = Spool(tmp_path / "spool", SpoolLimits())
    player = ObjectPlayer(spool, DicomFile, is_realtime=False)
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
    player = ObjectPlayer(spool, DicomFile, is_realtime=False)
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

    monkeypatch.setattr("edge.sources.dicom.spool._sync_folder", fail)
    with pytest.raises(SpoolFullError):
        incoming.commit()
    incoming.discard()
    assert list((tmp_path / "spool" / "waiting").iterdir()) == []
    spool.unlock()


def test_player_at_its_own_speed_gives_each_frame_when_it_is_due(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", SpoolLimits())
    _put(spool, write_dicom(tmp_path / "a.dcm", dataset(noise(8, 16, 16), FrameTime=50)).read_bytes())
    player = ObjectPlayer(spool, DicomFile, is_realtime=True)
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
    player = ObjectPlayer(spool, DicomFile, is_realtime=True)
    items = [item for item, _ in zip(player.frames(), range(3), strict=False)]
    assert isinstance(items[0], Frame)
    assert items[1] == Trouble("bad_objects", "an object is longer than 15 minutes; the rest of it is left out")
    spool.unlock()


def test_player_tells_troubles_while_an_object_plays(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", SpoolLimits())
    _put(spool, small_cine(tmp_path / "a.dcm").read_bytes())
    player = ObjectPlayer(spool, DicomFile, is_realtime=False)
    with contextlib.closing(player.frames()) as items:  # type: ignore[type-var]
        assert isinstance(next(items), Frame)
        player.report(Trouble("refused_objects", "the disk is full"))
        assert next(items) == Trouble("refused_objects", "the disk is full")
    spool.unlock()


def test_player_puts_away_an_object_of_which_the_capture_dies(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", SpoolLimits())
    for number in (1, 2):
        _put(spool, small_cine(tmp_path / "a.dcm", number, num_frames=number).read_bytes())
    player = ObjectPlayer(spool, DicomFile, is_realtime=False)
    with contextlib.closing(player.frames()) as dying:  # type: ignore[type-var]
        assert isinstance(next(dying), Frame)
    again = player.frames()
    trouble = next(again)
    assert isinstance(trouble, Trouble)
    assert "not tried again" in trouble.message
    assert [type(next(again)) for _ in range(3)] == [Frame, Frame, Pause]
    assert [path.name for path in (tmp_path / "spool" / "broken").iterdir()] == ["000000000001.dcm"]
    spool.unlock()
