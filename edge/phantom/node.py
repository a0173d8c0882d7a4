"""The phantom's lymph node: an ellipsoid with a dark cortex, a thin bright capsule and, when benign, a bright hilum."""

import dataclasses

import numpy as np
import numpy.typing as npt

from edge.phantom.probe import Floats, Probe

CLASSES = ("benign", "suspicious")
_BENIGN = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Hilum:
    """The fatty centre, in units of the node's semi-axes: it does not reach all of the node in elevation."""

    centre: tuple[float, float, float]
    axes: tuple[float, float, float]
    level_db: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Hilum":
        side = rng.choice((-1, 1))
        centre = (rng.normal(0, 0.12), rng.normal(0, 0.08), side * rng.uniform(0.28, 0.45))
        axes = (rng.uniform(0.45, 0.62), rng.uniform(0.38, 0.5), rng.uniform(0.4, 0.5))
        return cls(centre, axes, rng.uniform(4, 8))

    def radius(self, px: Floats, pz: Floats, py: float) -> Floats:
        """Return the radius, 1 on the surface, of positions in semi-axes of the node."""
        (cx, cz, cy), (ax, az, ay) = self.centre, self.axes
        return np.asarray(np.sqrt(((px - cx) / ax) ** 2 + ((pz - cz) / az) ** 2 + ((py - cy) / ay) ** 2), np.float32)


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """A lymph node."""

    label: int
    centre_mm: tuple[float, float, float]
    """x, z, y."""
    semi_axes_mm: tuple[float, float, float]
    """Long and short in the plane, and in elevation."""
    angle_rad: float
    size_mm: float
    """Radius of the circle of the same in-plane area."""
    lobes: tuple[tuple[float, float], ...]
    """Amplitude and phase of the outline's 2nd, 3rd and 4th harmonic."""
    cortex_db: float
    capsule_db: float
    hilum: Hilum | None

    @classmethod
    def draw(cls, rng: np.random.Generator, class_rng: np.random.Generator, probe: Probe, label: int) -> "Node":
        """Draw a node: size, place, outline and capsule from `rng`, what tells the classes apart from `class_rng`.

        The aspect ratios and the cortex of the two classes overlap widely, so that one slice seldom decides.
        """
        size_mm = rng.uniform(4.8, 8.0)
        depth_mm = np.clip(rng.uniform(0.25, 0.75) * probe.depth_mm, size_mm + 2.5, probe.depth_mm - size_mm)
        half_width_mm = probe.half_aperture * (1 if probe.kind == "linear" else probe.radius_mm + depth_mm)
        x_mm = rng.uniform(-0.95, 0.95) * max(half_width_mm - 1.1 * size_mm, 0)
        elevation_mm = size_mm * rng.uniform(0.75, 0.95)
        angle_rad = rng.normal(0, 0.35)
        lobes = tuple((abs(rng.normal(0, 0.025)), rng.uniform(0, 2 * np.pi)) for _ in range(3))
        capsule_db = rng.uniform(5, 9)
        aspect = float(np.clip(class_rng.normal((1.5, 1.36)[label], 0.2), 1.05, 2.1))
        cortex_db = float(class_rng.normal((-13.2, -13.9)[label], 1.3))
        hilum = Hilum.draw(class_rng) if label == _BENIGN else None
        semi_axes_mm = (size_mm * aspect**0.5, size_mm / aspect**0.5, elevation_mm)
        return cls(
            label, (x_mm, float(depth_mm), 0.0), semi_axes_mm, angle_rad, size_mm, lobes, cortex_db, capsule_db, hilum
        )

    def local(self, x_mm: Floats, z_mm: Floats, y_mm: float) -> tuple[Floats, Floats, float]:
        """Return positions along the node's axes in units of its semi-axes."""
        cos, sin = np.float32(np.cos(self.angle_rad)), np.float32(np.sin(self.angle_rad))
        dx, dz = x_mm - np.float32(self.centre_mm[0]), z_mm - np.float32(self.centre_mm[1])
        along, across = cos * dx + sin * dz, cos * dz - sin * dx
        a, b, c = self.semi_axes_mm
        px, pz = np.asarray(along / a, np.float32), np.asarray(across / b, np.float32)
        return px, pz, (y_mm - self.centre_mm[2]) / c

    def radius(self, px: Floats, pz: Floats, py: float) -> Floats:
        """Return the radius, 1 on the lobed surface, of positions in semi-axes."""
        rho = np.sqrt(px * px + pz * pz + np.float32(py * py))
        turn = np.arctan2(pz, px)
        outline = np.ones_like(rho)
        for harmonic, (amplitude, phase) in enumerate(self.lobes, start=2):
            outline += np.float32(amplitude) * np.cos(np.float32(harmonic) * turn + np.float32(phase))
        return np.asarray(rho / outline, np.float32)

    def contains(self, x_mm: Floats, z_mm: Floats, y_mm: float) -> npt.NDArray[np.bool_]:
        return self.radius(*self.local(x_mm, z_mm, y_mm)) < 1

    def add_to(
        self,
        x_mm: Floats,
        z_mm: Floats,
        y_mm: float,
        direction: tuple[Floats | float, Floats | float],
        strength_db: Floats,
        sheen: Floats,
        loss_db_mm: Floats,
        edge_loss_db_mm: float,
    ) -> None:
        """Put the node into one plane's strength, sheen and loss, all (samples, beams), in place.

        Args:
            x_mm: Lateral positions of the grid.
            z_mm: Depths of the grid.
            y_mm: The plane's elevation.
            direction: The beams' direction (x, z), unit length.
            strength_db: Scattering strength, changed.
            sheen: Part of the echo that is smooth, changed.
            loss_db_mm: Loss per mm of path, changed: refraction takes sound away where beams graze the node's sides.
            edge_loss_db_mm: Strength of that edge shadow.
        """
        px, pz, py = self.local(x_mm, z_mm, y_mm)
        if abs(py) > 1.3:
            return
        distance_mm = (self.radius(px, pz, py) - 1) * np.float32(self.size_mm)
        inside = np.clip(0.5 - distance_mm / np.float32(0.4), 0, 1)
        strength_db += inside * (np.float32(self.cortex_db) - np.float32(0.9) * strength_db)
        sheen *= 1 - inside
        loss_db_mm -= inside * np.float32(0.12)
        if self.hilum is not None:
            within = np.clip((1 - self.hilum.radius(px, pz, py)) * np.float32(4), 0, 1)
            strength_db += within * np.float32(self.hilum.level_db - self.cortex_db)
        facing = self._facing(px, pz, direction)
        capsule = np.exp(-((distance_mm / np.float32(0.22)) ** 2)) * (np.float32(0.35) + np.float32(0.65) * facing)
        strength_db += np.float32(self.capsule_db) * capsule
        np.maximum(sheen, np.float32(0.5) * capsule, out=sheen)
        grazing = np.exp(-((distance_mm / np.float32(0.6)) ** 2)) * (1 - facing) ** 2
        loss_db_mm += np.float32(edge_loss_db_mm) * grazing

    def _facing(self, px: Floats, pz: Floats, direction: tuple[Floats | float, Floats | float]) -> Floats:
        """Return the squared cosine between the beam and the surface's normal: 1 where it faces the probe."""
        a, b, _ = self.semi_axes_mm
        cos, sin = np.float32(np.cos(self.angle_rad)), np.float32(np.sin(self.angle_rad))
        along, across = px / np.float32(a), pz / np.float32(b)
        normal_x, normal_z = cos * along - sin * across, sin * along + cos * across
        beam_part = normal_x * direction[0] + normal_z * direction[1]
        return np.asarray(beam_part**2 / (normal_x**2 + normal_z**2 + np.float32(1e-9)), np.float32)
