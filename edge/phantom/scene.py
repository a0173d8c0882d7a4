"""The phantom's tissue: layers, bright lines, vessel, lobules, shadows and the lymph node, as functions of position.

Levels are scattering strengths in dB relative to fat; positions in mm: x across, z down, y in elevation (out of the
image plane), and in beam coordinates depth r and arc s along the skin. All but the node's shape, cortex and hilum is
drawn before the class is known.
"""

import dataclasses

import cv2
import numpy as np

from edge.phantom.node import Node
from edge.phantom.probe import NUM_BEAMS, NUM_SAMPLES, Floats, Probe

_TEXTURE_GRIDS = (((10, 14, 10), 2.5, 1.0), ((20, 48, 24), 1.2, 0.8))
"""Coarse and fine echogenicity: grid (elevation, depth, lateral), elevation step in mm, relative strength."""


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """A thin bright sheet of fibrous tissue: fascia, septum or muscle fibre."""

    depth_mm: float
    slope: float
    slope_elevation: float
    wave_mm: float
    wavelength_mm: float
    phase: float
    centre_s_mm: float
    half_length_mm: float
    thickness_mm: float
    peak_db: float

    def depth_at(self, s_mm: Floats, y_mm: float) -> Floats:
        wave = self.wave_mm * np.sin(2 * np.pi * s_mm / self.wavelength_mm + self.phase + 0.15 * y_mm)
        depth: Floats = self.depth_mm + self.slope * s_mm + self.slope_elevation * y_mm + wave
        return depth.astype(np.float32)

    def ridge_db(self, r_mm: Floats, s_mm: Floats, y_mm: float) -> Floats:
        """Return the sheet's strength (samples, beams) in dB above what surrounds it."""
        offset = (r_mm - self.depth_at(s_mm, y_mm)) / np.float32(self.thickness_mm)
        gate = np.clip(3 * (1 - np.abs(s_mm - self.centre_s_mm) / self.half_length_mm), 0, self.peak_db / 3 + 1)
        gate = np.minimum(gate, 1) * self.peak_db
        return np.asarray(np.exp(np.float32(-0.5) * offset * offset) * gate, np.float32)


@dataclasses.dataclass(frozen=True, slots=True)
class Blob:
    """An ellipsoid of another echogenicity: a lobule of fat, or with a long elevation axis a vessel."""

    centre_mm: tuple[float, float, float]
    axes_mm: tuple[float, float, float]
    drift: tuple[float, float]
    """Lateral and axial displacement per mm of elevation."""
    level_db: float
    wall_db: float
    softness_mm: float

    def distance_mm(self, x_mm: Floats, z_mm: Floats, y_mm: float) -> Floats:
        """Return about the distance to the surface, negative inside."""
        away = y_mm - self.centre_mm[2]
        px = (x_mm - self.centre_mm[0] - self.drift[0] * away) / self.axes_mm[0]
        pz = (z_mm - self.centre_mm[1] - self.drift[1] * away) / self.axes_mm[1]
        rho = np.sqrt(px * px + pz * pz + (away / self.axes_mm[2]) ** 2)
        return np.asarray((rho - 1) * min(self.axes_mm[:2]), np.float32)


@dataclasses.dataclass(frozen=True, slots=True)
class Tissue:
    """One elevation plane of the scene on the beam grid."""

    strength_db: Floats
    """(samples, beams): scattering strength."""
    sheen: Floats
    """(samples, beams), 0..1: part of the echo that is a smooth reflection and not speckle."""
    loss_db: Floats
    """(samples, beams): what shadows and enhancement took away on the way, two-way."""


class Scene:
    """A drawn scene: everything but the node is independent of the class."""

    def __init__(self, rng: np.random.Generator, probe: Probe, node: Node) -> None:
        self.node = node
        self._probe = probe
        self._r_mm, self._u = probe.beams()
        self._x_mm, self._z_mm = probe.to_cartesian(self._r_mm, self._u)
        arc_mm = 1.0 if probe.kind == "linear" else probe.radius_mm + 0.4 * probe.depth_mm
        self._s_mm = np.asarray(self._u * arc_mm, np.float32)
        self._direction = (0.0, 1.0) if probe.kind == "linear" else (np.sin(self._u), np.cos(self._u))
        self._half_width_mm = float(self._s_mm.max())
        self._textures = [rng.standard_normal(shape).astype(np.float32) for shape, _, _ in _TEXTURE_GRIDS]
        self._texture_db = rng.uniform(1.8, 3.2)
        self._draw_layers(rng)
        self._draw_blobs(rng)
        self._calcification = self._draw_calcification(rng)
        self._edge_loss_db_mm = rng.uniform(0.3, 1.0)

    def _draw_layers(self, rng: np.random.Generator) -> None:
        depth_mm = self._probe.depth_mm
        depths_mm = (
            rng.uniform(1.2, 2.2),
            rng.uniform(0.2, 0.5) * depth_mm,
            rng.uniform(0.6, 0.9) * depth_mm,
        )
        self._boundaries = [self._draw_fascia(rng, d, i) for i, d in enumerate(depths_mm)]
        self._levels_db = (rng.uniform(4, 8), rng.uniform(-2, 1), rng.uniform(-6, -1), rng.uniform(-4, 1))
        self._lines = [*self._boundaries[1:]]
        fibre_slope = rng.normal(0, 0.08)
        for _ in range(rng.integers(6, 13)):
            line_depth_mm = rng.uniform(0.08, 1.0) * depth_mm
            is_muscle = depths_mm[1] < line_depth_mm < depths_mm[2]
            slope = fibre_slope + rng.normal(0, 0.02) if is_muscle else rng.normal(0, 0.15)
            self._lines.append(self._draw_line(rng, line_depth_mm, slope))

    def _draw_fascia(self, rng: np.random.Generator, depth_mm: float, index: int) -> Line:
        slope = 0.0 if index == 0 else rng.normal(0, 0.05)
        return Line(
            depth_mm, slope, rng.normal(0, 0.03), 0.1 if index == 0 else rng.uniform(0.2, 0.8),
            rng.uniform(15, 40), rng.uniform(0, 6.28), 0.0, 1000.0, rng.uniform(0.15, 0.35), rng.uniform(6, 13),
        )  # fmt: skip

    def _draw_line(self, rng: np.random.Generator, depth_mm: float, slope: float) -> Line:
        return Line(
            depth_mm, slope, rng.normal(0, 0.06), rng.uniform(0, 0.5), rng.uniform(8, 25), rng.uniform(0, 6.28),
            rng.uniform(-1, 1) * self._half_width_mm, rng.uniform(4, 16), rng.uniform(0.12, 0.28), rng.uniform(4, 9),
        )  # fmt: skip

    def _draw_blobs(self, rng: np.random.Generator) -> None:
        self._blobs: list[Blob] = []
        if rng.random() < 0.5:
            self._place(rng, rng.uniform(1.0, 2.4), 60.0, -32.0, 9.0, 0.15)
        for level_db in (rng.uniform(3, 6), rng.uniform(-8, -5)):
            if rng.random() < 0.6:
                self._place(rng, rng.uniform(2.0, 4.0), rng.uniform(3, 7), level_db, 0.0, 0.8)

    def _place(
        self,
        rng: np.random.Generator,
        radius_mm: float,
        length_mm: float,
        level_db: float,
        wall_db: float,
        softness_mm: float,
    ) -> None:
        """Add a blob where it does not touch the node; give up after a few draws."""
        aspect = rng.uniform(1.0, 1.2) if wall_db else rng.uniform(1.0, 1.8)
        drift = (rng.normal(0, 0.2), rng.normal(0, 0.08)) if wall_db else (0.0, 0.0)
        for _ in range(8):
            x_mm = rng.uniform(-0.95, 0.95) * self._half_width_mm
            z_mm = rng.uniform(0.15, 0.95) * self._probe.depth_mm
            gap_mm = np.hypot(x_mm - self.node.centre_mm[0], z_mm - self.node.centre_mm[1])
            if gap_mm > 1.5 * self.node.size_mm + aspect * radius_mm + 1.5:
                centre = (x_mm, z_mm, self.node.centre_mm[2] + rng.normal(0, 1.5))
                axes = (radius_mm * aspect, radius_mm / aspect, length_mm)
                self._blobs.append(Blob(centre, axes, drift, level_db, wall_db, softness_mm))
                return

    def _draw_calcification(self, rng: np.random.Generator) -> Blob | None:
        """Sometimes put a calcified spot with its shadow beside the node, never above it."""
        wanted, side = rng.random() < 0.2, -np.sign(self.node.centre_mm[0] or 1.0)
        x_mm, z_mm = side * rng.uniform(0.45, 0.9) * self._half_width_mm, rng.uniform(0.3, 0.6) * self._probe.depth_mm
        size_mm, length_mm = rng.uniform(0.8, 2.0), rng.uniform(2.5, 6)
        if not wanted or abs(x_mm - self.node.centre_mm[0]) < 1.6 * self.node.size_mm + size_mm:
            return None
        return Blob((x_mm, z_mm, self.node.centre_mm[2]), (size_mm, 0.6, length_mm), (0.0, 0.0), 16.0, 0.0, 0.3)

    def tissue(self, y_mm: float) -> Tissue:
        """Return the plane at elevation `y_mm`."""
        strength_db, sheen = self._background(y_mm)
        loss_db_mm = np.zeros_like(strength_db)
        for blob in self._blobs:
            self._add_blob(blob, y_mm, strength_db, loss_db_mm)
        self.node.add_to(
            self._x_mm, self._z_mm, y_mm, self._direction, strength_db, sheen, loss_db_mm, self._edge_loss_db_mm
        )
        if self._calcification is not None:
            self._add_blob(self._calcification, y_mm, strength_db, loss_db_mm)
        loss_db = np.cumsum(loss_db_mm, axis=0, dtype=np.float32) * np.float32(self._probe.sample_mm)
        return Tissue(strength_db, sheen, loss_db)

    def _background(self, y_mm: float) -> tuple[Floats, Floats]:
        texture = self._texture_at(y_mm)
        strength_db = self._texture_db * texture
        levels_db = np.full_like(strength_db, self._levels_db[0])
        for boundary, above_db, below_db in zip(self._boundaries, self._levels_db, self._levels_db[1:], strict=False):
            step = np.clip((self._r_mm - boundary.depth_at(self._s_mm, y_mm)) / np.float32(0.6) + 0.5, 0, 1)
            levels_db += step * np.float32(below_db - above_db)
        ridges_db = np.zeros_like(strength_db)
        for line in self._lines:
            np.maximum(ridges_db, line.ridge_db(self._r_mm, self._s_mm, y_mm), out=ridges_db)
        ridges_db *= np.clip(np.float32(0.9) + np.float32(0.35) * texture, 0, 1.4)
        return strength_db + levels_db + ridges_db, np.clip(ridges_db / np.float32(25), 0, 0.5)

    def _texture_at(self, y_mm: float) -> Floats:
        """Return the variation of echogenicity (samples, beams), about unit variance."""
        texture = np.zeros((NUM_SAMPLES, NUM_BEAMS), np.float32)
        for grid, (shape, step_mm, strength) in zip(self._textures, _TEXTURE_GRIDS, strict=True):
            position = np.clip(y_mm / step_mm + shape[0] / 2, 0, shape[0] - 1.001)
            index, part = int(position), np.float32(position % 1)
            slab = ((1 - part) * grid[index] + part * grid[index + 1]) * np.float32(strength)
            texture += cv2.resize(slab, (NUM_BEAMS, NUM_SAMPLES), interpolation=cv2.INTER_CUBIC)
        return texture

    def _add_blob(self, blob: Blob, y_mm: float, strength_db: Floats, loss_db_mm: Floats) -> None:
        distance_mm = blob.distance_mm(self._x_mm, self._z_mm, y_mm)
        inside = np.clip(0.5 - distance_mm / np.float32(blob.softness_mm), 0, 1)
        strength_db += inside * np.float32(blob.level_db - (strength_db if blob.wall_db else 0))
        if blob.wall_db:
            strength_db += np.float32(blob.wall_db) * np.exp(-((distance_mm / np.float32(0.25)) ** 2))
            loss_db_mm -= inside * np.float32(0.6)
        if blob is self._calcification:
            loss_db_mm += inside * np.float32(12)
