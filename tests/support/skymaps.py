"""Small sky maps for tests: a few square tracts at given places."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ripple.sky.skymap import CellPatches, LegacyPatches, ObservedSkyMap, _square_tracts


def square_tracts(
    layout: LegacyPatches | CellPatches, ra: Sequence[float], dec: Sequence[float], radius: float
) -> ObservedSkyMap:
    """Tracts of half-size `radius` deg around positions (deg), 0.2 arcsec pixels, no overlap added."""
    half = np.full(len(ra), radius)
    table = _square_tracts(np.array(ra), np.array(dec), half, 0.0, 0.2, 0.0, layout)
    return ObservedSkyMap("squares", layout, table)
