"""OpenIGTLink from a real server of pyigtl's messages, which stalls, dies, comes back, and sends nonsense."""

import contextlib
import itertools
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from pyigtl.messages import ImageMessage, StringMessage, TransformMessage

from edge.errors import ConfigError, SourceError, SourceLost
from edge.frame import Frame
from edge.sources import open_source
from edge.sources.base import LiveItem, Pause, Trouble
from edge.sources.openigtlink import MAX_BODY_BYTES, parse_igtl
from edge.sources.options import SourceOptions
from tests.rtsp_server import number_of, numbered
from tests.test_network_video import frames_of, has_frames, has_pause, items_of

DEVICE = "Image_Image"


def image(number: int, device: str = DEVICE) -> bytes:
    return bytes(ImageMessage(numbered(number)[np.newaxis], device_name=device).pack())


def endless() -> Iterator[bytes]:
    return (image(number) for number in itertools.count())


class Server:
    """Sends messages, 50 a second, to whoever connects; then waits, or closes the connection."""

    def __init__(self, messages: Callable[[], Iterator[bytes]], *, port: int = 0, hangs_up: bool = False) -> None:
        self._messages = messages
        self._hangs_up = hangs_up
        self._stop = threading.Event()
        self.is_stalled = False
        self._listener = socket.create_server(("127.0.0.1", port))
        self._listener.settimeout(0.1)
        self.port: int = self._listener.getsockname()[1]
        self.num_connections = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @property
    def uri(self) -> str:
        return f"igtl://127.0.0.1:{self.port}/{DEVICE}"

    def _run(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = self._listener.accept()
                self.num_connections += 1
                with connection, contextlib.suppress(OSError):
                    self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        for message in self._messages():
            if not self.is_stalled:
                connection.sendall(message)
            if self._stop.wait(0.02):
                return
        if not self._hangs_up:
            self._stop.wait()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._listener.close()


@contextlib.contextmanager
def serving(messages: Callable[[], Iterator[bytes]] = endless, **options: object) -> Iterator[Server]:
    server = Server(messages, **options)  # type: ignore[arg-type]
    try:
        yield server
    finally:
        server.close()


def test_igtl_images_come_in_order() -> None:
    with serving() as server:
        frames = frames_of(items_of(open_source(server.uri), has_frames(20)))
    numbers = [number_of(frame.pixels) for frame in frames]
    assert numbers == sorted(set(numbers))
    assert np.array_equal(frames[0].pixels, numbered(numbers[0]))
    assert all(frame.t_media_ns == frame.t_capture_ns for frame in frames)


def test_igtl_colour_and_other_devices_and_messages() -> None:
    colours = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(1, 4, 6, 3)

    def messages() -> Iterator[bytes]:
        yield bytes(TransformMessage(np.eye(4), device_name="Probe").pack())
        yield bytes(StringMessage("hello", device_name=DEVICE).pack())
        yield image(1, "Other")
        yield bytes(ImageMessage(colours, device_name=DEVICE).pack())

    with serving(messages) as server:
        [frame] = frames_of(items_of(open_source(server.uri), has_frames(1)))
        assert np.array_equal(frame.pixels, colours[0])
    with serving(messages) as server:
        without_device = f"igtl://127.0.0.1:{server.port}"
        [frame] = frames_of(items_of(open_source(without_device), has_frames(1)))
        assert number_of(frame.pixels) == 1


def test_igtl_without_a_device_takes_the_first_that_can_be_shown() -> None:
    def messages() -> Iterator[bytes]:
        yield bytes(ImageMessage(np.zeros((1, 4, 6), np.int16), device_name="Volume").pack())
        yield from endless()

    with serving(messages) as server:
        frames = frames_of(items_of(open_source(f"igtl://127.0.0.1:{server.port}"), has_frames(2)))
    assert number_of(frames[0].pixels) == 0


def test_igtl_newest_of_many_is_taken_and_the_others_are_counted() -> None:
    burst = b"".join(image(number) for number in range(3))
    with serving(lambda: iter([burst])) as server:
        items = items_of(open_source(server.uri), lambda items: has_pause(items))
    late = sum(item.counter == "late_frames" for item in items if isinstance(item, Trouble))
    frames = frames_of(items)
    assert len(frames) + late == 3
    assert number_of(frames[-1].pixels) == 2


@pytest.mark.parametrize(
    "bad",
    [
        bytes(ImageMessage(np.zeros((1, 8, 8), np.uint16), device_name=DEVICE).pack()),
        bytes(ImageMessage(np.zeros((2, 8, 8), np.uint8), device_name=DEVICE).pack()),
        bytes(ImageMessage(np.zeros((1, 8, 8, 2), np.uint8), device_name=DEVICE).pack()),
        struct.pack(">H12s20sIIQQ", 1, b"IMAGE", DEVICE.encode(), 0, 0, 10, 0) + bytes(10),
        struct.pack(">H12s20sIIQQ", 2, b"IMAGE", DEVICE.encode(), 0, 0, 0, 0),
    ],
    ids=["16 bits", "volume", "two components", "too short", "no extended header"],
)
def test_igtl_message_that_is_no_image_of_ours_is_counted_and_left_out(bad: bytes) -> None:
    def messages() -> Iterator[bytes]:
        yield bad
        yield from (image(number) for number in range(200))

    with serving(messages) as server:
        items = items_of(open_source(server.uri), has_frames(3))
    assert sum(item.counter == "bad_frames" for item in items if isinstance(item, Trouble)) == 1


@pytest.mark.parametrize(
    "nonsense",
    [
        b"GET / HTTP/1.1\r\n" * 10,
        struct.pack(">H12s20sIIQQ", 1, b"IMAGE", DEVICE.encode(), 0, 0, MAX_BODY_BYTES + 1, 0),
        struct.pack(">H12s20sIIQQ", 1, b"IMAGE", DEVICE.encode(), 0, 0, 2**64 - 1, 0),
        struct.pack(">H12s20sIIQQ", 1, b"IMAGE", DEVICE.encode(), 0, 0, 20, 0) + bytes(20) + b"\xff" * 100,
    ],
)
def test_igtl_nonsense_is_a_loss(nonsense: bytes) -> None:
    with (
        serving(lambda: iter([image(0), nonsense])) as server,
        pytest.raises(SourceLost, match="no OpenIGTLink") as lost,
    ):
        items_of(open_source(server.uri), lambda items: False)
    assert lost.value.is_fault


def test_igtl_stall_is_told_within_a_second_then_lost_and_it_comes_back() -> None:
    with serving() as server:
        source = open_source(server.uri)
        items: list[LiveItem] = []
        with pytest.raises(SourceLost, match="sends nothing"):
            _stall_after(source.frames(), server, items, 5)
        last_frame = max(place for place, item in enumerate(items) if isinstance(item, Frame))
        assert isinstance(items[last_frame + 1], Pause)
        server.is_stalled = False
    with serving(port=server.port) as again:
        assert items_of(source, has_frames(3))
        assert again.num_connections == 1


def _stall_after(playing: Iterator[LiveItem], server: Server, items: list[LiveItem], number: int) -> None:
    for item in playing:
        items.append(item)
        server.is_stalled = len(frames_of(items)) >= number


def test_igtl_server_that_is_killed_is_a_loss_at_once() -> None:
    with serving(lambda: (image(number) for number in range(5)), hangs_up=True) as server:
        source = open_source(server.uri)
        with pytest.raises(SourceLost, match="closed the connection"):
            list(source.frames())
    with pytest.raises(SourceLost, match="cannot be reached"):
        list(source.frames())


def test_igtl_server_that_is_not_there_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(SourceError, match="cannot be reached") as caught:
        list(open_source(f"igtl://127.0.0.1:{port}").frames())
    assert not isinstance(caught.value, SourceLost)


def test_igtl_server_that_is_awaited_comes_later() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    source = open_source(f"igtl://127.0.0.1:{port}", options=SourceOptions(is_awaited=True))
    with pytest.raises(SourceLost, match="cannot be reached"):
        list(source.frames())
    with serving(port=port):
        assert items_of(source, has_frames(3))


@pytest.mark.parametrize(
    "uri", ["igtl://", "igtl:///x", "igtl://h:port/x", "igtl://h:1/x?y", "igtl://u@h:1/x", "igtl://a..b/x"]
)
def test_igtl_address_that_is_wrong_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"igtl://HOST:18944/DEVICE"):
        open_source(uri)


def test_igtl_address_is_read() -> None:
    address = parse_igtl("igtl://scanner/My%20Device")
    assert (address.host, address.port, address.device) == ("scanner", 18944, "My Device")
