"""Compiled loops over PSF stamps and kernels. Importing this module loads numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

# numpy's rules for 0 / 0: NaN, which callers test for, and no exception out of compiled code.
_compile: Callable[[Callable[..., Any]], Callable[..., Any]] = numba.njit(
    cache=True, nogil=True, error_model="numpy"
)


@_compile
def _spline_weights(t: float, out: Any) -> None:
    """Cubic B-spline weights of the four coefficients around a point at fraction `t`."""
    s = 1.0 - t
    out[0] = s**3 / 6.0
    out[1] = 2.0 / 3.0 - t**2 * (2.0 - t) / 2.0
    out[2] = 2.0 / 3.0 - s**2 * (2.0 - s) / 2.0
    out[3] = t**3 / 6.0


@_compile
def _spline_value(spline: Any, y: float, x: float, wy: Any, wx: Any) -> float:
    """Spline value at `y, x`; coefficients outside of the stamp are 0."""
    height, width = spline.shape
    iy, ix = int(np.floor(y)), int(np.floor(x))
    _spline_weights(y - iy, wy)
    _spline_weights(x - ix, wx)
    total = 0.0
    for j in range(4):
        for i in range(4):
            yy, xx = iy + j - 1, ix + i - 1
            # Checked, since a negative index would take the opposite edge.
            if 0 <= yy < height and 0 <= xx < width:
                total += wy[j] * wx[i] * spline[yy, xx]
    return total


@_compile
def half_radii(spline: Any, y0: Any, x0: Any, angles: Any, step: float, steps: int, out: Any) -> None:
    """Distance from `y0, x0` to half the value there, along rays.

    Parameters
    ----------
    spline
        `(M, H, W)` float64 coefficients of cubic splines.
    y0, x0
        `(M,)` px.
    angles
        `(A, 2)` sine and cosine.
    step, steps
        Rays are sampled every `step` px, `steps` times; the crossing comes from the two samples around it and
        one secant step, as the profile is curved between samples.
    out
        `(M, A)` px; NaN where the ray ends above the half, or the value at its start is not positive.
    """
    wy, wx = np.empty(4), np.empty(4)
    for m in range(len(spline)):
        half = 0.5 * _spline_value(spline[m], y0[m], x0[m], wy, wx)
        for a in range(len(angles)):
            sin, cos = angles[a, 0], angles[a, 1]
            out[m, a] = np.nan
            # `inner`, `outer`: value minus half the peak, at the last and at this sample.
            inner = half
            for k in range(1, steps):
                r = k * step
                outer = _spline_value(spline[m], y0[m] + sin * r, x0[m] + cos * r, wy, wx) - half
                if outer <= 0 and half > 0:
                    fall = inner - outer if inner > outer else 1.0
                    # Linear between the samples, then one secant step from there.
                    r += step * (inner / fall - 1)
                    left = _spline_value(spline[m], y0[m] + sin * r, x0[m] + cos * r, wy, wx) - half
                    out[m, a] = r + left * step / fall
                    break
                inner = outer


@_compile
def rings(kernel: Any, out: Any) -> None:
    """Sum of |K| on each square around the centre, `(M, h + 1)`, of kernels `(M, 2h + 1, 2h + 1)`."""
    h = kernel.shape[1] // 2
    out[:] = 0.0
    for m in range(len(kernel)):
        for y in range(kernel.shape[1]):
            for x in range(kernel.shape[2]):
                out[m, max(abs(y - h), abs(x - h))] += abs(kernel[m, y, x])


@_compile
def _add_line(line: Any, above: Any, w: Any) -> None:
    """Add to each pixel of `line` the weighted sum of the pixels of `above` from its place on.

    Five taps at a time: a sum in registers, where one tap at a time would load and store the line for each.
    """
    width, taps = len(line), len(w)
    k = 0
    while k + 5 <= taps:
        a, b, c, d, e = w[k], w[k + 1], w[k + 2], w[k + 3], w[k + 4]
        for x in range(width):
            line[x] += (
                a * above[x + k]
                + b * above[x + k + 1]
                + c * above[x + k + 2]
                + d * above[x + k + 3]
                + e * above[x + k + 4]
            )
        k += 5
    for tap in range(k, taps):
        a = w[tap]
        for x in range(width):
            line[x] += a * above[x + tap]


@_compile
def convolve_parts(
    image: Any, part: Any, kernel: Any, number: Any, at_y: Any, at_x: Any, start: Any, out: Any
) -> None:
    """Convolve rectangles of planes, see `convolve.convolve_parts`.

    Parameters
    ----------
    image, part, kernel, number
        As there.
    at_y, at_x
        `(H + 2r,)`, `(W + 2r,)` pixels by position, from `r` before the first to `r` behind the last.
    start
        `(L,)` where each piece begins in `out`.
    out
        Pieces one after the other, zeros; written in place.
    """
    side = kernel.shape[1]
    for k in range(len(part)):
        row, band, y0, y1, x0, x1 = part[k]
        height, width = y1 - y0, x1 - x0
        weights = kernel[number[k]]
        # The rectangle with its surroundings, reflected at the edges once instead of per tap.
        source = np.empty((height + side - 1, width + side - 1), np.float32)
        for y in range(height + side - 1):
            for x in range(width + side - 1):
                source[y, x] = image[row, band, at_y[y0 + y], at_x[x0 + x]]
        for y in range(height):
            line = out[start[k] + y * width : start[k] + (y + 1) * width]
            for dy in range(side):
                # Turned by 180 degrees: a convolution, not a correlation.
                _add_line(line, source[y + dy], weights[side - 1 - dy, ::-1])
