"""Compiled loops over rays: the light of a lensed source, and its images.

Importing this module loads numba: import it inside functions.

Numbers of a lens: `theta_e`, `q`, cosine and sine of its angle, `gamma1`, `gamma2`, `slope`, as in
`lensing.Deflector`. Those of a component of the source, a row of `parts`: its share of the flux, where it
is (x, y), half-light radius, axis ratio, cosine and sine of its angle, Sersic index, and the radius in
half-light radii beyond which it is smooth.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

_compile: Callable[[Callable[..., Any]], Callable[..., Any]] = numba.njit(
    cache=True, nogil=True, error_model="numpy"
)

#: Terms of the series of a power law at most, and the share of the first below which a term ends it.
TERMS, ENOUGH = 50, 1e-12
#: Step of the cells that integrate a component over a fine pixel, in half-light radii at its centre; there
#: are two samples along each side of a cell, at the places of Gauss and Legendre.
STEP, GAUSS = 0.6, 0.5 / math.sqrt(3.0)
#: Most cells along the side of a native pixel.
MOST = 32
#: Within this share of the Einstein radius a ray is followed for every sample; beyond, the deflection is
#: linear in a fine pixel.
CURVED = 0.35
#: Newton's steps to an image.
STEPS = 12


@_compile
def bend(lens: Any, x: float, y: float) -> Any:
    """Deflection at a place, and its derivatives: `ax, ay, axx, axy, ayy`.

    A power law is homogeneous: along the radius its deflection changes as a power of it. That and the
    convergence, half the trace, give the three derivatives.
    """
    theta, q, cos, sin, g1, g2, slope = lens
    u, v = cos * x + sin * y, cos * y - sin * x
    t = slope - 1.0
    if t == 1.0:
        # As in `lensing`: a round lens is a limit.
        q = min(q, 1.0 - 1e-5)
        f = math.sqrt(1.0 - q * q)
        psi = math.sqrt(q * q * u * u + v * v) + 1e-9
        b = theta * math.sqrt(q)
        au = b / f * math.atan(f * u / psi)
        av = b / f * 0.5 * math.log((psi + f * v) / (psi - f * v))
        trace = b / psi
    else:
        psi = max(math.sqrt(q * q * u * u + v * v), 1e-9)
        zu, zv = q * u / psi, v / psi
        small = -(1.0 - q) / (1.0 + q)
        tu, tv = small * (zu * zu - zv * zv), small * 2.0 * zu * zv
        su, sv = zu, zv
        for n in range(1, TERMS):
            k = (2 * n - 2 + t) / (2 * n + 2 - t)
            zu, zv = k * (zu * tu - zv * tv), k * (zu * tv + zv * tu)
            su += zu
            sv += zv
            if abs(zu) + abs(zv) < ENOUGH:
                break
        b = theta * math.sqrt(q)
        size = 2.0 / (1.0 + q) * b * (b / psi) ** (t - 1.0)
        au, av = size * su, size * sv
        trace = (2.0 - t) * (b / psi) ** t
    r = max(math.sqrt(u * u + v * v), 1e-9)
    c, s = u / r, v / r
    wu, wv = (1.0 - t) * au / r, (1.0 - t) * av / r
    rr, rt = wu * c + wv * s, wv * c - wu * s
    tt = trace - rr
    uu = c * c * rr - 2.0 * c * s * rt + s * s * tt
    vv = s * s * rr + 2.0 * c * s * rt + c * c * tt
    uv = c * s * (rr - tt) + (c * c - s * s) * rt
    ax = cos * au - sin * av + g1 * x + g2 * y
    ay = sin * au + cos * av + g2 * x - g1 * y
    axx = cos * cos * uu - 2.0 * cos * sin * uv + sin * sin * vv + g1
    ayy = sin * sin * uu + 2.0 * cos * sin * uv + cos * cos * vv - g1
    axy = cos * sin * (uu - vv) + (cos * cos - sin * sin) * uv + g2
    return ax, ay, axx, axy, ayy


@_compile
def _look_up(table: Any, per: float, square: float) -> float:
    """Brightness at a squared radius, from a table over the root of the radius."""
    at = math.sqrt(math.sqrt(square)) * per
    k = int(at)
    if k >= len(table) - 1:
        return 0.0
    return float(table[k] + (at - k) * (table[k + 1] - table[k]))


@_compile
def shine(lens: Any, parts: Any, tables: Any, per: float, dx: float, dy: float, over: int, out: Any) -> None:
    """Mean brightness in fine pixels, `over` to a native one, of a lensed source; per native pixel.

    Parameters
    ----------
    lens
        7 numbers.
    parts
        `(P, 9)` float64 components.
    tables
        `(P, T)` float64 brightness of each over the square root of the radius in half-light radii.
    per
        Entries of the tables per unit.
    dx, dy
        Where the lens lies from the centre, native pixels.
    over
        Fine pixels per native one.
    out
        `(F, F)` float32 zeros, F a multiple of `2 * over`; the centre is pixel `F // 2`.
    """
    fine = len(out)
    side, half = 2 * over, fine // 2
    for top in range(0, fine, side):
        y = (top + 0.5 * (side - 1) - half) / over - dy
        for left in range(0, fine, side):
            x = (left + 0.5 * (side - 1) - half) / over - dx
            ax, ay, axx, axy, ayy = bend(lens, x, y)
            r = math.sqrt(x * x + y * y)
            # How far from the ray of the centre those of the corners may land; 1.6: the shear varies.
            spread = 1.42 * (1.0 + 1.6 * math.sqrt(axx * axx + 2.0 * axy * axy + ayy * ayy))
            near, value = r < 4.0, 0.0
            for p in range(len(parts)):
                share, sx, sy, re, q, cos, sin, _, edge = parts[p]
                bx, by = x - ax - sx, y - ay - sy
                a, b = (cos * bx + sin * by) / re, (cos * by - sin * bx) / (q * re)
                square = a * a + b * b
                near |= math.sqrt(square) < edge + spread / (q * re)
                value += share * _look_up(tables[p], per, square)
            if near:
                _fine_pixels(lens, parts, tables, per, dx, dy, over, top, left, out)
            elif value > 0:
                # Far out the profile is smooth and faint.
                for i in range(top, top + side):
                    for j in range(left, left + side):
                        out[i, j] = value


@_compile
def _fine_pixels(
    lens: Any,
    parts: Any,
    tables: Any,
    per: float,
    dx: float,
    dy: float,
    over: int,
    top: int,
    left: int,
    out: Any,
) -> None:
    half, width = len(out) // 2, 1.0 / over
    for i in range(top, top + 2 * over):
        y = (i - half) * width - dy
        for j in range(left, left + 2 * over):
            x = (j - half) * width - dx
            ax, ay, axx, axy, ayy = bend(lens, x, y)
            curved = x * x + y * y < (CURVED * lens[0]) ** 2
            value = 0.0
            for p in range(len(parts)):
                share, sx, sy, re, q, cos, sin, n, edge = parts[p]
                bx, by = x - ax - sx, y - ay - sy
                ca, sa, cb, sb = cos / re, sin / re, cos / (q * re), -sin / (q * re)
                a, b = ca * bx + sa * by, cb * by + sb * bx
                # Change of a and b along x and y of the image.
                a_x, a_y = ca * (1.0 - axx) - sa * axy, sa * (1.0 - ayy) - ca * axy
                b_x, b_y = sb * (1.0 - axx) - cb * axy, cb * (1.0 - ayy) - sb * axy
                wide, high = (
                    width * math.sqrt(a_x * a_x + b_x * b_x),
                    width * math.sqrt(a_y * a_y + b_y * b_y),
                )
                nearest = max(math.sqrt(a * a + b * b) - 0.5 * (wide + high), 0.0)
                if nearest > edge:
                    value += share * _look_up(tables[p], per, a * a + b * b)
                    continue
                # Profiles of large index have a cusp at the centre; further out all are smoother.
                step = STEP * max(min(1.0, 1.0 / n**2), nearest)
                columns = min(int(wide / step) + 1, MOST // over)
                rows = min(int(high / step) + 1, MOST // over)
                total = 0.0
                for k in range(2 * rows):
                    oy = _place(k, rows) * width
                    for m in range(2 * columns):
                        ox = _place(m, columns) * width
                        if curved:
                            mx, my, _, _, _ = bend(lens, x + ox, y + oy)
                            bx, by = x + ox - mx - sx, y + oy - my - sy
                            pa, pb = ca * bx + sa * by, cb * by + sb * bx
                        else:
                            pa, pb = a + a_x * ox + a_y * oy, b + b_x * ox + b_y * oy
                        total += _look_up(tables[p], per, pa * pa + pb * pb)
                value += share * total / (4 * rows * columns)
            out[i, j] = value


@_compile
def _place(k: int, cells: int) -> float:
    """Where sample k lies between -1/2 and 1/2."""
    return (k // 2 + 0.5 + (GAUSS if k % 2 else -GAUSS)) / cells - 0.5


@_compile
def images(lens: Any, x: float, y: float, grid: int) -> int:
    """Number of images of a point of the source plane; see `lensing.image_count`."""
    theta = lens[0]
    half = 2.5 * theta + 1.5 * math.sqrt(x * x + y * y)
    step = 2.0 * half / (grid - 1)
    miss = np.empty((2, grid, 2))  # of two rows of the grid
    start, count = np.empty((grid * grid + 24, 2)), 0
    for i in range(grid):
        for j in range(grid):
            px, py = j * step - half, i * step - half
            ax, ay, _, _, _ = bend(lens, px, py)
            miss[i % 2, j, 0], miss[i % 2, j, 1] = px - ax - x, py - ay - y
        for j in range(1, grid if i else 0):
            a, b = miss[(i - 1) % 2, j - 1], miss[(i - 1) % 2, j]
            d, c = miss[i % 2, j - 1], miss[i % 2, j]
            if _holds_origin(a, b, c) or _holds_origin(a, c, d):
                start[count] = (j - 0.5) * step - half, (i - 0.5) * step - half
                count += 1
    # Faint images close to the centre lie between the points of the grid.
    for part in (0.03, 0.08, 0.15):
        for k in range(8):
            turn = 0.25 * math.pi * k
            start[count] = part * theta * math.cos(turn), part * theta * math.sin(turn)
            count += 1
    found = 0
    for k in range(count):
        px, py = start[k]
        for _ in range(STEPS):
            ax, ay, axx, axy, ayy = bend(lens, px, py)
            mx, my = px - ax - x, py - ay - y
            det = (1.0 - axx) * (1.0 - ayy) - axy * axy
            det = 1e-9 if abs(det) < 1e-9 else det
            gx, gy = ((1.0 - ayy) * mx + axy * my) / det, ((1.0 - axx) * my + axy * mx) / det
            # Near critical curves a full step would leave the image far behind.
            short = min(1.0, 0.2 * theta / max(math.sqrt(gx * gx + gy * gy), 1e-300))
            px, py = px - short * gx, py - short * gy
        ax, ay, _, _, _ = bend(lens, px, py)
        good = math.hypot(px - ax - x, py - ay - y) < 1e-6 * theta and math.hypot(px, py) > 1e-4 * theta
        for other in range(found):  # those found are kept at the head of `start`
            good &= math.hypot(px - start[other, 0], py - start[other, 1]) > 1e-3 * theta
        if good:
            start[found] = px, py
            found += 1
    return found


@_compile
def _holds_origin(a: Any, b: Any, c: Any) -> bool:
    first = a[0] * b[1] - a[1] * b[0] > 0
    same = first == (b[0] * c[1] - b[1] * c[0] > 0) and first == (c[0] * a[1] - c[1] * a[0] > 0)
    return bool(same)


@_compile
def project(lens: Any, picture: Any, place: Any, dx: float, dy: float, over: int, out: Any) -> None:
    """Mean brightness in fine pixels, `over` to a native one, of a lensed picture; per native pixel.

    Parameters
    ----------
    lens
        7 numbers.
    picture
        `(P, h, w)` float32 planes.
    place
        Where its centre is (x, y), cosine and sine of its angle, and its pixels per native pixel.
    dx, dy
        Where the lens lies from the centre, native pixels.
    over
        Fine pixels per native one.
    out
        `(P, F, F)` float32 zeros, F a multiple of `2 * over`; the centre is pixel `F // 2`.
    """
    sx, sy, cos, sin, scale = place
    planes, height, width = picture.shape
    fine = out.shape[1]
    side, half, step = 2 * over, fine // 2, 1.0 / over
    # Interpolation reaches two pixels beyond the picture, where it is dark.
    reach = (0.5 * math.sqrt(height * height + width * width) + 2.0) / scale
    values, weight_x, weight_y = np.empty(planes), np.empty(4), np.empty(4)
    for top in range(0, fine, side):
        y0 = (top + 0.5 * (side - 1) - half) * step - dy
        for left in range(0, fine, side):
            x0 = (left + 0.5 * (side - 1) - half) * step - dx
            ax, ay, axx, axy, ayy = bend(lens, x0, y0)
            spread = 1.42 * (1.0 + 1.6 * math.sqrt(axx * axx + 2.0 * axy * axy + ayy * ayy))
            away = math.hypot(x0 - ax - sx, y0 - ay - sy)
            if away > reach + spread and x0 * x0 + y0 * y0 > 16.0:
                continue
            for i in range(top, top + side):
                y = (i - half) * step - dy
                for j in range(left, left + side):
                    x = (j - half) * step - dx
                    ax, ay, axx, axy, ayy = bend(lens, x, y)
                    # Samples no further apart than a pixel of the picture.
                    wide = step * scale * math.hypot(1.0 - axx, axy)
                    high = step * scale * math.hypot(1.0 - ayy, axy)
                    columns, rows = min(int(wide) + 1, MOST // over), min(int(high) + 1, MOST // over)
                    values[:] = 0.0
                    for k in range(rows):
                        oy = ((k + 0.5) / rows - 0.5) * step
                        for m in range(columns):
                            ox = ((m + 0.5) / columns - 0.5) * step
                            bx, by, _, _, _ = bend(lens, x + ox, y + oy)
                            bx, by = x + ox - bx - sx, y + oy - by - sy
                            u = scale * (cos * bx + sin * by) + 0.5 * (width - 1)
                            v = scale * (cos * by - sin * bx) + 0.5 * (height - 1)
                            if u > -2.0 and v > -2.0 and u < width + 1.0 and v < height + 1.0:
                                _cubic(u - math.floor(u), weight_x)
                                _cubic(v - math.floor(v), weight_y)
                                first_x, first_y = math.floor(u) - 1, math.floor(v) - 1
                                for a in range(max(first_y, 0), min(first_y + 4, height)):
                                    for b in range(max(first_x, 0), min(first_x + 4, width)):
                                        w = weight_y[a - first_y] * weight_x[b - first_x]
                                        for p in range(planes):
                                            values[p] += w * picture[p, a, b]
                    for p in range(planes):
                        out[p, i, j] = values[p] * scale * scale / (rows * columns)


@_compile
def _cubic(t: float, out: Any) -> None:
    """Weights of four neighbours at a place between the middle two (Keys 1981, IEEE ASSP 29, 1153)."""
    out[0] = ((-0.5 * t + 1.0) * t - 0.5) * t
    out[1] = (1.5 * t - 2.5) * t * t + 1.0
    out[2] = ((-1.5 * t + 2.0) * t + 0.5) * t
    out[3] = (0.5 * t - 0.5) * t * t
