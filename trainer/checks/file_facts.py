"""What a file tells of itself without its pixels: what a network might learn in place of the finding."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge.errors import SourceError
from edge.sources.kinds import is_dicom, is_image
from trainer.data.clips import VideoFrames
from trainer.data.video import Video

Facts = dict[str, float | str]

DICOM_KEYWORDS = ("Manufacturer", "ManufacturerModelName", "SoftwareVersions", "TransducerData", "InstitutionName")
FOLDER = "folder of images"


def file_facts(video: Video, frames: VideoFrames) -> Facts:
    """Return numbers and words by name: size, rate, length, codec, scanner, site."""
    num_bytes = _num_bytes(video.path)
    return {
        "file size": float(num_bytes),
        "bytes a frame": num_bytes / frames.num_source_frames,
        "image width": float(frames.size_wh[0]),
        "image height": float(frames.size_wh[1]),
        "frame rate": round(1000 / frames.source_interval_ms, 3),
        "number of frames": float(frames.num_source_frames),
        "site": video.site or "",
        **dict(_words(video.path)),
    }


def _num_bytes(path: Path) -> int:
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _words(path: Path) -> Iterator[tuple[str, str]]:
    if path.is_dir():
        yield "kind", FOLDER
        return
    yield "suffix", path.suffix.lower()
    if is_dicom(path):
        yield from _of_dicom(path)
    elif not is_image(path):
        yield from _of_video(path)


def _of_dicom(path: Path) -> Iterator[tuple[str, str]]:
    import pydicom

    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(DICOM_KEYWORDS), force=True)
    yield "codec", str(header.file_meta.get("TransferSyntaxUID", ""))
    for keyword in DICOM_KEYWORDS:
        yield keyword, str(header.get(keyword, ""))


def _of_video(path: Path) -> Iterator[tuple[str, str]]:
    import av

    try:
        with av.open(f"file:{path.absolute()}", "r", metadata_errors="ignore") as container:
            stream: Any = container.streams.best("video")
            yield "container", container.format.name
            yield "codec", stream.codec_context.name
            yield "codec profile", str(stream.profile)
            yield "pixel format", str(stream.codec_context.pix_fmt)
            yield "encoder", container.metadata.get("encoder", "") + stream.metadata.get("encoder", "")
            yield "audio", str(bool(container.streams.audio))
    except av.FFmpegError as exc:
        raise SourceError(f"{path.name!r} cannot be opened ({exc.strerror}); give another file") from exc
