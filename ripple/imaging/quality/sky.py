"""Sky pixels: those of no source, by the mask that came with the data, else by a detection of our own.

Light of galaxies varies smoothly, and would count as noise that is correlated. A detection needs neither
catalogue nor PSF here: the bands are added, smoothed, and compared with the faint half of the cutout.
"""

from __future__ import annotations

import numpy as np
import scipy
from numpy.typing import NDArray

from ripple.imaging.batch import CutoutBatch

Float = NDArray[np.float32]
Bool = NDArray[np.bool_]

DETECTED: tuple[str, ...] = ("DETECTED", "DETECTED_NEGATIVE")
SMOOTH = 2.0  # px, sigma of the smoothing: as wide as the seeing
SIGMAS = 2.5  # above the level of the faint half; what is missed is fainter than a tenth of the noise
GROW = 7  # px, side of the square by which sources are grown
ROUNDS = 8
#: Noise of the smoothed sum over that of white noise, above which a cutout has no sky to compare with.
CROWDED = 6.0
#: Sky pixels, as a share, below which the noise is measured on all pixels.
ENOUGH = 0.15


def sky_pixels(batch: CutoutBatch, good: Bool) -> Bool:
    """`(N, B, H, W)` pixels of `good` without a source.

    Rows in which no band has a pixel DETECTED came without such a mask, or show nothing: their sources are
    detected here, in all bands together. A row that is all source has no sky.

    Parameters
    ----------
    batch
        N rows.
    good
        Pixels that are a measurement.
    """
    found = (batch.mask & batch.bits(*DETECTED)) != 0
    bare = np.flatnonzero(~found.any(axis=(1, 2, 3)))
    if len(bare):
        found[bare] = detect_sources(batch.image[bare], good[bare])[:, None]
    sky: Bool = good & ~found
    return sky


def detect_sources(image: Float, good: Bool, noise: Float | None = None) -> Bool:
    """Pixels with light of a source, `(N, H, W)`, from all bands of `image` `(N, B, H, W)` together.

    `noise` `(N, B)` is that of the pixels where it is known, as in images of matched PSFs, whose noise varies
    so smoothly that it would be taken for light; without it, it is measured as if it were white.
    """
    summed = _sum_of_bands(image, good, white_noise(image, good) if noise is None else noise)
    # Near the edge the image is continued by its last pixels.
    smooth = scipy.ndimage.gaussian_filter(summed, (0, SMOOTH, SMOOTH), mode="nearest")
    # The smoothing leaves this of white noise of 1, and at most all of noise that varies together.
    most = CROWDED / (2 * np.sqrt(np.pi) * SMOOTH) if noise is None else 1.0
    out = np.zeros(smooth.shape, bool)
    for k, plane in enumerate(smooth):
        level, spread = _faint_half(plane.ravel())
        out[k] = True if spread > most else plane > level + SIGMAS * spread
    return np.asarray(scipy.ndimage.maximum_filter(out, (1, GROW, GROW)))


def white_noise(image: Float, pixels: Bool) -> Float:
    """Noise of the `pixels` of each plane, `(N, B)` in the unit of the image, as if it were white."""
    from ripple.imaging import loops

    noise = np.full(image.shape[:2], np.nan, np.float32)
    image = np.ascontiguousarray(image, np.float32)
    loops.noise_ratios(image, np.ones_like(image), np.ascontiguousarray(pixels), noise)
    return noise


def _sum_of_bands(image: Float, good: Bool, noise: Float) -> Float:
    """`(N, H, W)` sum of the bands, each over its noise, of noise about 1; bad pixels at the median."""
    n, b = image.shape[:2]
    image = np.ascontiguousarray(image, np.float32)
    total = np.zeros((n, *image.shape[2:]), np.float32)
    for k in range(n):
        # A noise from elsewhere may be that of a band without any good pixel here.
        bands = [j for j in range(b) if noise[k, j] > 0 and good[k, j].any()]
        for j in bands:
            plane, use = image[k, j], good[k, j]
            total[k] += np.where(use, plane, np.median(plane[use])) / (noise[k, j] * np.sqrt(len(bands)))
    return total


def _faint_half(values: Float) -> tuple[float, float]:
    """Level and spread of what is left when bright values are cut off again and again.

    The spread is that of the lower half, which light of sources does not widen.
    """
    for _ in range(ROUNDS):
        level = float(np.median(values))
        spread = 1.4826 * float(np.median(level - values[values <= level]))
        kept = values[values < level + SIGMAS * spread]
        if len(kept) == len(values) or len(kept) < 50:
            break
        values = kept
    return level, spread
