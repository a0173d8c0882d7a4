"""Which mode of a frame grabber is chosen, and how its bytes become an image. No device is needed."""

import cv2
import numpy as np
import pytest

from edge.errors import ConfigError
from edge.sources.options import SourceOptions
from edge.sources.stored import ColourImage
from edge.sources.v4l2.device import Layout, Mode
from edge.sources.v4l2.modes import choose_mode, ffmpeg_options, parse_size
from edge.sources.v4l2.pixels import jpeg_colour, to_image

HD, VGA, SMALL = (1920, 1080), (640, 480), (320, 180)
USB_GRABBER = [
    Mode("MJPG", HD, (60.0, 30.0, 25.0)),
    Mode("MJPG", VGA, (60.0,)),
    Mode("YUYV", HD, (5.0,)),
    Mode("YUYV", VGA, (30.0, 25.0)),
]
WEBCAM = [Mode("YUYV", SMALL, (60.0,)), Mode("YUYV", VGA, (25.0, 15.0)), Mode("YUYV", (1280, 720), (12.5, 5.0))]
HDMI = [Mode("H264", None), Mode("NV12", None), Mode("YUYV", None), Mode("GREY", None)]


@pytest.mark.parametrize(
    ("modes", "options", "expected"),
    [
        (USB_GRABBER, {}, (Mode("MJPG", HD, (60.0, 30.0, 25.0)), 30.0)),
        (USB_GRABBER, {"pixel_format": "YUYV"}, (Mode("YUYV", VGA, (30.0, 25.0)), 30.0)),
        (USB_GRABBER, {"pixel_format": "yuyv422", "video_size": HD}, (Mode("YUYV", HD, (5.0,)), 5.0)),
        (USB_GRABBER, {"video_size": VGA}, (Mode("YUYV", VGA, (30.0, 25.0)), 30.0)),
        (USB_GRABBER, {"frame_rate": 60.0, "video_size": VGA}, (Mode("MJPG", VGA, (60.0,)), 60.0)),
        (WEBCAM, {}, (Mode("YUYV", VGA, (25.0, 15.0)), 25.0)),
        (WEBCAM, {"frame_rate": 12.0}, (Mode("YUYV", (1280, 720), (12.5, 5.0)), 12.5)),
        (HDMI, {}, (Mode("YUYV", None), None)),
        (HDMI, {"frame_rate": 50.0, "video_size": VGA}, (Mode("YUYV", None), 50.0)),
    ],
)
def test_mode_smooth_before_large_before_uncompressed(
    modes: list[Mode], options: dict[str, object], expected: tuple[Mode, float | None]
) -> None:
    assert choose_mode(modes, SourceOptions(**options), "/dev/video0") == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("modes", "options", "words"),
    [
        (
            WEBCAM,
            {"video_size": HD},
            "/dev/video0 has no mode with --video-size 1920x1080; it offers YUYV 320x180 at 60",
        ),
        (WEBCAM, {"pixel_format": "MJPG"}, "--pixel-format MJPG"),
        ([Mode("H264", HD)], {}, "offers the pixel formats H264; allowed are YUYV"),
        ([], {}, "offers the pixel formats none"),
    ],
)
def test_mode_that_is_not_there_is_refused_with_those_that_are(
    modes: list[Mode], options: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        choose_mode(modes, SourceOptions(**options), "/dev/video0")  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_mode_in_ffmpegs_words() -> None:
    words = ffmpeg_options(Mode("MJPG", HD, (29.97,)), 30000 / 1001, SourceOptions())
    assert words == {"input_format": "mjpeg", "video_size": "1920x1080", "framerate": "30000/1001"}
    assert ffmpeg_options(Mode("GREY", None), None, SourceOptions()) == {"input_format": "gray"}
    assert ffmpeg_options(Mode("GREY", None), None, SourceOptions(video_size=VGA))["video_size"] == "640x480"


@pytest.mark.parametrize("text", ["", "640", "640x", "x480", "0x480", "640x-1", "640x480x3", "99999x1", "a x b"])
def test_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="video size"):
        parse_size(text)


def test_size_is_width_and_height() -> None:
    assert parse_size("1280x720") == (1280, 720)


RED = (81, 90, 240)
"""Y, Cb, Cr of pure red, limited range (ITU-R BT.601)."""
WIDTH, HEIGHT = 32, 16


def _coded(pixel_format: str, row_bytes: int) -> tuple[bytes, Layout]:
    """Return a buffer whose luma counts up along a row, red, with rows of so many bytes."""
    luma = np.tile(np.arange(16, 16 + WIDTH, dtype=np.uint8), (HEIGHT, 1))
    colour = np.empty((HEIGHT, WIDTH), np.uint8)
    colour[:, 0::2], colour[:, 1::2] = RED[1:]
    if pixel_format == "NV12":
        rows = np.vstack([luma, colour[::2]])
    else:
        pair = (luma, colour) if pixel_format == "YUYV" else (colour, luma)
        rows = np.stack(pair, axis=2).reshape(HEIGHT, 2 * WIDTH)
    padded = np.pad(rows, ((0, 0), (0, row_bytes - rows.shape[1])), constant_values=77)
    return padded.tobytes(), Layout(pixel_format, (WIDTH, HEIGHT), row_bytes, is_full_range=False)


@pytest.mark.parametrize("padding", [0, 8])
@pytest.mark.parametrize("pixel_format", ["YUYV", "UYVY", "NV12"])
def test_coded_colour_gives_luma_chroma_and_rgb(pixel_format: str, padding: int) -> None:
    width_bytes = WIDTH if pixel_format == "NV12" else 2 * WIDTH
    data, layout = _coded(pixel_format, width_bytes + padding)
    image = to_image(data, layout)
    assert isinstance(image, ColourImage)
    expected = np.clip(np.rint(np.arange(WIDTH) * 255 / 219), 0, 255)
    np.testing.assert_allclose(image.luma, np.tile(expected, (HEIGHT, 1)), atol=1)
    red, green, blue = image.rgb()[0, -1].astype(int)
    assert red > green + 100
    assert red > blue + 100
    assert image.chroma is not None
    blue_difference, red_difference = image.chroma()
    assert blue_difference.shape == red_difference.shape == (HEIGHT // (2 if pixel_format == "NV12" else 1), WIDTH // 2)
    assert ({*blue_difference.flat}, {*red_difference.flat}) == ({RED[1]}, {RED[2]})


def test_full_range_luma_is_taken_as_it_is() -> None:
    data, layout = _coded("YUYV", 2 * WIDTH)
    image = to_image(data, Layout(layout.pixel_format, layout.size_wh, layout.row_bytes, is_full_range=True))
    assert isinstance(image, ColourImage)
    assert image.luma[0].tolist() == list(range(16, 16 + WIDTH))


@pytest.mark.parametrize("pixel_format", ["GREY", "RGB3", "BGR3"])
def test_plain_pixels_are_copied_without_the_padding(pixel_format: str) -> None:
    depth = 1 if pixel_format == "GREY" else 3
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, depth), np.uint8)
    rows = np.pad(pixels.reshape(HEIGHT, -1), ((0, 0), (0, 4)))
    buffer = bytearray(rows.tobytes())
    image = to_image(memoryview(buffer), Layout(pixel_format, (WIDTH, HEIGHT), rows.shape[1], is_full_range=False))
    buffer[:] = bytes(len(buffer))  # the driver takes it back
    expected = pixels[..., 0] if depth == 1 else pixels[..., ::-1] if pixel_format == "BGR3" else pixels
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("pixel_format", ["YUYV", "NV12"])
def test_buffer_that_is_too_short_is_no_image(pixel_format: str) -> None:
    data, layout = _coded(pixel_format, 2 * WIDTH)
    assert to_image(data[:-1], layout) is None


def test_jpeg_colour_is_rgb() -> None:
    picture = np.zeros((16, 16, 3), np.uint8)
    picture[..., 2] = 250  # OpenCV's order is BGR
    jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
    np.testing.assert_allclose(jpeg_colour(jpeg)()[8, 8], (250, 0, 0), atol=6)
