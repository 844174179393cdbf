"""What others want to know of tensors: the error of each normalised pixel, and the PSF width of each band."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripple.imaging.batch import TensorBatch
from ripple.imaging.normalize import denormalize, plane_constants, transform

Float = NDArray[np.float32]


def psf_widths(batch: TensorBatch) -> Float:
    """`(N, B)` FWHM in arcsec: of the common PSF, else that of each band as delivered; NaN when unknown."""
    if np.isfinite(batch.psf_fwhm):
        return np.full((len(batch), len(batch.bands)), batch.psf_fwhm, np.float32)
    return _of_bands(batch, "psf_fwhm")


def inverse_variance(batch: TensorBatch) -> Float:
    """`(N, B, H, W)` inverse variance of the normalised pixels; 0 where there is no measurement or no error.

    Notes
    -----
    The error of a pixel is half the difference of what normalisation makes of its flux plus and minus sigma,
    which is that of the variance that the tensors have, else the noise of a sky pixel.
    """
    out = np.zeros(batch.image.shape, np.float32)
    method: Any = batch.normalization.get("method")
    if batch.variance is None and not all(f"noise_{band}" in batch.catalog for band in batch.bands):
        return out  # tensors that `preprocess` did not make
    noise = (
        _of_bands(batch, "noise")[:, :, None, None]
        if batch.variance is None
        else np.sqrt(np.maximum(batch.variance, 0))
    )
    flux, (offset, scale) = denormalize(batch), plane_constants(batch)
    with np.errstate(invalid="ignore", over="ignore"):
        high, low = (
            transform((flux + sign * noise).astype(np.float32), offset, scale, method) for sign in (1, -1)
        )
        error = np.abs(high - low) / 2
    good = (batch.valid != 0) & np.isfinite(error) & (error > 0)
    out[good] = 1.0 / error[good] ** 2
    return out


def _of_bands(batch: TensorBatch, name: str) -> Float:
    """`(N, B)` of the columns `NAME_BAND`; NaN where there is none."""
    unknown = np.full(len(batch), np.nan, np.float32)
    return np.stack(
        [np.asarray(batch.catalog.get(f"{name}_{band}", unknown), np.float32) for band in batch.bands], axis=1
    )
