"""The phantom's probe: its beams, its sound pulse and the scan conversion of beams into an image."""

import dataclasses
import functools
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from edge.sources.base import Rect

Floats = npt.NDArray[np.float32]

NUM_SAMPLES = 384
"""Samples along a beam."""
NUM_BEAMS = 192
"""Beams across the aperture, with `PADDING` on both sides for in-plane motion."""
PADDING = 0.12
"""Part of the half aperture that is simulated beyond each edge."""
SPEED_OF_SOUND_MM_US = 1.54
_TEXT = "SYNTHETIC"


@dataclasses.dataclass(frozen=True, slots=True)
class Probe:
    """A linear or convex array. Beam coordinates are depth r in mm and lateral u in mm (linear) or rad (convex)."""

    kind: Literal["linear", "convex"]
    depth_mm: float
    half_aperture: float
    """Largest u of the image: mm for a linear array, rad for a convex one."""
    radius_mm: float
    """Radius of the array's curvature; 0 for a linear array."""
    frequency_mhz: float
    bandwidth: float
    """Pulse bandwidth at -6 dB over the centre frequency."""
    lateral_sigma: float
    """Two-way beam profile's standard deviation at the focus, in u."""
    elevation_sigma_mm: float
    """Two-way slice thickness (standard deviation)."""

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Probe":
        """Draw a small-parts probe and its settings."""
        if rng.random() < 0.6:
            return cls("linear", rng.uniform(30, 45), rng.uniform(18, 23), 0.0, rng.uniform(5.5, 7.5), 0.3, 0.27, 0.9)
        return cls(
            "convex",
            rng.uniform(38, 50),
            rng.uniform(0.48, 0.60),
            rng.uniform(14, 20),
            rng.uniform(4.5, 6),
            0.3,
            0.0085,
            0.9,
        )

    @property
    def sample_mm(self) -> float:
        return self.depth_mm / (NUM_SAMPLES - 1)

    @property
    def beam_step(self) -> float:
        """Distance between two beams, in u."""
        return 2 * (1 + PADDING) * self.half_aperture / (NUM_BEAMS - 1)

    @property
    def axial_sigma_mm(self) -> float:
        """Standard deviation of the pulse's envelope in depth.

        Source: a Gaussian spectrum of -6 dB width B has the standard deviation B / (2 sqrt(2 ln 2)) in frequency,
        hence 1 / (2 pi sigma_f) in time, and c t / 2 in depth (Szabo, Diagnostic Ultrasound Imaging, ch. 2 and 10).
        """
        sigma_mhz = self.bandwidth * self.frequency_mhz / (2 * np.sqrt(2 * np.log(2)))
        return float(SPEED_OF_SOUND_MM_US / 2 / (2 * np.pi * sigma_mhz))

    def beams(self) -> tuple[Floats, Floats]:
        """Return depth r (NUM_SAMPLES, 1) in mm and lateral u (1, NUM_BEAMS)."""
        edge = (1 + PADDING) * self.half_aperture
        depth_mm = np.linspace(0, self.depth_mm, NUM_SAMPLES, dtype=np.float32)[:, None]
        return depth_mm, np.linspace(-edge, edge, NUM_BEAMS, dtype=np.float32)[None, :]

    def to_cartesian(self, r_mm: Floats, u: Floats) -> tuple[Floats, Floats]:
        """Return lateral x and depth z in mm; z is 0 where the array's centre touches the skin."""
        if self.kind == "linear":
            x_mm, z_mm = np.broadcast_arrays(u, r_mm)
            return x_mm, z_mm
        return (self.radius_mm + r_mm) * np.sin(u), (self.radius_mm + r_mm) * np.cos(u) - self.radius_mm

    def to_beams(self, x_mm: Floats, z_mm: Floats) -> tuple[Floats, Floats]:
        """Return r in mm and u: the inverse of `to_cartesian`."""
        if self.kind == "linear":
            return z_mm, x_mm
        return np.hypot(x_mm, z_mm + self.radius_mm) - self.radius_mm, np.arctan2(x_mm, z_mm + self.radius_mm)

    def extent_mm(self) -> tuple[float, float, float]:
        """Return the image's half width, top z and bottom z in mm."""
        if self.kind == "linear":
            return self.half_aperture, 0.0, self.depth_mm
        half_width_mm = (self.radius_mm + self.depth_mm) * np.sin(self.half_aperture)
        top_mm = self.radius_mm * (np.cos(self.half_aperture) - 1)
        return float(half_width_mm), float(top_mm), self.depth_mm


class ScanConverter:
    """Maps beams to the image: the sector or rectangle inside a border that names the image synthetic."""

    def __init__(self, probe: Probe, size_wh: tuple[int, int]) -> None:
        self._probe = probe
        self._size_wh = size_wh
        self.region, self.mm_per_px = self._fit()
        r_mm, u = self._pixel_beams()
        self._beam_map = ((u - probe.beams()[1][0, 0]) / probe.beam_step).astype(np.float32)
        self._sample_map = (r_mm / probe.sample_mm).astype(np.float32)
        self.inside = (np.abs(u) <= probe.half_aperture) & (r_mm >= 0) & (r_mm <= probe.depth_mm)
        """(h, w) bool of the region: where there is ultrasound."""
        self.depth_mm = r_mm
        """(h, w) float32 of the region: distance from the probe."""
        self.lateral = (u / probe.half_aperture).astype(np.float32)
        """(h, w) float32 of the region: -1 at the left edge of the aperture, 1 at the right one."""

    def _fit(self) -> tuple[Rect, float]:
        width, height = self._size_wh
        top, margin = round(0.08 * height), round(0.03 * height)
        half_width_mm, top_mm, bottom_mm = self._probe.extent_mm()
        mm_per_px = max((bottom_mm - top_mm) / (height - top - margin), 2 * half_width_mm / (width - 2 * margin))
        region_w, region_h = int(2 * half_width_mm / mm_per_px), int((bottom_mm - top_mm) / mm_per_px)
        return ((width - region_w) // 2, top, region_w, region_h), mm_per_px

    def _pixel_beams(self) -> tuple[Floats, Floats]:
        half_width_mm, top_mm, _ = self._probe.extent_mm()
        _, _, width, height = self.region
        x_mm = ((np.arange(width, dtype=np.float32) + 0.5) * self.mm_per_px - half_width_mm)[None, :]
        z_mm = ((np.arange(height, dtype=np.float32) + 0.5) * self.mm_per_px + top_mm)[:, None]
        r_mm, u = self._probe.to_beams(x_mm, z_mm)
        r_mm, u = np.broadcast_arrays(r_mm, u)
        return r_mm, u

    def convert(self, beams: Floats, shift: float, shear: float, strain: float) -> Floats:
        """Return the region's image (h, w) float32 of a beam image, seen by a moved probe.

        Args:
            beams: (NUM_SAMPLES, NUM_BEAMS) float32 in tissue coordinates.
            shift: Lateral motion in beams.
            shear: Lateral motion in beams per sample of depth (tilt).
            strain: Axial compression: part of the depth.
        """
        map_x = self._beam_map + np.float32(shift) + np.float32(shear) * self._sample_map
        map_y = self._sample_map * np.float32(1 + strain)
        return cv2.remap(beams, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)  # type: ignore[return-value]

    def place(self, region_image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Return the whole image (H, W) uint8 around the region's."""
        image = self._border.copy()
        x, y, width, height = self.region
        image[y : y + height, x : x + width] = region_image
        return image

    @functools.cached_property
    def _border(self) -> npt.NDArray[np.uint8]:
        width, height = self._size_wh
        image = np.zeros((height, width), np.uint8)
        scale, baseline = height / 600, round(0.06 * height)
        cv2.putText(image, _TEXT, (2, baseline), cv2.FONT_HERSHEY_SIMPLEX, scale, 150, 1, cv2.LINE_AA)
        return image
