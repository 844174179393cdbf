"""Defects of the simulated sky, put in on purpose: every reader must survive them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripple.imaging.simulation.observing import BANDS, CELL, Conditions, correlated_noise, flux
from ripple.imaging.simulation.profiles import Float
from ripple.sky.geometry import Box

#: DP2 mask planes, in the order of their bits.
PLANES: tuple[str, ...] = (
    "NO_DATA",
    "INTERPOLATED",
    "COSMIC_RAY",
    "SATURATED",
    "DETECTION_EDGE",
    "CLIPPED",
    "REJECTED",
    "DETECTED",
    "INEXACT_PSF",
)
#: Pixels at the rim of the coadds in which nothing is detected.
RIM = 10


def bits(*names: str) -> np.uint16:
    """Mask value with these planes set."""
    return np.uint16(sum(1 << PLANES.index(name) for name in names))


@dataclass(frozen=True, slots=True)
class Segment:
    """A straight streak: start, direction (rad), length and half width in pixels."""

    x: float
    y: float
    angle: float
    length: float
    half_width: float


@dataclass(frozen=True)
class Defects:
    """Faults of a block; bands are indices.

    Parameters
    ----------
    missing_cell
        Cell `(i, j)` without data in any band, or None.
    hole
        Band and ellipse `(x, y, a, b)` without data inside a cell (NaN).
    cosmic_ray
        Band and segment.
    satellite
        Band and segment: rejected from some visits, clipped.
    chip_edges
        Per band, columns (PARENT x) around which fewer visits overlap and the PSF is not exact.
    """

    missing_cell: tuple[int, int] | None = None
    hole: tuple[int, tuple[float, float, float, float]] | None = None
    cosmic_ray: tuple[int, Segment] | None = None
    satellite: tuple[int, Segment] | None = None
    chip_edges: tuple[tuple[float, ...], ...] = ()


def draw_defects(bands: int, box: Box, seed: int) -> Defects:
    """One of each fault, inside the inner part of the block."""
    rng = np.random.default_rng([seed, 4])
    cy, cx = box.height // CELL, box.width // CELL

    def place() -> tuple[float, float]:
        inside = box.grown(-CELL)
        return float(rng.uniform(inside.x0, inside.x1)), float(rng.uniform(inside.y0, inside.y1))

    # Not at the rim, where a patch ends anyway.
    cell = (int(rng.integers(1, cy - 1)), int(rng.integers(1, cx - 1)))
    hole = (int(rng.integers(bands)), (*place(), float(rng.uniform(20, 40)), float(rng.uniform(12, 25))))
    ray = Segment(*place(), float(rng.uniform(0, np.pi)), float(rng.uniform(40, 90)), 0.7)
    # 1e5 px: across the whole block.
    trail = Segment(*place(), float(rng.uniform(0, np.pi)), 1e5, 3.5)
    edges = tuple(tuple(float(v) for v in rng.uniform(box.x0, box.x1, 2)) for _ in range(bands))
    return Defects(cell, hole, (int(rng.integers(bands)), ray), (int(rng.integers(bands)), trail), edges)


@dataclass(frozen=True)
class BandPlanes:
    """Planes of one band over a block: float32 nJy, float32 nJy², and mask in `PLANES` bits."""

    image: NDArray[np.float32]
    variance: NDArray[np.float32]
    mask: NDArray[np.uint16]


def observe(
    light: NDArray[np.float32],
    stars: NDArray[np.float64],
    c: Conditions,
    band: int,
    defects: Defects,
    seed: int,
) -> BandPlanes:
    """Add noise, saturation and defects to the light of one band.

    Parameters
    ----------
    light
        `(h, w)` noiseless image of the block, nJy; overwritten.
    stars
        `(N, 3)` x, y (PARENT) and flux in nJy of the stars.
    c
        PSF and noise.
    band
        Index into `c.bands`.
    defects
        Faults.
    seed
        Seed of the noise.

    Notes
    -----
    The variance plane is that of single pixels: sky plus the Poisson noise of the sources. Noise is
    correlated between neighbours, which the plane does not tell.
    """
    facts = BANDS[c.bands[band]]
    sky = np.repeat(np.repeat(c.sigma[band].astype(np.float32), CELL, 0), CELL, 1)
    mask = np.zeros(light.shape, np.uint16)
    variance = sky**2
    for edge in defects.chip_edges[band] if defects.chip_edges else ():
        x = round(edge) - c.box.x0
        near = np.s_[:, max(x - 20, 0) : max(x + 20, 0)]
        # Fewer visits, so more noise.
        variance[near] *= 1.15
        mask[near] |= bits("REJECTED", "INEXACT_PSF")
    # Source noise below a thousandth of the sky's is left out: the plane stays flat where there is only sky.
    source = np.float32(facts.njy_per_electron) * light
    variance += np.where(source > 1e-3 * variance, source, np.float32(0.0))
    # By the place of the band in ugrizy: a band looks the same whichever others are simulated.
    rng = np.random.default_rng([seed, 12, "ugrizy".index(c.bands[band])])
    light += np.sqrt(variance) * correlated_noise(rng, (light.shape[0], light.shape[1]))
    _saturate(light, mask, stars, c, band)
    _detect(light, mask, sky, float(np.median(c.fwhm[band])))
    planes = BandPlanes(light, variance, mask)
    _add_defects(planes, c.box, band, defects, float(np.median(sky)))
    return planes


def _saturate(
    image: NDArray[np.float32], mask: NDArray[np.uint16], stars: NDArray[np.float64], c: Conditions, band: int
) -> None:
    """Flatten the cores of bright stars and let them bleed along the column."""
    full = float(flux(BANDS[c.bands[band]].saturation))
    width = image.shape[1]
    for x, y, value in stars[stars[:, 2] > full]:
        column, row = int(np.floor(x + 0.5)) - c.box.x0, int(np.floor(y + 0.5)) - c.box.y0
        i, j = min(row // CELL, c.sigma.shape[1] - 1), min(column // CELL, c.sigma.shape[2] - 1)
        # Peak pixel of a star that just saturates.
        level = full * float(c.kernel(band, i, j).max())
        reach = int(min(8.0 * np.sqrt(value / full), 120.0)) + 4  # px of bleeding up and down
        bleed = np.s_[max(row - reach, 0) : row + reach + 1, max(column - 1, 0) : min(column + 2, width)]
        image[bleed] = level
        core = np.s_[max(row - 40, 0) : row + 41, max(column - 40, 0) : column + 41]
        hot = image[core] >= level
        image[core][hot] = level
        planes = bits("SATURATED", "REJECTED", "INTERPOLATED", "INEXACT_PSF")
        mask[core] |= np.where(hot, planes, np.uint16(0))
        mask[bleed] |= planes


def _detect(
    image: NDArray[np.float32], mask: NDArray[np.uint16], sky: NDArray[np.float32], fwhm: float
) -> None:
    """DETECTED where the image smoothed with a PSF-wide Gaussian exceeds 5 sigma, grown by 4 pixels."""
    from scipy.ndimage import gaussian_filter, maximum_filter

    # Sigma of a Gaussian from its FWHM.
    width = fwhm / 2.3548
    # Noise left after smoothing white noise: 1 / (2 sqrt(pi) width); correlation adds a sixth.
    left = 1.17 / (2.0 * np.sqrt(np.pi) * width)
    found = gaussian_filter(image / sky, width) > 5.0 * left
    grown = maximum_filter(found.astype(np.uint8), 9)  # 9 = 2 x 4 + 1
    rim = np.ones(image.shape, bool)
    rim[RIM:-RIM, RIM:-RIM] = False
    mask |= np.where(rim, bits("DETECTION_EDGE"), np.where(grown > 0, bits("DETECTED"), np.uint16(0)))


def _add_defects(planes: BandPlanes, box: Box, band: int, defects: Defects, sigma: float) -> None:
    """Put the defects of this band into its planes."""
    if defects.cosmic_ray is not None and defects.cosmic_ray[0] == band:
        hit = _on_segment(defects.cosmic_ray[1], box)
        planes.image[hit] += np.float32(60.0 * sigma)
        planes.mask[hit] |= bits("COSMIC_RAY", "INTERPOLATED")
    if defects.satellite is not None and defects.satellite[0] == band:
        planes.mask[_on_segment(defects.satellite[1], box)] |= bits("CLIPPED", "REJECTED", "INEXACT_PSF")
    if defects.hole is not None and defects.hole[0] == band:
        x, y, a, b = defects.hole[1]
        py, px = np.ogrid[box.y0 : box.y1, box.x0 : box.x1]
        gone = ((px - x) / a) ** 2 + ((py - y) / b) ** 2 < 1.0
        _blank(planes, gone, np.nan, np.nan)
    if defects.missing_cell is not None:
        i, j = defects.missing_cell
        # As the pipelines write it: 0, +inf, NO_DATA.
        _blank(planes, np.s_[i * CELL : (i + 1) * CELL, j * CELL : (j + 1) * CELL], 0.0, np.inf)


def _blank(planes: BandPlanes, where: Any, image: float, variance: float) -> None:
    planes.image[where] = image
    planes.variance[where] = variance
    planes.mask[where] = bits("NO_DATA")


def _on_segment(s: Segment, box: Box) -> NDArray[np.bool_]:
    """Pixels of a box that lie on a segment (which reaches both ways from its start)."""
    y, x = np.ogrid[box.y0 : box.y1, box.x0 : box.x1]
    dx, dy = x - s.x, y - s.y
    along: Float = np.cos(s.angle) * dx + np.sin(s.angle) * dy
    across: Float = np.cos(s.angle) * dy - np.sin(s.angle) * dx
    return (np.abs(along) <= s.length / 2.0) & (np.abs(across) <= s.half_width)
