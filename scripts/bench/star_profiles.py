"""Do stars have the same profile in all bands after PSF matching? And is their light kept?

    python scripts/bench/star_profiles.py --pick sky/repo stars.csv
    ripple fetch --repo sky/repo --collections mini --targets stars.csv --bands gri --margin 16 -o cutouts
    ripple preprocess cutouts -o tensors --psf match --normalize none
    python scripts/bench/star_profiles.py cutouts tensors

`--pick` takes the stars of i = 17.8 to 20.5 from the survey's object table and says how much light of catalogued
neighbours lies beside each: the sum of their flux over that of the star, times (1 + (d / 5 px)²)^-1.5, in the
worst band. Looked at are the isolated ones, below 0.005, whose peak is so far above the noise that noise
alone leaves less than 1 %. Stars whose core lies across the border of two cells have two PSFs and are a line of
their own. For the flux, to be kept to 0.002, neighbours must be fainter still, and the whole aperture in one cell. Profiles are normalised to their light within 6 px; the difference to the last band is given as a share
of the peak. A broader PSF has less light within an aperture, which is no loss: the change of the flux is given as
it is and over what the PSFs say. Across a border it is a gain: two halves with different PSFs do not add up.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from ripple.imaging.batch import CutoutBatch, TensorBatch
from ripple.storage.artefact import open_artefact
from ripple.storage.shard_reader import unpack_cutouts, unpack_tensors

CORE, APERTURE = 6, 18  # px; the PSFs end at 20 px
ISOLATED, ALONE = 0.005, 0.003  # light of neighbours beside the star, share of its own
CELL = 150  # px, of the simulated survey
PEAK = 600  # times the noise, in every band: the largest of some hundred differences of two bands is 5 sigma

Stamp = np.ndarray[Any, np.dtype[np.float64]]


def pick(repo: Path, out: Path) -> None:
    """Write stars and the light of their neighbours."""
    from lsst.daf.butler import Butler
    from scipy.spatial import cKDTree

    butler = Butler.from_config(str(repo))
    lines = ["id,ra,dec,crowding"]
    for ref in sorted(butler.registry.queryDatasets("object", collections="*")):
        t = butler.get(ref)
        ra, dec = np.asarray(t["coord_ra"]), np.asarray(t["coord_dec"])
        mag = np.asarray(t["i_psfMag"])
        flux = np.stack([np.asarray(t[f"{band}_cModelFlux"]) for band in "gri"], axis=1)
        place = np.stack([ra * np.cos(np.radians(dec.mean())), dec], axis=1) * 3600 / 0.2
        tree = cKDTree(place)
        star = (np.asarray(t["refExtendedness"]) == 0) & (mag > 17.8) & (mag < 20.5) & t["detect_isPrimary"]
        for k in np.flatnonzero(star):
            near = np.array(tree.query_ball_point(place[k], 60))
            apart = np.linalg.norm(place[near] - place[k], axis=1)
            near, apart = near[apart > 1.5], apart[apart > 1.5]
            beside = (flux[near] / flux[k] * (1 + (apart[:, None] / 5) ** 2) ** -1.5).sum(axis=0).max()
            lines.append(f"{t['objectId'][k]},{ra[k]:.8f},{dec[k]:.8f},{beside:.6f}")
    out.write_text("\n".join(lines) + "\n")


def difference(stamp: Stamp, core: np.ndarray[Any, Any]) -> float:
    """Largest difference of the bands' profiles over the peak; `(B, H, W)`."""
    light = (stamp - np.percentile(stamp, 10, axis=(1, 2), keepdims=True)) * core
    profile = light / light.sum(axis=(1, 2), keepdims=True)
    return float(np.abs(profile - profile[-1]).max() / profile[-1].max())


def enclosed(psf: Stamp) -> Stamp:
    """Share of the light of PSFs `(M, K, K)` within the aperture, `(M,)`."""
    y, x = np.indices(psf.shape[1:]) - psf.shape[1] // 2
    return np.asarray((psf * (np.hypot(y, x) < APERTURE)).sum(axis=(1, 2)) / psf.sum(axis=(1, 2)))


def to_border(catalog: Any, row: int, half: int) -> float:
    """Pixels from the centre of a stamp to the next border of its cell."""
    inside = np.array([catalog["x0"][row] + half, catalog["y0"][row] + half]) % CELL
    return float(np.minimum(inside, CELL - inside).min())


def measured(before: CutoutBatch, after: TensorBatch, margin: int) -> list[list[float]]:
    """Crowding, least peak over noise, differences before and after, flux changes, px to the next cell border:
    one line per good star."""
    size = after.image.shape[-1]
    inner = (..., slice(margin, margin + size), slice(margin, margin + size))
    share = enclosed(before.psf.astype(float))
    table = []
    for row in range(len(before)):
        old, new = before.image[row][inner].astype(float), after.image[row].astype(float)
        if not (np.isfinite(old).all() and after.catalog["accept"][row]):
            continue
        y, x = np.indices((size, size)) - size // 2
        radius = np.hypot(y - before.catalog["dy"][row], x - before.catalog["dx"][row])
        core, aperture = radius < CORE, radius < APERTURE
        width = [after.catalog[f"psf_fwhm_{band}"][row] for band in after.bands]
        noise = np.array([after.catalog[f"noise_{band}"][row] for band in after.bands])
        here = share[before.psf_index[row]]
        change = (new * aperture).sum(axis=(1, 2)) / (old * aperture).sum(axis=(1, 2))
        peak = (new.max(axis=(1, 2), where=core, initial=0) / noise).min()
        table.append([
            before.catalog["crowding"][row], peak, difference(old, core), difference(new, core),
            np.abs(change - 1).max(), np.abs(change * here / here[np.argmax(width)] - 1).max(),
            to_border(before.catalog, row, before.image.shape[-1] // 2),
        ])  # fmt: skip
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pick", action="store_true")
    parser.add_argument("cutouts", type=Path)
    parser.add_argument("tensors", type=Path)
    args = parser.parse_args()
    if args.pick:
        return pick(args.cutouts, args.tensors)
    cutouts, tensors = open_artefact(args.cutouts, "cutouts"), open_artefact(args.tensors, "tensors")
    margin = int(cutouts.manifest["attributes"]["margin"])
    rows = []
    for k in range(len(cutouts.shards)):
        rows += measured(unpack_cutouts(cutouts.read(k)), unpack_tensors(tensors.read(k)), margin)
    every = np.array(rows)
    isolated, bright, one_psf = every[:, 0] < ISOLATED, every[:, 1] > PEAK, every[:, 6] > CORE
    alone = (every[:, 0] < ALONE) & (every[:, 6] > APERTURE)
    for what, table in (
        ("alone, bright, aperture in one cell", every[alone & bright]),
        ("isolated, bright, core in one cell", every[isolated & bright & one_psf]),
        ("isolated, bright, core in two cells", every[isolated & bright & ~one_psf]),
        ("isolated", every[isolated]),
        ("all", every),
    ):
        print(f"{what}: {len(table)} stars")
        if not len(table):
            continue
        for column, name in enumerate(
            ("profiles before", "profiles after", f"flux within {APERTURE} px", "  over that of the PSFs"), 2
        ):
            median, high, most = (100 * np.quantile(table[:, column], q) for q in (0.5, 0.9, 1))
            print(f"  {name:22s} median {median:6.2f} %  p90 {high:6.2f} %  worst {most:6.2f} %")


if __name__ == "__main__":
    main()
