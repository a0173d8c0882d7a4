"""Speckle physics of the phantom: scatterers, point spread function, slice thickness, envelope and log compression.

The received echo is the sum over scatterers of their strength times the pulse-echo point spread function, taken at
baseband (complex) after demodulation. A cell of the grid is longer than half a wavelength along the beam, so the
round-trip phase 2 k z of what scatters in it is uniform, and with many scatterers the cell's sum is a complex Gaussian
variable whose variance is the local scattering strength (fully developed speckle: its envelope is Rayleigh
distributed).

Source: Meunier and Bertrand, Ultrasonic texture motion analysis: theory and simulation, IEEE Trans. Med. Imaging 14
(1995) 293-300; Jensen, Field: a program for simulating ultrasound systems, Med. Biol. Eng. Comput. 34 (1996) 351-353;
Szabo, Diagnostic Ultrasound Imaging: Inside Out, 2nd ed. (2014), chapters 8 to 10; Wagner et al., Statistics of speckle
in ultrasound B-scans, IEEE Trans. Sonics Ultrason. 30 (1983) 156-163.
"""

import cv2
import numpy as np
import numpy.typing as npt

from edge.phantom.probe import NUM_BEAMS, NUM_SAMPLES, Floats, Probe

_FAR_WIDTH = 2.2
"""Width of the lateral profile far from a linear array's focus, over that at the focus."""


def gaussian_kernel(sigma: float) -> Floats:
    """Return a Gaussian (n,) float32 of unit energy, so that filtering white noise keeps its variance."""
    radius = max(1, round(3.5 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return np.asarray(kernel / np.sqrt(np.sum(kernel**2)), np.float32)


class PointSpread:
    """The in-plane pulse-echo response: a modulated Gaussian pulse along the beam times a Gaussian beam profile.

    At baseband the carrier is gone and the response is real. A convex array's profile is constant in angle, so that
    speckle widens with depth. A linear array's is narrow at the focus and wide away from it, as the sum of a narrow
    and a wide Gaussian with weights that change with depth.
    """

    def __init__(self, probe: Probe, focus: float) -> None:
        """Prepare the kernels; `focus` is the focal depth as a part of the whole depth."""
        self._axial = gaussian_kernel(probe.axial_sigma_mm / probe.sample_mm)
        self._near = gaussian_kernel(probe.lateral_sigma / probe.beam_step)
        self._far = gaussian_kernel(_FAR_WIDTH * probe.lateral_sigma / probe.beam_step)
        self._is_focused = probe.kind == "linear"
        away = np.clip(np.abs(np.linspace(0, 1, NUM_SAMPLES) - focus) / 0.6, 0, 1)[:, None]
        missing = (len(self._far) - len(self._near)) // 2
        overlap = float(np.dot(np.pad(self._near, missing), self._far))
        energy = np.sqrt((1 - away) ** 2 + away**2 + 2 * away * (1 - away) * overlap)
        self._near_weight = ((1 - away) / energy).astype(np.float32)
        self._far_weight = (away / energy).astype(np.float32)

    def apply(self, scatterers: Floats) -> Floats:
        """Return the baseband echoes (samples, beams) float32 of one part, real or imaginary, of the scatterers."""
        near = cv2.sepFilter2D(scatterers, cv2.CV_32F, self._near, self._axial, borderType=cv2.BORDER_REFLECT)
        if not self._is_focused:
            return near  # type: ignore[return-value]
        far = cv2.sepFilter2D(scatterers, cv2.CV_32F, self._far, self._axial, borderType=cv2.BORDER_REFLECT)
        return near * self._near_weight + far * self._far_weight


def draw_scatterers(rng: np.random.Generator) -> Floats:
    """Return white complex Gaussian scatterers of unit variance a part: (2, NUM_SAMPLES, NUM_BEAMS) float32."""
    return rng.standard_normal((2, NUM_SAMPLES, NUM_BEAMS), dtype=np.float32)


def elevation_weights(plane_offsets_mm: npt.NDArray[np.float64], sigma_mm: float) -> Floats:
    """Return the planes' weights (n,) float32, unit energy: the slice's Gaussian profile in elevation."""
    weights = np.exp(-0.5 * (plane_offsets_mm / sigma_mm) ** 2)
    return np.asarray(weights / np.sqrt(np.sum(weights**2)), np.float32)


def envelope_db(echoes: Floats) -> Floats:
    """Return the envelope (samples, beams) float32 in dB of baseband echoes (2, samples, beams).

    Source: envelope detection is the modulus of the analytic signal, 20 log10 the logarithmic compression
    (Szabo, section 10.5).
    """
    power = echoes[0] * echoes[0]
    power += echoes[1] * echoes[1]
    power += np.float32(1e-9)
    decibel = np.asarray(cv2.log(power), np.float32)
    decibel *= np.float32(10 / np.log(10))
    return decibel
