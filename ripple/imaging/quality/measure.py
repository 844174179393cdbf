"""What is measured on each row and band before anything is changed: bad pixels, noise, background, dips.

Cutouts of a crowded sky may show no sky at all: wings of bright galaxies fill them. So the noise comes from
second differences of pixels, not from a scatter about a level, and the background from a comparison of the
bands: light has colours, a constant added to one band has none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ripple.imaging.batch import CutoutBatch
from ripple.imaging.quality.flags import Flag
from ripple.imaging.quality.sky import ENOUGH

Float = NDArray[np.float32]
Bool = NDArray[np.bool_]

#: Measure -> mask planes that count into it.
MASK_MEASURES: dict[str, tuple[str, ...]] = {
    "no_data": ("NO_DATA",),
    "saturated": ("SATURATED", "SAT"),
    "cosmic_ray": ("COSMIC_RAY", "CR"),
    "interpolated": ("INTERPOLATED", "INTRP"),
    "edge": ("DETECTION_EDGE", "EDGE", "SENSOR_EDGE"),
    "suspect": ("SUSPECT", "VIGNETTED", "CROSSTALK", "STREAK", "ITL_DIP", "BRIGHT_OBJECT"),
    "inexact_psf": ("INEXACT_PSF",),
}
#: Planes whose pixels are not a measurement: they are filled before anything else, and `valid` is 0.
UNUSABLE: tuple[str, ...] = ("NO_DATA", "BAD", "SATURATED", "SAT", "UNMASKEDNAN")
BLOCK = 4  # px; block means for signal, background and dips
QUIET_SHARE = (
    0.1  # share of blocks, those of least variance, which sources hardly reach: they fix the noise of the sky
)
COLOUR_ERROR = 0.2  # share of the light by which one band is not a mix of the others
MIN_BLOCKS = 24  # with fewer blocks no background is given
BLOCK_NOISE = 1.2  # noise of a block of correlated pixels over that of white ones
TINY = np.float32(1e-30)
MAX_FLUX = np.float32(1e15)  # nJy, magnitude -6: what is more is damage, and would overflow


@dataclass(frozen=True, slots=True)
class Quality:
    """What was measured on N rows of B bands.

    Parameters
    ----------
    noise, background
        `(N, B)` float32 nJy: noise of a sky pixel, and what was added to the light; NaN without data.
    measures
        Name -> `(N, B)` float32; NaN in missing bands.
    present
        `(N, B)` bands with data.
    """

    noise: Float
    background: Float
    measures: dict[str, Float]
    present: Bool


def usable(batch: CutoutBatch) -> Bool:
    """`(N, B, H, W)` measurements: |flux| < `MAX_FLUX`, 0 < variance < `MAX_FLUX`², no `UNUSABLE` bit.

    A plane whose variance is NaN throughout has none (cutouts from elsewhere): only its image counts.
    """
    from ripple.imaging import loops

    good = np.empty(batch.image.shape, bool)
    planes = (np.ascontiguousarray(a) for a in (batch.image, batch.variance, batch.mask))
    loops.usable(*planes, int(batch.bits(*UNUSABLE)), MAX_FLUX, good)
    return good


def without_variance(variance: Float) -> Bool:
    """`(N, B)` planes of variances `(N, B, H, W)` that have none: NaN throughout."""
    if not variance.shape[2] * variance.shape[3]:
        return np.zeros(variance.shape[:2], bool)
    unknown = np.isnan(variance[:, :, 0, 0])  # one pixel tells for most planes
    unknown[unknown] = np.isnan(variance[unknown]).all(axis=(1, 2))
    return np.asarray(unknown)


def measure(batch: CutoutBatch, good: Bool, sky: Bool, damping: Float | None = None) -> Quality:
    """Measure every band of every row; thresholds are applied later, by `judge`.

    Parameters
    ----------
    batch
        Cutouts without margin.
    good
        From `usable`.
    sky
        From `sky_pixels`: the noise is measured there, or on all of `good` where it is too little.
    damping
        `(B,)` noise of second differences over that of white noise, see `noise.damping`; 1 when None.

    Returns
    -------
    quality
        Shares of pixels (`no_data`, `bad`, ..., and `centre_*` for the central half), `spikes` (count),
        `signal` (sigma of a block), `dip` and `background` (sigma of a pixel), `noise_ratio`.
    """
    from ripple.imaging import loops

    # Trimmed cutouts are views: the loops are twice as fast on copies, which cost little.
    image, variance = np.ascontiguousarray(batch.image), np.ascontiguousarray(batch.variance)
    mask, good = np.ascontiguousarray(batch.mask), np.ascontiguousarray(good)
    crowded = sky.mean(axis=(2, 3)) < ENOUGH
    sky = np.where(crowded[..., None, None], good, sky)
    measures, present = _mask_shares(batch, variance, mask, good)
    n, b, h, w = image.shape
    unknown = present & without_variance(variance)
    # Without a variance plane, 1 stands in: the ratio then is the noise itself.
    if unknown.any():
        variance = variance.copy()
        variance[unknown] = 1
    k = BLOCK if min(h, w) >= 4 * BLOCK else 1  # cutouts below 16 px: single pixels
    means, spread = (np.empty((n, b, h // k, w // k), np.float32) for _ in range(2))
    loops.block_means(image, variance, good, k, means, spread)
    ratio = np.full((n, b), np.nan, np.float32)
    loops.noise_ratios(image, variance, sky, ratio)
    if damping is not None:
        ratio /= damping
    noise = ratio * np.sqrt(_quantile(spread, QUIET_SHARE))
    # TINY: a plane without noise must not divide by zero.
    unit = np.maximum(noise, TINY)
    blocks = np.asarray(means / unit[..., None, None], np.float32)
    measures["noise_ratio"] = np.where(unknown, np.float32(np.nan), ratio)
    measures |= _signal_and_dip(blocks, k)
    measures["background"] = offsets(blocks.reshape(n, b, (h // k) * (w // k)), present, BLOCK_NOISE / k)
    # Above the median block, so that a spike on a galaxy is compared with its surroundings.
    level = _quantile(means, 0.5)
    count = np.zeros((n, b), np.float32)
    loops.spikes(image, good, np.nan_to_num(level), np.nan_to_num(noise, nan=np.inf), count)
    measures["spikes"] = count
    for name, values in measures.items():
        # These three say why a band is missing, so they keep their values.
        if name not in ("no_data", "bad", "missing_cell"):
            values[~present] = np.nan
    return Quality(noise, measures["background"] * unit, measures, present)


def _mask_shares(
    batch: CutoutBatch, variance: Float, mask: NDArray[np.uint32], good: Bool
) -> tuple[dict[str, Float], Bool]:
    """Shares of pixels per mask measure, whole cutout and centre, and which planes have a good pixel."""
    from ripple.imaging import loops

    n, b, h, w = good.shape
    seen = np.zeros((n, b), np.uint32)
    missing, bad, centre_bad = (np.zeros((n, b), np.int64) for _ in range(3))
    loops.count_pixels(variance, mask, good, seen, missing, bad, centre_bad)
    y, x = slice(h // 4, h - h // 4), slice(w // 4, w - w // 4)
    out: dict[str, Float] = {}
    for name, planes in MASK_MEASURES.items():
        bits = batch.bits(*planes)
        whole, centre = np.zeros((n, b), np.float32), np.zeros((n, b), np.float32)
        where = np.nonzero(seen & bits)
        if len(where[0]):  # planes without the bit cost nothing
            hit = (mask[where] & bits) != 0
            whole[where] = hit.mean(axis=(1, 2))
            centre[where] = hit[:, y, x].mean(axis=(1, 2))
        out[name] = whole
        if f"CENTRE_{name.upper()}" in Flag.__members__:
            out[f"centre_{name}"] = centre
    middle = max((y.stop - y.start) * (x.stop - x.start), 1)
    out["bad"] = (bad / max(h * w, 1)).astype(np.float32)
    out["centre_bad"] = (centre_bad / middle).astype(np.float32)
    out["missing_cell"] = (missing / max(h * w, 1)).astype(np.float32)
    return out, bad < h * w


def _quantile(blocks: Float, fraction: float) -> Float:
    """A quantile of the finite blocks of each plane, `(N, B)`; NaN without any."""
    n, b, rows, cols = blocks.shape
    flat = np.sort(blocks.reshape(n, b, rows * cols), axis=-1)  # NaN last
    count = np.count_nonzero(~np.isnan(flat), axis=-1)
    place = (fraction * np.maximum(count - 1, 0)).astype(np.intp)
    return np.asarray(np.take_along_axis(flat, place[..., None], -1)[..., 0])


def _signal_and_dip(blocks: Float, k: int) -> dict[str, Float]:
    """Brightest block of the centre, and darkest 2 x 2 blocks, from block means in units of the noise."""
    rows, cols = blocks.shape[2:]
    y, x = slice(rows // 4, rows - rows // 4), slice(cols // 4, cols - cols // 4)
    peak = np.fmax.reduce(blocks[:, :, y, x], axis=(2, 3), initial=-np.inf)
    tall = blocks[:, :, 1:] + blocks[:, :, :-1]
    square = tall[..., 1:] + tall[..., :-1]
    lowest = np.fmin.reduce(square, axis=(2, 3), initial=np.inf) / 4
    with np.errstate(invalid="ignore"):
        signal = (peak - _quantile(blocks, 0.5)) * k / BLOCK_NOISE
    lowest[np.isinf(lowest)] = np.nan
    return {"signal": signal.astype(np.float32), "dip": -lowest.astype(np.float32)}


def offsets(blocks: Float, present: Bool, noise: float) -> Float:
    """What was added to each band, from comparing the bands of a row.

    Parameters
    ----------
    blocks
        `(N, B, K)` block means.
    present
        `(N, B)` bands with data.
    noise
        Noise of a block.

    Returns
    -------
    offset
        `(N, B)` float32 in the unit of `blocks`; NaN where too few blocks are known.

    Notes
    -----
    Each band is fitted by the others and a constant, by least squares with weights that let the faintest
    blocks decide. Wings of galaxies, however far they reach, have the colours of galaxies and leave the
    constant at zero. A single band has nothing to compare with: then wings and a positive offset look the
    same, and only a negative level counts.
    """
    from ripple.imaging import loops

    n, b, _ = blocks.shape
    known = np.where(present[..., None], blocks, np.float32(0))
    sums = np.zeros((n, b + 1, b + 1))
    loops.normal_matrices(known, noise, COLOUR_ERROR, sums)
    # The ridge decides where a band has no structure: no slope, so that the constant is the level.
    ridge = np.eye(b + 1) * (1e-3 / noise**2)
    inverse = np.linalg.inv(sums + ridge)
    alone = present.sum(axis=1) < 2
    with np.errstate(all="ignore"):
        out = -inverse[:, 1:, 0] / np.diagonal(inverse, axis1=1, axis2=2)[:, 1:]
        level = sums[:, 0, 1:] / sums[:, 0, :1]
    out[alone] = np.minimum(level[alone], 0)
    out[np.isfinite(known).all(axis=1).sum(axis=1) < MIN_BLOCKS] = np.nan
    return out.astype(np.float32)
