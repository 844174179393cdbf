#!/usr/bin/env python3
"""Quantiles of lenses of others, for ripple/stages/inject/literature.py, and how well light gives their velocity dispersions.

    python scripts/bench/literature.py lenses_LSSTa.txt SLACS_table.cat

The first file is in github.com/tcollett/LensPop: the lenses that Collett (2015, ApJ 811, 20) forecasts to be discoverable in the full coadd
of LSST. The second is in github.com/astrosonnen/strong_lensing_tools, papers/slacs_selection: the lenses of SLACS of "The SLACS strong
lens sample, debiased" (A. Sonnenfeld). Their absolute magnitudes are in V at rest; early-type galaxies are taken to have V - r = 0.35.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ripple.stages.inject.card import QUANTILES
from ripple.stages.inject.masses import HYDE_BERNARDI

COLOUR = 0.35


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("forecast", type=Path)
    parser.add_argument("slacs", type=Path)
    args = parser.parse_args()
    t = np.loadtxt(args.forecast)
    # Columns as its head says them: Einstein radius, magnitudes of the source in g, r, i, and magnification.
    theta, (g, r, i), gain = t[:, 2], t[:, 14:17].T, t[:, 17]
    brighter = 2.5 * np.log10(gain)
    forecast = {
        "theta_E": theta, "source_mag": i, "half-light radius": t[:, 13], "magnification": gain, "mag g": g - brighter, "mag r": r - brighter,
        "mag i": i - brighter, "g - r": g - r, "r - i": r - i,
    }  # fmt: skip
    print(f"# Forecast: {len(t)} lenses")
    for name, values in forecast.items():
        print(f'    "{name}": {tuple(np.quantile(values, QUANTILES).round(2).tolist())},')
    slacs, sigma, v = np.loadtxt(args.slacs, usecols=(7, 11, 15)).T
    print(f"# SLACS: {len(slacs)} lenses\n    {tuple(np.quantile(slacs, QUANTILES).round(2).tolist())}")
    ratio = np.polyval(HYDE_BERNARDI, v - COLOUR) - np.log10(sigma)
    print(
        f"# --theta-from faber-jackson over the measured velocity dispersions of SLACS: median {10 ** np.median(ratio):.2f}, "
        f"scatter {ratio.std():.2f} dex"
    )


if __name__ == "__main__":
    main()
