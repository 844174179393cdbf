#!/usr/bin/env python3
"""Quantiles of lenses of others, for ripple/stages/inject/literature.py: prints its table.

    python scripts/bench/literature.py lenses_LSSTa.txt SLACS_table.cat

The first file is in github.com/tcollett/LensPop: the lenses that Collett (2015, ApJ 811, 20) forecasts to be discoverable in the full coadd
of LSST. The second is in github.com/astrosonnen/strong_lensing_tools, papers/slacs_selection: the lenses of SLACS of "The SLACS strong
lens sample, debiased" (A. Sonnenfeld).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ripple.stages.inject.card import QUANTILES


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
    slacs = np.loadtxt(args.slacs, usecols=7)
    print(f"# SLACS: {len(slacs)} lenses\n    {tuple(np.quantile(slacs, QUANTILES).round(2).tolist())}")


if __name__ == "__main__":
    main()
