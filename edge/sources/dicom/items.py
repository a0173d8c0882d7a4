"""Finds the encoded images in encapsulated pixel data (PS3.5, section A.4).

Offset tables are not used: many files have none or a wrong one, while every image shows by its first bytes where it
begins. So a file is read once from front to back, and one that is cut off is readable up to there.
"""

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

from edge.sources.stored import Damage

ITEM, DELIMITER = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
START_MARKERS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP")
"""How an image begins: JPEG and JPEG-LS, a JPEG 2000 codestream, a JPEG 2000 file."""


def encoded_images(file: BinaryIO, *, is_rle: bool, damage: Damage) -> Iterator[bytes]:
    """Yield the encoded images of a file that is positioned at its basic offset table.

    Args:
        file: Positioned at the start of the pixel data's value.
        is_rle: Each fragment is an image, as RLE demands; else fragments are joined up to the next start marker.
        damage: Told where the pixel data is cut off; the image that is cut is left out.
    """
    parts: list[bytes] = []
    num_images = 0
    for fragment, is_whole in fragments(file):
        if parts and (is_rle or fragment.startswith(START_MARKERS)):
            yield b"".join(parts)
            num_images += 1
            parts.clear()
        if not is_whole:
            damage.notes.append(f"its pixel data is cut off after {num_images} whole images")
            return
        parts.append(fragment)
    if parts:
        yield b"".join(parts)


def fragments(file: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """Yield each fragment after the basic offset table, and whether all of it is there."""
    num_bytes_left = _num_bytes_left(file)
    is_offset_table = True
    while head := file.read(8):
        if len(head) < 8 or (tag := struct.unpack("<HH", head[:4])) not in (ITEM, DELIMITER):
            yield b"", False
            return
        if tag == DELIMITER:
            return
        length: int = struct.unpack("<L", head[4:])[0]
        # A damaged length must not reserve gigabytes.
        fragment = file.read(min(length, num_bytes_left))
        if not is_offset_table:
            yield fragment, len(fragment) == length
        is_offset_table = False


def _num_bytes_left(file: BinaryIO) -> int:
    position = file.tell()
    end = file.seek(0, os.SEEK_END)
    file.seek(position)
    return end - position
