"""Chooses the mode in which a V4L2 device is to give frames."""

from collections.abc import Sequence
from fractions import Fraction

from edge.errors import ConfigError
from edge.sources.options import SourceOptions
from edge.sources.v4l2.device import Mode

FFMPEG_NAMES = {
    "YUYV": "yuyv422",
    "UYVY": "uyvy422",
    "NV12": "nv12",
    "GREY": "gray",
    "RGB3": "rgb24",
    "BGR3": "bgr24",
    "MJPG": "mjpeg",
    "JPEG": "mjpeg",
}
"""Pixel formats that are read, the best first: colour without loss, then gray, then compressed."""

_SMOOTH_HZ, _ENOUGH_HZ = 24.0, 30.0
_MAX_AREA_PX = 1920 * 1080


def choose_mode(modes: Sequence[Mode], options: SourceOptions, name: str) -> tuple[Mode, float | None]:
    """Return the best mode that is as the user wants it, and its rate in frames/s; None where the device decides.

    A smooth picture goes before a large one, a large one before one without compression.

    Raises:
        ConfigError: The device has none such.
    """
    readable = [mode for mode in modes if mode.pixel_format in FFMPEG_NAMES]
    if not readable:
        given = ", ".join(dict.fromkeys(mode.pixel_format for mode in modes)) or "none"
        raise ConfigError(f"{name} offers the pixel formats {given}; allowed are {', '.join(FFMPEG_NAMES)}")
    fitting = [mode for mode in readable if _is_wanted(mode, options)]
    if not fitting:
        offered = "; ".join(str(mode) for mode in readable)
        raise ConfigError(f"{name} has no mode {_wish(options)}; it offers {offered}")
    best = max(fitting, key=lambda mode: _rank(mode, options))
    return best, _rate_hz(best, options)


def parse_size(text: str) -> tuple[int, int]:
    """Read the value of `--video-size`.

    Raises:
        ConfigError: It is not two positive numbers.
    """
    width, _, height = text.partition("x")
    if not (width.isascii() and width.isdecimal() and height.isascii() and height.isdecimal()):
        raise ConfigError(f"got the video size {text!r}; allowed is WIDTHxHEIGHT, for example 1280x720")
    if not (0 < int(width) <= 16384 and 0 < int(height) <= 16384):
        raise ConfigError(f"got the video size {text!r}; each side must be 1 to 16384 pixels")
    return int(width), int(height)


def ffmpeg_options(mode: Mode, rate_hz: float | None, options: SourceOptions) -> dict[str, str]:
    """Return the mode in the words of FFmpeg's V4L2 input."""
    words = {"input_format": FFMPEG_NAMES[mode.pixel_format]}
    size_wh = options.video_size or mode.size_wh
    if size_wh is not None:
        words["video_size"] = "{}x{}".format(*size_wh)
    if rate_hz is not None:
        words["framerate"] = str(Fraction(rate_hz).limit_denominator(1001))
    return words


def _is_wanted(mode: Mode, options: SourceOptions) -> bool:
    is_format = options.pixel_format in (None, mode.pixel_format, FFMPEG_NAMES[mode.pixel_format])
    return is_format and (options.video_size is None or mode.size_wh in (None, options.video_size))


def _wish(options: SourceOptions) -> str:
    size = "" if options.video_size is None else " --video-size {}x{}".format(*options.video_size)
    return (f"with{size}" + ("" if options.pixel_format is None else f" --pixel-format {options.pixel_format}")).strip()


def _rank(mode: Mode, options: SourceOptions) -> tuple[bool, bool, float, int, int]:
    rate_hz = _rate_hz(mode, options)
    width, height = mode.size_wh or (0, 0)
    order = -list(FFMPEG_NAMES).index(mode.pixel_format)
    is_smooth = rate_hz is None or rate_hz >= min(_SMOOTH_HZ, options.frame_rate or _SMOOTH_HZ)
    is_as_asked = rate_hz is None or options.frame_rate is None or rate_hz >= 0.98 * options.frame_rate
    return is_as_asked, is_smooth, 0.0 if is_smooth else rate_hz or 0.0, min(width * height, _MAX_AREA_PX), order


def _rate_hz(mode: Mode, options: SourceOptions) -> float | None:
    """Return the wanted rate, or the mode's smallest one that is enough; the device gives the nearest that it has."""
    if options.frame_rate is not None:
        return min(mode.rates_hz, key=lambda rate: abs(rate - options.frame_rate), default=options.frame_rate)  # type: ignore[operator]
    enough = [rate for rate in mode.rates_hz if rate >= _ENOUGH_HZ - 0.1]
    return min(enough, default=max(mode.rates_hz, default=None))
