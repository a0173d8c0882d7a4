"""Resizing by area: against the mean written down in NumPy, at odd sizes, in several threads."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from edge.area_resize import AreaResizer


def _noise(*shape: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def _weights(size: int, new_size: int) -> np.ndarray:
    """Return the share of each old pixel in each new one, (new_size, size)."""
    edges = np.arange(new_size + 1) * size / new_size
    old = np.arange(size)
    covered = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
    return np.clip(covered, 0, None) * new_size / size


@pytest.mark.parametrize(
    ("shape", "wh"),
    [((480, 640), (256, 256)), ((645, 930), (128, 96)), ((101, 77), (40, 31)), ((30, 40), (30, 20)), ((9, 9), (2, 2))],
)
def test_resize_is_the_mean_over_each_new_pixels_area(shape: tuple[int, int], wh: tuple[int, int]) -> None:
    image = _noise(*shape)
    expected = _weights(shape[0], wh[1]) @ image @ _weights(shape[1], wh[0]).T
    assert np.abs(AreaResizer()(image, *wh) - expected).max() <= 1


@pytest.mark.parametrize("value", [0, 1, 16, 127, 235, 254, 255])
def test_resize_keeps_a_flat_images_value(value: int) -> None:
    for shape, wh in (((480, 640), (256, 256)), ((33, 17), (8, 5)), ((20, 30), (128, 128)), ((1, 1), (8, 8))):
        assert np.unique(AreaResizer()(np.full(shape, value, np.uint8), *wh)).tolist() == [value]


def test_resize_to_more_pixels_goes_from_one_to_the_next() -> None:
    ramp = np.tile(np.arange(0, 250, 10, dtype=np.uint8), (4, 1))
    grown = AreaResizer()(ramp, 100, 4)
    assert (np.diff(grown.astype(int), axis=1) >= 0).all()
    assert np.abs(np.diff(grown.astype(int), axis=1)).max() <= 3


def test_resize_of_channels_is_that_of_each() -> None:
    image = _noise(90, 120, 3)
    resize = AreaResizer()
    planes = [resize(np.ascontiguousarray(image[..., channel]), 50, 40) for channel in range(3)]
    np.testing.assert_array_equal(resize(image, 50, 40), np.stack(planes, axis=2))


def test_resize_reads_a_part_of_an_image_and_no_pixel_beside_it() -> None:
    image = np.zeros((300, 400), np.uint8)
    image[50:250, 60:361] = 200
    assert np.unique(AreaResizer()(image[50:250, 60:361], 64, 64)).tolist() == [200]


def test_resize_result_is_not_overwritten_by_the_next() -> None:
    resize = AreaResizer()
    first = resize(_noise(200, 300), 64, 64)
    before = first.copy()
    resize(_noise(200, 300, seed=6), 64, 64)
    np.testing.assert_array_equal(first, before)


def test_resize_after_other_sizes_is_as_at_first() -> None:
    image, resize = _noise(213, 301), AreaResizer()
    first = resize(image, 64, 64)
    for shape, wh in (((213, 300), (64, 64)), ((213, 301), (65, 64)), ((50, 40), (128, 128))):
        resize(_noise(*shape), *wh)
    np.testing.assert_array_equal(resize(image, 64, 64), first)


def test_resize_in_several_threads_gives_what_one_gives() -> None:
    images = [_noise(200 + 7 * number, 300, seed=number) for number in range(16)]
    one = AreaResizer()
    expected = [one(image, 96, 80) for image in images]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for ours, wanted in zip(
                pool.map(lambda image: AreaResizer()(image, 96, 80), images), expected, strict=True
            ):
                np.testing.assert_array_equal(ours, wanted)
