"""What a completeness is worth in a footprint: effective area and volume, and lenses to expect."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import poisson

from ripple.config import Json
from ripple.imaging.simulation.lensing import comoving_distance
from ripple.learn.evaluation.intervals import Estimate
from ripple.stages.completeness.bins import fraction

Float = NDArray[np.float64]
#: Of the effective volume, that of `comoving_distance`.
COSMOLOGY = "flat LCDM, H0 = 70 km/s/Mpc, Omega_m = 0.3"
#: Whole sky, deg², and the largest redshift of `comoving_distance`.
SKY, FARTHEST = 4.0 * np.pi * np.degrees(1.0) ** 2, 6.0
#: Bins over the redshift of the lens, with equally many rows.
SHELLS = 5
NO_AREA = "no area was given (--area-deg2)"


def chain(parts: Sequence[Estimate]) -> Estimate:
    """Product of independent shares; the limits multiply, so they hold at least 95 %."""
    value, low, high = (float(np.prod([getattr(p, k) for p in parts])) for k in ("value", "low", "high"))
    return Estimate(value, low, high)


def effective_area(overall: Estimate, area: float | None) -> Json:
    """Footprint times completeness, deg²."""
    if area is None:
        return {"value": None, "reason": NO_AREA}
    return {**scaled(overall, area).as_dict()}


def expected(overall: Estimate, area: float | None, density: float | None) -> Json:
    """Lenses that a population with the properties of the rows would yield.

    Parameters
    ----------
    overall
        Completeness.
    area
        deg².
    density
        Lenses per deg².

    Returns
    -------
    found
        Mean number with the limits of the completeness, and `counts`: a Poisson number with such a mean is
        between them at least 95 times in 100.
    """
    if area is None or density is None:
        return {"value": None, "reason": NO_AREA if area is None else "no density was given (--density)"}
    mean = scaled(overall, area * density)
    counts = [int(poisson.ppf(0.025, mean.low)), int(poisson.ppf(0.975, mean.high))]
    return {**mean.as_dict(), "per_deg2": density, "present": round(area * density, 6), "counts": counts}


def effective_volume(z: Float, found: NDArray[np.bool_], area: float | None, before: Estimate) -> Json:
    """Comoving volume times completeness over the redshifts of the lenses, Gpc³.

    Parameters
    ----------
    z
        `(N,)` redshifts of the lenses, NaN where unknown.
    found
        `(N,)` rows.
    area
        deg².
    before
        Share of the lenses that became rows at all.
    """
    known = np.isfinite(z) & (z > 0) & (z <= FARTHEST)
    edges = np.unique(np.quantile(z[known], np.linspace(0, 1, SHELLS + 1))) if known.any() else np.zeros(0)
    if area is None or len(edges) < 2:
        return {"value": None, "reason": NO_AREA if area is None else "no redshifts of lenses (z_lens)"}
    cell = np.clip(np.searchsorted(edges, z[known], side="right") - 1, 0, len(edges) - 2)
    volume = np.diff(comoving_distance(edges) ** 3) * 4.0 / 3.0 * np.pi / 1e9 * area / SKY
    shells, total, spread = [], 0.0, np.zeros(2)
    for k, whole in enumerate(volume.tolist()):
        mine = cell == k
        here = chain([before, fraction(int(found[known][mine].sum()), int(mine.sum()), "clopper-pearson")])
        total += whole * here.value
        # Shells are independent: what they may be off by adds in squares.
        spread += (whole * np.array([here.value - here.low, here.high - here.value])) ** 2
        low, high = float(edges[k]), float(edges[k + 1])
        shells.append({"low": low, "high": high, "rows": int(mine.sum()), "volume_gpc3": round(whole, 9),
                       "completeness": here.as_dict()})  # fmt: skip
    low, high = total - np.sqrt(spread[0]), total + np.sqrt(spread[1])
    return {
        **Estimate(total, float(low), float(high)).as_dict(),
        "unit": "Gpc3",
        "cosmology": COSMOLOGY,
        "shells": shells,
    }


def scaled(share: Estimate, by: float) -> Estimate:
    """A share of a number."""
    return Estimate(share.value * by, share.low * by, share.high * by)
