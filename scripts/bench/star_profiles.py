"""Do stars have the same profile in all bands after PSF matching? And is their light kept?

    ripple fetch --repo sky/repo --collections mini --targets stars.csv --bands gri --margin 12 -o cutouts
    ripple preprocess cutouts -o tensors --psf match --normalize none
    python scripts/bench/star_profiles.py cutouts tensors

Looks at the accepted stars with the least light beside them. Profiles are normalised to their light within
6 px; the difference to the last band is given as a share of the peak.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from ripple.artefact import open_artefact
from ripple.shard import unpack_cutouts, unpack_tensors

CORE, APERTURE = 6, 14  # px
ISOLATED = 0.4  # share of the stars that is looked at

Stamp = np.ndarray[Any, np.dtype[np.float64]]


def difference(stamp: Stamp, core: np.ndarray[Any, Any]) -> float:
    """Largest difference of the bands' profiles over the peak; `(B, H, W)`."""
    light = (stamp - np.percentile(stamp, 10, axis=(1, 2), keepdims=True)) * core
    profile = light / light.sum(axis=(1, 2), keepdims=True)
    return float(np.abs(profile - profile[-1]).max() / profile[-1].max())


def crowding(stamp: Stamp, core: np.ndarray[Any, Any], ring: np.ndarray[Any, Any]) -> float:
    """Light in a ring over that in the core, in the worst band."""
    light = stamp - np.percentile(stamp, 10, axis=(1, 2), keepdims=True)
    return float(((light * ring).sum(axis=(1, 2)) / (light * core).sum(axis=(1, 2))).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cutouts", type=Path)
    parser.add_argument("tensors", type=Path)
    args = parser.parse_args()
    cutouts, tensors = open_artefact(args.cutouts, "cutouts"), open_artefact(args.tensors, "tensors")
    margin, size = (int(cutouts.manifest["attributes"][k]) for k in ("margin", "size"))
    inner = (..., slice(margin, margin + size), slice(margin, margin + size))
    y, x = np.indices((size, size)) - size // 2
    radius = np.hypot(y, x)
    core, ring, aperture = radius < CORE, (radius > CORE + 2) & (radius < CORE + 10), radius < APERTURE
    rows = []
    for k in range(len(cutouts.shards)):
        before, after = unpack_cutouts(cutouts.read(k)), unpack_tensors(tensors.read(k))
        for row in range(len(before)):
            old, new = before.image[row][inner].astype(float), after.image[row].astype(float)
            if np.isfinite(old).all() and after.catalog["accept"][row]:
                change = (new * aperture).sum(axis=(1, 2)) / (old * aperture).sum(axis=(1, 2)) - 1
                rows.append([
                    crowding(old, core, ring), difference(old, core), difference(new, core), np.abs(change).max()
                ])  # fmt: skip
    table = np.array(rows)
    table = table[table[:, 0] <= np.quantile(table[:, 0], ISOLATED)]
    print(f"{len(table)} of {len(rows)} stars")
    for column, name in enumerate(("profiles before", "profiles after", f"flux within {APERTURE} px"), 1):
        median, high, most = (100 * np.quantile(table[:, column], q) for q in (0.5, 0.9, 1))
        print(f"{name:18s} median {median:6.2f} %  p90 {high:6.2f} %  worst {most:6.2f} %")


if __name__ == "__main__":
    main()
