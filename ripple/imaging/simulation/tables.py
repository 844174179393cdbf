"""Tables of the simulated sky: the truth, and what a survey catalogue would say."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripple.imaging.simulation.observing import BANDS, Conditions, flux, magnitude
from ripple.imaging.simulation.population import UGRIZY, Scene
from ripple.imaging.simulation.render import arc_measures
from ripple.sky.geometry import Tan

Columns = dict[str, NDArray[Any]]


def object_ids(tract: int, patch: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Identifiers in the manner of DP2: tract, patch, running number within the patch; 18 digits at most."""
    # Stable, so that numbers within a patch follow the order of the objects.
    order = np.argsort(patch, kind="stable")
    first = np.searchsorted(patch[order], patch[order], side="left")
    number = np.empty(len(patch), np.int64)
    number[order] = np.arange(len(patch)) - first + 1
    return (np.int64(tract) * 100_000 + patch.astype(np.int64)) * 100_000 + number


def truth_table(
    scene: Scene,
    ids: NDArray[np.int64],
    tan: Tan,
    patch: NDArray[np.int64],
    arcs: dict[int, NDArray[np.float64]],
    bands: tuple[str, ...],
) -> Columns:
    """Truth of the targets.

    Parameters
    ----------
    scene
        What was drawn.
    ids, patch
        `(T,)` of the targets.
    tan
        Projection of the tract.
    arcs
        Target row -> tally of its lensed light, from `render_strip`.
    bands
        Bands of the tally.

    Returns
    -------
    columns
        `objectId`, `ra`, `dec` (deg), `tract` is left to the caller, `patch`, `label` (1 lens, 0 not),
        `class`, `theta_E` (arcsec), `z_lens`, `z_source`, `sigma_v` (km/s), `lens_mag_i`, `source_mag` (i,
        unlensed), `arc_mag_g`, `arc_mag_i` (lensed total), `magnification`, `arc_sb` (mag/arcsec²,
        flux-weighted mean after the PSF, in g or the bluest band there is), `arc_snr` (in the band where it
        is best), `arc_snr_band`. NaN where there is no arc. With sources of a survey also `source_kind`
        (blue, clumpy or red; empty where there is no arc).
    """
    t = scene.targets
    ra, dec = tan.pixel_to_sky(t["x"], t["y"])
    lens = t["kind"] == "lens"
    gain, sb, snr = (np.full(len(ids), np.nan) for _ in range(3))
    best = np.full(len(ids), "", dtype="<U1")
    blue = bands.index("g") if "g" in bands else 0
    for row, tally in sorted(arcs.items()):
        measures = arc_measures(tally)
        k = int(np.argmax(measures[:, 2]))
        source = flux(t["source_mags"][row, [UGRIZY.index(b) for b in bands]])
        # Magnification is the ratio of lensed to unlensed flux, averaged over bands.
        gain[row], sb[row] = float(np.mean(tally[:, 0] / source)), measures[blue, 1]
        snr[row], best[row] = measures[k, 2], bands[k]
    # Lensing is achromatic: one magnification for all bands.
    arc = t["source_mags"] - 2.5 * np.log10(gain)[:, None]
    return {
        "objectId": ids,
        "ra": ra,
        "dec": dec,
        "patch": patch.astype(np.int32),
        "label": lens.astype(np.int8),
        "class": t["kind"].astype(str),
        "theta_E": t["theta_E"],
        "z_lens": t["z_lens"],
        "z_source": t["z_source"],
        "sigma_v": t["sigma_v"],
        "lens_mag_i": t["lens_mags"][:, 3],
        "lens_re": t["re"],
        "source_mag": t["source_mags"][:, 3],
        "arc_mag_g": arc[:, 1],
        "arc_mag_i": arc[:, 3],
        "magnification": gain,
        "arc_sb": sb,
        "arc_snr": snr,
        "arc_snr_band": best,
        **({"source_kind": t["source_kind"]} if "source_kind" in t else {}),
    }


def object_table(
    scene: Scene,
    tan: Tan,
    ids: NDArray[np.int64],
    patch: NDArray[np.int64],
    c: Conditions,
    tract: int,
    seed: int,
) -> Columns:
    """A catalogue with the column names of DP2: targets, then field; objects with S/N > 5 in some band.

    Parameters
    ----------
    scene
        What was drawn.
    tan
        Projection of the tract.
    ids, patch
        `(T + F,)` of targets and field objects.
    c
        PSF and noise, for the errors.
    tract
        Tract.
    seed
        Seed of the scatter.

    Notes
    -----
    Fluxes are the true ones scattered by their errors, not measured on the pixels: a target's holds its
    deflector and half of what surrounds it, as a deblender would share it out.
    """
    rng = np.random.default_rng([seed, 5])
    fluxes, re, star, x, y = _true_fluxes(scene)
    ra, dec = tan.pixel_to_sky(x, y)
    out: Columns = {
        "objectId": ids,
        "coord_ra": ra,
        "coord_dec": dec,
        "tract": np.full(len(x), tract, np.int32),
        "patch": patch.astype(np.int32),
    }
    best_snr = np.zeros(len(x))
    for k, band in enumerate(UGRIZY):
        if band in c.bands:
            measured, snr = _photometry(rng, fluxes[:, k], re, band)
            out |= measured
            best_snr = np.maximum(best_snr, snr)
    # Half a PSF width over the S/N: the usual centroid error.
    blur = 0.5 / np.clip(best_snr, 5.0, None) / 3600.0
    out["coord_ra"] = ra + rng.standard_normal(len(x)) * blur / np.cos(np.radians(dec))
    out["coord_dec"] = dec + rng.standard_normal(len(x)) * blur
    out["refExtendedness"] = np.where(star, 0.0, 1.0).astype(np.float32)
    out["refBand"] = np.full(len(x), "i" if "i" in c.bands else c.bands[0])
    out["detect_isPrimary"] = np.ones(len(x), bool)
    # Detected in some band, and in a patch that is simulated.
    keep = (best_snr > 5.0) & (patch >= 0)
    return {name: column[keep] for name, column in out.items()}


def _true_fluxes(scene: Scene) -> tuple[Any, Any, Any, Any, Any]:
    """Fluxes (N, 6), sizes, star flags and positions of targets and field."""
    t, f = scene.targets, scene.field
    fluxes = flux(np.concatenate([t["lens_mags"], f["mags"]]))
    for p in scene.painted:
        # Half: a deblender gives the other half of arcs and companions to objects of their own.
        if p.row >= 0:
            fluxes[p.row] += 0.5 * np.sum([part[1] for part in p.parts], axis=0)
    re = np.concatenate([t["re"], f["re"]])
    star = np.concatenate([t["kind"] == "star", f["star"]])
    return fluxes, re, star, np.concatenate([t["x"], f["x"]]), np.concatenate([t["y"], f["y"]])


def _photometry(
    rng: np.random.Generator, true: NDArray[np.float64], re: NDArray[np.float64], band: str
) -> tuple[Columns, NDArray[np.float64]]:
    """CModel and PSF fluxes of one band with errors and magnitudes, and the S/N."""
    facts = BANDS[band]
    width = facts.fwhm / 2.3548  # arcsec, sigma
    # An extended object is measured in an aperture that grows with it; a PSF fit sees its core.
    spread = 1.0 + (re / 1.3 / width) ** 2
    error = float(flux(facts.depth)) / 5.0  # nJy: depth is 5 sigma
    poisson = facts.njy_per_electron * np.clip(true, 0.0, None)
    out: Columns = {}
    for name, value, sigma in (
        ("cModel", true, np.sqrt(error**2 * spread + poisson)),
        ("psf", true / spread, np.sqrt(error**2 + poisson / spread)),
    ):
        noisy = value + sigma * rng.standard_normal(len(value))
        out[f"{band}_{name}Flux"], out[f"{band}_{name}FluxErr"] = (
            noisy.astype(np.float32),
            sigma.astype(np.float32),
        )
        out[f"{band}_{name}Mag"] = magnitude(noisy).astype(np.float32)
        # 1.0857 = 2.5 / ln 10.
        out[f"{band}_{name}MagErr"] = (1.0857 * sigma / np.abs(noisy)).astype(np.float32)
    return out, np.asarray(true / np.sqrt(error**2 * spread))
