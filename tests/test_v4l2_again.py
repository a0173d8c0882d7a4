"""A V4L2 device that comes back otherwise than it went: a driver that answers as the test says, without its frames."""

import errno
import struct
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from edge.errors import ConfigError, SourceError, SourceLost
from edge.sources.options import SourceOptions
from edge.sources.v4l2.device import V4l2Device
from edge.sources.v4l2.source import V4l2Source
from edge.sources.v4l2.stream import V4l2Stream

_CAPTURE = 0x04000001


class Driver:
    """Answers QUERYCAP, and the questions for modes: one, YUYV of a size, or none; all other answers are EINVAL."""

    def __init__(self) -> None:
        self.bus = b"usb-1"
        self.card = b"HDMI grabber"
        self.size_wh: tuple[int, int] | None = (640, 480)

    def ioctl(self, _fd: int, code: int, buffer: bytearray) -> int:
        number, index = code & 0xFF, int.from_bytes(buffer[:4], "little")
        if number == 0:
            struct.pack_into("=16s32s32s3I", buffer, 0, b"uvcvideo", self.card, self.bus, 0, _CAPTURE, _CAPTURE)
        elif number == 2 and index == 0 and self.size_wh:
            struct.pack_into("=I32sI", buffer, 8, 0, b"YUYV", int.from_bytes(b"YUYV", "little"))
        elif number == 74 and index == 0 and self.size_wh:
            struct.pack_into("=3I", buffer, 8, 1, *self.size_wh)
        else:
            raise OSError(errno.EINVAL, "Invalid argument")
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    monkeypatch.setattr("edge.sources.v4l2.device.fcntl.ioctl", driver.ioctl)
    monkeypatch.setattr("edge.sources.v4l2.source.capture_nodes", list)
    return driver


@pytest.fixture
def open_device(driver: Driver, tmp_path: Path) -> Callable[..., V4l2Source]:
    (tmp_path / "video0").touch()
    (tmp_path / "by-id").symlink_to(tmp_path / "video0")
    return lambda name="video0", **options: V4l2Source(tmp_path / name, SourceOptions(**options))


@pytest.mark.parametrize("size_wh", [None, (1920, 1080)])
def test_mode_that_is_gone_at_a_reconnect_is_a_loss_and_wrong_usage_at_the_start_alone(
    driver: Driver, open_device: Callable[..., V4l2Source], size_wh: tuple[int, int] | None
) -> None:
    source = open_device(video_size=(640, 480))
    driver.size_wh = size_wh
    with pytest.raises(ConfigError, match="video0"):
        next(iter(source.frames()))
    source._is_expected = True
    with pytest.raises(SourceLost, match="video0"):
        next(iter(source.frames()))


def test_device_that_is_not_there_is_waited_for_where_it_is_awaited(
    open_device: Callable[..., V4l2Source], tmp_path: Path
) -> None:
    (tmp_path / "video0").rename(tmp_path / "away")
    with pytest.raises(SourceError, match="there is no device"):
        open_device()
    source = open_device(is_awaited=True)
    for _ in range(2):
        with pytest.raises(SourceLost, match="video0 is not there: plug it in"):
            next(iter(source.frames()))
    (tmp_path / "away").rename(tmp_path / "video0")
    with source._find() as device:
        assert device.path == tmp_path / "video0"
    assert source.info.name == f"{tmp_path / 'video0'} (HDMI grabber)"


def test_device_under_a_name_of_udevs_is_known_again_in_another_socket(
    driver: Driver, open_device: Callable[..., V4l2Source]
) -> None:
    source = open_device("by-id")
    driver.bus = b"usb-2"
    with source._find() as device:
        assert device.path.name == "by-id"
    driver.card = b"webcam"
    with pytest.raises(SourceLost, match="is another device now"):
        source._find()


def test_device_under_a_number_alone_is_not_taken_from_another_socket(
    driver: Driver, open_device: Callable[..., V4l2Source]
) -> None:
    source = open_device()
    driver.bus = b"usb-2"
    with pytest.raises(SourceLost, match="is another device now"):
        source._find()


def test_stream_of_a_device_that_goes_while_it_is_opened_is_a_loss_and_is_closed(
    driver: Driver, open_device: Callable[..., V4l2Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[bool] = []

    class Container:
        streams = MagicMock()

        def close(self) -> None:
            closed.append(True)

    monkeypatch.setattr("edge.sources.v4l2.stream.av.open", lambda *_, **__: Container())
    open_device()
    with V4l2Device(tmp_path / "video0") as device, pytest.raises(SourceLost, match="is gone"):
        V4l2Stream(device, {})
    assert closed
