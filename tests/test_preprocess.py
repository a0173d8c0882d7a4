"""From pixels to network input: values, channels, geometry, and where in the source image the input came from."""

import cv2
import numpy as np
import pytest

from edge.preprocess import preprocess, preprocess_uint8, visible_rect
from engines import PreprocessSpec

PLAIN = PreprocessSpec(resize_hw=(8, 8), crop_hw=(8, 8))
RGB = PreprocessSpec(channels=3)
GRAY = PreprocessSpec()


def _noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, shape, np.uint8)


def test_preprocess_default_shape_dtype_and_range() -> None:
    frame_chw = preprocess(_noise(480, 640, 3), (100, 50, 400, 380), GRAY)
    assert (frame_chw.shape, frame_chw.dtype) == ((1, 224, 224), np.float32)
    assert 0 <= frame_chw.min() < frame_chw.max() <= 1


@pytest.mark.parametrize(("value", "expected"), [(0, 0.0), (255, 1.0), (51, 0.2)])
def test_preprocess_uniform_image_keeps_its_value(value: int, expected: float) -> None:
    frame_chw = preprocess(np.full((300, 500), value, np.uint8), (0, 0, 500, 300), GRAY)
    np.testing.assert_allclose(frame_chw, expected, atol=1e-7)
    assert frame_chw.max() <= 1


@pytest.mark.parametrize(("colour", "gray"), [((255, 0, 0), 76), ((0, 255, 0), 150), ((0, 0, 255), 29)])
def test_preprocess_rgb_turns_gray_by_bt601(colour: tuple[int, int, int], gray: int) -> None:
    pixels = np.full((8, 8, 3), colour, np.uint8)
    assert np.unique(preprocess_uint8(pixels, (0, 0, 8, 8), PLAIN)).tolist() == [gray]


def test_preprocess_rgb_with_equal_channels_equals_gray() -> None:
    gray = _noise(200, 300)
    rgb = np.repeat(gray[:, :, np.newaxis], 3, axis=2)
    roi = (7, 9, 250, 180)
    np.testing.assert_array_equal(preprocess(gray, roi, GRAY), preprocess(rgb, roi, GRAY))
    np.testing.assert_array_equal(preprocess(gray, roi, RGB), preprocess(rgb, roi, RGB))


def test_preprocess_three_channels_keep_their_order() -> None:
    pixels = np.full((8, 8, 3), (10, 20, 30), np.uint8)
    spec = PreprocessSpec(resize_hw=(8, 8), crop_hw=(4, 4), channels=3)
    assert preprocess_uint8(pixels, (0, 0, 8, 8), spec)[:, 0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("spec", [GRAY, RGB], ids=["gray", "rgb"])
@pytest.mark.parametrize("shape", [(480, 640), (480, 640, 3), (100, 90), (256, 256)])
def test_preprocess_uint8_twin_equals_float_times_255(spec: PreprocessSpec, shape: tuple[int, ...]) -> None:
    pixels, roi = _noise(*shape), (3, 5, shape[1] - 10, shape[0] - 6)
    twin = preprocess_uint8(pixels, roi, spec)
    assert twin.dtype == np.uint8
    np.testing.assert_allclose(preprocess(pixels, roi, spec) * 255, twin, atol=1e-4)


def test_preprocess_without_resize_is_the_rois_centre_exactly() -> None:
    pixels = _noise(300, 400)
    expected = pixels[20 + 16 : 20 + 16 + 224, 30 + 16 : 30 + 16 + 224]
    np.testing.assert_array_equal(preprocess_uint8(pixels, (30, 20, 256, 256), GRAY)[0], expected)


def test_preprocess_halving_averages_four_pixels() -> None:
    pixels = _noise(16, 16)
    means = pixels.reshape(8, 2, 8, 2).mean((1, 3))
    assert np.abs(preprocess_uint8(pixels, (0, 0, 16, 16), PLAIN)[0] - means).max() <= 0.5


@pytest.mark.parametrize("shape", [(720, 1280), (645, 930), (1081, 1923), (513, 2000), (300, 257)])
def test_preprocess_of_speckle_is_the_mean_over_each_pixels_area(shape: tuple[int, int]) -> None:
    height, width = shape
    pixels = _noise(height, width)
    direct = cv2.resize(pixels.astype(np.float32), (256, 256), interpolation=cv2.INTER_AREA)[16:-16, 16:-16]
    ours = preprocess_uint8(pixels, (0, 0, width, height), GRAY)[0]
    assert np.abs(ours - direct).max() <= 1


def test_preprocess_ignores_all_outside_the_roi() -> None:
    roi = (50, 60, 200, 150)
    pixels = _noise(300, 400, 3)
    blackened = np.zeros_like(pixels)
    blackened[60:210, 50:250] = pixels[60:210, 50:250]
    np.testing.assert_array_equal(preprocess(pixels, roi, GRAY), preprocess(blackened, roi, GRAY))


@pytest.mark.parametrize("shape", [(256, 256), (300, 200)])
def test_preprocess_leaves_the_frame_alone_and_returns_an_array_of_its_own(shape: tuple[int, int]) -> None:
    pixels = _noise(*shape)
    before = pixels.copy()
    frame_chw = preprocess(pixels, (0, 0, shape[1], shape[0]), GRAY)
    frame_chw[:] = 0
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize(
    ("roi", "expected"),
    [
        ((0, 0, 256, 256), (16, 16, 224, 224)),
        ((100, 50, 512, 1024), (132, 114, 448, 896)),
        ((7, 9, 100, 80), (13, 14, 88, 70)),
    ],
)
def test_visible_rect_is_the_centre_of_the_roi(roi: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert visible_rect(roi, GRAY) == expected


def test_visible_rect_without_crop_is_the_roi() -> None:
    assert visible_rect((3, 4, 101, 57), PLAIN) == (3, 4, 101, 57)


@pytest.mark.parametrize("seed", range(30))
def test_visible_rect_lies_inside_the_roi(seed: int) -> None:
    rng = np.random.default_rng(seed)
    roi = tuple(int(value) for value in rng.integers(1, 1000, 4))
    crop_hw = tuple(int(value) for value in rng.integers(1, 256, 2))
    rect = visible_rect(roi, PreprocessSpec(resize_hw=(256, 256), crop_hw=crop_hw))
    assert all(type(value) is int for value in rect)
    assert roi[0] <= rect[0]
    assert roi[1] <= rect[1]
    assert rect[0] + rect[2] <= roi[0] + roi[2]
    assert rect[1] + rect[3] <= roi[1] + roi[3]


@pytest.mark.parametrize("seed", range(30))
def test_visible_rect_maps_a_bright_dot_to_where_it_is_in_the_source(seed: int) -> None:
    rng = np.random.default_rng(seed)
    width, height = (int(value) for value in rng.integers(150, 700, 2))
    x, y = (int(value) for value in rng.integers(0, 60, 2))
    roi = (x, y, width, height)
    left, top, visible_width, visible_height = visible_rect(roi, GRAY)
    dot_x = int(rng.integers(left + 8, left + visible_width - 8))
    dot_y = int(rng.integers(top + 8, top + visible_height - 8))
    pixels = np.zeros((900, 900), np.uint8)
    pixels[dot_y - 2 : dot_y + 3, dot_x - 2 : dot_x + 3] = 255

    seen = preprocess(pixels, roi, GRAY)[0]
    rows, columns = np.indices(seen.shape) + 0.5
    row, column = (seen * rows).sum() / seen.sum(), (seen * columns).sum() / seen.sum()

    assert left + column / 224 * visible_width == pytest.approx(dot_x + 0.5, abs=1.0)
    assert top + row / 224 * visible_height == pytest.approx(dot_y + 0.5, abs=1.0)
