"""How the simulated sky was observed: PSF and depth per band and cell, and the statistics of the noise."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from ripple.imaging.simulation.profiles import Complex
from ripple.sky.geometry import Box

Float = NDArray[np.floating[Any]]

# arcsec per pixel; pixels per cell and per PSF kernel; all as in DP2-like coadds.
PIXEL_SCALE = 0.2
CELL = 150
KERNEL = 41
MOFFAT_BETA = 3.5
#: AB magnitude of 1 nJy.
ZERO_POINT = 31.4


@dataclass(frozen=True, slots=True)
class BandFacts:
    """What a band looks like in DP2-like coadds.

    Parameters
    ----------
    depth
        AB magnitude of a point source with S/N 5.
    fwhm
        Median PSF width, arcsec: the FWHM of the PSF image, as everywhere.
    visit_depth, visit_zero_point
        Single 30 s visit: 5 sigma depth, and magnitude of one electron per second (SMTN-002). With the
        coadd's depth they give the number of visits and so the Poisson noise of sources.
    saturation
        Magnitude of a star whose peak saturates in the coadd.
    """

    depth: float
    fwhm: float
    visit_depth: float
    visit_zero_point: float
    saturation: float

    @property
    def njy_per_electron(self) -> float:
        """Flux in nJy of one electron over all visits; source noise is `flux * this` nJy² per pixel."""
        # Depth grows by 1.25 log10(visits), hence 10^(0.8 difference).
        visits = 10.0 ** (0.8 * (self.depth - self.visit_depth))
        return float(flux(self.visit_zero_point) / (30.0 * visits))


BANDS: dict[str, BandFacts] = {
    "u": BandFacts(25.0, 1.25, 23.70, 26.52, 15.5),
    "g": BandFacts(26.6, 1.16, 24.97, 28.51, 17.3),
    "r": BandFacts(25.9, 1.08, 24.52, 28.36, 17.2),
    "i": BandFacts(26.1, 1.04, 24.13, 28.17, 17.0),
    "z": BandFacts(25.1, 1.03, 23.56, 27.78, 16.5),
    "y": BandFacts(24.0, 1.06, 22.55, 26.82, 15.5),
}

#: Correlation of neighbouring pixels that warping leaves: white noise is convolved with (a, 1, a) in x and y.
NOISE_TAP = 0.08


def flux(mag: Any) -> Any:
    """Fluxes in nJy of AB magnitudes."""
    return 10.0 ** (0.4 * (ZERO_POINT - np.asarray(mag, float)))


def magnitude(value: Any) -> Any:
    """AB magnitudes of fluxes in nJy; NaN when not positive."""
    f = np.asarray(value, float)
    return ZERO_POINT - 2.5 * np.log10(np.where(f > 0, f, np.nan))


def moffat(size: int, fwhm: float, e1: float, e2: float) -> NDArray[np.float64]:
    """Elliptical Moffat kernel on `size` x `size` pixels (odd), sum 1.

    Parameters
    ----------
    size
        Odd number of pixels.
    fwhm
        Pixels, of the kernel as it is sampled: it stands for a PSF image, pixels included.
    e1, e2
        Ellipticity `(a² - b²) / (a² + b²)` times cos and sin of twice the position angle.

    Notes
    -----
    `(1 + r² / alpha²)^-3.5`, tapered to zero over the last fifth of the radius so that a stamp has no edge.
    """
    half = size // 2
    axis = np.arange(size, dtype=float) - half
    x, y = axis[None, :], axis[:, None]
    alpha = fwhm / (2.0 * np.sqrt(2.0 ** (1.0 / MOFFAT_BETA) - 1.0))
    # Area is kept, so that ellipticity does not change the width.
    squared = ((1.0 - e1) * x * x - 2.0 * e2 * x * y + (1.0 + e1) * y * y) / np.sqrt(1.0 - e1 * e1 - e2 * e2)
    edge = np.clip((np.hypot(x, y) / (half + 0.5) - 0.8) / 0.2, 0.0, 1.0)
    kernel = (1.0 + squared / alpha**2) ** -MOFFAT_BETA * np.cos(0.5 * np.pi * edge) ** 2
    return np.asarray(kernel / kernel.sum())


@dataclass(frozen=True)
class Conditions:
    """PSF and noise of every band and cell of a block of sky.

    Parameters
    ----------
    bands
        Names of the B bands.
    box
        Pixels covered, PARENT frame, whole cells.
    fwhm, e1, e2
        `(B, cy, cx)` PSF width in pixels, and ellipticity.
    sigma
        `(B, cy, cx)` noise of a blank pixel, nJy.
    """

    bands: tuple[str, ...]
    box: Box
    fwhm: NDArray[np.float64]
    e1: NDArray[np.float64]
    e2: NDArray[np.float64]
    sigma: NDArray[np.float64]

    def kernel(self, band: int, i: int, j: int, size: int = KERNEL) -> NDArray[np.float64]:
        """PSF kernel of a cell, `(size, size)`, sum 1."""
        return moffat(
            size, float(self.fwhm[band, i, j]), float(self.e1[band, i, j]), float(self.e2[band, i, j])
        )

    def transforms(self, i: int, j: int, size: int, kernel: int) -> Complex:
        """Transforms of the PSFs of a cell on stamps of `size`: `(B, S, S // 2 + 1)`."""
        stamp = np.zeros((len(self.bands), size, size), np.float32)
        for b in range(len(self.bands)):
            stamp[b, :kernel, :kernel] = self.kernel(b, i, j, kernel)
        # The kernel centre goes to pixel 0, 0: then a product only blurs and does not move.
        rolled = np.roll(stamp, (-(kernel // 2), -(kernel // 2)), (1, 2))
        return np.asarray(scipy.fft.rfft2(rolled))

    def cell_of(self, x: float, y: float) -> tuple[int, int]:
        """Cell `(i, j)` of a pixel, counted from the block's corner."""
        return int(y - self.box.y0) // CELL, int(x - self.box.x0) // CELL


def draw_conditions(bands: tuple[str, ...], box: Box, seed: int) -> Conditions:
    """PSF widths, ellipticities and depths for a block.

    Width and ellipticity wander smoothly over the block (a patch differs from its neighbour) and jump a
    little from cell to cell, as the set of visits does.
    """
    cy, cx = box.height // CELL, box.width // CELL
    planes: dict[str, list[NDArray[np.float64]]] = {"fwhm": [], "e1": [], "e2": [], "sigma": []}
    for band in bands:
        facts = BANDS[band]
        # By the place of the band in ugrizy: a band looks the same whichever others are simulated.
        rng = np.random.default_rng([seed, 11, "ugrizy".index(band)])
        wide = facts.fwhm * (1.0 + 0.05 * _smooth(rng, cy, cx) + 0.02 * rng.standard_normal((cy, cx)))
        planes["fwhm"].append(np.clip(wide, 0.85, 1.5) / PIXEL_SCALE)  # px
        for key in ("e1", "e2"):
            planes[key].append(0.025 * _smooth(rng, cy, cx) + 0.01 * rng.standard_normal((cy, cx)))
        level = noise_sigma(band) * np.exp(0.04 * _smooth(rng, cy, cx) + 0.03 * rng.standard_normal((cy, cx)))
        planes["sigma"].append(level)
    return Conditions(bands, box, *(np.stack(planes[k]) for k in ("fwhm", "e1", "e2", "sigma")))


def _smooth(rng: np.random.Generator, cy: int, cx: int) -> NDArray[np.float64]:
    """A wavy field of unit variance with wavelengths of 8 to 30 cells."""
    y, x = np.mgrid[:cy, :cx]
    total = np.zeros((cy, cx))
    for _ in range(4):
        angle, wave, phase = rng.uniform(0, 2 * np.pi), rng.uniform(8, 30), rng.uniform(0, 2 * np.pi)
        total += np.cos(2 * np.pi * (np.cos(angle) * x + np.sin(angle) * y) / wave + phase)
    return np.asarray(total / np.sqrt(2.0))


@functools.cache
def noise_sigma(band: str) -> float:
    """Noise of a blank pixel in nJy that gives the band's depth.

    The flux error of a PSF fit with correlated noise is `sigma sqrt(sum |P|² |K|²) / sum p²` over
    frequencies, P and K the transforms of PSF and noise kernel; 5 times that is the flux at the band's
    depth.
    """
    facts = BANDS[band]
    size = 64
    psf = np.zeros((size, size))
    psf[:KERNEL, :KERNEL] = moffat(KERNEL, facts.fwhm / PIXEL_SCALE, 0.0, 0.0)
    power = np.abs(scipy.fft.fft2(psf)) ** 2 * _noise_power(size)
    per_sigma = np.sqrt(power.sum() / size**2) / (psf**2).sum()
    return float(flux(facts.depth) / 5.0 / per_sigma)


def _noise_power(size: int) -> NDArray[np.float64]:
    """Power spectrum of the noise, mean 1."""
    # Transform of (a, 1, a), squared, along one axis; the other is the same.
    f = (1.0 + 2.0 * NOISE_TAP * np.cos(2.0 * np.pi * scipy.fft.fftfreq(size))) ** 2
    f /= 1.0 + 2.0 * NOISE_TAP**2
    return np.asarray(f[:, None] * f[None, :])


def correlated_noise(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Unit-variance noise with the correlation of neighbours that warping leaves.

    The variance plane of a coadd states the variance of single pixels and knows nothing of the correlation;
    so does ours.
    """
    h, w = shape
    # One pixel more on each side, so that the rim is as correlated as the rest.
    white = rng.standard_normal((h + 2, w + 2), dtype=np.float32)
    a, norm = np.float32(NOISE_TAP), np.float32(1.0 / (1.0 + 2.0 * NOISE_TAP**2))
    rows = white[1:-1] + a * (white[:-2] + white[2:])
    return (rows[:, 1:-1] + a * (rows[:, :-2] + rows[:, 2:])) * norm
