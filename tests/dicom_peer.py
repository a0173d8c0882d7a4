"""DICOM peers for the tests: dcmtk's tools, and one that speaks bytes and may say anything."""

import contextlib
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage

from edge.frame import Frame
from edge.sources.base import Pause, Trouble
from edge.sources.dicom.address import parse_address
from edge.sources.dicom.listener import DicomListener
from edge.sources.options import SourceOptions
from tests.source_files import dataset, noise, write_dicom

AET = "EDGE"
DEADLINE_S = 30.0


class Consumer:
    """Plays a listener in a thread and keeps what it gave."""

    def __init__(self, listener: DicomListener) -> None:
        self.frames: list[Frame] = []
        self.troubles: list[Trouble] = []
        self.num_ended = 0
        self._listener = listener
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="consumer")
        self._thread.start()

    def _run(self) -> None:
        for item in self._listener.frames():
            with self._changed:
                if isinstance(item, Frame):
                    self.frames.append(item)
                elif isinstance(item, Trouble):
                    self.troubles.append(item)
                elif isinstance(item, Pause):
                    self.num_ended += item.is_end
                self._changed.notify_all()

    @property
    def object_ids(self) -> list[str]:
        """The object of each frame, repetitions left out."""
        ids = [frame.object.id for frame in self.frames if frame.object is not None]
        return [entry for place, entry in enumerate(ids) if place == 0 or ids[place - 1] != entry]

    def count(self, counter: str) -> int:
        return sum(trouble.counter == counter for trouble in self.troubles)

    def wait_for_objects(self, number: int) -> None:
        self._wait(lambda: self.num_ended >= number, f"{number} objects")

    def wait_for_trouble(self, counter: str, number: int = 1) -> None:
        self._wait(lambda: self.count(counter) >= number, f"{number} {counter}")

    def _wait(self, is_there, what: str) -> None:  # type: ignore[no-untyped-def]
        with self._changed:
            came = self._changed.wait_for(is_there, DEADLINE_S)
            assert came, f"{what} did not come: {self.num_ended} objects, {self.troubles}"

    def join(self) -> None:
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()


class Listening:
    """A listener on a free port of loopback, and its consumer."""

    def __init__(self, spool: Path, options: SourceOptions, query: str, *, is_played: bool) -> None:
        self.listener = DicomListener(parse_address(f"dicom://127.0.0.1:0?aet={AET}&spool={spool}{query}"), options)
        self.port = int(self.listener.info.name.rsplit(":", 1)[1])
        self.spool = spool
        self.consumer = Consumer(self.listener) if is_played else None

    @property
    def played(self) -> Consumer:
        assert self.consumer is not None
        return self.consumer

    def waiting(self) -> list[Path]:
        return sorted((self.spool / "waiting").iterdir())

    def close(self) -> None:
        self.listener.close()
        if self.consumer is not None:
            self.consumer.join()


@contextlib.contextmanager
def listening(
    spool: Path, options: SourceOptions | None = None, query: str = "", *, is_played: bool = True
) -> Iterator[Listening]:
    """Run a listener at the pace "max"; with `is_played` False objects stay in its spool."""
    running = Listening(spool, options or SourceOptions(is_realtime=False), query, is_played=is_played)
    try:
        yield running
    finally:
        running.close()


def dcmtk(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run one of dcmtk's tools to its end."""
    return subprocess.run(
        [str(argument) for argument in arguments], capture_output=True, text=True, timeout=DEADLINE_S * 2, check=False
    )


def storescu(port: int, *files: Path, options: tuple[str, ...] = (), called: str = AET) -> int:
    """Send files by dcmtk; return its exit status."""
    return dcmtk("storescu", *options, "-aec", called, "127.0.0.1", str(port), *files).returncode


def pdu(kind: int, body: bytes, length: int | None = None) -> bytes:
    """Return a PDU, whose length may lie (PS3.8, section 9.3.1)."""
    return struct.pack(">BxL", kind, len(body) if length is None else length) + body


def _item(kind: int, body: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(body)) + body


def associate_rq(called: str = AET, storage_class: str = UltrasoundMultiFrameImageStorage) -> bytes:
    """Return an A-ASSOCIATE-RQ with one context, id 1, of explicit VR little endian (PS3.8, section 9.3.2)."""
    context = _item(0x30, storage_class.encode()) + _item(0x40, ExplicitVRLittleEndian.encode())
    user = _item(0x51, struct.pack(">L", 16384)) + _item(0x52, b"1.2.3")
    items = _item(0x10, b"1.2.840.10008.3.1.1.1") + _item(0x20, struct.pack(">Bxxx", 1) + context) + _item(0x50, user)
    return pdu(1, struct.pack(">Hxx16s16s32x", 1, called.ljust(16).encode(), b"HOSTILE".ljust(16)) + items)


def p_data(fragment: bytes, *, is_command: bool, is_last: bool, context: int = 1, length: int | None = None) -> bytes:
    """Return a P-DATA-TF of one value (PS3.8, section 9.3.5 and annex E.2)."""
    value = struct.pack(">BB", context, is_command | is_last << 1) + fragment
    return pdu(4, struct.pack(">L", len(value) if length is None else length) + value)


def command(instance: str = "1.2.3.4", field: int = 1, **changes: int) -> bytes:
    """Return a command set, C-STORE-RQ for want of another field (PS3.7, section 9.3.1)."""
    elements = {
        (0, 2): _even(UltrasoundMultiFrameImageStorage),
        (0, 0x100): struct.pack("<H", field),
        (0, 0x110): struct.pack("<H", 1),
        (0, 0x700): struct.pack("<H", 0),
        (0, 0x800): struct.pack("<H", changes.get("data_set_type", 1)),
        (0, 0x1000): _even(instance),
    }
    body = b"".join(struct.pack("<HHL", *tag, len(value)) + value for tag, value in elements.items())
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def _even(text: str) -> bytes:
    return text.encode() + b"\0" * (len(text) % 2)


class RawPeer:
    """A peer that sends what it likes."""

    def __init__(self, port: int, timeout_s: float = DEADLINE_S) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout_s)

    def send(self, *parts: bytes) -> None:
        """Send; that the other side hung up is no error here."""
        with contextlib.suppress(OSError):
            for part in parts:
                self.socket.sendall(part)

    def associate(self, **about: str) -> int:
        """Ask for an association; return the type of the answer: 2 accepted, 3 rejected."""
        self.send(associate_rq(**about))
        return self.receive()[0]

    def receive(self) -> tuple[int, bytes]:
        """Return type and body of the next PDU; (0, b"") when hung up."""
        head = self._read(6)
        if len(head) < 6:
            return 0, b""
        kind, length = struct.unpack(">BxL", head)
        return kind, self._read(length)

    def _read(self, num_bytes: int) -> bytes:
        data = b""
        with contextlib.suppress(ConnectionError):
            while len(data) < num_bytes and (part := self.socket.recv(num_bytes - len(data))):
                data += part
        return data

    def is_hung_up_on(self) -> bool:
        """Wait until the other side aborts or closes; False if it does neither."""
        deadline_s = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline_s:
            try:
                kind, _ = self.receive()
            except TimeoutError:
                return False
            if kind in (0, 7):
                return True
        return False

    def status(self) -> int:
        """Return the status of the next C-STORE answer (PS3.7, section C)."""
        kind, body = self.receive()
        assert kind == 4, f"a PDU of type {kind} came in place of an answer"
        return int(struct.unpack("<H", body[body.index(struct.pack("<HHL", 0, 0x900, 2)) + 8 :][:2])[0])

    def store(self, data_set: bytes, instance: str = "1.2.3.4", fragment_bytes: int = 16000) -> int:
        """Send an object, well-formed as DIMSE goes; return the status."""
        self.send(p_data(command(instance), is_command=True, is_last=True))
        places = range(0, max(1, len(data_set)), fragment_bytes)
        for place in places:
            fragment = data_set[place : place + fragment_bytes]
            self.send(p_data(fragment, is_command=False, is_last=place == places[-1]))
        return self.status()

    def release(self) -> None:
        self.send(pdu(5, bytes(4)))
        self.receive()

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> "RawPeer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def data_set_bytes(path: Path) -> bytes:
    """Return what follows the file meta information."""
    data = path.read_bytes()
    assert data[128:132] == b"DICM"
    group_length = struct.unpack_from("<L", data, 140)[0]
    return data[144 + group_length :]


def renamed(ds: Dataset, number: int) -> Dataset:
    """Give the object a UID of its own."""
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = UID(f"1.2.3.4.{number}")
    return ds


def small_cine(path: Path, number: int = 1, num_frames: int = 5) -> Path:
    """Write a cine of 16 x 16 pixels of noise; each number is another object."""
    return write_dicom(path, renamed(dataset(noise(num_frames, 16, 16, seed=number)), number))
