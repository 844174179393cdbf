"""Compiled loops over the pixels of stamps. Importing this module loads numba: import it where pixels are.

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

BINS = 4096  # all positive float32: 16 to an octave
SHIFT = 19  # bits dropped from a float32 to get its bin
SPIKE_SIGMAS, SPIKE_SHARE = 8.0, 0.25  # an unmasked spike: so bright, while its neighbours have so little
MEDIAN_CHI2 = 0.454936  # of one degree of freedom


@_compile
def block_means(image: Any, variance: Any, good: Any, k: int, means: Any, variances: Any) -> None:
    """Means of k x k blocks, centred, into `(N, B, H // k, W // k)`; NaN where half the pixels are bad."""
    rows, columns = means.shape[2], means.shape[3]
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
                    enough = 2 * count > k * k
                    means[n, b, i, j] = total / np.float32(count) if enough else np.nan
                    variances[n, b, i, j] = spread / np.float32(count) if enough else np.nan


@_compile
def noise_ratios(image: Any, variance: Any, good: Any, ratio: Any) -> None:
    """Noise in second differences over that of the variance plane, into `(N, B)`; NaN without any.

    Second differences do not see slopes, so sources matter only where they curve: the median over both
    axes of `(p - 2 q + r)² / (vp + 4 vq + vr)` is that of chi² with one degree of freedom times ratio². Every
    other row is used, which fixes the noise to a per cent.
    """
    height, width = image.shape[2], image.shape[3]
    line = np.zeros(width, np.float32)
    as_bits = line.view(np.uint32)
    use = np.zeros(width, np.bool_)
    counts = np.zeros(BINS, np.int64)
    for n in range(image.shape[0]):
        for b in range(image.shape[1]):
            counts[:] = 0
            total = 0
            for y in range(0, height, 2):
                p, v, g = image[n, b, y], variance[n, b, y], good[n, b, y]
                for x in range(1, width - 1):
                    d = p[x - 1] - p[x] - p[x] + p[x + 1]
                    line[x] = d * d / (v[x - 1] + np.float32(4) * v[x] + v[x + 1])
                    use[x] = g[x - 1] & g[x] & g[x + 1]
                for x in range(1, width - 1):
                    if use[x]:
                        counts[as_bits[x] >> np.uint32(SHIFT)] += 1
                        total += 1
                if 1 <= y < height - 1:
                    p0, p2 = image[n, b, y - 1], image[n, b, y + 1]
                    v0, v2 = variance[n, b, y - 1], variance[n, b, y + 1]
                    g0, g2 = good[n, b, y - 1], good[n, b, y + 1]
                    for x in range(width):
                        d = p0[x] - p[x] - p[x] + p2[x]
                        line[x] = d * d / (v0[x] + np.float32(4) * v[x] + v2[x])
                        use[x] = g0[x] & g[x] & g2[x]
                    for x in range(width):
                        if use[x]:
                            counts[as_bits[x] >> np.uint32(SHIFT)] += 1
                            total += 1
            ratio[n, b] = np.sqrt(_middle(counts, total) / MEDIAN_CHI2)


@_compile
def _middle(counts: Any, total: int) -> float:
    """The median of values counted by `_bin`, linear inside its bin; NaN of none."""
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
            limit = np.float32(base + SPIKE_SIGMAS * noise[n, b])
            for y in range(1, image.shape[2] - 1):
                for x in range(1, image.shape[3] - 1):
                    if p[y, x] > limit and good[n, b, y, x]:
                        around = np.float32(0)
                        for at in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                            if good[n, b, at[0], at[1]]:
                                around += p[at[0], at[1]] - base
                        if around < 4 * SPIKE_SHARE * (p[y, x] - base):
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
                for i in range(bands + 1):
                    for j in range(bands + 1):
                        out[n, i, j] += weight * v[i] * v[j]
