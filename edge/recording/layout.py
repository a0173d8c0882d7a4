"""What lies in a recording's folder.

    recording.json       says what the folder is
    000001.json          a segment: source, ROI, bundle, engine and configuration that it was made with
    000001.mkv           the ROI's video
    000001.frames        for each frame of the video, four little-endian int64: `FrameTimes.pack`
    000001.messages      the wire's messages as they were published, each: number of parts, then size and bytes of each

Every file is written from front to back, so a killed recording is read up to where it was cut, and messages behind
damage, too. Segments stand alone: the oldest are removed where a recording is bounded.
"""

import dataclasses
import io
import json
import logging
import mmap
import os
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

_log = logging.getLogger(__name__)

MARKER_NAME = "recording.json"
SCHEMA_VERSION = 1
NOTICE = "Research recording, not for diagnosis. It holds images of the ROI and no names; treat it as patient data."

CODEC_NAMES = ("h264-lossless", "ffv1", "h264-near-lossless")
"""`--record-codec`; the first is the default. See `edge/recording/codecs.py`."""

_FRAME = struct.Struct("<4q")
_SEAM_BIT, _FLOW_BIT = 1 << 61, 1 << 62
"""Beside the index: what the recorded image does not tell."""
_SIZE = struct.Struct("<I")
_MAX_PART_BYTES = 1 << 28


@dataclasses.dataclass(frozen=True, slots=True)
class FrameTimes:
    """A frame's place in the stream."""

    index: int
    t_media_ns: int
    t_capture_ns: int
    t_wall_ns: int
    is_seam: bool = False
    """It began a further round of a looped source."""
    has_flow: bool = False
    """It had colour flow, and its luma alone was recorded."""

    def pack(self) -> bytes:
        """Return the 32 bytes that stand for it: the first number holds the two marks as well."""
        marked = self.index | _SEAM_BIT * self.is_seam | _FLOW_BIT * self.has_flow
        return _FRAME.pack(marked, self.t_media_ns, self.t_capture_ns, self.t_wall_ns)

    @classmethod
    def unpack(cls, packed: tuple[int, int, int, int]) -> Self:
        """Return what the four numbers of `pack` stand for."""
        marked, t_media_ns, t_capture_ns, t_wall_ns = packed
        is_seam, has_flow = bool(marked & _SEAM_BIT), bool(marked & _FLOW_BIT)
        return cls(marked & ~(_SEAM_BIT | _FLOW_BIT), t_media_ns, t_capture_ns, t_wall_ns, is_seam, has_flow)


@dataclasses.dataclass(frozen=True, slots=True)
class SegmentPaths:
    """The files of one segment."""

    folder: Path
    number: int

    @property
    def about(self) -> Path:
        return self.folder / f"{self.number:06d}.json"

    @property
    def video(self) -> Path:
        return self.folder / f"{self.number:06d}.mkv"

    @property
    def frames(self) -> Path:
        return self.folder / f"{self.number:06d}.frames"

    @property
    def messages(self) -> Path:
        return self.folder / f"{self.number:06d}.messages"

    def size_bytes(self) -> int:
        """Return how much room the segment takes."""
        paths = (self.about, self.video, self.frames, self.messages)
        return sum(path.stat().st_size for path in paths if path.exists())

    def remove(self) -> None:
        """Remove the segment; the description last, so that a half removed one is still seen."""
        for path in (self.video, self.frames, self.messages, self.about):
            path.unlink(missing_ok=True)


def write_description(path: Path, content: Mapping[str, Any]) -> None:
    """Write a description so that a reader finds all of it or none, also where the disk is full in its midst.

    Raises:
        OSError: The disk refuses.
    """
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def segments_of(folder: Path) -> list[SegmentPaths]:
    """Return a recording's segments, oldest first."""
    numbers = sorted(int(path.stem) for path in folder.glob("*.json") if path.stem.isdecimal())
    return [SegmentPaths(folder, number) for number in numbers]


def read_frame_times(path: Path) -> list[FrameTimes]:
    """Return the whole records of a `.frames` file; a last one that was cut is left out."""
    content = path.read_bytes()
    whole = content[: len(content) // _FRAME.size * _FRAME.size]
    return [FrameTimes.unpack(fields) for fields in _FRAME.iter_unpack(whole)]


def pack_message(parts: Sequence[bytes]) -> bytes:
    """Return one message of a `.messages` file."""
    packed = [_SIZE.pack(len(parts))]
    for part in parts:
        packed += [_SIZE.pack(len(part)), part]
    return b"".join(packed)


def read_messages(path: Path) -> Iterator[list[bytes]]:
    """Yield the whole messages of a `.messages` file; what lies between and after them is passed over, with a warning.

    Behind damage, reading goes on where a message begins like one that was read: by as many parts and the same topic.
    """
    heads: set[bytes] = set()
    num_lost = end = 0
    position: int | None = 0
    with path.open("rb") as stream:
        while position is not None:
            stream.seek(position)
            parts = _read_message(stream)
            if parts is not None:
                num_lost += position - end
                yield parts
                end = position = stream.tell()
                heads.add(_SIZE.pack(len(parts)) + _SIZE.pack(len(parts[0])) + parts[0])
            elif stream.tell() == end:  # and not by the size: the file may be growing
                break
            else:
                position = _find_first(stream, heads, position + 1)
        num_last = 0 if position is not None else stream.seek(0, os.SEEK_END) - end
    if num_lost:
        _log.warning("%s was damaged: %d bytes in its midst hold no whole message and are passed over", path, num_lost)
    if num_last:
        _log.warning(
            "%s was cut or damaged: its last %d bytes hold no whole message and are passed over", path, num_last
        )


def _find_first(stream: BinaryIO, wanted: Collection[bytes], start: int) -> int | None:
    """Return the first position from `start` on where one of the wanted bytes stand; None where none of them does."""
    with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = [position for each in wanted if (position := content.find(each, start)) >= 0]
    return min(found, default=None)


def _read_message(stream: BinaryIO | io.BufferedReader) -> list[bytes] | None:
    num_parts = _read_size(stream)
    if not num_parts:  # a machine that lost its power may leave zeros at the end
        return None
    parts = []
    for _ in range(num_parts):
        size = _read_size(stream)
        part = b"" if size is None else stream.read(size)
        if size is None or len(part) < size:
            return None
        parts.append(part)
    return parts


def _read_size(stream: BinaryIO | io.BufferedReader) -> int | None:
    packed = stream.read(_SIZE.size)
    if len(packed) < _SIZE.size:
        return None
    (size,) = _SIZE.unpack(packed)
    return None if size > _MAX_PART_BYTES else int(size)
