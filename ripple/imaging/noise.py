"""Correlated noise: how neighbouring pixels of a coadd vary together, and how a kernel changes that.

Resampling correlates pixels, and the variance plane does not say so. After convolution with K the variance of
a pixel is `sum_ab K(a) K(b) rho(a - b) sigma²`: the usual `K² * variance` times
`sum_d rho(d) A(d) / A(0)`, with A the autocorrelation of K.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

Float = NDArray[np.float64]

LAG = 5  # px; resampling kernels of coadds reach 3 to 5 px
CLIP = 4.0  # sigma; sources that detection missed
MIN_PIXELS = 4_000  # sky pixels that fix a correlation to 0.016; with fewer, noise is taken for white
CHUNK = 32
#: Correlation of white noise.
WHITE: Float = np.zeros((2 * LAG + 1, 2 * LAG + 1))
WHITE[LAG, LAG] = 1


@dataclass(frozen=True, slots=True)
class Correlation:
    """Sums from which the correlation of B bands follows; sums of disjoint rows add up.

    Parameters
    ----------
    products, pairs
        `(B, 2 LAG + 1, 2 LAG + 1)` float64: summed products of normalised sky pixels at each lag, and how
        many there were.
    planes
        `(B,)` planes that went in.
    """

    products: Float
    pairs: Float
    planes: Float

    def __add__(self, other: Correlation) -> Correlation:
        return Correlation(
            self.products + other.products, self.pairs + other.pairs, self.planes + other.planes
        )

    def rho(self) -> Float:
        """`(B, 2 LAG + 1, 2 LAG + 1)` correlation coefficients; white where too little is known."""
        out = np.tile(WHITE, (len(self.products), 1, 1))
        whole = self.products.sum(axis=0), self.pairs.sum(axis=0)
        for band in range(len(out)):
            # Bands too crowded to tell take what all bands show together: they were resampled alike.
            enough = self.pairs[band, LAG, LAG] >= MIN_PIXELS
            products, pairs = (self.products[band], self.pairs[band]) if enough else whole
            if pairs[LAG, LAG] < MIN_PIXELS:
                continue
            r = products / np.maximum(pairs, 1)
            # What still varies together at the largest lags is not noise: wings of sources, or the mean taken
            # off each plane. It does so at all lags alike.
            far = np.concatenate([r[0], r[-1], r[:, 0], r[:, -1]])
            r = r - far.mean()
            out[band] = r / r[LAG, LAG]
        return out


def correlation(
    image: NDArray[np.floating], variance: NDArray[np.floating], sky: NDArray[np.bool_]
) -> Correlation:
    """Sum products of sky pixels at all lags up to `LAG`.

    Parameters
    ----------
    image, variance
        `(N, B, H, W)` nJy and nJy².
    sky
        `(N, B, H, W)` pixels without source or defect.
    """
    n, b, h, w = image.shape
    size = (scipy.fft.next_fast_len(h + LAG, real=True), scipy.fft.next_fast_len(w + LAG, real=True))
    lags = np.arange(-LAG, LAG + 1)
    products, pairs = np.zeros((b, 2 * LAG + 1, 2 * LAG + 1)), np.zeros((b, 2 * LAG + 1, 2 * LAG + 1))
    planes = np.zeros(b)
    for start in range(0, n, CHUNK):
        rows = slice(start, start + CHUNK)
        z, use = _normalised(image[rows], variance[rows], sky[rows])
        planes += use.any(axis=(2, 3)).sum(axis=0)
        for values, total in ((z, products), (use.astype(np.float64), pairs)):
            power = (np.abs(scipy.fft.rfft2(values, s=size)) ** 2).sum(axis=0)
            total += scipy.fft.irfft2(power, s=size)[:, lags[:, None], lags[None, :]]
    return Correlation(products, np.rint(pairs), planes)


def _normalised(
    image: NDArray[np.floating], variance: NDArray[np.floating], sky: NDArray[np.bool_]
) -> tuple[Float, NDArray[np.bool_]]:
    """Sky pixels over their noise, mean of each plane removed, 0 elsewhere; and where they are."""
    with np.errstate(all="ignore"):
        z = np.where(sky, image / np.sqrt(variance), 0.0)
    use = sky & np.isfinite(z)
    z = np.where(use, z, 0.0)
    for _ in range(2):
        count = np.maximum(use.sum(axis=(2, 3), keepdims=True), 1)
        level = z.sum(axis=(2, 3), keepdims=True) / count
        spread = np.sqrt((np.where(use, z - level, 0) ** 2).sum(axis=(2, 3), keepdims=True) / count)
        use &= np.abs(z - level) <= CLIP * np.maximum(spread, 1e-12)
        z = np.where(use, z, 0.0)
    count = np.maximum(use.sum(axis=(2, 3), keepdims=True), 1)
    return np.where(use, z - z.sum(axis=(2, 3), keepdims=True) / count, 0.0), use


def autocorrelation(power: NDArray[np.floating]) -> Float:
    """Autocorrelation of kernels at lags up to `LAG`.

    Parameters
    ----------
    power
        `(M, S, S // 2 + 1)` |rfft2|² of kernels in frames of S px, S larger than their width plus `LAG`, or
        kernels that are faint at their rim.

    Returns
    -------
    auto
        `(M, 2 LAG + 1, 2 LAG + 1)`; the centre is sum K².
    """
    size = power.shape[1]
    lags = np.arange(-LAG, LAG + 1)
    half = np.arange(power.shape[2])
    twice = np.where((half == 0) | (2 * half == size), 1.0, 2.0) / size**2  # modes that rfft2 leaves out
    wave = 2 * np.pi / size * lags
    along_x = np.exp(1j * wave * half[:, None]) * twice[:, None]
    along_y = np.exp(1j * wave[:, None] * np.arange(size))
    return np.asarray((along_y @ (power @ along_x)).real)


def variance_factor(auto: Float, rho: Float) -> Float:
    """What multiplies `K² * variance` when the noise has correlation `rho`.

    Parameters
    ----------
    auto
        `(M, L, L)` from `autocorrelation`.
    rho
        `(L, L)` or `(M, L, L)`.

    Returns
    -------
    factor
        `(M,)`, at least 0.01 (an estimated `rho` is not exactly a correlation function).
    """
    centre = auto[:, LAG, LAG]
    return np.maximum((auto * rho).sum(axis=(1, 2)) / centre, 0.01)


def damping(rho: Float) -> NDArray[np.float32]:
    """Noise of second differences along both axes over that of white noise, `(B,)`.

    `Var = sum_d A(d) rho(d) sigma²` with A the autocorrelation of (1, -2, 1) x (1, -2, 1); `A(0)` is 36.
    """
    one = np.array([1.0, -4.0, 6.0, -4.0, 1.0])  # autocorrelation of (1, -2, 1)
    near = slice(LAG - 2, LAG + 3)
    share = (rho[:, near, near] * np.outer(one, one)).sum(axis=(1, 2)) / 36
    return np.sqrt(np.clip(share, 0.02, 4.0)).astype(np.float32)


def noise_area(rho: Float, gain: Float) -> Float:
    """Pixels per independent sample after matching: sum of all correlations, `(M,)`.

    A mean over n pixels then has variance `sigma² area / n`. For kernels of sum 1 it is
    `sum rho / gain²`, with `gain²` the factor by which the variance of a pixel changed.
    """
    total: Float = np.maximum(rho.sum(axis=(-2, -1)), 0.01) / np.maximum(gain, 1e-6) ** 2
    return total
