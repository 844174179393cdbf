"""Checks of how arcs were painted: cutouts before and after, against the light that was meant.

The difference of both is the arc with its photon noise, alone. The light that was meant is drawn again, and
goes through the PSF here, by other code than that which painted it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from ripple.imaging.batch import CutoutBatch
from ripple.imaging.simulation.profiles import Complex
from ripple.stages.inject.paint import Light, gain

Float = NDArray[np.float64]
#: Steps of the fit of a width, and the largest power of the PSF that it may find.
STEPS, WIDEST = 6, 9.0
#: Transforms of PSFs below are noise, of which no power is taken.
FLOOR = 1e-5
#: Second difference across and along, of unit sum of squares: it takes out what is as smooth as a PSF and
#: leaves white noise with the variance that it has.
FINE = np.outer((1.0, -2.0, 1.0), (1.0, -2.0, 1.0)) / 6.0
#: Arcs of fewer electrons than this in a band say nothing.
ELECTRONS = 100.0


@dataclass(frozen=True, slots=True)
class Painted:
    """What is found in one band of one row.

    Parameters
    ----------
    band
        Its position.
    flux
        Of the difference, nJy.
    width
        Width of the PSF that the arc went through over that of its cell, 1 where all is well.
    noise, expected_noise
        Sum over the pixels of the squared fine structure, and what photons give, nJy².
    added, photons
        Increase of the variance, and that of photons, summed over the pixels, nJy².
    """

    band: int
    flux: float
    width: float
    noise: float
    expected_noise: float
    added: float
    photons: float


def examine(before: CutoutBatch, after: CutoutBatch, k: int, light: Light) -> list[Painted]:
    """Look at each band of row k that has one PSF and enough light.

    Parameters
    ----------
    before, after
        The same rows, without and with arcs.
    k
        The row.
    light
        What was meant.
    """
    out = []
    # Where cells meet, no one PSF is that of the arc.
    first, last = np.searchsorted(before.psf_cells[:, 0], (k, k + 1))
    several = set(before.psf_cells[first:last, 1].tolist())
    electron = gain(before, k)
    for b in range(len(before.bands)):
        index = int(before.psf_index[k, b])
        good = np.isfinite(before.image[k, b]) & np.isfinite(before.variance[k, b])
        good &= np.isfinite(after.image[k, b]) & np.isfinite(after.variance[k, b])
        if index < 0 or b in several or not good.all() or electron[b] <= 0:
            continue
        difference = after.image[k, b].astype(np.float64) - before.image[k, b]
        if difference.sum() < ELECTRONS * electron[b]:
            continue
        spectrum = light.spectrum[b if len(light.spectrum) > 1 else 0] * light.fluxes[b]
        power, arc = fitted(difference, spectrum, before.psf[index])
        photons = np.maximum(arc, 0.0) * electron[b]
        fine = scipy.signal.convolve2d(difference - arc, FINE, "valid")
        added = after.variance[k, b].astype(np.float64) - before.variance[k, b]
        out.append(
            Painted(
                b,
                float(difference.sum()),
                float(np.sqrt(power)),
                float((fine**2).sum()),
                float(scipy.signal.convolve2d(photons, FINE**2, "valid").sum()),
                float(added.sum()),
                float(photons.sum()),
            )
        )
    return out


def fitted(image: Float, spectrum: Complex, psf: NDArray[np.floating]) -> tuple[float, Float]:
    """Power of the PSF, and brightness, with which light becomes an image.

    Parameters
    ----------
    image
        `(H, W)`.
    spectrum
        `(S, S // 2 + 1)` transform of the light, whose centre is pixel `S // 2`.
    psf
        `(K, K)`.

    Returns
    -------
    power
        By which the modulus of the transform of the PSF is raised: 1 for the PSF, 0 for none, and for a
        Gaussian the square of the width over that of the PSF.
    arc
        `(H, W)`, the best fit.
    """
    size, kernel = spectrum.shape[0], psf.shape[0]
    stamp = np.zeros((size, size))
    stamp[:kernel, :kernel] = psf
    transform = scipy.fft.rfft2(np.roll(stamp, (-(kernel // 2), -(kernel // 2)), (0, 1)))
    modulus = np.maximum(np.abs(transform), FLOOR * np.abs(transform[0, 0]))
    direction, log = transform / modulus, np.log(modulus)
    height, width = image.shape
    y, x = size // 2 - height // 2, size // 2 - width // 2

    def seen(power: float) -> tuple[Float, Float]:
        """The arc, and how it changes with the power."""
        part = spectrum * direction * np.exp(power * log)
        both = scipy.fft.irfft2(np.stack([part, part * log]), s=(size, size))
        arc, slope = both[:, y : y + height, x : x + width]
        return arc, slope

    power = 1.0
    for _ in range(STEPS):
        arc, slope = seen(power)
        columns = np.stack([arc.ravel(), slope.ravel()], axis=1)
        (bright, step), *_ = np.linalg.lstsq(columns, image.ravel(), rcond=None)
        # A step of the linear fit, no longer than its validity.
        power = float(np.clip(power + np.clip(step / max(bright, 1e-12), -0.7, 0.7), 0.0, WIDEST))
    arc, _ = seen(power)
    scale = float((arc * image).sum() / max((arc * arc).sum(), 1e-300))
    return power, scale * arc
