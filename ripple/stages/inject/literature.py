"""What others found, to hold painted arcs against: each number with its source."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
UGRIZY = "ugrizy"
#: Redshifts of the colours below.
REDSHIFTS = tuple(np.arange(0.8, 3.01, 0.2).round(1).tolist())
#: AB magnitudes in u, g, r, i, z, y, less that in i, at each of `REDSHIFTS`: irregular (Im, the bluest) and
#: Sbc galaxies of Coleman, Wu & Weedman 1980, ApJS 43, 393, through the throughputs of LSST (`spectra`; a
#: test makes them again).
IM = (
    (1, 0.89, 0.52, 0, -0.3, -0.24), (0.84, 0.69, 0.52, 0, -0.31, -0.54),
    (0.61, 0.39, 0.27, 0, -0.5, -0.67), (0.55, 0.27, 0.15, 0, -0.37, -0.7),
    (0.5, 0.25, 0.1, 0, -0.18, -0.59), (0.51, 0.28, 0.08, 0, -0.11, -0.31),
    (0.54, 0.32, 0.08, 0, -0.07, -0.2), (0.61, 0.35, 0.1, 0, -0.06, -0.14),
    (0.64, 0.39, 0.13, 0, -0.05, -0.11), (0.81, 0.41, 0.17, 0, -0.06, -0.1),
    (1.21, 0.41, 0.21, 0, -0.07, -0.11), (1.73, 0.41, 0.23, 0, -0.08, -0.13),
)  # fmt: skip
SBC = (
    (2.53, 2, 0.98, 0, -0.4, -0.59), (2.22, 1.74, 1.02, 0, -0.63, -0.9),
    (1.84, 1.38, 0.83, 0, -0.79, -1.22), (1.42, 1.08, 0.6, 0, -0.75, -1.36),
    (1.07, 0.9, 0.46, 0, -0.62, -1.23), (0.94, 0.81, 0.4, 0, -0.43, -1.02),
    (0.89, 0.72, 0.36, 0, -0.34, -0.79), (0.88, 0.6, 0.33, 0, -0.31, -0.63),
    (0.82, 0.53, 0.32, 0, -0.28, -0.54), (0.94, 0.46, 0.33, 0, -0.25, -0.49),
    (1.29, 0.42, 0.31, 0, -0.23, -0.46), (1.75, 0.38, 0.23, 0, -0.23, -0.44),
)  # fmt: skip

#: Quantiles (5, 25, 50, 75, 95 %) of the 8,833 lenses that Collett 2015, ApJ 811, 20, forecasts to be
#: discoverable in the full coadd of LSST, and the Einstein radii of 59 lenses of SLACS as in "The SLACS
#: strong lens sample, debiased" (Sonnenfeld): `scripts/bench/literature.py` makes them from the tables that
#: both published. By the names of the card's distributions; `mag` is that of arcs, `source_mag` that before
#: lensing.
FORECAST, SLACS = "forecast for LSST (Collett 2015)", "SLACS"
KNOWN: dict[str, dict[str, tuple[float, ...]]] = {
    "theta_E": {FORECAST: (1.0, 1.14, 1.33, 1.59, 2.15), SLACS: (0.84, 1.04, 1.23, 1.38, 1.63)},
    "source_mag": {FORECAST: (23.67, 24.94, 25.63, 26.32, 27.38)},
    "half-light radius": {FORECAST: (0.05, 0.14, 0.23, 0.36, 0.67)},
    "magnification": {FORECAST: (3.2, 4.17, 6.18, 10.22, 22.06)},
    "mag g": {FORECAST: (22.26, 23.34, 23.9, 24.36, 25.15)},
    "mag r": {FORECAST: (22.12, 23.23, 23.79, 24.19, 24.57)},
    "mag i": {FORECAST: (21.87, 23.05, 23.65, 24.09, 24.56)},
    "g - r": {FORECAST: (-0.19, -0.05, 0.05, 0.33, 1.09)},
    "r - i": {FORECAST: (-0.22, -0.06, 0.03, 0.27, 0.76)},
}


def colour(template: tuple[tuple[float, ...], ...], blue: str, red: str) -> Float:
    """Colour of a template at each of `REDSHIFTS`."""
    table = np.array(template)
    return np.asarray(table[:, UGRIZY.index(blue)] - table[:, UGRIZY.index(red)])
