"""The moving image area, on synthetic scanner screens whose rectangle is known."""

import dataclasses

import cv2
import numpy as np
import pytest

from edge.errors import ConfigError
from edge.frame import Frame
from edge.roi import RoiFinder, check_inside, clip_to, parse_masks, parse_roi
from edge.roi_chooser import RoiChooser

Box = tuple[int, int, int, int]


@dataclasses.dataclass
class Screen:
    """A scanner's screen: speckle that moves inside a shape, and things that stay still around it."""

    size_wh: tuple[int, int]
    shape: np.ndarray
    panel: int = 0
    texts: tuple[tuple[int, int, str], ...] = ()
    has_ecg: bool = False
    has_clock: bool = False
    noise: float = 0
    jpeg_quality: int = 0
    still_rows: int = 0

    def frames(self, num_frames: int = 16) -> list[Frame]:
        rng = np.random.default_rng(1)
        width, height = self.size_wh
        speckle = cv2.GaussianBlur(rng.rayleigh(60, (height + 200, width)).astype(np.float32), (0, 0), 1.2)
        depth = np.exp(-2.2 * np.arange(height) / height)[:, None]
        pictures = []
        for index in range(num_frames):
            moving = speckle[4 * index : 4 * index + height].copy()
            moving[: self.still_rows] = speckle[: self.still_rows]
            picture = np.where(self.shape > 0, np.clip(moving * depth, 0, 255), self.panel).astype(np.uint8)
            pictures.append(self._dressed(picture, index, rng))
        return [Frame(picture, index, index, 0, 0) for index, picture in enumerate(pictures)]

    def _dressed(self, picture: np.ndarray, index: int, rng: np.random.Generator) -> np.ndarray:
        width, height = self.size_wh
        for x, y, text in self.texts:
            cv2.putText(picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, height / 1000, 255, 1, cv2.LINE_AA)
        if self.has_clock:
            cv2.putText(picture, f"12:34:{index:02}", (width - 110, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 255, 1)
        if self.has_ecg:
            xs = np.arange(width // 8, width * 7 // 8)
            ys = height - 24 - (18 * (((xs + 3 * index) % 90) < 6)).astype(int)
            cv2.polylines(picture, [np.stack([xs, ys], 1).astype(np.int32)], False, 255, 2)
        if self.noise:
            picture = np.clip(picture + rng.normal(0, self.noise, picture.shape), 0, 255).astype(np.uint8)
        if self.jpeg_quality:
            _, encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, self.jpeg_quality])
            picture = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)
        return picture


def _sector(size_wh: tuple[int, int], apex: tuple[int, int], radii: tuple[int, int], half_angle: int) -> np.ndarray:
    shape = np.zeros(size_wh[::-1], np.uint8)
    cv2.ellipse(shape, apex, (radii[1],) * 2, 90, -half_angle, half_angle, 1, -1)
    cv2.ellipse(shape, apex, (radii[0],) * 2, 90, -180, 180, 0, -1)
    return shape


def _box(size_wh: tuple[int, int], *boxes: Box) -> np.ndarray:
    shape = np.zeros(size_wh[::-1], np.uint8)
    for x, y, width, height in boxes:
        shape[y : y + height, x : x + width] = 1
    return shape


LEFT_TEXT = tuple((8, 40 + 30 * row, text) for row, text in enumerate(("B 12 MHz", "Gn 62", "DR 70", "FR 31 Hz")))
VGA, HD = (640, 480), (1280, 720)
LAYOUTS = {
    "sector, VGA": Screen(VGA, _sector(VGA, (330, 30), (0, 400), 40), texts=(*LEFT_TEXT, (590, 450, "19"))),
    "convex, HD, clock and ECG": Screen(
        HD,
        _sector(HD, (640, -60), (140, 650), 34),
        texts=(*LEFT_TEXT, (1120, 300, "TIS 0.7"), (1120, 340, "MI 0.9")),
        has_clock=True,
        has_ecg=True,
        jpeg_quality=80,
    ),
    "linear, gray panel": Screen(HD, _box(HD, (320, 60, 560, 600)), panel=48, texts=LEFT_TEXT, has_clock=True),
    "linear, grabber noise": Screen(VGA, _box(VGA, (150, 40, 330, 400)), texts=LEFT_TEXT, noise=2.0),
    "two live images": Screen(HD, _box(HD, (160, 60, 450, 560), (640, 60, 450, 560)), texts=((8, 700, "B+C"),)),
    "still near field": Screen(VGA, _box(VGA, (150, 40, 330, 400)), texts=LEFT_TEXT, still_rows=110),
}


def _find(frames: list[Frame]) -> tuple[Box, str]:
    finder = RoiFinder(num_frames=len(frames))
    found = [finder.add(frame) for frame in frames]
    assert all(rect is None for rect in found[:-1])
    assert found[-1] is not None
    return found[-1], finder.reason


@pytest.mark.parametrize("layout", LAYOUTS)
def test_roi_known_screen_is_the_image_without_text(layout: str) -> None:
    screen = LAYOUTS[layout]
    (x, y, width, height), reason = _find(screen.frames())
    true_x, true_y, true_width, true_height = cv2.boundingRect(screen.shape)
    tolerance = 0.015 * max(screen.size_wh)
    errors = (x - true_x, y - true_y, x + width - true_x - true_width, y + height - true_y - true_height)
    assert max(map(abs, errors)) <= tolerance, errors
    assert reason == f"moving image area {width}x{height} at {x},{y}"


def test_roi_still_screen_is_the_full_frame() -> None:
    screen = LAYOUTS["sector, VGA"]
    rect, reason = _find(screen.frames(1) * 16)
    assert rect == (0, 0, 640, 480)
    assert reason == "nothing moves: full frame"


def test_roi_only_a_clock_moves_is_the_full_frame() -> None:
    screen = dataclasses.replace(LAYOUTS["sector, VGA"], has_clock=True, still_rows=480)
    rect, _ = _find(screen.frames())
    assert rect == (0, 0, 640, 480)


def test_roi_image_without_border_is_the_full_frame() -> None:
    rect, reason = _find(Screen((350, 350), _box((350, 350), (0, 0, 350, 350))).frames())
    assert rect == (0, 0, 350, 350)
    assert "fills the frame" in reason


def test_roi_stream_ends_early_uses_what_was_seen() -> None:
    screen = LAYOUTS["sector, VGA"]
    finder = RoiFinder()
    assert [finder.add(frame) for frame in screen.frames(5)] == [None] * 5
    x, y, width, height = finder.finish()
    true_x, true_y, true_width, true_height = cv2.boundingRect(screen.shape)
    assert abs(x - true_x) < 12
    assert abs(y - true_y) < 12
    assert abs(x + width - true_x - true_width) < 12
    assert abs(y + height - true_y - true_height) < 12


def test_roi_single_frame_is_the_full_frame() -> None:
    finder = RoiFinder()
    finder.add(LAYOUTS["sector, VGA"].frames(1)[0])
    assert finder.finish() == (0, 0, 640, 480)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("auto", "auto"), ("full", "full"), ("80,40, 640,480", (80, 40, 640, 480)), ("0,0,1,1", (0, 0, 1, 1))],
)
def test_parse_roi_allowed_value_is_read(text: str, expected: object) -> None:
    assert parse_roi(text) == expected


@pytest.mark.parametrize("text", ["", "Auto", "1,2,3", "1,2,3,4,5", "a,b,c,d", "-1,0,10,10", "0,0,0,10", "1.5,0,3,3"])
def test_parse_roi_other_value_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="allowed are auto, full, or X,Y,W,H"):
        parse_roi(text)


@pytest.mark.parametrize("text", ["0,0,640", "0,0,640,40;", "-1,0,10,10", "0,0,0,10", "a,b,c,d"])
def test_parse_masks_other_value_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="allowed is X,Y,W,H in pixels"):
        parse_masks(text)


def test_check_inside_outside_rectangle_is_refused() -> None:
    check_inside((0, 0, 640, 480), (640, 480))
    for rect in [(1, 0, 640, 480), (0, 1, 640, 480), (640, 0, 1, 1)]:
        with pytest.raises(ConfigError, match="640x480 pixels"):
            check_inside(rect, (640, 480))


def test_clip_to_rectangle_partly_or_wholly_outside() -> None:
    assert clip_to((84, 31, 512, 384), (320, 240)) == (84, 31, 236, 209)
    assert clip_to((-5, -5, 10, 10), (320, 240)) == (0, 0, 5, 5)
    assert clip_to((320, 0, 10, 10), (320, 240)) is None


@pytest.mark.parametrize(
    ("region", "expected"),
    [
        ((10, 10, 20, 20), (10, 10, 20, 20)),
        ((90, 50, 51, 51), (90, 50, 6, 14)),
        ((100, 70, 51, 51), None),  # it is looked for
    ],
)
def test_region_of_a_file_is_taken_as_far_as_the_image_goes(region: Box, expected: Box | None) -> None:
    frame = Frame(np.zeros((64, 96), np.uint8), 0, 0, 0, 0)
    assert RoiChooser("auto", region).add(frame) == expected
