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


def colour(template: tuple[tuple[float, ...], ...], blue: str, red: str) -> Float:
    """Colour of a template at each of `REDSHIFTS`."""
    table = np.array(template)
    return np.asarray(table[:, UGRIZY.index(blue)] - table[:, UGRIZY.index(red)])
