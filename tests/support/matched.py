"""PSF matching of a whole batch at once, variance included, as `preprocess --variance` does in chunks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripple.imaging import convolve
from ripple.imaging.batch import CutoutBatch
from ripple.imaging.psf import match
from ripple.imaging.psf.match import Float, Matching


def homogenise(
    batch: CutoutBatch, matching: Matching, good: NDArray[np.bool_], margin: int = 0, rho: Any = None
) -> tuple[Float, Float, NDArray[np.bool_]]:
    """Matched image, its variance, and valid pixels of a whole batch.

    Parameters
    ----------
    batch, matching
        See `plan_matching`.
    good
        `(N, B, H, W)` pixels that are a measurement.
    margin
        Pixels to cut off each side.
    rho
        `(B, L, L)` noise correlation, see `noise.Correlation.rho`; white when None.

    Returns
    -------
    image, variance, valid
        `(N, B, H - 2 margin, W - 2 margin)` float32 nJy, float32 nJy², bool.
    """
    frame = match.make_frame(matching.kernels, batch.image.shape[-2:], margin, variance=True)
    spread = match.variance_of_parts(batch, matching, rho)
    # In chunks: transforms of a whole batch would need several times its memory.
    chunks = [slice(s, s + convolve.CHUNK) for s in range(0, len(batch), convolve.CHUNK)]
    done = [
        match.apply(batch.image[c], good[c], matching.number[c], matching.parts.of(c), frame, spread[c])
        for c in chunks
    ]
    image, valid, variance = (np.concatenate([part[i] for part in done]) for i in range(3))
    if rho is not None:
        # The planes hold K² * variance, which is right for white noise.
        variance *= match.gains(matching, rho)[1][..., None, None]
    return image, variance, valid
