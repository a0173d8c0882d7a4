"""Frozen, blank and changed images, on a real cine, on the phantom, and on what grabbers show without a signal."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from edge.frame import Frame
from edge.image_state import ImageThresholds, ImageWatch, Look
from edge.prediction import State
from edge.sources import open_source
from edge.sources.base import Rect

Image = npt.NDArray[np.uint8]
INTERVAL_MS = 1000 / 30
FROZEN = State.FROZEN, "the image is frozen"
CHANGED = "the image changed at once: depth, zoom, layout or probe"


@functools.cache
def _cine(uri: str) -> tuple[tuple[Image, ...], Rect]:
    """Return frames of a moving image, gray, and where in them it lies."""
    source = open_source(uri)
    frames = list(itertools.islice(source.frames(), 29))
    assert source.info.region is not None
    gray = (
        frame.pixels if frame.pixels.ndim == 2 else cv2.cvtColor(frame.pixels, cv2.COLOR_RGB2GRAY) for frame in frames
    )
    return tuple(gray), source.info.region


CINES = ("demo", "phantom:3", "phantom:8")


def _looks(images: Sequence[Image], roi: Rect, *, interval_ms: float = INTERVAL_MS, **thresholds: float) -> list[Look]:
    watch = ImageWatch(ImageThresholds(**thresholds))
    return [
        watch.look(Frame(image, index, round(index * interval_ms * 1e6), 0, 0), roi)
        for index, image in enumerate(images)
    ]


def _stands(looks: Sequence[Look]) -> list[State | None]:
    return [look.stands[0] if look.stands else None for look in looks]


def _noisy(images: Sequence[Image], sigma: float) -> Iterator[Image]:
    """Add what an analog grabber adds."""
    random = np.random.default_rng(5)
    for image in images:
        yield np.clip(image + random.normal(0, sigma, image.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("uri", CINES)
def test_image_that_moves_stands_in_no_state_and_does_not_change(uri: str) -> None:
    images, roi = _cine(uri)
    assert set(_looks(images, roi)) == {Look()}


@pytest.mark.parametrize("sigma", [0, 1, 2, 3])
@pytest.mark.parametrize("uri", CINES)
def test_image_that_freezes_is_frozen_within_half_a_second_and_live_after_two_frames(uri: str, sigma: float) -> None:
    images, roi = _cine(uri)
    stream = list(_noisy([*images[:15], *[images[14]] * 40, *images[15:]], sigma))
    looks = _looks(stream, roi)

    frozen = [index for index, look in enumerate(looks) if look.stands == FROZEN]
    assert 0.3 < (frozen[0] - 14) * INTERVAL_MS / 1e3 <= 0.5
    assert frozen == list(range(frozen[0], frozen[-1] + 1))  # no flicker in between
    assert 54 <= frozen[-1] <= 56
    assert all(look.stands in (None, FROZEN) and look.change is None for look in looks[:55])


@pytest.mark.parametrize("interval_ms", [16.7, 33.3, 40.0, 100.0, 200.0])
def test_image_that_freezes_is_found_in_time_at_any_rate(interval_ms: float) -> None:
    images, roi = _cine("phantom:3")
    looks = _looks([*images[:10], *[images[9]] * 60], roi, interval_ms=interval_ms)
    first = next(index for index, look in enumerate(looks) if look.stands)
    assert (first - 9) * interval_ms <= 350 + interval_ms


@pytest.mark.parametrize("times", [2, 3, 4, 5])
def test_image_of_a_slow_scanner_shown_several_times_is_not_frozen(times: int) -> None:
    images, roi = _cine("demo")  # at 5 times: six new images a second on a 30 Hz screen
    looks = _looks([image for image in images for _ in range(times)], roi)
    assert set(_stands(looks)) == {None}


def test_still_probe_whose_speckle_flickers_a_little_is_not_frozen() -> None:
    images, roi = _cine("phantom:3")
    random = np.random.default_rng(1)
    still = images[5].astype(np.float32)
    stream = []
    for _ in range(60):  # noise as wide as speckle, not white as a grabber's
        flicker = cv2.GaussianBlur(random.normal(0, 1, still.shape).astype(np.float32), (0, 0), 3)
        stream.append(np.clip(still + 6 * flicker / flicker.std(), 0, 255).astype(np.uint8))
    assert set(_stands(_looks(stream, roi))) == {None}


def test_frozen_image_on_which_a_caliper_moves_stays_frozen() -> None:
    images, roi = _cine("demo")
    stream = []
    for index in range(40):
        image = images[5].copy()
        cv2.drawMarker(image, (120 + 2 * index, 100), 255, cv2.MARKER_CROSS, 9, 1)
        stream.append(image)
    assert _stands(_looks(stream, roi))[12:] == [State.FROZEN] * 28


def test_freeze_of_zero_looks_at_nothing() -> None:
    images, roi = _cine("demo")
    assert set(_looks([images[0]] * 40, roi, freeze_ms=0)) == {Look()}


def _bars() -> Image:
    return np.repeat(np.linspace(235, 16, 8).astype(np.uint8), 80)[np.newaxis].repeat(480, axis=0)


def _text(image: Image, text: str) -> Image:
    return cv2.putText(image.copy(), text, (200, 250), cv2.FONT_HERSHEY_SIMPLEX, 1.2, 255, 2)


CARD = "the image is a still card without an ultrasound image"
CARDS = {
    "black": (np.zeros((480, 640), np.uint8), "the image is blank"),
    "blue": (np.full((480, 640), 29, np.uint8), "the image is blank"),
    "bars": (_bars(), CARD),
    "words": (
        _text(np.zeros((480, 640), np.uint8), "NO SIGNAL"),
        "the image is a still card without an ultrasound image",
    ),
}


@pytest.mark.parametrize("sigma", [0, 2])
@pytest.mark.parametrize("name", CARDS)
def test_blank_image_or_card_is_no_signal_within_half_a_second(name: str, sigma: float) -> None:
    card, reason = CARDS[name]
    looks = _looks(list(_noisy([card] * 30, sigma)), (0, 0, 640, 480))
    assert [look.stands for look in looks[15:]] == [(State.NO_SIGNAL, reason)] * 15


def test_card_on_which_a_counter_runs_is_taken_for_alive() -> None:
    looks = _looks([_text(_bars(), f"{index:05}") for index in range(40)], (0, 0, 640, 480))
    assert set(_stands(looks)) == {None}


def _zoomed(image: Image, factor: float) -> Image:
    """Draw the image as the scanner does at another depth: smaller or larger, the probe's face where it was."""
    height, width = image.shape
    matrix = np.array([[1 / factor, 0, width / 2 - width / 2 / factor], [0, 1 / factor, 0]], np.float32)
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_AREA)


@pytest.mark.parametrize("uri", CINES)
@pytest.mark.parametrize("factor", [0.67, 0.8, 1.25, 1.5])
def test_change_of_depth_is_seen_in_its_first_frame_alone(uri: str, factor: float) -> None:
    images, roi = _cine(uri)
    looks = _looks([*images[:14], *(_zoomed(image, factor) for image in images[14:])], roi)
    assert [index for index, look in enumerate(looks) if look.change] == [14]
    assert looks[14].change == CHANGED


def test_change_to_two_images_side_by_side_is_seen() -> None:
    images, roi = _cine("phantom:3")
    dual = [cv2.resize(np.hstack([image, image]), image.shape[::-1], interpolation=cv2.INTER_AREA) for image in images]
    looks = _looks([*images[:14], *dual[14:]], roi)
    assert [index for index, look in enumerate(looks) if look.change] == [14]


@pytest.mark.parametrize("gain", [0.7, 1.3])
def test_change_of_gain_is_no_other_image(gain: float) -> None:
    images, roi = _cine("demo")
    brighter = [cv2.convertScaleAbs(image, alpha=gain) for image in images]
    looks = _looks([*images[:14], *brighter[14:]], roi)
    assert not any(look.change for look in looks)


def test_seam_of_a_looped_recording_is_no_other_image() -> None:
    images, roi = _cine("demo")
    other = _zoomed(images[0], 1.5)
    watch = ImageWatch(ImageThresholds())
    changes = []
    for index, image in enumerate([*images[:14], *[other] * 3]):
        frame = Frame(image, index, round(index * INTERVAL_MS * 1e6), 0, 0, is_seam=index == 14)
        changes.append(watch.look(frame, roi).change)
    assert set(changes) == {None}


def test_looped_source_marks_its_seams() -> None:
    frames = list(itertools.islice(open_source("demo").frames(), 65))
    assert [frame.index for frame in frames if frame.is_seam] == [30, 60]


def test_colour_doppler_that_comes_on_is_a_change_once() -> None:
    images, roi = _cine("demo")
    x, y, _, height = roi
    stream = []
    for index, image in enumerate([*images, *images]):
        rgb = np.repeat(image[..., np.newaxis], 3, axis=2)
        if index >= 28:
            rgb[y + height // 2 : y + height // 2 + 40, x + 80 : x + 140] = (200, 40, 20)
        stream.append(rgb)
    looks = _looks(stream, roi)
    changes = [(index, look.change) for index, look in enumerate(looks) if look.change]
    assert [change for _, change in changes if change != CHANGED] == ["colour Doppler came on"]
    assert 28 <= changes[-1][0] <= 28 + 0.45 * 30


def test_tinted_image_is_no_colour_doppler() -> None:
    images, roi = _cine("demo")
    sepia = [np.stack([image, image // 4 * 3, image // 2], axis=2) for image in images]
    assert not any(look.change for look in _looks(sepia, roi))


def test_other_roi_starts_anew() -> None:
    images, (x, y, width, height) = _cine("demo")
    watch = ImageWatch(ImageThresholds())
    frames = [Frame(images[0], index, round(index * INTERVAL_MS * 1e6), 0, 0) for index in range(40)]
    looks = [watch.look(frame, (x, y, width, height)) for frame in frames[:20]]
    assert looks[-1].stands == FROZEN
    assert watch.look(frames[20], (x, y, width - 8, height)) == Look()


def test_thresholds_are_what_the_watch_goes_by() -> None:
    images, roi = _cine("demo")
    patient = _looks([images[0]] * 60, roi, freeze_ms=1000)
    assert _stands(patient).index(State.FROZEN) * INTERVAL_MS == pytest.approx(1000, abs=INTERVAL_MS)
    assert _stands(_looks(images, roi, still_level=255.0))[-1] is State.FROZEN
    assert dataclasses.astuple(ImageThresholds()) == (350.0, 4.0, 0.03, 0.03)
