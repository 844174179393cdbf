"""PSF stamps: whether they are usable, how wide they are, and targets of a given width.

A width is always the FWHM of the PSF as the image shows it: of the stamp, which includes the integration over
pixels, measured by `fwhm`. The profile before pixels is narrower (4.32 px for a Moffat of 4.40 px).
"""

from __future__ import annotations

import functools
from enum import IntEnum
from typing import Literal

import numpy as np
import scipy
from numpy.typing import NDArray

from ripple.errors import ConfigError

Float = NDArray[np.float64]
Profile = Literal["moffat", "gaussian"]

MAX_OFFSET = 0.6  # px; a PSF further off its centre pixel was not cut out around its centre
# Rays every 30 degrees, sampled every half pixel.
FWHM_ANGLES, FWHM_STEP = 12, 0.5


class Fault(IntEnum):
    """What is wrong with a PSF stamp."""

    NONE = 0
    MISSING = 1
    NOT_FINITE = 2
    SUM = 3  # not positive, or so small that normalising amplifies its noise
    OFF_CENTRE = 4  # even sizes among them: the centre is not pixel K // 2
    NEGATIVE = 5  # more than a fifth of its light is negative
    SHAPE = 6  # no peak, or its half maximum lies outside the stamp


def faults(psf: NDArray[np.floating], width: NDArray[np.floating] | None = None) -> NDArray[np.uint8]:
    """Judge PSF stamps before they are trusted.

    Parameters
    ----------
    psf
        `(M, Ky, Kx)`; the centre is pixel `Ky // 2, Kx // 2`.
    width
        `fwhm(psf)` when it is known already.

    Returns
    -------
    fault
        `(M,)` values of `Fault`.
    """
    p = np.asarray(psf, np.float64)
    out = np.zeros(len(p), np.uint8)
    if not len(p):
        return out
    finite = np.isfinite(p).all(axis=(1, 2))
    p = np.where(finite[:, None, None], p, 0.0)
    total, light = p.sum(axis=(1, 2)), np.abs(p).sum(axis=(1, 2))
    # Half of the light may cancel: noise of real PSFs is far below, damage above.
    positive = total > 0.5 * np.maximum(light, 1e-30)
    # A delta function in place of unusable stamps, which get their fault below in any case.
    safe = np.where((positive & finite)[:, None, None], p, _delta(p.shape[1:]))
    y, x = centroid(safe)
    off = np.maximum(np.abs(y - p.shape[1] // 2), np.abs(x - p.shape[2] // 2)) > MAX_OFFSET
    off |= (p.shape[1] % 2 == 0) | (p.shape[2] % 2 == 0)
    negative = np.minimum(safe, 0).sum(axis=(1, 2)) < -0.1 * light
    # From mild to severe: later faults overwrite earlier ones.
    out[~np.isfinite(fwhm(p) if width is None else width)] = Fault.SHAPE
    out[negative] = Fault.NEGATIVE
    out[off] = Fault.OFF_CENTRE
    out[~positive] = Fault.SUM
    out[~finite] = Fault.NOT_FINITE
    return out


def _delta(shape: tuple[int, ...]) -> Float:
    out = np.zeros(shape)
    out[shape[0] // 2, shape[1] // 2] = 1.0
    return out


def centroid(psf: NDArray[np.floating]) -> tuple[Float, Float]:
    """First moments `(y, x)`, each `(M,)` in array pixels, of stamps `(M, Ky, Kx)`."""
    p = np.asarray(psf, np.float64)
    total = p.sum(axis=(1, 2))
    y = (p.sum(axis=2) @ np.arange(p.shape[1])) / total
    x = (p.sum(axis=1) @ np.arange(p.shape[2])) / total
    return y, x


def fwhm(psf: NDArray[np.floating]) -> Float:
    """Full width at half maximum of PSF stamps.

    Parameters
    ----------
    psf
        `(M, Ky, Kx)`.

    Returns
    -------
    width
        `(M,)` pixels: the diameter of the circle with the area inside the half-maximum contour, on a cubic
        spline through the pixels; NaN where the contour does not close inside the stamp.
    """
    p = np.asarray(psf, np.float64)
    m, h, w = p.shape
    if not m:
        return np.zeros(0)
    from ripple.imaging.psf import loops

    p = np.where(np.isfinite(p), p, 0.0)
    spline = scipy.ndimage.spline_filter1d(scipy.ndimage.spline_filter1d(p, axis=1), axis=2)
    y0, x0 = _peak(p)
    angle = np.arange(FWHM_ANGLES) * (2 * np.pi / FWHM_ANGLES)
    radius = np.empty((m, FWHM_ANGLES))  # px, filled by the loop
    steps = int(np.ceil(min(h, w) / 2 / FWHM_STEP))
    loops.half_radii(
        spline, y0, x0, np.stack([np.sin(angle), np.cos(angle)], axis=1), FWHM_STEP, steps, radius
    )
    return np.asarray(2 * np.sqrt((radius**2).mean(axis=1)))


def _peak(p: Float) -> tuple[Float, Float]:
    """Position `y, x` of the peak, from the quadratic at the highest pixel."""
    m, h, w = p.shape
    y, x = np.divmod(p.reshape(m, -1).argmax(axis=1), w)
    # No neighbours for a quadratic.
    if h < 3 or w < 3:
        return y.astype(float), x.astype(float)
    row, y, x = np.arange(m), np.clip(y, 1, h - 2), np.clip(x, 1, w - 2)
    c = p[row, y, x]
    left, right, down, up = p[row, y, x - 1], p[row, y, x + 1], p[row, y - 1, x], p[row, y + 1, x]
    with np.errstate(all="ignore"):
        sx = np.nan_to_num((right - left) / (2 * (2 * c - left - right)), posinf=0, neginf=0)
        sy = np.nan_to_num((up - down) / (2 * (2 * c - down - up)), posinf=0, neginf=0)
    return y + np.clip(sy, -0.5, 0.5), x + np.clip(sx, -0.5, 0.5)


def target_stamp(width: float, size: int, profile: Profile = "moffat", beta: float = 3.5) -> Float:
    """A round target PSF.

    Parameters
    ----------
    width
        FWHM in pixels of the stamp, so of the profile integrated over pixels: what `fwhm` measures on it.
    size
        Pixels per side, odd.
    profile, beta
        Moffat `(1 + r²/a²)^-beta`, or Gaussian.

    Returns
    -------
    stamp
        `(size, size)` float64, integrated over pixels, sum 1, centre pixel `size // 2`. The light beyond the
        stamp, `light_beyond`, is not in it.

    Raises
    ------
    ConfigError
        No PSF that is integrated over pixels is as narrow.
    """
    return _integrated(_profile_width(width, profile, beta), size, profile, beta)


@functools.cache
def _profile_width(width: float, profile: Profile, beta: float) -> float:
    """FWHM in pixels that a profile must have to be `width` wide once it is integrated over pixels."""
    # Enough for the half-maximum contour and the spline around it.
    size = 2 * int(width) + 11

    def excess(narrower: float) -> float:
        return float(fwhm(_integrated(narrower, size, profile, beta)[None])[0]) - width

    point = 0.05  # px: as good as a point, all of which falls into one pixel
    if excess(point) > 0:
        raise ConfigError(
            f"a target PSF of {width:.3g} px FWHM is narrower than the pixels allow",
            hint=f"a point in a pixel has {width + excess(point):.3g} px: choose a wider --psf",
        )
    return float(scipy.optimize.brentq(excess, point, width, xtol=1e-6))


def _integrated(width: float, size: int, profile: Profile, beta: float) -> Float:
    """A profile of FWHM `width` px integrated over pixels, `(size, size)` float64, sum 1."""
    # 25 samples per pixel integrate the profile over it.
    fine = 5
    t = (np.arange(size * fine) + 0.5) / fine - size / 2
    r2 = t[:, None] ** 2 + t[None, :] ** 2
    if profile == "gaussian":
        values = np.exp(-4 * np.log(2) * r2 / width**2)
    else:
        values = (1 + r2 / _moffat_radius(width, beta) ** 2) ** -beta
    stamp = values.reshape(size, fine, size, fine).sum(axis=(1, 3))
    return np.asarray(stamp / stamp.sum())


def _moffat_radius(width: float, beta: float) -> float:
    """The radius a of a Moffat profile, from its FWHM."""
    return float(width / 2 / np.sqrt(2 ** (1 / beta) - 1))


def light_beyond(radius: float, width: float, profile: Profile = "moffat", beta: float = 3.5) -> float:
    """Share of the light of an unlimited profile beyond a radius; `radius` and FWHM `width` in one unit."""
    if profile == "gaussian":
        return float(np.exp(-4 * np.log(2) * radius**2 / width**2))
    return float((1 + (radius / _moffat_radius(width, beta)) ** 2) ** (1 - beta))
