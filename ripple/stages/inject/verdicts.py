"""What the checks of painting amount to: ratios with intervals, and whether something is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripple.config import Json
from ripple.learn.evaluation.intervals import clopper_pearson
from ripple.stages.inject import literature
from ripple.stages.inject.painting import Painted

Float = NDArray[np.float64]
#: Rows that a check takes at least, and replicates of its interval.
LEAST, DRAWS = 20, 400
#: Check -> how far from 1 its ratio may be.
TOLERANCES = {"photon_noise": 0.1, "variance": 0.03, "psf_width": 0.05}
#: Arcs are always blue where fewer than this share are redder than the bluest galaxies on average; and all
#: alike where they spread by less than this share of what galaxies do.
SHARE, ALIKE = 0.1, 0.25


def verdicts(found: list[list[Painted]], bands: tuple[str, ...], seed: int) -> Json:
    """Each check by band, and of the colours.

    Parameters
    ----------
    found
        Of each row.
    bands
        Of the cutouts.
    seed
        Of the bootstrap.
    """
    return {
        **{name: _by_band(name, found, bands, seed) for name in TOLERANCES},
        "colours": _colours(found, bands),
    }


def sentences(checks: Json) -> list[str]:
    """What is wrong, for people."""
    out = []
    for name, say in _SAY.items():
        for band, one in checks[name].items():
            if one["verdict"] == "flaw":
                out.append(say(one["value"], band))
    colours = checks["colours"]
    if colours["verdict"] == "always blue":
        out.append(
            f"Arcs are always blue: {100 * colours['redder']:.0f} % are redder in {colours['colour']} than "
            f"the bluest galaxies on average, {colours['bluest']:.2f}."
        )
    if colours["verdict"] == "all alike":
        out.append(f"Arcs all have about one colour: {colours['colour']} spreads by {colours['spread']:.2f}.")
    return out


_SAY: dict[str, Callable[[float, str], str]] = {
    "photon_noise": lambda v, band: f"Arcs have {v:.2f} times the photon noise of their light in {band}.",
    "variance": lambda v, band: f"The variance grew by {v:.2f} times the photon noise of arcs in {band}.",
    "psf_width": lambda v, band: f"Arcs went through a PSF {v:.2f} times as wide as their cell's in {band}.",
}


def _by_band(name: str, found: list[list[Painted]], bands: tuple[str, ...], seed: int) -> Json:
    out: Json = {}
    for b, band in enumerate(bands):
        mine = [one for row in found for one in row if one.band == b]
        if len(mine) < LEAST:
            out[band] = {"rows": len(mine), "verdict": "unknown"}
            continue
        values = np.array([_parts(name, one) for one in mine])
        rng = np.random.default_rng([seed, 24, b])
        draws = [_ratio(name, values[rng.integers(0, len(mine), len(mine))]) for _ in range(DRAWS)]
        value = _ratio(name, values)
        low, high = (float(v) for v in np.quantile(draws, (0.025, 0.975)))
        wrong = abs(value - 1.0) > TOLERANCES[name] and not low <= 1.0 <= high
        out[band] = {
            "rows": len(mine),
            "value": round(value, 4),
            "low": round(low, 4),
            "high": round(high, 4),
            "verdict": "flaw" if wrong else "ok",
        }
    return out


def _parts(name: str, one: Painted) -> tuple[float, float]:
    if name == "photon_noise":
        return one.noise, one.expected_noise
    return (one.added, one.photons) if name == "variance" else (one.width, 1.0)


def _ratio(name: str, values: Float) -> float:
    if name == "psf_width":
        # A median: of faint arcs some widths are far off.
        return float(np.median(values[:, 0]))
    return float(values[:, 0].sum() / max(values[:, 1].sum(), 1e-300))


def _colours(found: list[list[Painted]], bands: tuple[str, ...]) -> Json:
    """Of the widest colour among g to y: in u, gas between the galaxy and us decides."""
    usable = [k for k, band in enumerate(bands) if band in "grizy"]
    usable.sort(key=lambda k: literature.UGRIZY.index(bands[k]))
    if len(usable) < 2:
        return {"rows": 0, "verdict": "unknown"}
    blue, red = usable[0], usable[-1]
    fluxes: list[dict[int, float]] = [{one.band: one.flux for one in row} for row in found]
    values = np.array([-2.5 * np.log10(f[blue] / f[red]) for f in fluxes if blue in f and red in f])
    out: dict[str, Any] = {"rows": len(values), "colour": f"{bands[blue]} - {bands[red]}"}
    if len(values) < LEAST:
        return out | {"verdict": "unknown"}
    bluest = float(np.median(literature.colour(literature.IM, bands[blue], bands[red])))
    every = np.concatenate(
        [literature.colour(t, bands[blue], bands[red]) for t in (literature.IM, literature.SBC)]
    )
    redder = clopper_pearson(int((values > bluest).sum()), len(values)).as_dict()
    spread, theirs = (float(np.diff(np.quantile(v, (0.16, 0.84)))[0]) / 2 for v in (values, every))
    verdict = "ok"
    if redder["high"] < SHARE:
        verdict = "always blue"
    elif spread < ALIKE * theirs:
        verdict = "all alike"
    return out | {
        "bluest": round(bluest, 2),
        "redder": round(redder["value"], 4),
        "redder_low": round(redder["low"], 4),
        "redder_high": round(redder["high"], 4),
        "spread": round(spread, 3),
        "spread_of_galaxies": round(theirs, 3),
        "verdict": verdict,
    }
