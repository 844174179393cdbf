"""Colours of galaxies: magnitudes in ugrizy from the one in i."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

# Colours of passively evolving galaxies by redshift, read off public early-type templates: u-g, g-r, r-i,
# i-z, z-y.
_RED_Z = np.arange(0.1, 1.01, 0.1)
_RED_COLOURS = np.array(
    [
        [1.60, 1.75, 1.80, 1.70, 1.60, 1.60, 1.50, 1.40, 1.30, 1.20],
        [0.95, 1.20, 1.45, 1.67, 1.77, 1.80, 1.78, 1.75, 1.70, 1.65],
        [0.42, 0.47, 0.55, 0.67, 0.85, 1.02, 1.15, 1.22, 1.22, 1.20],
        [0.30, 0.33, 0.36, 0.38, 0.40, 0.45, 0.53, 0.62, 0.72, 0.80],
        [0.15, 0.18, 0.20, 0.22, 0.24, 0.26, 0.30, 0.35, 0.40, 0.45],
    ]
)
# The same of the elliptical of Coleman, Wu & Weedman 1980, ApJS 43, 393 (GalSim's CWW_E_ext) through LSST's
# bands, to redshifts where these see the ultraviolet. Beyond 2 its old stars are too bright there for
# galaxies as young as those are, and the colours at 2 are kept.
_PASSIVE_Z = np.arange(0.6, 2.01, 0.2)
_PASSIVE_COLOURS = np.array(
    [
        [2.38, 1.54, 0.98, 0.78, 0.73, 0.50, 0.30, 0.18],
        [1.56, 1.88, 2.27, 1.85, 1.12, 0.72, 0.75, 0.75],
        [1.23, 1.29, 1.08, 1.45, 1.86, 1.81, 1.21, 0.58],
        [0.42, 0.79, 1.08, 0.79, 0.71, 1.10, 1.44, 1.55],
        [0.29, 0.29, 0.55, 0.86, 0.80, 0.47, 0.62, 0.95],
    ]
)


def red_magnitudes(rng: np.random.Generator, i_mag: Array, z: Array) -> NDArray[np.float64]:
    """`(N, 6)` AB magnitudes of passive galaxies at redshift `z`, 0.05 mag scatter in colour."""
    return _by_redshift(rng, i_mag, z, _RED_Z, _RED_COLOURS)


def passive_magnitudes(rng: np.random.Generator, i_mag: Array, z: Array) -> NDArray[np.float64]:
    """`(N, 6)` AB magnitudes of passive galaxies behind deflectors, 0.05 mag scatter in colour."""
    return _by_redshift(rng, i_mag, z, _PASSIVE_Z, _PASSIVE_COLOURS)


def _by_redshift(
    rng: np.random.Generator, i_mag: Array, z: Array, known: Array, colours: Array
) -> NDArray[np.float64]:
    ug, gr, ri, iz, zy = (np.interp(z, known, row) + rng.normal(0.0, 0.05, len(z)) for row in colours)
    return from_colours(i_mag, ug, gr, ri, iz, zy)


def blue_magnitudes(rng: np.random.Generator, i_mag: Array) -> NDArray[np.float64]:
    """`(N, 6)` AB magnitudes of star-forming galaxies: one number for age and dust, and scatter."""
    count = len(i_mag)
    redder = rng.beta(2.0, 3.0, count)
    ug, gr, ri, iz, zy = (
        low + span * redder + rng.normal(0.0, 0.05, count)
        for low, span in ((0.25, 0.7), (0.0, 0.65), (0.0, 0.45), (0.0, 0.35), (0.0, 0.2))
    )
    return from_colours(i_mag, ug, gr, ri, iz, zy)


def from_colours(i: Array, ug: Array, gr: Array, ri: Array, iz: Array, zy: Array) -> NDArray[np.float64]:
    """`(N, 6)` magnitudes in ugrizy from that in i and five colours, each `(N,)`."""
    r, z = i + ri, i - iz
    g = r + gr
    return np.stack([g + ug, g, r, i, z, z - zy], axis=1)
