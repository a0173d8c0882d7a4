"""Synthetic ultrasound: B-mode sweeps over a lymph node, with speckle, shadows and probe motion. No patient is in it.

Benign nodes (label 0) have an echogenic hilum that only a part of the sweep shows; suspicious ones (label 1) have a
thick cortex throughout and none. A single frame often cannot tell them apart.

A scene is sampled as elevation planes of scatterers in beam coordinates (`edge.phantom.scene`), each filtered with the
point spread function once (`edge.phantom.speckle`) and kept. A frame is the weighted sum of the planes around the
probe's elevation, so speckle decorrelates as the probe moves; then envelope, log compression and scan conversion.
"""

import functools
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from edge.errors import ConfigError
from edge.frame import UInt8Image
from edge.phantom.node import Node
from edge.phantom.probe import NUM_SAMPLES, Floats, Probe, ScanConverter
from edge.phantom.scene import Scene
from edge.phantom.speckle import PointSpread, draw_scatterers, elevation_weights, envelope_db
from edge.sources.base import Rect

DEFAULT_SIZE_WH = (320, 240)
MIN_SIDE_PX, MAX_SIDE_PX = 96, 2048
_PLANE_STEP_SIGMA = 0.45
_REACH_SIGMA = 2.5
_EVENNESS = 0.94
"""0: a sinusoidal sweep; 1: a triangular one."""
_DISPLAY_SIGMA = 0.7
"""Smoothing of the compressed image, as scanners do, in samples and beams."""
_SCENE, _CLASS, _MOTION, _DISPLAY, _PLANE, _FRAME = range(6)


class Motion:
    """The probe's path: a sweep to and fro in elevation, with drift, tilt, compression and tremor in the plane.

    A smooth function of time alone, so that frames can be asked for in any order.
    """

    def __init__(self, rng: np.random.Generator, reach_mm: float) -> None:
        self.period_s = rng.uniform(0.8, 1.07)
        self._amplitude_mm = reach_mm * rng.uniform(0.8, 1.0)
        self._centre_mm = reach_mm * rng.uniform(-0.08, 0.08)
        self._phase = rng.uniform(0, 2 * np.pi)
        # lateral mm, tilt mm per mm, strain: slow drift and small tremor
        self._amplitudes = np.outer((0.8, 0.012, 0.008), (1.0, 0.35, 0.12)) * rng.uniform(0.4, 1.0, (3, 3))
        self._rates_hz = rng.uniform((0.1, 0.4, 3.0), (0.3, 1.0, 6.0), (3, 3))
        self._phases = rng.uniform(0, 2 * np.pi, (3, 3))

    def elevation_mm(self, t_s: float) -> float:
        turn = np.sin(2 * np.pi * t_s / self.period_s + self._phase)
        return float(self._centre_mm + self._amplitude_mm * np.arcsin(_EVENNESS * turn) / np.arcsin(_EVENNESS))

    def in_plane(self, t_s: float) -> tuple[float, float, float]:
        """Return lateral shift in mm at the skin, tilt in mm per mm of depth, and axial strain."""
        moves = self._amplitudes * np.sin(2 * np.pi * self._rates_hz * t_s + self._phases)
        lateral_mm, tilt, strain = moves.sum(axis=1)
        return float(lateral_mm), float(tilt), float(strain)


class Phantom:
    """An endless synthetic sweep, determined by its seed."""

    def __init__(
        self,
        seed: int,
        *,
        size_wh: tuple[int, int] = DEFAULT_SIZE_WH,
        label: int | None = None,
        frame_interval_ms: float = 1000 / 30,
    ) -> None:
        """Draw the scene.

        Args:
            seed: From 0. The same seed gives the same pixels, whatever frames are asked for and in what order.
            size_wh: Width and height of the image in pixels.
            label: 0 benign, 1 suspicious; None takes `seed % 2`. With either label the same seed draws the same
                probe, tissue, motion, node place and size.
            frame_interval_ms: Time between two frames.

        Raises:
            ConfigError: The seed is negative or the size is out of range.
        """
        _check(seed, size_wh)
        self.seed = seed
        self.label = seed % 2 if label is None else label
        scene_rng = self._rng(_SCENE)
        self.probe = Probe.draw(scene_rng)
        self.node = Node.draw(scene_rng, self._rng(_CLASS), self.probe, self.label)
        self._scene = Scene(scene_rng, self.probe, self.node)
        self._motion = Motion(self._rng(_MOTION), self.node.semi_axes_mm[2])
        self._converter = ScanConverter(self.probe, size_wh)
        self._interval_s = frame_interval_ms / 1000
        self._plane_step_mm = _PLANE_STEP_SIGMA * self.probe.elevation_sigma_mm
        self._planes: dict[int, Floats] = {}
        self._draw_display(self._rng(_DISPLAY))

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *key])

    def _draw_display(self, rng: np.random.Generator) -> None:
        """Draw the scanner's settings: focus, gain, dynamic range, time gain compensation, noise, contact."""
        self._spread = PointSpread(self.probe, focus=rng.uniform(0.35, 0.7))
        dynamic_range_db = rng.uniform(55, 65)
        self._gray_per_db = np.float32(255 / dynamic_range_db)
        depth = self._converter.depth_mm / self.probe.depth_mm
        gain_db = rng.uniform(0.5, 0.62) * dynamic_range_db - rng.uniform(4, 16) * np.clip(depth - 0.4, 0, 1) / 0.6
        gain_db += rng.uniform(0, 1.5) * np.sin(2 * np.pi * (rng.uniform(0.6, 1.4) * depth + rng.random()))
        gain_db -= self._lost_contact_db(rng)
        self._gain_gray = np.asarray(self._gray_per_db * gain_db, np.float32)
        # electronic noise is amplified with depth by the time gain compensation
        noise_db = rng.uniform(-46, -38) + rng.uniform(16, 24) * np.linspace(0, 1, NUM_SAMPLES)[:, None]
        self._noise_level = (10 ** (noise_db / 20)).astype(np.float32)

    def _lost_contact_db(self, rng: np.random.Generator) -> Floats:
        """Return the loss (h, w) at one edge of the aperture, where the probe sometimes lifts off the skin."""
        wanted, side, width = rng.random() < 0.25, rng.choice((-1, 1)), rng.uniform(0.08, 0.2)
        away = np.clip((1 - side * self._converter.lateral) / width, 0, 1)
        return np.asarray(wanted * rng.uniform(8, 25) * (1 - away), np.float32)

    @property
    def region(self) -> Rect:
        """Where the ultrasound image lies in the frame."""
        return self._converter.region

    @property
    def mm_per_px(self) -> float:
        return self._converter.mm_per_px

    @functools.cached_property
    def covariates(self) -> dict[str, Any]:
        """What was drawn: for the manifest."""
        a, b, c = self.node.semi_axes_mm
        times_s = np.linspace(0, self._motion.period_s, 256, endpoint=False)
        visible = np.mean([self._hilum_at(self._motion.elevation_mm(float(t))) for t in times_s])
        return {
            "geometry": self.probe.kind,
            "depth_mm": round(self.probe.depth_mm, 2),
            "mm_per_px": round(self.mm_per_px, 4),
            "node_long_mm": round(2 * a, 2),
            "node_short_mm": round(2 * b, 2),
            "node_elevation_mm": round(2 * c, 2),
            "cortex_db": round(self.node.cortex_db, 2),
            "sweep_period_s": round(self._motion.period_s, 3),
            "hilum_fraction": round(float(visible), 3),
            "roi": ",".join(map(str, self.region)),
        }

    def _hilum_at(self, y_mm: float) -> bool:
        hilum = self.node.hilum
        if hilum is None:
            return False
        offset = (y_mm - self.node.centre_mm[2]) / self.node.semi_axes_mm[2] - hilum.centre[2]
        return bool(abs(offset) < 0.85 * hilum.axes[2])

    def hilum_visible(self, index: int) -> bool:
        """Return whether the slice of frame `index` cuts well through the hilum."""
        return self._hilum_at(self._motion.elevation_mm(index * self._interval_s))

    def frame(self, index: int) -> UInt8Image:
        """Return the image (H, W) uint8 of frame `index`."""
        smooth_db = np.asarray(cv2.GaussianBlur(envelope_db(self.echoes(index)), (3, 3), _DISPLAY_SIGMA), np.float32)
        gray = self._convert(smooth_db, index)
        gray *= self._gray_per_db
        gray += self._gain_gray
        np.clip(gray, 0, 255, out=gray)
        gray[~self._converter.inside] = 0
        return self._converter.place(gray.astype(np.uint8))

    def mask(self, index: int) -> npt.NDArray[np.bool_]:
        """Return where the node is in frame `index`, (H, W) bool; empty when the slice misses it."""
        x_mm, z_mm = self.probe.to_cartesian(*self.probe.beams())
        contains = self.node.contains(x_mm, z_mm, self._motion.elevation_mm(index * self._interval_s))
        region = (self._convert(contains.astype(np.float32), index) > 0.5) & self._converter.inside
        image = np.zeros(self._converter.place(np.zeros_like(region, np.uint8)).shape, bool)
        x, y, width, height = self.region
        image[y : y + height, x : x + width] = region
        return image

    def echoes(self, index: int) -> Floats:
        """Return the received baseband echoes of frame `index`, real and imaginary: (2, samples, beams) float32."""
        y_mm = self._motion.elevation_mm(index * self._interval_s)
        centre = y_mm / self._plane_step_mm
        reach = _REACH_SIGMA / _PLANE_STEP_SIGMA
        planes = np.arange(np.ceil(centre - reach), np.floor(centre + reach) + 1, dtype=int)
        weights = elevation_weights(planes * self._plane_step_mm - y_mm, self.probe.elevation_sigma_mm)
        echoes = self._noise(index)
        product = np.empty_like(echoes)
        for plane, weight in zip(planes, weights, strict=True):
            echoes += np.multiply(self._plane(int(plane)), weight, out=product)
        return echoes

    def _noise(self, index: int) -> Floats:
        noise = draw_scatterers(self._rng(_FRAME, index))
        for part in noise:
            cv2.GaussianBlur(part, (3, 3), 0.6, dst=part)
        noise *= self._noise_level * np.float32(1.8)  # the blur takes that much of the amplitude away
        return noise

    def _plane(self, plane: int) -> Floats:
        if plane not in self._planes:
            self._planes[plane] = self._make_plane(plane)
        return self._planes[plane]

    def _make_plane(self, plane: int) -> Floats:
        """Return one plane's baseband echoes (2, samples, beams), before the slice's profile is applied."""
        tissue = self._scene.tissue(plane * self._plane_step_mm)
        key = 2 * abs(plane) + (plane < 0)  # a seed holds no sign
        scatterers = draw_scatterers(self._rng(_PLANE, key))
        scatterers *= np.sqrt(1 - tissue.sheen * tissue.sheen)
        scatterers[0] += tissue.sheen
        scatterers *= np.float32(10) ** (tissue.strength_db / np.float32(20))
        transmission = np.float32(10) ** (-tissue.loss_db / np.float32(20))
        return np.stack([self._spread.apply(part) for part in scatterers]) * transmission

    def _convert(self, beams: Floats, index: int) -> Floats:
        lateral_mm, tilt, strain = self._motion.in_plane(index * self._interval_s)
        mm_per_unit = 1.0 if self.probe.kind == "linear" else self.probe.radius_mm
        per_mm = 1 / (mm_per_unit * self.probe.beam_step)
        return self._converter.convert(beams, lateral_mm * per_mm, tilt * self.probe.sample_mm * per_mm, strain)


def _check(seed: int, size_wh: tuple[int, int]) -> None:
    if seed < 0:
        raise ConfigError(f"phantom seed {seed} is negative; give a whole number from 0")
    if not all(MIN_SIDE_PX <= side <= MAX_SIDE_PX for side in size_wh):
        got = f"{size_wh[0]}x{size_wh[1]}"
        raise ConfigError(f"phantom size {got} is out of range; give {MIN_SIDE_PX} to {MAX_SIDE_PX} pixels a side")
