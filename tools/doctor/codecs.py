"""What can be decoded and recorded: video, DICOM's transfer syntaxes, SRT; and the source that is to be played."""

from collections.abc import Iterator
from typing import Literal

from edge.errors import EdgeError
from tools.doctor.finding import Finding, Verdict, as_root, pip_install
from tools.doctor.probe import Answer, Probes

_DECODERS = ("h264", "hevc", "mjpeg", "ffv1", "mpeg2video", "mpeg4", "vp9")
_FORMATS = ("video4linux2,v4l2", "rtsp", "sdp", "mpegts", "rtp")
_SOURCE_LIMIT_S = 30.0


def check_video() -> Iterator[Finding]:
    """Ask FFmpeg for the decoders and inputs of the sources, and for the encoders of recordings."""
    import av

    from edge.recording.codecs import CODINGS

    encoders = sorted({name for coding in CODINGS.values() for name in (coding.gray, coding.rgb)})
    missing = [f"decoder {name}" for name in _DECODERS if not _has_codec(name, "r")]
    missing += [f"input {name}" for name in _FORMATS if name not in av.formats_available]
    version = "PyAV " + av.__version__
    mend = pip_install(["av>=18,<19"], "--force-reinstall", "--only-binary=av")
    if missing:
        yield Finding("video", Verdict.PROBLEM, f"{version} lacks {', '.join(missing)}", mend)
    else:
        yield Finding("video", Verdict.OK, f"{version} reads {', '.join(_DECODERS)}, V4L2, RTSP, RTP, SDP, MPEG-TS")
    lacks = [name for name in encoders if not _has_codec(name, "w")]
    if lacks:
        yield Finding("recording", Verdict.WARNING, f"{version} cannot write {', '.join(lacks)} (--record)", mend)
    else:
        yield Finding("recording", Verdict.OK, f"{', '.join(encoders)} can be written")


def _has_codec(name: str, direction: Literal["r", "w"]) -> bool:
    from av.codec import Codec
    from av.codec.codec import UnknownCodecError

    try:
        Codec(name, direction)
    except UnknownCodecError:
        return False
    return True


def check_dicom() -> Iterator[Finding]:
    """Tell, for every transfer syntax that pydicom knows images of, which of the plug-ins that are used decodes it."""
    decoders = dict(_dicom_decoders())
    readable = {name: decoder for name, decoder in decoders.items() if decoder}
    lacking = [name for name, decoder in decoders.items() if not decoder]
    told = f"{len(readable)} of {len(decoders)} transfer syntaxes are decoded"
    if lacking:
        packages = ["python-gdcm", "pyjpegls", "pylibjpeg", "pylibjpeg-openjpeg", "pillow"]
        told += f"; refused are {', '.join(lacking)}"
        yield Finding("DICOM", Verdict.WARNING, told, pip_install(packages, "--force-reinstall"), decoders)
    else:
        plugins = ", ".join(dict.fromkeys(readable.values()))
        yield Finding("DICOM", Verdict.OK, f"{told}, by {plugins}", "", decoders)


def _dicom_decoders() -> Iterator[tuple[str, str]]:
    """Yield each transfer syntax's name and its decoder, empty where none is here."""
    from pydicom.uid import AllTransferSyntaxes

    from edge.sources.dicom.pixels import find_decoder, find_plugin
    from edge.sources.dicom.video import is_video

    for uid in AllTransferSyntaxes:
        if is_video(uid):
            yield uid.name, "FFmpeg"
            continue
        if (decoder := find_decoder(uid)) is not None:
            yield uid.name, "pydicom" if decoder.is_native else find_plugin(decoder) or ""


def check_srt() -> Iterator[Finding]:
    """Look for libsrt, which only srt:// needs."""
    from edge.sources.network import srt

    if (trouble := srt.probe()) is None:
        yield Finding("SRT", Verdict.OK, "libsrt is there")
    else:
        yield Finding("SRT", Verdict.NOTE, trouble, as_root(srt.INSTALL))


def check_source(probes: Probes, uri: str) -> Iterator[Finding]:
    """Wait for the first frame of the source that is to be played."""
    try:
        answer = probes.answer("source", _SOURCE_LIMIT_S)
    except EdgeError as exc:
        mend = "edge-infer --list-sources   # names devices and modes" if uri.startswith("/dev/") else ""
        yield Finding("source", Verdict.PROBLEM, str(exc), mend)
        return
    yield _judge_source(answer)


def _judge_source(answer: Answer) -> Finding:
    name = answer["source"]
    if "is_listener" in answer:
        return Finding(
            "source", Verdict.OK, f"{name}: it can listen there; what is sent is left to the daemon", "", answer
        )
    if "size_wh" not in answer:
        told = f"{name}: no frame within {answer['waited_s']:.1f} s ({answer['pause']})"
        return Finding(
            "source", Verdict.PROBLEM, told, "edge-infer --source ... --duration 30   # goes on trying", answer
        )
    size = "{}x{}".format(*answer["size_wh"])
    return Finding("source", Verdict.OK, f"{name}: {size}, first frame after {answer['waited_s']:.2f} s", "", answer)
