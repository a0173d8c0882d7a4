"""Hostile and broken DICOM peers: each is cut off or skipped, and told; another association goes on unhurt."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydicom.uid import ExplicitVRLittleEndian

from edge.sources.dicom import guard as dicom_guard
from tests.dicom_peer import (
    Listening,
    RawPeer,
    associate_rq,
    command,
    data_set_bytes,
    listening,
    p_data,
    pdu,
    storescu,
)
from tests.source_files import dataset, noise, write_dicom

# pytest takes back what edge.sources.dicom.header says of pydicom's warnings
pytestmark = pytest.mark.filterwarnings("ignore:::pydicom")

SHORT_S = 0.5
"""In place of the real deadlines."""


@pytest.fixture
def good(tmp_path: Path) -> bytes:
    """The data set of a sound object of 30 frames."""
    return data_set_bytes(write_dicom(tmp_path / "good.dcm", dataset(noise(30, 32, 32))))


@pytest.fixture
def scp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listening]:
    """A listener with short deadlines and small limits."""
    monkeypatch.setattr(dicom_guard, "PDU_DEADLINE_S", SHORT_S)
    with listening(tmp_path / "spool", query="&max_object_mib=1&max_associations=4") as running:
        yield running


class Bystander:
    """Another association that sends one object after the other."""

    def __init__(self, scp: Listening, data_set: bytes) -> None:
        self._peer = RawPeer(scp.port)
        self._scp = scp
        self._data_set = data_set
        assert self._peer.associate() == 2

    def check(self) -> None:
        """Send an object, and see that it is played."""
        num_before = self._scp.played.num_ended
        assert self._peer.store(self._data_set) == 0
        self._scp.played.wait_for_objects(num_before + 1)

    def close(self) -> None:
        self._peer.release()
        self._peer.close()


@pytest.fixture
def bystander(scp: Listening, good: bytes) -> Iterator[Bystander]:
    """An association that was there before, and must not be hurt."""
    other = Bystander(scp, good)
    other.check()
    yield other
    other.check()
    other.close()


def _many_commands(peer: RawPeer) -> None:
    echo = p_data(command(field=0x30, data_set_type=0x101), is_command=True, is_last=True)
    peer.send(echo * 5000)


def _two_objects_at_once(peer: RawPeer) -> None:
    one = p_data(command(), is_command=True, is_last=True) + p_data(b"x" * 100, is_command=False, is_last=True)
    peer.send(one * 50)


HOSTILE: dict[str, Callable[[RawPeer], None]] = {
    "oversized PDU": lambda peer: peer.send(pdu(4, b"x" * 100, length=2**32 - 1)),
    "unknown PDU": lambda peer: peer.send(pdu(9, b"x" * 100)),
    "value longer than its PDU": lambda peer: peer.send(p_data(command(), is_command=True, is_last=True, length=9999)),
    "value without a header": lambda peer: peer.send(pdu(4, struct.pack(">L", 1) + b"\x01")),
    "data before a command": lambda peer: peer.send(p_data(b"x" * 100, is_command=False, is_last=True)),
    "command without end": lambda peer: peer.send(p_data(b"\0" * 10_000, is_command=True, is_last=False) * 100),
    "command that is noise": lambda peer: peer.send(
        p_data(noise(1, 300).tobytes(), is_command=True, is_last=True),
        p_data(b"x" * 100, is_command=False, is_last=True),
    ),
    "unknown context": lambda peer: peer.send(
        p_data(command(), is_command=True, is_last=True, context=99),
        p_data(b"x" * 100, is_command=False, is_last=True, context=99),
    ),
    "second association request": lambda peer: peer.send(associate_rq()),
    "object without end": lambda peer: peer.send(
        p_data(command(), is_command=True, is_last=True),
        *[p_data(b"x" * 16000, is_command=False, is_last=False)] * 150,
    ),
    "slow in the middle of a PDU": lambda peer: peer.send(p_data(command(), is_command=True, is_last=True)[:20]),
    "many commands at once": _many_commands,
    "two objects at once": _two_objects_at_once,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_association_is_cut_off(scp: Listening, bystander: Bystander, name: str) -> None:
    with RawPeer(scp.port) as peer:
        assert peer.associate() == 2
        HOSTILE[name](peer)
        bystander.check()
        assert peer.is_hung_up_on()
    assert list((scp.spool / "incoming").iterdir()) == []


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n\r\n", associate_rq()[:40], b"\x01\x00\xff\xff\xff\xff"])
def test_hostile_connection_without_an_association_is_cut_off(
    scp: Listening, bystander: Bystander, sent: bytes
) -> None:
    with RawPeer(scp.port) as peer:
        peer.send(sent)
        bystander.check()
        if sent:
            assert peer.is_hung_up_on()


def test_hostile_abort_in_the_middle_of_an_object_leaves_nothing(
    scp: Listening, bystander: Bystander, good: bytes
) -> None:
    for ending in (pdu(7, bytes(4)), b""):
        with RawPeer(scp.port) as peer:
            assert peer.associate() == 2
            peer.send(p_data(command(), is_command=True, is_last=True))
            peer.send(p_data(good[:8000], is_command=False, is_last=False), ending)
            if ending:
                assert peer.is_hung_up_on()
        bystander.check()
    _wait_until(lambda: list((scp.spool / "incoming").iterdir()) == [])


def _wait_until(is_so: Callable[[], bool], deadline_s: float = 10.0) -> None:
    pause = threading.Event()
    for _ in range(round(deadline_s / 0.01)):
        if is_so():
            return
        pause.wait(0.01)
    raise AssertionError("it did not become so in time")


@pytest.mark.parametrize(
    ("damage", "status"),
    [
        (lambda data: data[: len(data) // 2], 0x0000),  # what is readable is played
        (lambda data: data[:100], 0xC000),
        (lambda data: b"", 0xC000),
        (lambda data: noise(1, 5000).tobytes(), 0xC000),
        (lambda data: data.replace(b"\x28\x00\x10\x00US\x02\x00", b"\x28\x00\x10\x00XX\x02\x00"), 0xC000),
    ],
)
def test_broken_object_is_refused_or_played_as_far_as_it_goes(
    scp: Listening, bystander: Bystander, good: bytes, damage: Callable[[bytes], bytes], status: int
) -> None:
    with RawPeer(scp.port) as peer:
        assert peer.associate() == 2
        num_frames = len(scp.played.frames)
        assert peer.store(damage(good)) == status
        if status == 0:
            scp.played.wait_for_objects(2)
            assert num_frames + 10 < len(scp.played.frames) < num_frames + 30
        else:
            scp.played.wait_for_trouble("bad_objects")
        assert peer.store(good) == 0  # the same association goes on
        peer.release()


def test_object_that_claims_65535_frames_plays_those_that_are_there(
    scp: Listening, bystander: Bystander, tmp_path: Path
) -> None:
    ds = dataset(noise(3, 32, 32))
    ds.NumberOfFrames = 65535
    lying = data_set_bytes(write_dicom(tmp_path / "lying.dcm", ds))
    with RawPeer(scp.port) as peer:
        peer.associate()
        num_frames = len(scp.played.frames)
        assert peer.store(lying) == 0
        scp.played.wait_for_objects(2)
        assert len(scp.played.frames) == num_frames + 3


def test_object_whose_pixels_cannot_be_decoded_is_told_and_skipped(
    scp: Listening, bystander: Bystander, tmp_path: Path, good: bytes
) -> None:
    ds = dataset(noise(1, 32, 32))
    ds.Rows = ds.Columns = 4000  # of which the pixel data holds a fraction
    with RawPeer(scp.port) as peer:
        peer.associate()
        assert peer.store(data_set_bytes(write_dicom(tmp_path / "short.dcm", ds))) == 0
        scp.played.wait_for_trouble("bad_objects")
        assert peer.store(good) == 0
        scp.played.wait_for_objects(2)
    assert len(list((scp.spool / "broken").iterdir())) == 1


def test_associations_over_the_limit_are_rejected(scp: Listening, bystander: Bystander) -> None:
    peers = [RawPeer(scp.port) for _ in range(4)]
    answers = [peer.associate() for peer in peers]
    assert sorted(answers) == [2, 2, 2, 3]
    for peer in peers:
        peer.close()
    scp.played.wait_for_trouble("rejected_associations")


def test_silent_association_gives_its_place_to_a_new_one(
    scp: Listening, bystander: Bystander, good: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = RawPeer(scp.port)
    assert silent.associate() == 2
    others = [RawPeer(scp.port) for _ in range(2)]
    assert [peer.associate() for peer in others] == [2, 2]
    bystander.check()  # the last to speak
    monkeypatch.setattr(dicom_guard, "IDLE_S", 0.0)
    with RawPeer(scp.port) as peer:
        assert peer.associate() == 2
        assert peer.store(good) == 0
    assert silent.is_hung_up_on()
    scp.played.wait_for_trouble("bad_peers")
    for peer in (silent, *others):
        peer.close()


def test_idle_connections_make_room_for_a_new_one(scp: Listening, bystander: Bystander) -> None:
    idle = [socket.create_connection(("127.0.0.1", scp.port)) for _ in range(100)]
    with RawPeer(scp.port) as peer:
        assert peer.associate() == 2
    for connection in idle:
        connection.close()


def test_listener_forgets_what_has_ended(scp: Listening, bystander: Bystander, good: bytes) -> None:
    def threads() -> int:
        return threading.active_count()

    before = threads()
    for _ in range(20):
        with RawPeer(scp.port) as peer:
            peer.associate()
            assert peer.store(good) == 0
    _wait_until(lambda: threads() <= before)


def test_listener_closes_while_peers_are_in_the_middle(tmp_path: Path, good: bytes) -> None:
    with listening(tmp_path / "spool") as scp:
        peer, idle = RawPeer(scp.port), RawPeer(scp.port)
        peer.associate()
        peer.send(p_data(command(), is_command=True, is_last=True), p_data(good[:99], is_command=False, is_last=False))
    assert peer.is_hung_up_on()
    assert idle.is_hung_up_on()
    peer.close()
    idle.close()
    assert list((tmp_path / "spool" / "incoming").iterdir()) == []


def test_sound_peer_after_all_of_it_is_served(scp: Listening, tmp_path: Path) -> None:
    for hostile in HOSTILE.values():
        with RawPeer(scp.port) as peer:
            peer.associate()
            hostile(peer)
    ds = dataset(noise(30, 32, 32))
    assert ds.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    _wait_until(lambda: storescu(scp.port, write_dicom(tmp_path / "sound.dcm", ds)) == 0)
    scp.played.wait_for_objects(1)
