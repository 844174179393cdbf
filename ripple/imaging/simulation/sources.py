"""Lensed sources as a survey limited by flux finds them: counts, magnification bias, colours, clumps.

Each relation is that of a paper, named where its numbers stand. A source is drawn behind its deflector, place
and all, and kept if it is as bright, once lensed, as a search can find: so of the many faint galaxies those
enter that are magnified most. Magnitudes do not depend on redshift.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripple.imaging.simulation.colours import blue_magnitudes, passive_magnitudes
from ripple.imaging.simulation.lensed import magnification
from ripple.imaging.simulation.lensing import Deflector
from ripple.imaging.simulation.profiles import Knot, Lensed, Sersic

Array = NDArray[np.floating[Any]]

#: Galaxies per magnitude in i go as `10^(COUNTS i)` (LSST Science Book 2009, arXiv:0912.0201, section 3.7.2).
COUNTS = 0.31
#: Limits of the unlensed i magnitudes. Brighter galaxies are hardly ever behind a deflector; fainter ones
#: would have to be magnified 25 times and more, which happens in less than a hundredth of the area.
BRIGHT, FAINT = 20.5, 28.0
#: Faintest total i magnitude once lensed. There the median arc has a S/N of 20 in its best band at the depth
#: that is simulated: what Collett 2015, ApJ 811, 20 asks for, and so is the least magnification.
LIMIT, LEAST = 24.5, 3.0
#: Candidates that are drawn behind a deflector before it is given up: behind galaxies one in seven is kept.
MOST = 1000

#: Share of passive galaxies at these redshifts: among those of 10^10 to 10^10.5 solar masses of Kajisawa et
#: al. 2011, PASJ 63, S403, the least massive of theirs, at most a twentieth at 2; sources are hardly heavier.
PASSIVE_Z, PASSIVE = (0.75, 2.0), (0.15, 0.05)
#: Share of star-forming galaxies with a clump off the centre, of low mass at all redshifts from 0.5 to 3; and
#: the least share of the light of each (Guo et al. 2015, ApJ 800, 39).
CLUMPY, CLUMP = 0.6, 0.08
#: Mean number of the clumps of such a galaxy, the largest, and their share of its light in all (Soto et al.
#: 2017, ApJ 837, 6, in the far ultraviolet; here in all bands).
CLUMPS, MOST_CLUMPS, CLUMP_LIGHT = 2.0, 8, 0.19

KINDS = ("blue", "clumpy", "red")


@dataclass(frozen=True)
class Source:
    """A source that was kept.

    Parameters
    ----------
    shape
        The deflector and the source behind it, pixels.
    kind
        One of `KINDS`.
    mags
        `(6,)` AB magnitudes before lensing, ugrizy.
    magnification
        Lensed over unlensed flux.
    """

    shape: Lensed
    kind: str
    mags: NDArray[np.float64]
    magnification: float

    @property
    def lensed_i(self) -> float:
        """Total i magnitude of its images."""
        return float(self.mags[3] - 2.5 * np.log10(self.magnification))


def draw_source(rng: np.random.Generator, lens: Deflector, z: float, pixel_scale: float) -> Source | None:
    """Draw sources behind a deflector until one is kept; None where none is magnified enough.

    Parameters
    ----------
    rng
        Random generator.
    lens
        Its mass, pixels.
    z
        Redshift of the source.
    pixel_scale
        Arcsec per pixel.
    """
    most = counts_to(FAINT)
    for _ in range(MOST):
        kind = draw_kind(rng, z)
        shape = _candidate(rng, lens, kind, pixel_scale)
        gain = magnification(shape)
        # The faintest that this magnification lifts over the limit; galaxies down to there are that many.
        faintest = min(LIMIT + 2.5 * float(np.log10(max(gain, 1e-9))), FAINT)
        if gain >= LEAST and rng.uniform() * most < counts_to(faintest):
            i_mag = power_law(rng, 1, BRIGHT, faintest, COUNTS)
            return Source(shape, kind, magnitudes(rng, kind, float(i_mag[0]), z), gain)
    return None


def counts_to(faintest: float) -> float:
    """Number of galaxies between `BRIGHT` and a magnitude, in arbitrary units."""
    return float(10.0 ** (COUNTS * faintest) - 10.0 ** (COUNTS * BRIGHT))


def power_law(rng: np.random.Generator, count: int, bright: float, faint: float, slope: float) -> Array:
    """`(count,)` magnitudes with number counts `10^(slope m)` between two limits."""
    # Inverse of the cumulative counts.
    u = rng.uniform(0.0, 1.0, count)
    low, high = 10.0 ** (slope * bright), 10.0 ** (slope * faint)
    return np.asarray(np.log10(low + u * (high - low)) / slope)


def draw_kind(rng: np.random.Generator, z: float) -> str:
    """What a source at redshift `z` is, one of `KINDS`."""
    if rng.uniform() < np.interp(z, PASSIVE_Z, PASSIVE):
        return "red"
    return "clumpy" if rng.uniform() < CLUMPY else "blue"


def magnitudes(rng: np.random.Generator, kind: str, i_mag: float, z: float) -> NDArray[np.float64]:
    """`(6,)` AB magnitudes of a source with that i magnitude."""
    i = np.array([i_mag])
    all_bands = passive_magnitudes(rng, i, np.array([z])) if kind == "red" else blue_magnitudes(rng, i)
    return np.asarray(all_bands[0])


def _candidate(rng: np.random.Generator, lens: Deflector, kind: str, pixel_scale: float) -> Lensed:
    """A source anywhere within the Einstein radius, in the source plane."""
    around, beta = rng.uniform(0.0, 2.0 * np.pi), lens.theta_e * np.sqrt(rng.uniform())
    re = half_light_radius(rng) / pixel_scale
    # Passive galaxies are more concentrated.
    n = 2.0 if kind == "red" else float(rng.choice([0.7, 1.0, 1.5]))
    q, angle = float(rng.uniform(0.4, 1.0)), float(rng.uniform(0.0, np.pi))
    source = Sersic(n, re, q, angle, float(beta * np.cos(around)), float(beta * np.sin(around)))
    return Lensed(lens, source, clumps(rng, re) if kind == "clumpy" else ())


def half_light_radius(rng: np.random.Generator) -> float:
    """Of a source, arcsec: around 0.24."""
    return float(np.clip(rng.lognormal(np.log(0.24), 0.35), 0.08, 0.6))


def mass_of_light(rng: np.random.Generator, q: float, angle: float) -> tuple[float, float]:
    """Axis ratio and position angle (rad) of a mass, from those of the light.

    It is rounder, with some scatter; the angles agree to about 7 deg (0.12 rad).
    """
    rounder = float(np.clip(1.0 - 0.8 * (1.0 - q) + rng.normal(0.0, 0.03), 0.45, 0.99))
    return rounder, float(angle + rng.normal(0.0, 0.12))


def clumps(rng: np.random.Generator, re: float) -> tuple[Knot, ...]:
    """The clumps of a galaxy of half-light radius `re`."""
    count = 1 + min(int(rng.poisson(CLUMPS - 1.0)), MOST_CLUMPS - 1)
    # At least what makes it a clump, and on average so much that all have their share.
    share = CLUMP + rng.exponential(CLUMP_LIGHT / CLUMPS - CLUMP, count)
    dx, dy = rng.normal(0.0, 0.5 * re, (2, count))
    return tuple(Knot(float(s), float(x), float(y)) for s, x, y in zip(share, dx, dy, strict=True))
