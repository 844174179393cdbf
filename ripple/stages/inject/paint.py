"""Arcs of one row: what is drawn, seen through the PSFs of its cells, and measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from ripple.errors import CatalogueError
from ripple.imaging.batch import CutoutBatch
from ripple.imaging.quality.measure import usable
from ripple.imaging.simulation.colours import blue_magnitudes
from ripple.imaging.simulation.lensed import light, picture_light
from ripple.imaging.simulation.lensing import Deflector, image_count
from ripple.imaging.simulation.observing import BANDS, flux, magnitude, noise_sigma
from ripple.imaging.simulation.population import UGRIZY, source_redshifts
from ripple.imaging.simulation.profiles import Complex, Knot, Lensed, Sersic, shift
from ripple.imaging.simulation.sources import draw_source, half_light_radius, mass_of_light
from ripple.stages.inject.config import InjectConfig
from ripple.stages.inject.lenses import REDSHIFTS, Lenses
from ripple.stages.inject.sources import Sources

#: Planes convolved at a time.
CHUNK = 8
#: Redshift of a deflector that has none in the catalogue: the middle of those of `ripple simulate`.
TYPICAL_Z = 0.55


def host_facts(batch: CutoutBatch) -> dict[str, NDArray[np.float64]]:
    """Depth of each band, 5 sigma for a point source, and the largest share of unusable pixels, `(N,)` each.

    The noise is that of the median pixel and is taken to be white; the area is that of a matched filter, `1 /
    sum PSF²`. NaN without a PSF, a variance, or any data.
    """
    area = 1.0 / np.maximum((batch.psf.astype(np.float64) ** 2).sum(axis=(1, 2)), 1e-12)
    good = usable(batch)
    present = np.isfinite(batch.image).any(axis=(2, 3))
    share = np.where(present, 1.0 - good.mean(axis=(2, 3)), np.nan)
    facts = {"host_bad": np.where(present.any(axis=1), np.where(present, share, 0.0).max(axis=1), np.nan)}
    for b, band in enumerate(batch.bands):
        index = batch.psf_index[:, b]
        depth = np.full(len(batch), np.nan)
        for k in np.flatnonzero(index >= 0):
            noise = batch.variance[k, b][good[k, b] & np.isfinite(batch.variance[k, b])]
            if len(noise):
                depth[k] = float(magnitude(5.0 * np.sqrt(float(np.median(noise)) * area[index[k]])))
        facts[f"depth_{band}"] = depth
    return facts


def has_psf(batch: CutoutBatch, k: int) -> bool:
    """Whether row k has a PSF in every band that has data."""
    has_data = np.isfinite(batch.image[k]).any(axis=(1, 2))
    return bool(has_data.any() and (batch.psf_index[k][has_data] >= 0).all())


@dataclass(frozen=True)
class Light:
    """Lensed light before the PSF.

    Parameters
    ----------
    spectrum
        Transform `(P, S, S // 2 + 1)` of a source of unit flux, P 1 or the number of bands.
    fluxes
        `(B,)` of the source before lensing, nJy.
    facts
        What is known of it, by the names of the columns.
    """

    spectrum: Complex
    fluxes: NDArray[np.float64]
    facts: dict[str, float]

    def seen(self, batch: CutoutBatch, k: int) -> NDArray[np.float32]:
        """Arcs `(B, H, W)` in nJy, convolved with the PSFs of row k."""
        return through_psf(self.spectrum, batch, k) * self.fluxes[:, None, None].astype(np.float32)


def drawn_light(
    batch: CutoutBatch, k: int, config: InjectConfig, theta: float, rng: np.random.Generator
) -> Light:
    """A source that is drawn, lensed by a mass that follows the light of row k; `theta` in arcsec."""
    i_mag = float(rng.uniform(config.source_bright, config.source_faint))
    # Colours of blue star-forming galaxies, in all of ugrizy; then those of the bands here.
    fluxes = flux(blue_magnitudes(rng, np.array([i_mag]))[0])[[UGRIZY.index(b) for b in batch.bands]]
    q, angle = light_shape(batch.image[k], batch.catalog, k)
    lensed = draw_lensed(rng, theta / batch.pixel_scale, q, angle, batch.pixel_scale)
    return _of_profile(batch, k, lensed, fluxes, {"theta_E": theta, "source_mag": i_mag})


def survey_light(
    batch: CutoutBatch, k: int, theta: float, z_source: float, rng: np.random.Generator
) -> Light | None:
    """As `drawn_light`, with a source that a survey finds behind it, if any.

    `z_source`, for its colours, may be NaN: then it is as far behind a typical deflector as those of
    `ripple simulate`.
    """
    q, angle = light_shape(batch.image[k], batch.catalog, k)
    lens = draw_mass(rng, theta / batch.pixel_scale, q, angle, float(rng.uniform(0.0, 2.0 * np.pi)))
    z = z_source if np.isfinite(z_source) else float(source_redshifts(rng, np.array([TYPICAL_Z]))[0])
    found = draw_source(rng, lens, z, batch.pixel_scale)
    if found is None:
        return None
    fluxes = flux(found.mags)[[UGRIZY.index(b) for b in batch.bands]]
    known = {"theta_E": theta, "source_mag": float(found.mags[3])}
    return _of_profile(batch, k, found.shape, fluxes, known)


def drawn_picture(
    batch: CutoutBatch, k: int, theta: float, sources: Sources, row: int, rng: np.random.Generator
) -> Light:
    """As `drawn_light`, with a picture of the user in place of the profile, turned by a drawn angle."""
    q, angle = light_shape(batch.image[k], batch.catalog, k)
    drawn = draw_lensed(rng, theta / batch.pixel_scale, q, angle, batch.pixel_scale)
    at = drawn.source.dx, drawn.source.dy
    turn = float(rng.uniform(0.0, 2.0 * np.pi))
    return _of_picture(batch, k, drawn.lens, at, (0.0, 0.0), sources, row, turn, {"theta_E": theta})


def given_light(batch: CutoutBatch, k: int, lenses: Lenses, row: int, sources: Sources | None) -> Light:
    """A lens of the user, whose source is a profile or a picture."""
    known = {name: float(lenses.values[name][row]) for name in ("theta_E", *REDSHIFTS)}
    if sources is not None and lenses.pictures is not None:
        lens, at, centre = lenses.placed(row, batch.pixel_scale)
        picture = int(lenses.pictures[row])
        return _of_picture(batch, k, lens, at, centre, sources, picture, lenses.turn(row), known)
    lensed, dx, dy = lenses.lensed(row, batch.pixel_scale)
    mags = lenses.mags[row]
    return _of_profile(batch, k, lensed, flux(mags), known | {"source_mag": _in_i(batch, mags)}, dx, dy)


def _in_i(batch: CutoutBatch, mags: NDArray[np.float64]) -> float:
    return float(mags[batch.bands.index("i")]) if "i" in batch.bands else np.nan


def _of_picture(
    batch: CutoutBatch,
    k: int,
    lens: Deflector,
    at: tuple[float, float],
    centre: tuple[float, float],
    sources: Sources,
    row: int,
    turn: float,
    known: dict[str, float],
) -> Light:
    """A picture `at` a place seen from the lens, whose `centre` lies from the target; pixels."""
    try:
        picture = sources.picture(row, batch.pixel_scale, turn, *at)
    except CatalogueError as err:
        raise CatalogueError(f"source {row}: {err.message}") from None
    off = max(float(np.hypot(*at)) - lens.theta_e, 0.0) + float(np.hypot(*centre))
    size = grid_size(batch, 2.2 * lens.theta_e + 2.0 * picture.radius + off)
    dx, dy = (float(batch.catalog[name][k]) + v for name, v in zip(("dx", "dy"), centre, strict=True))
    mags = sources.mags[row]
    spectrum = picture_light(lens, picture, size, dx, dy)
    known = known | {"source_mag": _in_i(batch, mags), "source_re": picture.half_light * batch.pixel_scale}
    return _light(spectrum, flux(mags), lens, at, known)


def _of_profile(
    batch: CutoutBatch,
    k: int,
    lensed: Lensed,
    fluxes: NDArray[np.float64],
    known: dict[str, float],
    dx: float = 0.0,
    dy: float = 0.0,
) -> Light:
    """A smooth source; `known` is what is known of it."""
    spectrum = profile_spectrum(lensed, batch, k, dx, dy)
    known = known | {"source_re": lensed.source.re * batch.pixel_scale}
    return _light(spectrum, fluxes, lensed.lens, (lensed.source.dx, lensed.source.dy), known)


def _light(
    spectrum: Complex,
    fluxes: NDArray[np.float64],
    lens: Deflector,
    at: tuple[float, float],
    known: dict[str, float],
) -> Light:
    # Lensed over unlensed flux: that at frequency 0, of several bands the mean.
    magnification = float(spectrum[:, 0, 0].real.mean())
    return Light(
        spectrum, fluxes, {**known, "magnification": magnification, "images": float(image_count(lens, *at))}
    )


def over_seeing(theta: float, batch: CutoutBatch, k: int, widths: NDArray[np.float64]) -> dict[str, float]:
    """Einstein radius over the mean FWHM of the PSFs of row k; `widths` are those of all PSFs, arcsec."""
    mine = widths[[index for index in batch.psf_index[k] if index >= 0]]
    seeing = float(mine[np.isfinite(mine)].mean()) if np.isfinite(mine).any() else np.nan
    return {"theta_E_over_seeing": theta / seeing}


def draw_lensed(rng: np.random.Generator, theta: float, q: float, angle: float, pixel_scale: float) -> Lensed:
    """A deflector whose mass follows the light, and a source that it images more than once.

    Parameters
    ----------
    rng
        Random generator.
    theta
        Einstein radius, pixels.
    q, angle
        Axis ratio and position angle (rad) of the light.
    pixel_scale
        Arcsec per pixel.
    """
    turn = rng.uniform(0.0, 2.0 * np.pi, 2)
    lens = draw_mass(rng, theta, q, angle, float(turn[0]))
    # Uniform in area within 0.85 Einstein radii, where a source has several images.
    beta = 0.85 * theta * float(np.sqrt(rng.uniform()))
    re = half_light_radius(rng) / pixel_scale
    tilt = float(rng.uniform(0.4, 1.0)), float(rng.uniform(0.0, np.pi))
    index = float(rng.choice([0.7, 1.0, 1.5]))
    source = Sersic(index, re, *tilt, beta * float(np.cos(turn[1])), beta * float(np.sin(turn[1])))
    # Up to 35 % of the light in a knot, as in star-forming galaxies: it makes arcs clumpy.
    knot = rng.normal(0.0, 0.5 * re, 2)
    return Lensed(lens, source, (Knot(float(rng.uniform(0.0, 0.35)), float(knot[0]), float(knot[1])),))


def draw_mass(rng: np.random.Generator, theta: float, q: float, angle: float, turn: float) -> Deflector:
    """A deflector whose mass follows the light, and a shear in the direction of `turn` / 2, radians."""
    # External shear of a few per cent.
    gamma = float(np.clip(rng.rayleigh(0.04), 0.0, 0.15))
    shear = gamma * float(np.cos(turn)), gamma * float(np.sin(turn))
    return Deflector(theta, *mass_of_light(rng, q, angle), *shear)


def light_shape(image: NDArray[np.float32], catalog: dict[str, NDArray[Any]], k: int) -> tuple[float, float]:
    """Axis ratio and position angle of the central light: weighted moments of the reddest band with data.

    Parameters
    ----------
    image
        `(B, H, W)` of row `k`.
    catalog
        Has `dx`, `dy`: the target's offset from the central pixel.
    k
        Row of the catalogue.

    Returns
    -------
    q, angle
        Axis ratio in [0.5, 1], rad from x. Moments are weighted with a Gaussian of 4 pixels, which makes
        objects rounder; the PSF does so too. `q` undoes neither, mass being rounder than light.
    """
    # In the reddest band the light of old stars, and so of the deflector, dominates.
    plane = next((p for p in image[::-1] if np.isfinite(p).any()), image[-1])
    height, width = plane.shape
    y, x = np.mgrid[:height, :width].astype(float)
    x -= width // 2 + float(catalog["dx"][k])
    y -= height // 2 + float(catalog["dy"][k])
    light = np.clip(np.nan_to_num(plane, nan=0.0, posinf=0.0, neginf=0.0), 0.0, None)
    weight = light * np.exp(-(x * x + y * y) / 32.0)
    total = float(weight.sum())
    if total <= 0.0:  # no light: a round deflector
        return 1.0, 0.0
    xx, yy, xy = (float((weight * m).sum()) / total for m in (x * x, y * y, x * y))
    e1, e2 = (xx - yy) / (xx + yy), 2.0 * xy / (xx + yy)
    # Below 0.6, so that a neighbour in the window does not give an extreme axis ratio.
    e = min(float(np.hypot(e1, e2)), 0.6)
    return max(float(np.sqrt((1.0 - e) / (1.0 + e))), 0.5), 0.5 * float(np.arctan2(e2, e1))


def profile_spectrum(lensed: Lensed, batch: CutoutBatch, k: int, dx: float = 0.0, dy: float = 0.0) -> Complex:
    """Transform `(1, S, S // 2 + 1)` of the arcs of a source of unit flux, without a PSF.

    Parameters
    ----------
    lensed
        The lens and its source, pixels.
    batch, k
        Cutouts, and the row.
    dx, dy
        Centre of the lens from the target, pixels.
    """
    # A source far outside is seen about where it is, and the lens may lie off the target.
    off = max(float(np.hypot(lensed.source.dx, lensed.source.dy)) - lensed.lens.theta_e, 0.0) + np.hypot(
        dx, dy
    )
    reach = 2.2 * lensed.lens.theta_e + 4.0 * lensed.source.re + off
    at = float(batch.catalog["dx"][k]) + dx, float(batch.catalog["dy"][k]) + dy
    return light(lensed, grid_size(batch, reach), *at)[None]


def grid_size(batch: CutoutBatch, reach: float) -> int:
    """Side of the grid, even, on which light that reaches so far, pixels, goes through PSFs.

    The FFT is periodic: the grid holds cutout and arcs, and what wraps around is out of reach of the PSF.
    """
    side = max(batch.image.shape[2:])
    kernel = batch.psf.shape[-1] if len(batch.psf) else 1
    least = max(side, 2.0 * reach, reach + (side + kernel) / 2 + 1)
    return 2 * int(scipy.fft.next_fast_len(int(np.ceil(least / 2)), real=True))


def through_psf(spectrum: Complex, batch: CutoutBatch, k: int) -> NDArray[np.float32]:
    """What a row sees of light with a transform `(P, S, S // 2 + 1)`, in each cell with the PSF of the cell.

    P is 1, for all bands, or their number. `(B, H, W)`; zero in bands without a PSF. Its sum is that of the
    light if all of it lies inside the cutout.
    """
    height, width = batch.image.shape[2:]
    size, kernel = spectrum.shape[-2], batch.psf.shape[-1] if len(batch.psf) else 1
    y0, x0 = size // 2 - height // 2, size // 2 - width // 2
    seen = np.zeros((len(batch.bands), height, width), np.float32)
    # First all of each band with the PSF of the centre, then the parts that lie in other cells of the coadd.
    parts = [(b, 0, height, 0, width, index) for b, index in enumerate(batch.psf_index[k]) if index >= 0]
    first, last = np.searchsorted(batch.psf_cells[:, 0], (k, k + 1))
    parts += batch.psf_cells[first:last, 1:].tolist()
    # The centre of each PSF at pixel (0, 0), so that convolving does not shift.
    centred = spectrum * shift(size, -(size // 2) - kernel // 2, -(size // 2) - kernel // 2)
    # Some at a time: all parts in all bands would be megabytes.
    for start in range(0, len(parts), CHUNK):
        some = parts[start : start + CHUNK]
        psf = scipy.fft.rfft2(batch.psf[[part[5] for part in some]], s=(size, size))
        psf *= centred[[part[0] for part in some]] if len(centred) > 1 else centred
        whole = scipy.fft.irfft2(psf, s=(size, size))[:, y0 : y0 + height, x0 : x0 + width]
        for (b, top, bottom, left, right, _), plane in zip(some, whole, strict=True):
            seen[b, top:bottom, left:right] = plane[top:bottom, left:right]
    return seen


def gain(batch: CutoutBatch, k: int) -> NDArray[np.float64]:
    """Flux of one electron in each band, nJy: that of a DP2 coadd, scaled to the depth of this row."""
    out = np.zeros(len(batch.bands))
    for b, band in enumerate(batch.bands):
        good = batch.variance[k, b][np.isfinite(batch.variance[k, b])]
        # Twice the exposure: half the sky variance in nJy², and half the flux of an electron.
        if len(good):
            out[b] = BANDS[band].njy_per_electron * float(np.median(good)) / noise_sigma(band) ** 2
    return out


def add_arcs(
    image: NDArray[np.float32],
    variance: NDArray[np.float32],
    arcs: NDArray[np.float32],
    gain: NDArray[np.float64],
    rng: np.random.Generator,
) -> None:
    """Add arcs and their photon noise in place, to pixels that have data."""
    # Variance in nJy² of n electrons of g nJy each: n g² = flux * g. The FFT leaves tiny negative fluxes.
    photons = np.maximum(arcs, np.float32(0)) * gain[:, None, None].astype(np.float32)
    noise = rng.standard_normal(arcs.shape, np.float32) * np.sqrt(photons)
    good = np.isfinite(image) & np.isfinite(variance)
    np.add(image, arcs + noise, out=image, where=good)
    np.add(variance, photons, out=variance, where=good)


def arc_facts(
    arcs: NDArray[np.float32], variance: NDArray[np.float32], batch: CutoutBatch
) -> dict[str, float]:
    """Magnitude, matched-filter S/N and surface brightness of arcs as they were painted, in each band."""
    usable = np.isfinite(variance) & (variance > 0)
    ratio = np.divide(arcs**2, variance, out=np.zeros_like(arcs), where=usable)
    facts: dict[str, float] = {}
    for b, band in enumerate(batch.bands):
        total = float(arcs[b].sum(dtype=np.float64))
        mean = float((arcs[b] ** 2).sum(dtype=np.float64)) / total if total > 0 else np.nan
        facts[f"arc_mag_{band}"] = float(magnitude(total))
        # The S/N of a perfect template: sqrt(sum f² / var).
        facts[f"arc_snr_{band}"] = float(np.sqrt(ratio[b].sum(dtype=np.float64)))
        facts[f"arc_sb_{band}"] = float(magnitude(mean / batch.pixel_scale**2))
    blue = min(batch.bands, key="ugrizy".index)
    best = max(facts[f"arc_snr_{band}"] for band in batch.bands)
    return facts | {"arc_snr": best, "arc_sb": facts[f"arc_sb_{blue}"]}
