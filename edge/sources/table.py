"""The one table that turns a `--source` URI into a source.

Each row imports the module that owns the library when it is asked for, and not before.
"""

from collections.abc import Callable
from pathlib import Path
from typing import cast

from edge.errors import ConfigError, SourceError
from edge.sources.base import RecordedSource, Source
from edge.sources.kinds import is_dicom, is_image, is_recording, is_video
from edge.sources.looped import LoopedSource
from edge.sources.network.address import is_mistyped, is_network, parse_network
from edge.sources.options import SourceOptions

FILES_ALLOWED = "a video file (.mp4 .mov .mpeg .avi .mkv ...), a DICOM file (.dcm), an image or a folder of images"
ALLOWED = (
    f"demo, phantom:SEED, /dev/video0, {FILES_ALLOWED}, dicom://HOST:PORT?aet=NAME, "
    "rtsp:// udp:// rtp:// http:// (and other network video), an .sdp file, igtl://HOST:PORT/DEVICE"
)

_DEMO_REGION = (42, 15, 256, 192)
"""The demo cine's own region is written for an image of twice its size: the sector is where half of it says."""

DEFAULTS = SourceOptions()


def open_source(uri: str, *, loop: bool = False, options: SourceOptions = DEFAULTS) -> Source:
    """Open the source that a URI names.

    Args:
        uri: `demo`, `phantom:SEED`, or the path of a video, a DICOM file, an image or a folder of images.
        loop: Start again when the source ends.
        options: What some kinds need beside the URI.

    Raises:
        ConfigError: The URI is of a kind that is not known, or an option is not for its kind.
        SourceError: There is no such file, or it cannot be opened.
    """
    source = _open_once(uri, options)
    if options.is_awaited and not source.info.is_live:
        source.close()
        raise ConfigError("--wait-source waits for a device or a stream; this source is a recording: leave it out")
    if not loop and uri != "demo":
        return source
    if source.info.is_live:
        source.close()
        raise ConfigError("--loop plays a recording again and again; a live source has no end: leave --loop out")
    return LoopedSource(cast(RecordedSource, source))


def _open_once(uri: str, options: SourceOptions) -> Source:
    if uri == "demo":
        return _open_demo()
    scheme, _, rest = uri.partition(":")
    if scheme == "phantom":
        return _open_phantom(rest)
    if scheme == "dicom":
        return _open_dicom_listener(uri, options)
    if is_network(uri):
        return _open_network(uri, options)
    if scheme == "igtl":
        return _open_igtl(uri, options)
    if scheme == "watch":
        return _open_watched_folder(Path(rest), options)
    if uri.startswith("/dev/"):
        return _open_v4l2(Path(uri), options)
    if is_mistyped(uri):
        raise ConfigError(
            f"the source begins with '{scheme}:', but a URL must with '{scheme}://'; allowed are {ALLOWED}"
        )
    if "://" in uri:
        # Only the kind is repeated: the rest of a URL may hold a password.
        kind = uri.partition("://")[0] + "://"
        raise ConfigError(f"a source of the kind {kind!r} is not supported; allowed are {ALLOWED}")
    return _open_path(Path(uri))


def _open_demo() -> Source:
    import pydicom.examples

    from edge.sources.dicom.file import DicomFile

    return DicomFile(Path(pydicom.examples.get_path("ybr_color")), kind="demo", region=_DEMO_REGION)


def _open_phantom(seed: str) -> Source:
    if not seed.isascii() or not seed.isdecimal():
        raise ConfigError(
            f"the source 'phantom:{seed}' has no seed; allowed is a whole number from 0, for example phantom:7"
        )
    from edge.sources.phantom import PhantomSource

    return PhantomSource(int(seed))


def _open_v4l2(path: Path, options: SourceOptions) -> Source:
    from edge.sources.v4l2.source import V4l2Source

    return V4l2Source(path, options)


def _open_dicom_listener(uri: str, options: SourceOptions) -> Source:
    from edge.sources.dicom.address import parse_address
    from edge.sources.dicom.listener import DicomListener

    return DicomListener(parse_address(uri), options)


def _open_network(uri: str, options: SourceOptions) -> Source:
    from edge.sources.network.source import NetworkVideo

    return NetworkVideo(parse_network(uri), options)


def _open_igtl(uri: str, options: SourceOptions) -> Source:
    from edge.sources.openigtlink import OpenIgtLink, parse_igtl

    return OpenIgtLink(parse_igtl(uri), options)


def _open_watched_folder(folder: Path, options: SourceOptions) -> Source:
    from edge.sources.watch_folder import WatchedFolder

    return WatchedFolder(folder, _open_recorded, is_realtime=options.is_realtime)


def _open_recorded(path: Path) -> RecordedSource:
    return cast(RecordedSource, _open_path(path))


def _open_video(path: Path) -> Source:
    from edge.sources.video import VideoFile

    return VideoFile(path)


def _open_dicom(path: Path) -> Source:
    from edge.sources.dicom.file import DicomFile

    return DicomFile(path)


def _open_images(path: Path) -> Source:
    from edge.sources.images import ImageFiles

    return ImageFiles(path)


def _open_recording(path: Path) -> Source:
    from edge.sources.recording import RecordingSource

    return RecordingSource(path)


def _open_path(path: Path) -> Source:
    try:
        opener = _opener_of_folder(path) if path.is_dir() else _opener_of_file(path)
        return opener(path)
    except FileNotFoundError as exc:
        raise SourceError(f"there is no file or folder {str(path)!r}; give one of: {ALLOWED}") from exc
    except SourceError:
        raise
    except OSError as exc:
        raise SourceError(f"{str(path)!r} cannot be read: {exc.strerror}; mend that or give another file") from exc


def _opener_of_folder(path: Path) -> Callable[[Path], Source]:
    return _open_recording if is_recording(path) else _open_images


def _opener_of_file(path: Path) -> Callable[[Path], Source]:
    if path.exists() and not path.is_file():
        raise ConfigError(f"{str(path)!r} is neither a file nor a folder; allowed are {FILES_ALLOWED}")
    if path.stat().st_size == 0:
        raise SourceError(f"{str(path)!r} is empty (0 bytes); give another file")
    for is_kind, opener in ((is_dicom, _open_dicom), (is_image, _open_images), (is_video, _open_video)):
        if is_kind(path):
            return opener
    raise ConfigError(
        f"{path.name!r} is not DICOM and its suffix {path.suffix!r} is not known; allowed are {FILES_ALLOWED}"
    )
