"""The DICOM listener with dcmtk's tools as its peers: what is sent is on disk, then played."""

import errno
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pydicom
import pydicom.examples
import pytest

from edge.errors import BindError, ConfigError, SourceError
from edge.sources import open_source
from edge.sources.dicom.address import parse_address
from edge.sources.dicom.file import DicomFile
from edge.sources.dicom.listener import DicomListener
from edge.sources.dicom.server import GuardedServer
from edge.sources.options import SourceOptions
from tests.daemon import running
from tests.dicom_peer import AET, data_set_bytes, dcmtk, listening, renamed, storescu
from tests.source_files import dataset, noise, write_dicom

CINE = Path(str(pydicom.examples.get_path("ybr_color")))
UNCOMPRESSED = ("-x=",)


@pytest.fixture
def cine(tmp_path: Path) -> Path:
    """A cine of 30 frames of noise."""
    return write_dicom(tmp_path / "cine.dcm", dataset(noise(30, 64, 64), FrameTime=40))


def test_listener_echo_is_answered(tmp_path: Path) -> None:
    with listening(tmp_path / "spool") as scp:
        assert dcmtk("echoscu", "-aec", AET, "127.0.0.1", str(scp.port)).returncode == 0


def test_listener_real_cine_is_played_as_the_file_alone(tmp_path: Path) -> None:
    with listening(tmp_path / "spool") as scp:
        assert storescu(scp.port, CINE, options=("-xy",)) == 0
        scp.played.wait_for_objects(1)

    expected = list(DicomFile(CINE).frames())
    assert len(scp.played.frames) == len(expected) == 30
    for frame, wanted in zip(scp.played.frames, expected, strict=True):
        assert np.array_equal(frame.pixels, wanted.pixels)
        assert frame.t_media_ns == wanted.t_media_ns
    assert scp.waiting() == []


@pytest.mark.parametrize(
    ("tool", "option"),
    [
        (None, "-xi"),
        (None, "-xb"),
        (None, "-xd"),
        (("dcmcrle",), "-xr"),
        (("dcmcjpeg", "+eb"), "-xy"),
        (("dcmcjpeg", "+e1"), "-xs"),
        (("dcmcjpls", "+el"), "-xt"),
    ],
)
def test_listener_transfer_syntax_is_taken(tmp_path: Path, cine: Path, tool, option: str) -> None:  # type: ignore[no-untyped-def]
    path = cine
    if tool is not None:
        path = tmp_path / "encoded.dcm"
        assert dcmtk(*tool, cine, path).returncode == 0
    with listening(tmp_path / "spool") as scp:
        assert storescu(scp.port, path, options=("-R", option)) == 0
        scp.played.wait_for_objects(1)
    assert len(scp.played.frames) == 30
    wanted = list(DicomFile(path).frames())
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(scp.played.frames, wanted, strict=True))


def _many(folder: Path, number: int) -> list[Path]:
    folder.mkdir()
    return [
        write_dicom(folder / f"{index}.dcm", renamed(dataset(noise(30, 32, 32, seed=index)), index))
        for index in range(number)
    ]


@pytest.mark.parametrize("num_associations", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_listener_hundred_objects_none_is_lost(tmp_path: Path, num_associations: int) -> None:
    files = _many(tmp_path / "sent", 100)
    with listening(tmp_path / "spool", query="&keep=100") as scp:
        shares = [files[place::num_associations] for place in range(num_associations)]
        with ThreadPoolExecutor(num_associations) as pool:
            assert set(pool.map(lambda share: storescu(scp.port, *share, options=UNCOMPRESSED), shares)) == {0}
        scp.played.wait_for_objects(100)

    assert len(scp.played.frames) == 3000
    assert len(set(scp.played.object_ids)) == len(scp.played.object_ids) == 100
    assert [frame.index for frame in scp.played.frames] == list(range(3000))
    kept = [data_set_bytes(path) for path in (tmp_path / "spool" / "played").iterdir()]
    assert sorted(kept) == sorted(data_set_bytes(path) for path in files)


def test_listener_wrong_called_title_is_rejected(tmp_path: Path, cine: Path) -> None:
    with listening(tmp_path / "spool") as scp:
        assert storescu(scp.port, cine, called="OTHER") != 0
        scp.played.wait_for_trouble("rejected_associations")


def test_listener_calling_title_that_is_not_allowed_is_rejected(tmp_path: Path, cine: Path) -> None:
    options = SourceOptions(is_realtime=False, allow_aet=("SCANNER1", "SCANNER 2"))
    with listening(tmp_path / "spool", options) as scp:
        assert storescu(scp.port, cine, options=("-aet", "STRANGER")) != 0
        assert storescu(scp.port, cine, options=("-aet", "SCANNER 2")) == 0
        scp.played.wait_for_objects(1)


def test_listener_storage_class_of_another_kind_is_not_taken(tmp_path: Path) -> None:
    with listening(tmp_path / "spool") as scp:
        assert storescu(scp.port, Path(str(pydicom.examples.get_path("ct")))) != 0


def test_listener_waiting_objects_are_played_on_after_a_restart(tmp_path: Path) -> None:
    files = _many(tmp_path / "sent", 3)
    with listening(tmp_path / "spool", is_played=False) as scp:
        assert storescu(scp.port, *files, options=UNCOMPRESSED) == 0
        assert len(scp.waiting()) == 3
    (tmp_path / "spool" / "incoming" / "000000000009.dcm").write_bytes(b"half of an object")
    with listening(tmp_path / "spool") as scp:
        scp.played.wait_for_objects(3)
    wanted = [frame.pixels for path in files for frame in DicomFile(path).frames()]
    assert all(np.array_equal(a.pixels, b) for a, b in zip(scp.played.frames, wanted, strict=True))
    assert list((tmp_path / "spool" / "incoming").iterdir()) == []


def test_listener_object_sent_twice_is_played_twice_under_one_hash(tmp_path: Path, cine: Path) -> None:
    with listening(tmp_path / "spool") as scp:
        for _ in range(2):
            assert storescu(scp.port, cine) == 0
        scp.played.wait_for_objects(2)
    assert len(scp.played.frames) == 60
    assert len(scp.played.object_ids) == 1
    assert scp.played.frames[0].object is not scp.played.frames[-1].object


def test_listener_full_queue_answers_out_of_resources_and_loses_nothing(tmp_path: Path) -> None:
    pixels = noise(30, 128, 128)
    files = [
        write_dicom(tmp_path / f"{index}.dcm", renamed(dataset(pixels), index)) for index in range(4)
    ]  # of 480 KiB each: two fit into one MiB
    with listening(tmp_path / "spool", query="&max_waiting_mib=1", is_played=False) as scp:
        done = dcmtk("storescu", "-v", "-nh", "-x=", "-aec", AET, "127.0.0.1", str(scp.port), *files)
        assert done.stdout.count("Refused: OutOfResources") + done.stderr.count("Refused: OutOfResources") == 2
        assert len(scp.waiting()) == 2
    with listening(tmp_path / "spool", query="&max_waiting_mib=1") as scp:
        scp.played.wait_for_objects(2)
        assert storescu(scp.port, *files[2:]) == 0
        scp.played.wait_for_objects(4)


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare to mount a small disk")
def test_listener_full_disk_answers_out_of_resources(tmp_path: Path) -> None:
    """Runs in a mount namespace of its own, with a disk of 1 MiB."""
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-m", "tests.dicom_full_disk", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "Operation not permitted" in done.stderr or "Permission denied" in done.stderr:
        pytest.skip("needs the right to mount a small disk")
    assert done.stdout.split() == ["statuses", "0x0", "0xa700", "waiting", "1", "incoming", "0"], done.stderr


def test_listener_too_large_object_is_refused_and_the_next_is_taken(tmp_path: Path) -> None:
    large = write_dicom(tmp_path / "large.dcm", renamed(dataset(noise(20, 256, 256)), 1))
    small = write_dicom(tmp_path / "small.dcm", renamed(dataset(noise(20, 32, 32)), 2))
    with listening(tmp_path / "spool", query="&max_object_mib=1") as scp:
        storescu(scp.port, large, small, options=("-nh",))
        scp.played.wait_for_objects(1)
        scp.played.wait_for_trouble("refused_objects")
    assert len(scp.played.frames) == 20


def test_listener_keeps_the_newest_played_objects(tmp_path: Path) -> None:
    files = _many(tmp_path / "sent", 5)
    with listening(tmp_path / "spool", query="&keep=2") as scp:
        storescu(scp.port, *files, options=UNCOMPRESSED)
        scp.played.wait_for_objects(5)
    kept = sorted((tmp_path / "spool" / "played").iterdir())
    assert [data_set_bytes(path) for path in kept] == [data_set_bytes(path) for path in files[3:]]


def test_listener_spool_is_for_its_owner_alone(tmp_path: Path, cine: Path) -> None:
    with listening(tmp_path / "spool", is_played=False) as scp:
        storescu(scp.port, cine)
        assert [path.stat().st_mode & 0o777 for path in scp.waiting()] == [0o600]
        assert {path.stat().st_mode & 0o777 for path in scp.spool.iterdir() if path.is_dir()} == {0o700}


def test_listener_spool_in_use_is_refused(tmp_path: Path) -> None:
    with listening(tmp_path / "spool", is_played=False), pytest.raises(ConfigError, match="in use by another process"):
        DicomListener(parse_address(f"dicom://127.0.0.1:0?spool={tmp_path / 'spool'}"), SourceOptions())
    with listening(tmp_path / "spool", is_played=False):
        pass


def test_listener_port_in_use_is_refused(tmp_path: Path) -> None:
    with listening(tmp_path / "spool", is_played=False) as scp, pytest.raises(BindError, match="cannot bind"):
        open_source(f"dicom://127.0.0.1:{scp.port}?spool={tmp_path / 'other'}")
    assert BindError.exit_code == 5


def test_listener_port_that_only_root_may_bind_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bind(_: GuardedServer) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(GuardedServer, "server_bind", bind)
    with pytest.raises(BindError, match=r"below 1024.*CAP_NET_BIND_SERVICE"), listening(tmp_path / "spool"):
        pass


def test_listener_spool_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SourceError, match="cannot be used"):
        open_source(f"dicom://127.0.0.1:0?spool={tmp_path / 'file'}")


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("dicom://127.0.0.1", "needs dicom://HOST:PORT"),
        ("dicom://:11112", "needs dicom://HOST:PORT"),
        ("dicom://a..b:11112", "is not understood"),
        ("dicom://user:word@127.0.0.1:11112", "needs dicom://HOST:PORT"),
        ("dicom://127.0.0.1:99999", "out of range"),
        ("dicom://127.0.0.1:0?colour=red", "unknown key 'colour'"),
        ("dicom://127.0.0.1:0?aet=SEVENTEEN%20LETTERS", "1 to 16 ASCII"),
        ("dicom://127.0.0.1:0?aet=", "1 to 16 ASCII"),
        ("dicom://127.0.0.1:0?keep=-1", "whole number from 0"),
        ("dicom://127.0.0.1:0?max_associations=0", "whole number from 1"),
        ("dicom://127.0.0.1:0?aet", "not understood"),
    ],
)
def test_listener_address_that_is_wrong_says_how_it_must_be(uri: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        open_source(uri)


def test_listener_allowed_title_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--allow-aet"):
        open_source(f"dicom://127.0.0.1:0?spool={tmp_path}", options=SourceOptions(allow_aet=("A\\B",)))


def test_listener_beyond_loopback_without_tls_is_told(tmp_path: Path) -> None:
    """Runs in a network namespace of its own, where nobody is."""
    program = f"from edge.sources import open_source; open_source('dicom://0.0.0.0:0?spool={tmp_path}').close()"
    done = subprocess.run(
        ["unshare", "-n", sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    if "Operation not permitted" in done.stderr:
        pytest.skip("needs the right to make a network namespace")
    assert "can be reached from other machines without TLS" in done.stderr


def test_daemon_of_a_listener_publishes_one_set_an_object(trivial_bundle: Path, tmp_path: Path) -> None:
    files = _many(tmp_path / "sent", 2)
    with running(
        "--source", f"dicom://127.0.0.1:0?aet={AET}&spool={tmp_path / 'spool'}", "--engine", str(trivial_bundle),
        "--pace", "max", "--roi", "full", "--max-windows", "30",
    ) as daemon:  # fmt: skip
        port = _port_of(daemon.process)
        assert storescu(port, *files, options=UNCOMPRESSED) == 0
        recording = daemon.finish()

    assert recording.exit_code == 0
    objects = [header["object"] for header in recording.predictions]
    assert [objects.count(name) for name in dict.fromkeys(objects)] == [15, 15]
    assert all(len(name) == 32 and "1.2.3" not in name for name in objects)
    assert recording.windows == [(first, first + 15) for first in [*range(15), *range(30, 45)]]
    states = [state for state, _ in recording.states]
    assert states.count("LIVE") >= 2
    assert ("NO_SIGNAL", "waiting for an object") in recording.states
    said = str([message.header for message in recording.messages]) + recording.stderr
    assert "1.2.3.4" not in said
    assert "Secret" not in said
    assert "SECRET-ID" not in said


def _port_of(process: "subprocess.Popen[str]") -> int:
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("source: dicom://"):
            return int(line.split()[1].rsplit(":", 1)[1])
    raise AssertionError("the daemon ended before it listened")


def test_daemon_stopped_in_the_middle_of_an_object_plays_it_anew(trivial_bundle: Path, tmp_path: Path) -> None:
    cine = write_dicom(tmp_path / "cine.dcm", dataset(noise(100, 32, 32), FrameTime=40))
    arguments = (
        "--source", f"dicom://127.0.0.1:0?aet={AET}&spool={tmp_path / 'spool'}", "--engine", str(trivial_bundle),
        "--roi", "full",
    )  # fmt: skip
    with running(*arguments) as daemon:
        port = _port_of(daemon.process)
        assert storescu(port, cine) == 0
        daemon.receive("prediction")
        daemon.signal(signal.SIGTERM)
        assert daemon.finish().exit_code == 0
    assert [path.name for path in (tmp_path / "spool" / "waiting").iterdir()] == ["000000000001.dcm"]
    with running(*arguments, "--pace", "max", "--max-windows", "85") as daemon:
        recording = daemon.finish()
    assert recording.windows[0] == (0, 15)
    assert len(recording.predictions) == 85


def test_daemon_object_that_the_roi_does_not_fit_into_is_skipped(trivial_bundle: Path, tmp_path: Path) -> None:
    small = write_dicom(tmp_path / "small.dcm", renamed(dataset(noise(20, 16, 16)), 1))
    large = write_dicom(tmp_path / "large.dcm", renamed(dataset(noise(20, 64, 64)), 2))
    with running(
        "--source", f"dicom://127.0.0.1:0?aet={AET}&spool={tmp_path / 'spool'}", "--engine", str(trivial_bundle),
        "--pace", "max", "--roi", "8,8,40,40", "--max-windows", "5",
    ) as daemon:  # fmt: skip
        assert storescu(_port_of(daemon.process), small, large, options=UNCOMPRESSED) == 0
        recording = daemon.finish()
    assert recording.exit_code == 0
    assert recording.windows == [(first, first + 15) for first in range(20, 25)]
    assert "an object is skipped" in recording.stderr
    assert recording.of("status")[-1].header["counters"]["bad_objects"] == 1
