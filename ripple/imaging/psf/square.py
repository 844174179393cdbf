"""PSF images of any sides as the odd squares that RIPPLe stores, centred on their middle pixel."""

from __future__ import annotations

import numpy as np
import scipy
from numpy.typing import NDArray

from ripple.imaging.psf.shape import MAX_OFFSET, centroid

# An even side has no middle pixel: the centre is one of the two, or the edge between them.
_HALVES = (-1.0, -0.5, 0.0)


def odd_square(image: NDArray[np.floating]) -> NDArray[np.float32]:
    """A PSF image as `(K, K)` float32, K odd, centre pixel `K // 2`, sum 1.

    Parameters
    ----------
    image
        `(Ky, Kx)`, any unit. The centre of an odd side is its middle pixel. That of an even side is where the
        light is: pixel `n // 2` or the one before, or between the two; then it is moved by half a pixel.

    Raises
    ------
    ValueError
        Values are not finite, there is no light, or it is not in the middle.
    """
    psf = np.asarray(image, np.float64)
    if psf.ndim != 2 or not np.isfinite(psf).all():
        raise ValueError(f"a PSF of shape {psf.shape} with {int((~np.isfinite(psf)).sum())} undefined pixels")
    total, light = psf.sum(), np.abs(psf).sum()
    if not total > 0.5 * light:
        raise ValueError("it has no light, or as much negative as positive light")
    side = max(psf.shape) + 1 - max(psf.shape) % 2
    out = np.zeros((side, side))
    start, move = [], []
    for n, centre in zip(psf.shape, (float(v[0]) for v in centroid(psf[None])), strict=True):
        half = 0.0 if n % 2 else min(_HALVES, key=lambda h: abs(n // 2 + h - centre))
        if abs(n // 2 + half - centre) > MAX_OFFSET:
            raise ValueError(f"its light is centred on pixel {centre:.1f} of {n}")
        # The pixel that becomes the middle one, and what is left for an interpolation.
        centre_pixel = n // 2 + int(np.floor(half + 0.5))
        start.append(side // 2 - centre_pixel)
        move.append(centre_pixel - n // 2 - half)
    _paste(out, psf, start[0], start[1])
    middle = slice(side // 2 - 1, side // 2 + 2)
    # The moments of a PSF whose centre is the corner pixel, as FFTs want it, may look central.
    if out[middle, middle].max() < 0.5 * out.max():
        raise ValueError("its peak is not in the middle")
    if any(move):
        # Fourier's interpolation: exact for a PSF that is sampled well and fades out within the image.
        out = np.fft.ifft2(scipy.ndimage.fourier_shift(np.fft.fft2(out), move)).real
    return np.asarray(out / out.sum(), np.float32)


def _paste(out: NDArray[np.float64], psf: NDArray[np.float64], top: int, left: int) -> None:
    """Write `psf` into `out` with its first pixel at (top, left); what falls outside is cut off."""
    h, w = psf.shape
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + h, len(out)), min(left + w, out.shape[1])
    out[y0:y1, x0:x1] = psf[y0 - top : y1 - top, x0 - left : x1 - left]


def padded(psf: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """An odd square in the middle of a larger one of `side` pixels; zeros around it change nothing."""
    return np.pad(psf, (side - psf.shape[-1]) // 2)
