"""Writes known frames to a v4l2loopback device: feed.py DEVICE YUYV|GREY|MJPG WIDTH HEIGHT RATE_HZ NUM_FRAMES [damage].

Raw frames hold their number in the first four bytes and are one gray besides; JPEG frames show it. With `damage`, every
third JPEG is cut off in the middle.
"""

import fcntl
import os
import struct
import sys
import time

import cv2
import numpy as np

_S_FMT = 0xC0D05605  # VIDIOC_S_FMT of linux/videodev2.h
_OUTPUT, _NO_FIELD, _SRGB = 2, 1, 8
_DEPTHS = {"YUYV": 2, "GREY": 1, "MJPG": 2}


def set_format(fd: int, name: str, width: int, height: int) -> None:
    """Tell the device what comes."""
    depth = _DEPTHS[name]
    code = int.from_bytes(name.encode(), "little")
    row_bytes = 0 if name == "MJPG" else width * depth
    pixels = struct.pack("<12I", width, height, code, _NO_FIELD, row_bytes, width * height * depth, _SRGB, *[0] * 5)
    fcntl.ioctl(fd, _S_FMT, bytearray(struct.pack("<I4x", _OUTPUT) + pixels.ljust(200, b"\0")))


def frame(index: int, name: str, width: int, height: int, *, is_damaged: bool) -> bytes:
    """Return one frame as the device takes it."""
    if name == "MJPG":
        image = np.full((height, width, 3), 40 + index % 100, np.uint8)
        cv2.putText(image, str(index), (20, 60), cv2.FONT_HERSHEY_SIMPLEX, 2, (255, 255, 255), 3)
        jpeg = cv2.imencode(".jpg", image)[1].tobytes()
        return jpeg[: len(jpeg) // 2] if is_damaged else jpeg
    rows = np.full((height, width * _DEPTHS[name]), 20 + index * 7 % 200, np.uint8)
    rows[0, :4] = np.frombuffer(struct.pack("<I", index), np.uint8)
    return rows.tobytes()


def main() -> None:
    """Feed at a steady rate."""
    device, name, *numbers = sys.argv[1:7]
    width, height, rate_hz, num_frames = (int(number) for number in numbers)
    fd = os.open(device, os.O_RDWR)
    set_format(fd, name, width, height)
    due_s = time.monotonic()
    for index in range(num_frames):
        os.write(fd, frame(index, name, width, height, is_damaged="damage" in sys.argv and index % 3 == 2))
        due_s += 1 / rate_hz
        time.sleep(max(0.0, due_s - time.monotonic()))
    os.close(fd)


if __name__ == "__main__":
    main()
