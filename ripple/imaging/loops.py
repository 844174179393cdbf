"""Compiled loops over the pixels of cutouts. Importing this module loads numba: import it inside functions.

All take `(N, B, H, W)` planes: `image` and `variance` float32, `good` bool.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

_compile: Callable[[Callable[..., Any]], Callable[..., Any]] = numba.njit(
    cache=True, nogil=True, error_model="numpy"
)

# The bit patterns of positive floats are in the order of their values, so their leading bits are a bin.
BINS = 4096  # all positive float32: 16 to an octave
SHIFT = 19  # bits dropped from a float32 to get its bin
SPIKE_SIGMAS, SPIKE_SHARE = 8.0, 0.25  # an unmasked spike is this bright, its neighbours this faint
ROOT2 = np.float32(np.sqrt(2.0))
MEDIAN_CHI2 = 0.454936  # median of chi² with one degree of freedom


@_compile
def usable(image: Any, variance: Any, mask: Any, bits: Any, most: float, good: Any) -> None:
    """Which pixels are a measurement: |flux| < most, 0 < variance < most², none of `bits` in the mask.

    Where the variance of a plane is NaN throughout, only image and mask decide. Comparisons with NaN are
    false.
    """
    top, top2, none = np.float32(most), np.float32(most * most), np.uint32(0)
    bad = np.uint32(bits)
    for n in range(image.shape[0]):
        for b in range(image.shape[1]):
            # `known`: some pixel of the plane has a variance.
            known = False
            for y in range(image.shape[2]):
                for x in range(image.shape[3]):
                    known |= not np.isnan(variance[n, b, y, x])
            for y in range(image.shape[2]):
                p, v, m, g = image[n, b, y], variance[n, b, y], mask[n, b, y], good[n, b, y]
                if known:
                    for x in range(len(p)):
                        g[x] = (abs(p[x]) < top) & (v[x] > 0) & (v[x] < top2) & ((m[x] & bad) == none)
                else:
                    for x in range(len(p)):
                        g[x] = (abs(p[x]) < top) & ((m[x] & bad) == none)


@_compile
def to_half(words: Any, small: Any, out: Any) -> None:
    """Bits of float16 from those of float32, `(n,)` each: uint32, those of |value| + 1/2, and uint16.

    A normal number loses 13 bits of its mantissa, rounded to even by adding half of the last bit that stays,
    and its exponent is counted from 15 instead of 127.
    """
    for k in range(len(words)):
        sign = (words[k] >> np.uint32(16)) & np.uint32(0x8000)
        size = words[k] & np.uint32(0x7FFFFFFF)
        odd = (size >> np.uint32(13)) & np.uint32(1)
        normal = (size - np.uint32((127 - 15) << 23) + np.uint32(0xFFF) + odd) >> np.uint32(13)
        tiny = small[k] - np.uint32(0x3F000000)
        out[k] = (tiny if size < np.uint32(0x38800000) else normal) | sign


@_compile
def count_pixels(
    variance: Any, mask: Any, good: Any, seen: Any, missing: Any, bad: Any, centre_bad: Any
) -> None:
    """Per plane, into `(N, B)`: all mask bits that occur, and counts of pixels.

    `missing` have infinite variance, `bad` are not good, `centre_bad` not good in the central half.
    """
    height, width = good.shape[2], good.shape[3]
    y0, y1, x0, x1 = height // 4, height - height // 4, width // 4, width - width // 4
    for n in range(good.shape[0]):
        for b in range(good.shape[1]):
            # Three short loops instead of one: each becomes vector instructions on its own type.
            every, absent, wrong, middle = np.uint32(0), 0, 0, 0
            for y in range(height):
                v, m, g = variance[n, b, y], mask[n, b, y], good[n, b, y]
                for x in range(width):
                    every |= m[x]
                for x in range(width):
                    absent += v[x] == np.inf
                for x in range(width):
                    wrong += not g[x]
                if y0 <= y < y1:
                    for x in range(x0, x1):
                        middle += not g[x]
            seen[n, b], missing[n, b], bad[n, b], centre_bad[n, b] = every, absent, wrong, middle


@_compile
def block_means(image: Any, variance: Any, good: Any, k: int, means: Any, variances: Any) -> None:
    """Means of k x k blocks, centred, into `(N, B, H // k, W // k)`; NaN where half the pixels are bad."""
    rows, columns = means.shape[2], means.shape[3]
    # What does not divide by k is left out at both edges alike.
    y0, x0 = (image.shape[2] - rows * k) // 2, (image.shape[3] - columns * k) // 2
    for n in range(image.shape[0]):
        for b in range(image.shape[1]):
            for i in range(rows):
                for j in range(columns):
                    total, spread, count = np.float32(0), np.float32(0), 0
                    for y in range(y0 + i * k, y0 + i * k + k):
                        for x in range(x0 + j * k, x0 + j * k + k):
                            if good[n, b, y, x]:
                                total += image[n, b, y, x]
                                spread += variance[n, b, y, x]
                                count += 1
                    # A mean of few pixels would be noisier than the others and pass for a source.
                    enough = 2 * count > k * k
                    means[n, b, i, j] = total / np.float32(count) if enough else np.nan
                    variances[n, b, i, j] = spread / np.float32(count) if enough else np.nan


@_compile
def noise_ratios(image: Any, variance: Any, good: Any, ratio: Any) -> None:
    """Noise in second differences along both axes over that of the variance plane, into `(N, B)`; NaN
    without any.

    The kernel (1, -2, 1) x (1, -2, 1) sees neither slopes nor curvature along one axis (Immerkaer 1996,
    Comput. Vis. Image Underst. 64, 300), so that light of galaxies hardly enters: the median of its square
    over the sum of the nine variances, each times its squared weight, is that of chi² with one degree of
    freedom times ratio².
    """
    height, width = image.shape[2], image.shape[3]
    line = np.zeros(width, np.float32)
    as_bits = line.view(np.uint32)
    column, weight = np.zeros(width, np.float32), np.zeros(width, np.float32)
    whole = np.zeros(width, np.bool_)
    counts = np.zeros(BINS, np.int64)
    four = np.float32(4)
    for n in range(image.shape[0]):
        for b in range(image.shape[1]):
            counts[:] = 0
            total = 0
            for y in range(1, height - 1):
                p0, p, p2 = image[n, b, y - 1], image[n, b, y], image[n, b, y + 1]
                v0, v, v2 = variance[n, b, y - 1], variance[n, b, y], variance[n, b, y + 1]
                g0, g, g2 = good[n, b, y - 1], good[n, b, y], good[n, b, y + 1]
                # Along y first, then along x; short loops without a branch become vector instructions.
                for x in range(width):
                    column[x] = p0[x] - p[x] - p[x] + p2[x]
                    weight[x] = v0[x] + four * v[x] + v2[x]
                    whole[x] = g0[x] & g[x] & g2[x]
                for x in range(1, width - 1):
                    d = column[x - 1] - column[x] - column[x] + column[x + 1]
                    line[x] = d * d / (weight[x - 1] + four * weight[x] + weight[x + 1])
                for x in range(1, width - 1):
                    if whole[x - 1] & whole[x] & whole[x + 1]:
                        counts[as_bits[x] >> np.uint32(SHIFT)] += 1
                        total += 1
            ratio[n, b] = np.sqrt(_binned_median(counts, total) / MEDIAN_CHI2)


@_compile
def _binned_median(counts: Any, total: int) -> float:
    """The median of values counted in bins, linear inside its bin; NaN without any."""
    if total == 0:
        return np.nan
    edge = np.zeros(2, np.uint32)
    below, k = 0, 0
    while 2 * (below + counts[k]) < total:
        below += counts[k]
        k += 1
    edge[0], edge[1] = np.uint32(k) << np.uint32(SHIFT), np.uint32(k + 1) << np.uint32(SHIFT)
    low, high = edge.view(np.float32)
    return low + (high - low) * (0.5 * total - below) / counts[k] if k else 0.0


@_compile
def spikes(image: Any, good: Any, level: Any, noise: Any, count: Any) -> None:
    """Count pixels far above the noise whose four neighbours have hardly any of it: no PSF is so narrow."""
    for n in range(image.shape[0]):
        for b in range(image.shape[1]):
            p, base = image[n, b], level[n, b]
            # Neighbours that are bad count as dark: they cannot speak against a spike.
            limit = np.float32(base + SPIKE_SIGMAS * noise[n, b])
            for y in range(1, image.shape[2] - 1):
                for x in range(1, image.shape[3] - 1):
                    if p[y, x] > limit and good[n, b, y, x]:
                        around = np.float32(0)
                        for at in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                            if good[n, b, at[0], at[1]]:
                                around += p[at[0], at[1]] - base
                        if around < 4 * SPIKE_SHARE * (p[y, x] - base):  # mean of four
                            count[n, b] += 1


@_compile
def normal_matrices(blocks: Any, floor: float, share: float, out: Any) -> None:
    """Weighted sums for fitting bands by bands: `out` `(N, B + 1, B + 1)`, the first row for a constant.

    `blocks` `(N, B, K)` float32; those that are NaN in one band are left out. Weights are
    `1 / (floor² + (share * brightest band)²)`: the model errs in proportion to the light.
    """
    bands = blocks.shape[1]
    v = np.ones(bands + 1)
    for n in range(blocks.shape[0]):
        for k in range(blocks.shape[2]):
            most, whole = 0.0, True
            for b in range(bands):
                v[b + 1] = blocks[n, b, k]
                most = max(most, abs(v[b + 1]))
                whole &= np.isfinite(v[b + 1])
            if whole:
                weight = 1.0 / (floor * floor + share * share * most * most)
                # v[0] = 1 is the constant; the others are the bands.
                for i in range(bands + 1):
                    for j in range(bands + 1):
                        out[n, i, j] += weight * v[i] * v[j]


@_compile
def asinh(image: Any, offset: Any, scale: Any, gain: float, out: Any) -> None:
    """Inverse hyperbolic sines of planes, to 3e-7.

    `gain * asinh((image - offset) / scale)`, with `offset` and `scale` `(N, B)` float32.

    `asinh a = log1p(a + a² / (1 + sqrt(1 + a²)))` for a >= 0, and `log1p u = log y + (u - (y - 1)) / y` with
    `y = fl(1 + u)`, so small values keep their digits. The logarithm is the polynomial of Cephes' `logf`.
    Single operations on whole lines, as compilers make vector code of those.
    """
    one, two = np.float32(1), np.float32(2)
    width = image.shape[3]
    y, rest = np.empty(width, np.float32), np.empty(width, np.float32)
    bits = y.view(np.uint32)
    times = np.float32(gain)
    for n in range(image.shape[0]):
        for b in range(image.shape[1]):
            zero, unit = offset[n, b], scale[n, b]
            for row in range(image.shape[2]):
                line, done = image[n, b, row], out[n, b, row]
                for k in range(width):
                    a = abs((line[k] - zero) / unit)
                    t = min(a, one / a)  # no squares of large numbers
                    root = np.sqrt(one + t * t)
                    u = a + (a * t / (one + root) if a < one else a / (t + root))
                    y[k] = one + u
                    rest[k] = (u - (y[k] - one)) / y[k]
                for k in range(width):
                    # y = m 2^power with m in [1, 2): exponent and mantissa straight from the bits.
                    power = np.float32(np.int32(bits[k] >> np.uint32(23)) - np.int32(127))
                    bits[k] = (bits[k] & np.uint32(0x7FFFFF)) | np.uint32(0x3F800000)
                    m = y[k]
                    # m in [sqrt(1/2), sqrt 2], where the polynomial in m - 1 is accurate.
                    high = m > ROOT2
                    z = (m / two if high else m) - one
                    power = power + one if high else power
                    # Cephes logf; ln 2 is split into 0.693359375 and -2.12194440e-4 to keep digits.
                    s = np.float32(7.0376836292e-2)
                    s = s * z - np.float32(1.1514610310e-1)
                    s = s * z + np.float32(1.1676998740e-1)
                    s = s * z - np.float32(1.2420140846e-1)
                    s = s * z + np.float32(1.4249322787e-1)
                    s = s * z - np.float32(1.6668057665e-1)
                    s = s * z + np.float32(2.0000714765e-1)
                    s = s * z - np.float32(2.4999993993e-1)
                    s = s * z + np.float32(3.3333331174e-1)
                    s = s * z * z * z - np.float32(2.12194440e-4) * power - np.float32(0.5) * z * z
                    value = times * (z + s + np.float32(0.693359375) * power + rest[k])  # log y + rest
                    done[k] = value if line[k] >= zero else -value


@_compile
def correlate(a: Any, b: Any, beam: Any, width: int, white: float, cross: Any, sums: Any) -> None:
    """Spectra of smoothed cross-correlations, and sums that say how sure they are.

    Parameters
    ----------
    a, b
        `(M, H, W // 2 + 1)` complex64 transforms of planes.
    beam
        `(H, W // 2 + 1)` factor on the products.
    width
        W in pixels.
    white
        Power per mode of the noise.
    cross
        Gets `conj(a) b beam`.
    sums
        `(M, 3, 3)` gets sums over all modes of the power of `a` without noise, of that of `b`, and of the
        variance of their product, each plain and times ky² and kx².
    """
    height, half = a.shape[1], a.shape[2]
    for m in range(len(a)):
        total = np.zeros((3, 3))
        for y in range(height):
            ky = 2 * np.pi * min(y, height - y) / height
            for x in range(half):
                kx = 2 * np.pi * x / width
                p, q, w = a[m, y, x], b[m, y, x], beam[y, x]
                cross[m, y, x] = np.conj(p) * q * w
                # The half plane of rfft2 stands for two modes, but for its first and last column.
                times = 1.0 if x == 0 or 2 * x == width else 2.0
                first = p.real * p.real + p.imag * p.imag
                second = q.real * q.real + q.imag * q.imag
                # Signal power of a, of b, and variance of the product, see `check_registration`.
                parts = (
                    (first - white) * w * times,
                    (second - white) * w * times,
                    white * (first + second - white) * w * w * times,
                )
                for i in range(3):
                    total[i, 0] += parts[i]
                    total[i, 1] += ky * ky * parts[i]
                    total[i, 2] += kx * kx * parts[i]
        sums[m] = total


@_compile
def copy_boxes(plane: Any, x: Any, y: Any, out: Any, band: int) -> None:
    """Boxes of `plane` that start at `(x, y)` into `out[:, band]`, `(N, B, S, S)` of the same type."""
    # Without the interpreter lock, which the thread that hashes and writes needs meanwhile.
    size = out.shape[3]
    for i in range(out.shape[0]):
        for row in range(size):
            line, into = plane[y[i] + row, x[i] : x[i] + size], out[i, band, row]
            for column in range(size):
                into[column] = line[column]


@_compile
def count_bits(mask: Any, bits: Any, margin: int, count: Any) -> None:
    """Pixels of each plane without its margin that have any of `bits`, into `(N, B)`."""
    height, width = mask.shape[2], mask.shape[3]
    for n in range(mask.shape[0]):
        for b in range(mask.shape[1]):
            found = 0
            for y in range(margin, height - margin):
                for x in range(margin, width - margin):
                    found += (mask[n, b, y, x] & bits) != 0
            count[n, b] = found
